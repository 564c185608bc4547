"""Which function is which ONNX operator.

An operator's function takes the node's attributes and its input tensors (None for an
optional input that is absent) and returns the output tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from converters.registry import enter

Attributes = dict[str, Any]
Operator = Callable[..., Tensor]

OPERATORS: dict[str, Operator] = {}


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Register a function as the meaning of ONNX operators."""

    def register(function: Operator) -> Operator:
        enter(OPERATORS, names, function)
        return function

    return register
