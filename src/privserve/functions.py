"""Functions of one real variable, as data: what a hidden activation computes.

An expression is "x", a number, or [name, *arguments]. It travels in a program's public
description, so a party evaluates it by table and never runs code from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privserve.errors import ModelError

Floats = NDArray[np.float64]
Expression = Any
""""x" | float | [name, *expressions]"""

MAX_NODES = 64

_erf = np.frompyfunc(math.erf, 1, 1)


def _sigmoid(x: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _elu(x: Floats, alpha: Floats) -> Floats:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _celu(x: Floats, alpha: Floats) -> Floats:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / alpha))


def _selu(x: Floats, alpha: Floats, gamma: Floats) -> Floats:
    return gamma * _elu(x, alpha)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "erf": lambda x: np.asarray(_erf(x), dtype=np.float64),
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "softplus": lambda x: np.logaddexp(x, 0.0),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "elu": _elu,
    "celu": _celu,
    "selu": _selu,
}


def evaluate(expression: Expression, x: Floats) -> Floats:
    """The expression's value at every element of x, float64; NaN or inf where undefined.

    Raises ModelError for anything that is not an expression.
    """
    budget = [MAX_NODES]

    def walk(node: Expression) -> Any:
        budget[0] -= 1
        if budget[0] < 0:
            raise ModelError(f"an activation has more than {MAX_NODES} parts; simplify it")
        if isinstance(node, str) and node == "x":
            return x
        if isinstance(node, int | float):
            return np.float64(node)
        if isinstance(node, list | tuple) and node and str(node[0]) in FUNCTIONS:
            return FUNCTIONS[node[0]](*map(walk, node[1:]))
        raise ModelError(f"an activation has a part '{node}' that is unknown; update this party")

    with np.errstate(all="ignore"):
        out: Floats = np.broadcast_to(np.asarray(walk(expression), np.float64), x.shape)
    return out


def steepest(expression: Expression, low: float, high: float) -> float:
    """A bound on |f'| on [low, high], from difference quotients on a fine grid."""
    grid = np.linspace(low, high, 4097)
    values = evaluate(expression, grid)
    return float(1.05 * np.max(np.abs(np.diff(values))) / (grid[1] - grid[0]))
