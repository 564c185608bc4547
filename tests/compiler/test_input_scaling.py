"""The default input range follows from the scaling that a model begins with."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from ottt_models import graph, random_weights, tutorial_net
from ottt_session import Session, uniform

from privserve.compiler.input_scaling import DEFAULT_INPUT_RANGE, default_range


def scaled(*steps: tuple[str, np.ndarray]) -> object:
    nodes, constants, last = [], {}, "x"
    for i, (op, value) in enumerate(steps):
        constants[f"c{i}"] = np.asarray(value, np.float64)
        nodes.append(helper.make_node(op, [last, f"c{i}"], [f"s{i}"]))
        last = f"s{i}"
    constants["w"] = np.linspace(-1, 1, 12).reshape(4, 3)
    nodes.append(helper.make_node("Gemm", [last, "w"], ["y"]))
    return graph(nodes, constants, (4,))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((), (-8, 8)),
        ((("Mul", [1 / 255]),), (-2048, 2048)),
        ((("Div", [127.5]), ("Sub", [1.0])), (-1024, 2048)),
        ((("Sub", [0.0, 5.0, 11.0, 6.0]), ("Mul", [1.0, 0.25, 0.25, 0.5])), (-32, 64)),
        ((("Mul", [1e-6]),), (-8, 8)),
        ((("Mul", [4.0]),), (-8, 8)),
    ],
)
def test_what_scales_to_a_few_units_is_in_the_range(steps, expected):
    assert default_range(scaled(*steps).graph) == expected


def test_a_model_without_scaling_keeps_the_default():
    assert default_range(tutorial_net(random_weights()).graph) == DEFAULT_INPUT_RANGE


def test_raw_inputs_of_a_model_that_scales_them_are_answered_rightly():
    offset, scale = np.array([0.0, 5.0, 11.0, 6.0]), np.array([1.0, 0.25, 0.25, 0.5])
    with Session(scaled(("Sub", offset), ("Mul", scale))) as session:
        x = uniform((9, 4), 0, 16)
        (got,) = session.query(x)
    weight = np.linspace(-1, 1, 12).reshape(4, 3)
    assert np.abs(got - (x - offset) * scale @ weight).max() < 1e-2
