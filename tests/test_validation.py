"""Programs that come over the network: refused, or right; never a crash."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import mutated_programs
import numpy as np
import pytest
from onnx import helper
from ottt_models import graph

from privserve.engines import Prepared, ottt
from privserve.engines.ottt.compute import check_shares
from privserve.errors import ModelError
from privserve.program import OP_KINDS
from privserve.validation import CHECKS, read_program

SUPPORT = Path(mutated_programs.__file__).parent


def test_every_kind_of_op_has_its_check() -> None:
    assert CHECKS.keys() == OP_KINDS.keys()


@pytest.mark.parametrize("number", range(0, mutated_programs.BASES, 4))
def test_what_the_compiler_makes_is_read_as_it_was_written(number: int) -> None:
    prepared = mutated_programs.base(number)
    program = read_program(json.loads(json.dumps(prepared.description)))
    assert {**program.to_json(), "engine": "ottt"} == prepared.description
    check_shares(program, prepared.parameters)


def small_net() -> Prepared:
    """Convolution, ReLU, a dense layer that is too large to go beside it."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    weights = {"w": np.ones((2, 1, 3, 3)) / 9, "v": np.ones((32, 300)) / 32}
    return ottt.prepare(graph(nodes, weights, (1, 6, 6)), input_range=(0.0, 1.0))


def of_kind(fields: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(op for op in fields["ops"] if op["kind"] == kind)


ATTACKS = {
    "a geometry larger than its input": (
        lambda f: of_kind(f, "linear")["attributes"]["geometry"].update(shape=[1, 60, 60]),
        "geometry is not its input's",
    ),
    "a geometry with more outputs than its value": (
        lambda f: of_kind(f, "linear")["attributes"]["geometry"].update(outputs=64),
        "another shape",
    ),
    "strides of zero": (
        lambda f: of_kind(f, "linear")["attributes"]["geometry"].update(strides=[0, 1]),
        "strides",
    ),
    "an op that reads itself": (
        lambda f: of_kind(f, "relu").update(inputs=[of_kind(f, "relu")["output"]]),
        "no op before it makes",
    ),
    "a step that is no float": (
        lambda f: f["values"][0].update(step=10**400),
        "step is no finite number",
    ),
    "a value beyond all values": (
        lambda f: of_kind(f, "relu").update(inputs=[9999]),
        "'inputs'",
    ),
    "a comparison that is too long": (
        lambda f: of_kind(f, "relu")["attributes"].update(comparison_bits=60),
        "from 6 to 44",
    ),
    "shift and K beyond the ring": (
        lambda f: of_kind(f, "relu")["attributes"].update(shift=60),
        "exceed the ring",
    ),
    "fewer bits than a comparison needs": (
        lambda f: f["values"][of_kind(f, "relu")["inputs"][0]].update(bits=3),
        "carries fewer",
    ),
    "a value of 2^40 elements": (
        lambda f: f["values"][0].update(shape=[1 << 20, 1 << 20]),
        "too large",
    ),
    "True for a number": (
        lambda f: of_kind(f, "relu")["attributes"].update(guard=True),
        "'guard'",
    ),
    "an unknown op": (lambda f: of_kind(f, "relu").update(kind="exec"), "does not know the op"),
    "guards that are not there": (lambda f: f.update(guards=["conv"]), "guards"),
}


@pytest.mark.parametrize(("change", "why"), ATTACKS.values(), ids=ATTACKS)
def test_what_kernels_rely_on_is_refused_with_the_op_that_lacks_it(change: Any, why: str) -> None:
    """A geometry larger than its values used to end in a segmentation fault."""
    fields = json.loads(json.dumps(small_net().description))
    read_program(copy.deepcopy(fields))
    change(fields)
    with pytest.raises(ModelError, match=why):
        read_program(fields)


def test_shares_that_do_not_fit_the_program_are_refused() -> None:
    prepared = small_net()
    program = read_program(prepared.description)
    name = next(iter(prepared.parameters))
    check_shares(program, prepared.parameters)
    for wrong in ({}, {**prepared.parameters, name: np.zeros(5000, np.int64)}):
        with pytest.raises(ModelError, match=f"no parameter '{name}'"):
            check_shares(program, wrong)


def survive(first: int, count: int, seconds: int, **environment: str) -> Counter[str]:
    """Let a process of its own try mutated descriptions; what came of them."""
    path = os.pathsep.join([str(SUPPORT), *sys.path])
    ran = subprocess.run(
        [sys.executable, "-m", "mutated_programs", str(first), str(count)],
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    lines = ran.stdout.splitlines()
    last = lines[-1] if lines else "none"
    assert ran.returncode == 0, f"seed {last} ended the process ({ran.returncode}):\n{ran.stderr}"
    assert len(lines) == count
    failed = [line for line in lines if line.endswith("failed")]
    assert not failed, f"seeds {failed[:9]}:\n{ran.stderr[-3000:]}"
    return Counter(line.split(maxsplit=1)[1] for line in lines)


def test_mutated_descriptions_are_refused_or_run() -> None:
    came = survive(0, 200, 240)
    assert came["refused"] > 60
    assert came["ran"] > 12, came


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_mutated_descriptions_are_refused_or_run() -> None:
    came = sum(
        (survive(first, 10_000, 1800) for first in range(10_000, 110_000, 10_000)), Counter()
    )
    assert came["refused"] > 30_000
    assert came["ran"] > 5_000, came


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_kernel_reads_or_writes_beyond_an_array(tmp_path: Path) -> None:
    """With numba's bounds checks, which kernels do without in service."""
    came = survive(200_000, 1500, 1700, NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(tmp_path))
    assert came["ran"] > 100, came
