"""Maxima before ReLUs, and of values that keep their surplus bits."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from ottt_models import graph
from ottt_session import Session, uniform

from privserve.compiler.bounds import Bounds
from privserve.compiler.builder import ProgramBuilder
from privserve.compiler.comparisons import maximum
from privserve.compiler.compile import compile_model
from privserve.compiler.ranges import Range
from privserve.compiler.simulate import simulate
from privserve.engines.ottt.costs import cost_of_op
from privserve.program import OP_KINDS, Program

G = np.random.default_rng(41)


def net(kernel: int, stride: int, *, first: str = "relu", read_twice: bool = False, **pool: object):
    """A convolution, then ReLU and maximum in this order or the other one, then a convolution."""
    steps = {
        "relu": lambda x, y: helper.make_node("Relu", [x], [y], name="positive"),
        "pool": lambda x, y: helper.make_node(
            "MaxPool",
            [x],
            [y],
            name="pool",
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            **pool,
        ),
    }
    order = [first, "pool" if first == "relu" else "relu"]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        steps[order[0]]("c", "m"),
        steps[order[1]]("m", "n"),
        helper.make_node("Conv", ["n", "v"], ["y"], name="last"),
    ]
    weights = {"w": G.normal(size=(3, 2, 3, 3)) / 3, "v": G.normal(size=(2, 3, 1, 1))}
    return graph(nodes, weights, (2, 10, 10), ("y", "m") if read_twice else ("y",))


def compared(program: Program) -> int:
    """Comparisons per query."""
    return sum(program.values[op.inputs[0]].size for op in program.ops if op.kind == "relu")


def openings(program: Program) -> list[str]:
    return [op.kind for op in program.ops if OP_KINDS[op.kind].communicates]


def test_a_pool_of_2_x_2_takes_n_comparisons_and_no_truncation_in_either_order():
    for first in ("relu", "pool"):
        program, _ = compile_model(net(2, 2, first=first))
        assert compared(program) == 3 * 8 * 8  # instead of 1.75 times that, or of a truncation
        assert openings(program) == ["linear", "relu", "relu", "relu", "linear"]
        assert sum(cost_of_op(program, op).exchanges for op in program.ops) == 8


def test_the_relu_stays_first_where_that_is_no_less_work_or_something_else_reads_it():
    def last(model):
        program, _ = compile_model(model)
        return [op.layer for op in program.ops if op.kind == "relu"]

    assert last(net(2, 2)) == ["pool", "pool", "positive"]
    assert last(net(2, 1, auto_pad="SAME_UPPER"))[0] == "positive"
    assert last(net(2, 2, read_twice=True))[0] == "positive"


def test_a_ring_that_has_no_room_for_the_maxima_keeps_the_order():
    program, _ = compile_model(net(2, 2), input_range=(-(2.0**22), 2.0**22), fraction_bits=14)
    longest = max(op.attributes["comparison_bits"] for op in program.ops if op.kind == "relu")
    assert longest <= 44
    assert not program.guards


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize(
    ("kernel", "stride", "pool"),
    [(2, 2, {}), (3, 2, {"pads": [1, 1, 1, 1]}), (4, 3, {"ceil_mode": 1}), (5, 5, {})],
)
def test_answers_are_the_models(kernel, stride, pool, parties):
    for first in ("relu", "pool"):
        model = net(kernel, stride, first=first, **pool)
        with Session(model, parties) as session:
            x = uniform((3, 2, 10, 10), -8, 8)
            (out,) = session.query(x)
        (expected,) = ReferenceEvaluator(model).run(None, {"x": x.astype(np.float32)})
        assert np.abs(out - expected).max() < 3e-3


@pytest.mark.parametrize("surplus", [0, 3, 18])
def test_a_maximum_errs_by_a_truncation_and_keeps_its_surplus_bits(surplus):
    builder = ProgramBuilder(14, Bounds(14))
    limit = 2 ** (16 + surplus)
    values = G.integers(-limit, limit, (2, 40, 9))
    values[0, :, 0] = values[1, :, 0]
    step = 2.0 ** -(14 + surplus)
    ends = np.full(9, limit * step)
    x, y = (
        builder.input((9,), 14 + surplus, Range(-ends, ends, np.zeros((1, 9)))) for _ in range(2)
    )
    out = maximum(builder, x, y)
    assert out.step == step
    program = builder.finish([("x", x), ("y", y)], [("z", out, None)], (-1.0, 1.0))
    (got,) = simulate(program, {}, list(values)).outputs
    most = values.max(0)
    assert np.abs(got - most).max() <= (2**surplus if surplus else 0)
    assert (np.abs(got) * step <= out.range.magnitude).all()
    # The comparison's result is needed without the surplus.
    relu = next(op for op in program.ops if op.kind == "relu")
    assert program.values[relu.output].bits == 64 - surplus
