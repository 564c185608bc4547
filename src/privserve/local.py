"""Ops on shares that need no communication: they are linear with public coefficients.

Each takes int64[B, ...] shares and returns a share of the result; `lead` is True at the one
party that adds public constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Shares = NDArray[Any]
"""int64; the compiler also moves float64 bounds around with these functions."""


class Operands(NamedTuple):
    """What a local op works on."""

    inputs: Sequence[Shares]
    attributes: Mapping[str, Any]
    shape: tuple[int, ...]
    """Of its output, no batch axis."""
    lead: bool
    parameters: Mapping[str, Shares]

    @property
    def x(self) -> Shares:
        """The first input."""
        return self.inputs[0]


def apply(
    kind: str,
    attributes: Mapping[str, Any],
    inputs: Sequence[Shares],
    shape: tuple[int, ...],
    lead: bool,
    parameters: Mapping[str, Shares],
) -> Shares:
    """Run the local op `kind` of `program.OP_KINDS`; shape: of its output, no batch axis."""
    return LOCAL[kind](Operands(inputs, attributes, shape, lead, parameters))


def sum_pool(x: Shares, attributes: Mapping[str, Any]) -> Shares:
    """Return sums over windows of the last two axes: int64[B, C, H, W] -> int64[B, C, H', W']."""
    kh, kw = attributes["kernel"]
    sh, sw = attributes["strides"]
    top, left, bottom, right = attributes["pads"]
    if any(attributes["pads"]):
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    height = (x.shape[2] - kh) // sh + 1
    width = (x.shape[3] - kw) // sw + 1
    out = np.zeros((*x.shape[:2], height, width), dtype=x.dtype)
    for i in range(kh):
        for j in range(kw):
            out += x[:, :, i : i + sh * (height - 1) + 1 : sh, j : j + sw * (width - 1) + 1 : sw]
    return out


def _transpose(on: Operands) -> Shares:
    return on.x.transpose(0, *(axis + 1 for axis in on.attributes["axes"]))


def _pad(on: Operands) -> Shares:
    pads = ((0, 0), *map(tuple, on.attributes["pads"]))
    return np.pad(on.x, pads, constant_values=on.attributes["value"] if on.lead else 0)


def _slice(on: Operands) -> Shares:
    return on.x[(slice(None), *(slice(*s) for s in on.attributes["slices"]))]


def _concat(on: Operands) -> Shares:
    return np.concatenate(list(on.inputs), axis=on.attributes["axis"] + 1)


def _gather(on: Operands) -> Shares:
    return np.asarray(np.take(on.x, on.attributes["rows"], axis=on.attributes["axis"] + 1))


LOCAL: Mapping[str, Callable[[Operands], Shares]] = {
    "reshape": lambda on: on.x.reshape(len(on.x), *on.shape),
    "reread": lambda on: on.x,
    "transpose": _transpose,
    "pad": _pad,
    "slice": _slice,
    "concat": _concat,
    "gather": _gather,
    "expand": lambda on: np.broadcast_to(on.x, (len(on.x), *on.shape)),
    "add": lambda on: on.inputs[0] + on.inputs[1],
    "sub": lambda on: on.inputs[0] - on.inputs[1],
    "scale": lambda on: on.x * np.asarray(on.attributes["factor"], dtype=np.int64),
    "offset": lambda on: on.x + np.int64(on.attributes["value"]) if on.lead else on.x,
    "add_parameter": lambda on: on.x + on.parameters[on.attributes["parameter"]],
    "sum_pool": lambda on: sum_pool(on.x, on.attributes),
}
"""By kind: the op as a function of what it works on."""
