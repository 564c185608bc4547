"""Programs of strict inputs: what they begin with, what they compute, and what it costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import reference_program
import torch
from graph_judge import hostile_inputs
from onnx import TensorProto, helper
from ottt_models import graph, random_weights, tutorial_net
from ottt_session import Session

import privserve as ps
from privserve.compiler.compile import compile_model, compile_with_samples
from privserve.engines import ottt
from privserve.engines.ottt.costs import cost_of_op, summary
from privserve.errors import ModelError
from privserve.lift import lifting_ops

FLAT = [helper.make_node("Gemm", ["x", "w"], ["y"])]
WEIGHT = {"w": np.linspace(-1, 1, 12).reshape(4, 3)}


def two_inputs() -> onnx.ModelProto:
    """x and y in; x + y, their product and x itself out."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4])
        for name in ("x", "y", "sum", "product", "same")
    ]
    nodes = [
        helper.make_node("Add", ["x", "y"], ["sum"]),
        helper.make_node("Mul", ["x", "y"], ["product"]),
        helper.make_node("Identity", ["x"], ["same"]),
    ]
    return helper.make_model(
        helper.make_graph(nodes, "two", values[:2], values[2:]),
        opset_imports=[helper.make_opsetid("", 17)],
    )


@pytest.mark.parametrize("input_range", [(-8, 8), (0, 1), (-3, 0), (2.5, 3)])
def test_an_input_is_lifted_once_before_anything_else_whoever_reads_it(
    input_range: tuple[float, float],
) -> None:
    options: dict[str, Any] = {"input_range": input_range}
    strict, _ = compile_model(two_inputs(), **options, strict_inputs=True)
    plain, _ = compile_model(two_inputs(), **options)
    lifts = lifting_ops(strict)
    assert len(lifts) == 2
    assert [op.layer for op in lifts] == ["x", "y"]
    assert lifting_ops(plain) == ()
    assert plain.lift is None
    behind = [op.kind for op in strict.ops if op.layer not in ("x", "y")]
    assert behind == [op.kind for op in plain.ops]
    for port in strict.inputs:
        assert strict.values[port.value].bits == strict.lift.bits + 1  # type: ignore[union-attr]


@pytest.mark.parametrize("parties", [2, 3])
def test_any_ring_elements_for_several_inputs_are_answered_as_what_they_are_lifted_to(
    parties: int,
) -> None:
    """Also where an input is an output: it is one of the interval then, and never the raw one."""
    with Session(two_inputs(), parties, input_range=(-2, 3), strict_inputs=True) as session:
        lift, step = session.program.lift, 2.0**-session.program.fraction_bits
        assert lift is not None
        sent = [hostile_inputs(lift, (40, 4), seed) for seed in (1, 2)]
        sent[0][:10] = np.rint(np.linspace(-2, 3, 40) / step).reshape(10, 4)
        total, product, same = session.query_elements(*sent)
    x, y = (
        reference_program.each(lambda v: reference_program.lifted(v, lift), s).astype(np.float64)
        * step
        for s in sent
    )
    assert np.array_equal(x[:10], sent[0][:10] * step)
    assert np.array_equal(same, x)
    assert np.array_equal(total, x + y)
    assert np.abs(product - x * y).max() < 1e-2


@pytest.mark.parametrize(
    ("input_range", "sign"), [((0, 1), 1), ((0.25, 1), 1), ((-1, 0), -1), ((-5, -4), -1)]
)
def test_what_has_one_sign_keeps_it_and_functions_keep_their_domains(
    input_range: tuple[float, float], sign: int
) -> None:
    """A root, or a logarithm, of an input that is not negative."""
    nodes = [
        helper.make_node("Mul", ["x", "sign"], ["p"]),
        helper.make_node("Sqrt", ["p"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    model = graph(nodes, {"sign": np.array([float(sign)])}, (4,))
    program, _ = compile_model(model, input_range=input_range, strict_inputs=True)
    assert program.lift is not None
    low, high = program.lift.interval(2.0**-program.fraction_bits)
    assert low == input_range[0] if sign > 0 else high == input_range[1]
    assert high - low < 2 * (input_range[1] - input_range[0])


def test_samples_stay_what_they_are_and_errors_are_measured_on_them() -> None:
    model = tutorial_net(random_weights())
    samples = np.linspace(0, 1, 3 * 784).reshape(3, 28, 28, 1)
    strict, plain = (
        compile_with_samples(
            model, input_range=(0, 1), calibration=samples, strict_inputs=is_strict
        )
        for is_strict in (True, False)
    )
    assert np.array_equal(strict.samples[0], samples)
    assert np.array_equal(strict.ideal[0], plain.ideal[0])
    assert strict.program.input_range == plain.program.input_range == (0, 1)


@pytest.mark.parametrize("worst", [1.01, -0.01, np.nan])
def test_calibration_that_leaves_the_range_is_refused_where_inputs_are_strict(
    worst: float,
) -> None:
    samples = np.full((2, 4), 0.5)
    samples[1, 2] = worst
    options: dict[str, Any] = {"input_range": (0, 1), "calibration": samples}
    with pytest.raises(ModelError, match=r"'x' reach from .*keep to \[0, 1\].*--input-range"):
        compile_model(graph(FLAT, WEIGHT, (4,)), **options, strict_inputs=True)


@pytest.mark.parametrize("input_range", [(0, 1), (-8, 8)])
def test_what_strict_inputs_cost_is_said_and_is_what_their_ops_cost(
    input_range: tuple[float, float],
) -> None:
    model = tutorial_net(random_weights())
    strict = ottt.prepare(model, input_range=input_range, strict_inputs=True)
    plain = ottt.prepare(model, input_range=input_range)
    assert not any("strict" in line for line in plain.report)
    assert "strict" not in ottt.summary(plain.description)
    (said,) = (line for line in strict.report if "strict" in line)
    program, _ = compile_model(model, input_range=input_range, strict_inputs=True)
    (op,) = lifting_ops(program)
    cost = cost_of_op(program, op)
    assert cost.exchanges == 2
    assert f"for 2 exchanges, {cost.bytes_online:,} B online and {cost.bytes_dealt:,} B" in said
    assert f"strict inputs in [{input_range[0]}, {input_range[1]}]" in summary(program)
    others, _ = compile_model(model, input_range=input_range)
    longest = [
        max(o.attributes["comparison_bits"] for o in p.ops if o.kind == "relu" and o is not op)
        for p in (others, program)
    ]
    assert longest[1] == longest[0] + 1


def test_an_error_that_comes_of_strict_inputs_alone_says_so() -> None:
    """sqrt(10 - x) is defined on [0, 8], and not on [0, 16)."""

    class Root(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(torch.sqrt(10 - x))

    secure = ps.load_model(Root(), input_shape=(4,))
    secure.prepare(input_range=(0, 8))
    with pytest.raises(ps.ModelError, match=r"not defined.*fits where inputs are not strict"):
        secure.prepare(input_range=(0, 8), strict_inputs=True)
    with pytest.raises(ps.ModelError, match="not defined") as refusal:
        secure.prepare(input_range=(0, 20), strict_inputs=True)
    assert "strict" not in str(refusal.value)
