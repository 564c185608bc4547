"""The interval that strict inputs are lifted to, and who may read an input before it is."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from ottt_models import graph

from privserve.compiler.compile import compile_model
from privserve.errors import ModelError
from privserve.fixedpoint import encode
from privserve.lift import LEAST_BITS, lift_for, read_lift
from privserve.program import Lift, Program
from privserve.validation import read_program

ENDS = st.one_of(
    st.floats(-1e6, 1e6),
    st.integers(-1000, 1000).map(float),
    st.integers(-12, 12).map(lambda e: 2.0**e),
    st.integers(-12, 12).map(lambda e: -(2.0**e)),
    st.just(0.0),
)


@settings(max_examples=1000, deadline=None)
@given(ENDS, ENDS, st.integers(4, 20))
def test_a_lift_holds_the_range_is_less_than_twice_as_wide_and_changes_no_sign(
    one: float, other: float, bits: int
) -> None:
    low, high = min(one, other), max(one, other)
    if low == high:
        high = low + 1.0
    try:
        lift = lift_for((low, high), bits)
    except ModelError:
        assert (high - low) * 2.0**bits > 2**43 - 2
        return
    first, last = (int(end) for end in encode([low, high], bits))
    start, stop = lift.start, lift.start + 2**lift.bits - 1
    assert start <= first <= last <= stop
    assert 2**lift.bits < 2 * (last - first + 1) or lift.bits == LEAST_BITS
    if first >= 0:
        assert start == first
    elif last <= 0:
        assert stop == last
    else:
        assert 0 <= (stop - last) - (first - start) <= 1, "centred"
    assert lift.interval(2.0**-bits) == (start * 2.0**-bits, stop * 2.0**-bits)


@pytest.mark.parametrize("input_range", [(-1e9, 1e9), (1e30, 2e30), (-1e300, -1e299)])
def test_a_range_of_too_many_units_is_refused_with_the_way_out(
    input_range: tuple[float, float],
) -> None:
    with pytest.raises(ModelError, match=r"strict inputs do not fit.*--input-range"):
        lift_for(input_range, 14)


def test_a_lift_is_read_as_it_was_written_and_refused_where_it_is_malformed() -> None:
    assert read_lift(None) is None
    assert read_lift({"start": -5, "bits": 9}) == Lift(-5, 9)
    for given_fields in (
        3,
        {},
        {"start": 0.5, "bits": 9},
        {"start": 0, "bits": 44},
        {"start": 0, "bits": 4},
        {"start": 1 << 63, "bits": 9},
        {"start": True, "bits": 9},
    ):
        with pytest.raises(ModelError, match="not valid"):
            read_lift(given_fields)


def description(input_range: tuple[float, float]) -> dict[str, Any]:
    """A program that reads its one input twice, and has it as an output."""
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["g"]),
        helper.make_node("Add", ["x", "g"], ["y"]),
        helper.make_node("Identity", ["x"], ["z"]),
    ]
    model = graph(nodes, {"w": np.eye(4)}, (4,), ("y", "z"))
    program, _ = compile_model(model, input_range=input_range, strict_inputs=True)
    return program.to_json()


def first_of(fields: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(op for op in fields["ops"] if op["kind"] == kind)


def read_raw(fields: dict[str, Any]) -> None:
    first_of(fields, "linear")["inputs"] = [fields["inputs"][0]["value"]]


def read_moved(fields: dict[str, Any]) -> None:
    first_of(fields, "linear")["inputs"] = [first_of(fields, "relu")["inputs"][0]]


def give_raw(fields: dict[str, Any]) -> None:
    fields["outputs"][0].update(value=fields["inputs"][0]["value"])


def compare_fewer(fields: dict[str, Any]) -> None:
    first_of(fields, "relu")["attributes"]["comparison_bits"] -= 1


def move_elsewhere(fields: dict[str, Any]) -> None:
    first_of(fields, "offset")["attributes"]["value"] += 1


def say_another(fields: dict[str, Any]) -> None:
    fields["lift"]["bits"] += 1


EVERYWHERE = [read_raw, give_raw, compare_fewer, say_another]
MOVED = [read_moved, move_elsewhere]
"""Only where a lift does not begin at zero is there an offset."""


@pytest.mark.parametrize(
    ("change", "input_range"),
    [
        *((change, (-8.0, 8.0)) for change in [*EVERYWHERE, *MOVED]),
        *((change, (0.0, 1.0)) for change in EVERYWHERE),
    ],
)
def test_a_program_that_does_not_lift_what_it_says_is_refused(
    change: Any, input_range: tuple[float, float]
) -> None:
    fields = description(input_range)
    read: Program = read_program(copy.deepcopy(fields))
    assert read.lift is not None
    for value in fields["values"]:  # so that no other check finds it first
        value["bits"] = 64
    change(fields)
    with pytest.raises(ModelError, match="not valid"):
        read_program(fields)
