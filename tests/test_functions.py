"""Functions of one variable: against torch, and from untrusted descriptions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from privserve.errors import ModelError
from privserve.functions import MAX_NODES, evaluate

TORCH = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "exp": torch.exp,
    "softplus": functional.softplus,
    "softsign": functional.softsign,
}


@given(st.lists(st.floats(-700, 700), min_size=1, max_size=9), st.sampled_from(sorted(TORCH)))
def test_functions_are_those_of_torch(values: list[float], name: str) -> None:
    x = np.array(values)
    expected = TORCH[name](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(evaluate([name, "x"], x), expected, rtol=1e-7, atol=1e-8)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9), st.floats(0.1, 3))
def test_functions_with_parameters_are_those_of_torch(values: list[float], alpha: float) -> None:
    x = np.array(values)
    tensor = torch.from_numpy(x)
    for name in ("elu", "celu"):
        expected = getattr(functional, name)(tensor, alpha).numpy()
        np.testing.assert_allclose(evaluate([name, "x", alpha], x), expected, rtol=1e-9, atol=1e-9)
    selu = evaluate(["selu", "x", 1.6732632423543772, 1.0507009873554805], x)
    np.testing.assert_allclose(selu, functional.selu(tensor).numpy(), rtol=1e-9, atol=1e-9)


def test_an_expression_is_built_from_parts() -> None:
    x = np.linspace(-3, 3, 13)
    swish = evaluate(["mul", "x", ["sigmoid", ["mul", 2, "x"]]], x)
    np.testing.assert_allclose(swish, x / (1 + np.exp(-2 * x)))
    assert np.array_equal(evaluate(3.5, x), np.full(13, 3.5))


@pytest.mark.parametrize(
    "hostile", ["__import__", ["eval", "x"], [], {"x": 1}, None, ["sigmoid", "y"], [["x"]]]
)
def test_what_is_no_expression_is_refused(hostile: object) -> None:
    with pytest.raises(ModelError, match="unknown"):
        evaluate(hostile, np.zeros(2))


def test_a_huge_expression_is_refused() -> None:
    expression: object = "x"
    for _ in range(MAX_NODES):
        expression = ["neg", expression]
    with pytest.raises(ModelError, match="more than"):
        evaluate(expression, np.zeros(2))
