"""Local ops: what `program.OP_KINDS` says of the memory of their results is true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from privserve import local
from privserve.engines.ottt.ops import TUPLE_OPS
from privserve.program import OP_KINDS, Memory

SHAPE = (2, 4, 4)
CALLS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "reshape": ({}, (8, 4)),
    "reread": ({}, SHAPE),
    "transpose": ({"axes": [1, 0, 2]}, (4, 2, 4)),
    "pad": ({"pads": [[0, 0], [0, 0], [0, 0]], "value": 3}, SHAPE),
    "slice": ({"slices": [[0, 2, 1], [0, 4, 2], [0, 4, 1]]}, (2, 2, 4)),
    "concat": ({"axis": 0}, (4, 4, 4)),
    "gather": ({"rows": [0, 1], "axis": 0}, SHAPE),
    "expand": ({}, SHAPE),
    "add": ({}, SHAPE),
    "sub": ({}, SHAPE),
    "scale": ({"factor": 1}, SHAPE),
    "offset": ({"value": 5}, SHAPE),
    "add_parameter": ({"parameter": "p"}, SHAPE),
    "sum_pool": ({"kernel": [1, 1], "strides": [1, 1], "pads": [0, 0, 0, 0]}, SHAPE),
}


def test_every_kind_of_op_is_local_or_takes_a_tuple() -> None:
    assert set(CALLS) == set(local.LOCAL)
    assert set(local.LOCAL) | set(TUPLE_OPS) == set(OP_KINDS)
    assert not set(local.LOCAL) & set(TUPLE_OPS)
    communicating = {kind for kind, facts in OP_KINDS.items() if facts.communicates}
    assert communicating == set(TUPLE_OPS) - {"check"}


@pytest.mark.parametrize("lead", [True, False])
@pytest.mark.parametrize("kind", CALLS)
def test_a_result_takes_the_memory_that_its_kind_says(kind: str, lead: bool) -> None:
    """Even where there is nothing to do, as in padding by nothing or gathering all rows."""
    attributes, shape = CALLS[kind]
    x, y = (np.arange(3 * 32, dtype=np.int64).reshape(3, *SHAPE) for _ in range(2))
    inputs = [x, y] if kind in ("add", "sub", "concat") else [x]
    out = local.apply(kind, attributes, inputs, shape, lead, {"p": np.ones(SHAPE, np.int64)})
    assert out.shape == (3, *shape)
    memory = OP_KINDS[kind].memory
    if memory is Memory.NEW:
        assert not any(np.shares_memory(out, source) for source in inputs)
    if memory is Memory.SAME:
        out.reshape(-1)[17] = -1
        assert np.shares_memory(out, x)
        assert x.reshape(-1)[17] == -1
