"""What linear ops read, and once: cuts, strides, one value for what is the same, order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper
from ottt_models import graph

from privserve.compiler.arranging import _axes, _on_what_is_left
from privserve.compiler.compile import compile_model
from privserve.compiler.simulate import convolve_exactly, simulate
from privserve.fixedpoint import encode
from privserve.geometry import Geometry
from privserve.program import OP_KINDS

G = np.random.default_rng(31)
pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(
    spatial=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kernel=pairs,
    strides=pairs,
    dilations=pairs,
    pads=st.tuples(*[st.integers(0, 4)] * 4),
)
@settings(max_examples=300, deadline=None)
def test_a_convolution_on_what_it_reads_is_the_same_and_nothing_else_of_it_is_read(
    spatial, kernel, strides, dilations, pads
):
    geometry = Geometry((2, *spatial), 3, kernel, strides, pads, dilations)
    assume(min(geometry.output_shape) > 0)
    down, right = _axes(geometry)
    assume(down.rows and right.rows)
    narrow = _on_what_is_left(geometry, down, right)
    x = G.integers(-9, 9, (1, *geometry.shape))
    weight = G.integers(-9, 9, geometry.weight_shape)
    left = x[:, :, down.rows][:, :, :, right.rows]
    assert narrow.output_shape == geometry.output_shape
    expected = convolve_exactly(x, weight, geometry)
    assert np.array_equal(convolve_exactly(left, weight, narrow), expected)
    if dilations == (1, 1):  # every row that is left is read by some window
        assert all(
            _is_read(narrow, axis, row) for axis in (0, 1) for row in range(left.shape[2 + axis])
        )


def _is_read(g: Geometry, axis: int, row: int) -> bool:
    places = {
        i * g.strides[axis] + tap * g.dilations[axis] - g.pads[axis]
        for i in range(g.output_shape[axis + 1])
        for tap in range(g.kernel[axis])
    }
    return row in places


def conv(x: str, w: str, y: str, **attributes: object):
    return helper.make_node("Conv", [x, w], [y], name=y, **attributes)


def relu(x: str, y: str):
    return helper.make_node("Relu", [x], [y], name=y)


WEIGHTS = {
    "w": G.normal(size=(4, 3, 3, 3)) / 3,
    "p": G.normal(size=(4, 3, 1, 1)) / 2,
    "q": G.normal(size=(4, 4, 1, 1)) / 2,
}


def compiled(nodes, outputs=("y",), shape=(3, 9, 8), **options):
    names = {name for node in nodes for name in node.input}
    weights = {name: w for name, w in WEIGHTS.items() if name in names}
    model = graph(nodes, weights, shape, outputs)
    program, parameters = compile_model(model, **options)
    return model, program, parameters


def right(model, program, parameters) -> None:
    from onnx.reference import ReferenceEvaluator

    x = G.uniform(-8, 8, (3, *program.values[program.inputs[0].value].shape))
    got = simulate(program, parameters, [encode(x, program.fraction_bits)]).outputs
    expected = ReferenceEvaluator(model).run(None, {"x": x.astype(np.float32)})
    for one, other in zip(got, expected, strict=True):
        assert np.abs(one * 2.0**-program.output_fraction_bits - other).max() < 2e-3


def communicating(program) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (op.kind, program.values[op.inputs[0]].shape)
        for op in program.ops
        if OP_KINDS[op.kind].communicates
    ]


def test_a_convolution_of_one_tap_and_stride_2_opens_a_quarter_and_its_relu_is_one_of_that():
    model, *made = compiled([relu("x", "r"), conv("r", "p", "y", strides=[2, 2])])
    assert communicating(made[0]) == [("relu", (3, 5, 4)), ("linear", (3, 5, 4))]
    right(model, *made)


def test_a_convolution_makes_only_what_is_read_of_it():
    nodes = [conv("x", "w", "c", pads=[1, 1, 1, 1]), relu("c", "r")]
    model, *made = compiled([*nodes, conv("r", "q", "y", strides=[2, 2])])
    kinds = communicating(made[0])
    assert kinds == [("linear", (3, 9, 8)), ("relu", (4, 5, 4)), ("linear", (4, 5, 4))]
    right(model, *made)


def test_a_shortcut_shares_the_opening_of_the_first_convolution():
    nodes = [
        relu("x", "r"),
        conv("r", "w", "a", pads=[1, 1, 1, 1]),
        relu("a", "b"),
        conv("b", "q", "c"),
        conv("r", "p", "s"),
        helper.make_node("Add", ["c", "s"], ["y"], name="y"),
    ]
    model, *made = compiled(nodes)
    kinds = [kind for kind, _ in communicating(made[0])]
    assert kinds == ["relu", "linear", "linear", "relu", "linear"]
    assert len(made[0].leaders) == 1
    right(model, *made)


def test_two_convolutions_of_stride_2_share_what_is_cut_out_once():
    nodes = [
        relu("x", "r"),
        conv("r", "p", "a", strides=[2, 2]),
        conv("r", "p", "b", strides=[2, 2]),
        helper.make_node("Mul", ["a", "b"], ["y"], name="y"),
    ]
    model, *made = compiled(nodes)
    linear = [shape for kind, shape in communicating(made[0]) if kind == "linear"]
    assert linear == [(3, 5, 4)] * 2
    assert len(made[0].leaders) == 1
    right(model, *made)


def test_a_value_that_is_read_in_full_is_opened_in_full_once():
    nodes = [
        relu("x", "r"),
        conv("r", "p", "a", strides=[2, 2]),
        conv("r", "w", "y", pads=[1, 1, 1, 1]),
    ]
    model, *made = compiled(nodes, ("y", "a"))
    assert [shape for _, shape in communicating(made[0])] == [(3, 9, 8)] * 3
    assert len(made[0].leaders) == 1
    right(model, *made)


def test_a_residual_sum_is_made_for_what_is_read_of_it():
    nodes = [
        relu("x", "r"),
        conv("r", "w", "a", pads=[1, 1, 1, 1]),
        conv("r", "p", "s"),
        helper.make_node("Add", ["a", "s"], ["t"], name="t"),
        relu("t", "u"),
        conv("u", "q", "y", strides=[2, 2]),
    ]
    model, *made = compiled(nodes)
    kinds = communicating(made[0])
    assert ("relu", (4, 5, 4)) in kinds
    right(model, *made)


def test_projections_of_one_value_share_its_opening_through_equal_reshapes():
    names = ("k", "v", "o")
    nodes = [helper.make_node("MatMul", ["x", f"w{n}"], [n], name=n) for n in names]
    sums = [helper.make_node("Add", ["k", "v"], ["h"]), helper.make_node("Add", ["h", "o"], ["y"])]
    model = graph([*nodes, *sums], {f"w{n}": G.normal(size=(6, 4)) for n in names}, (5, 6))
    program, parameters = compile_model(model)
    assert len(program.leaders) == 2
    right(model, program, parameters)


@pytest.mark.parametrize("read_twice", [False, True])
def test_what_something_else_reads_is_not_cut(read_twice):
    nodes = [relu("x", "r"), conv("r", "p", "y", strides=[2, 2])]
    model, *made = compiled(nodes, ("y", "r") if read_twice else ("y",))
    assert communicating(made[0])[0] == ("relu", (3, 9, 8) if read_twice else (3, 5, 4))
    right(model, *made)


def test_strict_inputs_are_lifted_whole_before_anything_is_cut_out_of_them():
    nodes = [conv("x", "p", "y", strides=[2, 2])]
    model, *made = compiled(nodes, strict_inputs=True)
    assert communicating(made[0]) == [("relu", (3, 9, 8)), ("linear", (3, 5, 4))]
    right(model, *made)
