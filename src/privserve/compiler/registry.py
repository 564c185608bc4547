"""Which function lowers which ONNX op, and how a node's attributes reach it.

A lowering gets a `Lowering` and the node's attributes as keyword arguments, under their ONNX
names and with ONNX's defaults: its signature says which attributes it knows. Any other is
refused, since to ignore one would be a wrong answer in silence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from privserve.compiler.lowering import Lowering, Tensor
from privserve.compiler.onnx_graph import attributes_of
from privserve.errors import UnknownOpError

Outputs = Tensor | list[Tensor]
"""What a lowering returns: its node's output, or a list of them."""


F = TypeVar("F", bound=Callable[..., Outputs])


@dataclass(frozen=True)
class Lowered:
    """How one op is lowered."""

    function: Callable[..., Outputs]
    known: frozenset[str]
    """The attributes that it takes."""
    needed: frozenset[str]
    """Those of them that have no default."""


LOWERINGS: dict[str, Lowered] = {}
"""By ONNX op."""


def lowers(*ops: str) -> Callable[[F], F]:
    """Register the decorated function as the lowering of these ONNX ops."""

    def register(function: F) -> F:
        _, *parameters = inspect.signature(function).parameters.values()
        if any(p.kind is not p.KEYWORD_ONLY for p in parameters):
            raise TypeError(f"{function.__name__}: attributes are keyword-only parameters")
        known = frozenset(p.name for p in parameters)
        needed = frozenset(p.name for p in parameters if p.default is p.empty)
        for op in ops:
            if op in LOWERINGS:
                other = LOWERINGS[op].function.__name__
                raise ValueError(
                    f"the op '{op}' has two lowerings, {other} and {function.__name__}"
                )
            LOWERINGS[op] = Lowered(function, known, needed)
        return function

    return register


def lower(c: Lowering) -> list[Tensor]:
    """Lower a node; returns its outputs, the first ones where there are more.

    Raises UnknownOpError where no lowering exists, ModelError for an attribute that it does not
    know, or lacks, or whose value it does not support.
    """
    if c.op not in LOWERINGS:
        raise UnknownOpError("ottt", c.op, c.layer)
    lowered = LOWERINGS[c.op]
    attributes: dict[str, Any] = attributes_of(c.node)
    if unknown := sorted(attributes.keys() - lowered.known):
        raise c.unknown(unknown[0])
    if missing := sorted(lowered.needed - attributes.keys()):
        raise c.refuse(f"it lacks the attribute '{missing[0]}'")
    outputs = lowered.function(c, **attributes)
    return outputs if isinstance(outputs, list) else [outputs]
