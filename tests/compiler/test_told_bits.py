"""How coarsely outputs are told: by what their magnitude calls for, and no error is left out."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from ottt_models import graph
from ottt_session import Session, uniform

from privserve.compiler.accuracy import compile_accurately
from privserve.compiler.bounds import Bounds
from privserve.compiler.builder import ProgramBuilder
from privserve.compiler.compile import compile_model
from privserve.compiler.ranges import Range
from privserve.compiler.simulate import told
from privserve.compiler.traced import ROUNDING_MARGIN
from privserve.errors import ModelError
from privserve.party.answers import AnswerCoins
from privserve.prg import Prg
from privserve.program import Program

UNIT = 14 + ROUNDING_MARGIN
"""Fraction bits that a value of ordinary size is told with, under 14 fraction bits."""


def told_bits(program: Program) -> list[int]:
    """Per output the fraction bits that its elements are told with."""
    return [program.output_fraction_bits - port.rounded_bits for port in program.outputs]


def dense(scale: float, *after: str) -> object:
    """y = after(x W), |W| <= scale."""
    nodes = [helper.make_node("Gemm", ["x", "w"], ["g0"], name="dense")]
    for number, op in enumerate(after):
        nodes.append(helper.make_node(op, [f"g{number}"], [f"g{number + 1}"], name=op))
    nodes[-1].output[0] = "y"
    weights = np.linspace(-scale, scale, 12).reshape(4, 3)
    return graph(nodes, {"w": weights}, (4,))


@pytest.mark.parametrize("after", [[], ["Softmax"], ["Sigmoid"], ["Exp"]])
def test_a_dense_layers_answer_is_told_in_an_eighth_of_a_working_unit(after: list[str]) -> None:
    program, _ = compile_model(dense(1.0, *after), input_range=(-8, 8))
    assert program.output_fraction_bits == 32
    assert told_bits(program) == [UNIT]


def test_what_carries_no_surplus_is_told_as_it_is() -> None:
    program, _ = compile_model(dense(1.0, "Relu"), input_range=(-8, 8))
    assert program.output_fraction_bits == 14
    assert program.outputs[0].rounded_bits == 0


@pytest.mark.parametrize("scale", [2.0**-4, 2.0**-9, 2.0**-14, 2.0**-30, 2.0**-60])
def test_a_small_answer_keeps_as_many_significant_bits_as_others(scale: float) -> None:
    model = dense(scale)
    program, _ = compile_model(model, input_range=(-1, 1))
    bound = program.values[program.outputs[0].value].bound
    (bits,) = told_bits(program)
    if program.outputs[0].rounded_bits:
        assert bound >= 2.0 ** (14 - 2 + ROUNDING_MARGIN - 1 - bits)
    x = uniform((6, 4), -1, 1)
    with Session(model, input_range=(-1, 1)) as session:
        (exact,), (got,) = session.query(x), session.answer(x)
    assert np.abs(exact - got).max() < 2 * 2.0**-bits
    assert np.abs(exact - got).max() < 2 * bound * 2.0 ** -(14 - 2 + ROUNDING_MARGIN - 1)


def test_the_squares_below_a_clients_root_keep_what_a_root_near_zero_needs() -> None:
    nodes = [helper.make_node("ReduceL2", ["x"], ["y"], name="norm", axes=[1])]
    program, _ = compile_model(graph(nodes, {}, (4,)), input_range=(-1, 1))
    assert program.outputs[0].activation == {"op": "Sqrt"}
    (bits,) = told_bits(program)
    assert bits >= min(program.output_fraction_bits, 2 * UNIT)


def test_outputs_that_share_a_step_are_each_told_by_their_own_magnitude() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["fine"], name="dense"),
        helper.make_node("Relu", ["x"], ["coarse"], name="relu"),
    ]
    model = graph(nodes, {"w": np.eye(4) / 64}, (4,))
    del model.graph.output[:]
    for name in ("fine", "coarse"):
        model.graph.output.append(helper.make_tensor_value_info(name, 1, ["B", 4]))
    program, _ = compile_model(model, input_range=(-1, 1))
    assert told_bits(program)[1] == UNIT  # aligned to the other's finer step, it gains nothing
    assert told_bits(program)[0] >= UNIT


@pytest.mark.parametrize("bits", [44, 60])
def test_a_value_whose_differences_would_leave_the_ring_is_refused(bits: int) -> None:
    """Also with what the rounding of 32 parties adds; one bit less is taken."""
    for room, is_taken in ((2.0**62, False), (2.0**61, True)):
        builder = ProgramBuilder(14, Bounds(14))
        size = room * 2.0**-bits
        ends = np.full((2,), size)
        x = builder.input((2,), bits, Range(-ends, ends, np.zeros((1, 2))))
        outputs = [("y", x, {"op": "Softmax", "axis": -1})]
        if is_taken:
            assert builder.finish([("x", x)], outputs, (-size, size)).outputs[0].rounded_bits
        else:
            with pytest.raises(ModelError):
                builder.finish([("x", x)], outputs, (-size, size))


def test_expected_errors_count_the_rounding_of_answers() -> None:
    """A dense layer alone errs by nothing else but its weights' rounding."""
    exact = np.diag([1.0, -0.5, 0.25, 0.125])
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], name="dense")]
    result = compile_accurately(graph(nodes, {"w": exact}, (4,)), input_range=(-1, 1))
    (error,) = result.errors
    (bits,) = told_bits(result.compiled.program)
    assert error.rounded <= 2.0**-15  # of the inputs alone
    assert error.rounded + 2.0 ** -(bits + 1) < error.error < error.rounded + 2 * 2.0**-bits


@pytest.mark.parametrize("bits", [1, 4, 30])
def test_the_luck_of_a_simulated_answer_is_that_of_two_parties(bits: int) -> None:
    x = Prg().int64((40_000, 1)) >> 20
    described = {"name": "y", "shape": [1], "activation": None, "rounded_bits": bits}
    share = Prg().int64(x.shape)
    coins = [AnswerCoins([described], Prg()) for _ in range(2)]
    parties = sum(own.told([part])[0] for own, part in zip(coins, (share, x - share), strict=True))
    off = [(got - x) / 2.0**bits for got in (told(x, bits, Prg()), parties)]
    for one in off:
        assert np.abs(one).max() < 2
        assert abs(one.mean()) < 0.02
    assert np.square(off[0]).mean() == pytest.approx(np.square(off[1]).mean(), rel=0.05)
    assert told(x, bits, None) is x
