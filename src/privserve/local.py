"""Ops on shares that need no communication: they are linear with public coefficients.

Each takes int64[B, ...] shares and returns a share of the result; `lead` is True at the one
party that adds public constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privserve.errors import ModelError

Shares = NDArray[Any]
"""int64; the compiler also moves float64 bounds around with these functions."""


def apply(
    kind: str,
    attributes: Mapping[str, Any],
    inputs: Sequence[Shares],
    shape: tuple[int, ...],
    lead: bool,
    parameters: Mapping[str, Shares],
) -> Shares:
    """Run the local op `kind` of `program.OP_KINDS`; shape: of its output, no batch axis."""
    x = inputs[0]
    if kind == "reshape":
        return x.reshape(len(x), *shape)
    if kind == "reread":
        return x
    if kind == "transpose":
        return x.transpose(0, *(axis + 1 for axis in attributes["axes"]))
    if kind == "pad":
        value = attributes["value"] if lead else 0
        return np.pad(x, ((0, 0), *map(tuple, attributes["pads"])), constant_values=value)
    if kind == "slice":
        return x[(slice(None), *(slice(*s) for s in attributes["slices"]))]
    if kind == "concat":
        return np.concatenate(list(inputs), axis=attributes["axis"] + 1)
    if kind == "expand":
        return np.broadcast_to(x, (len(x), *shape))
    if kind == "gather":
        return np.asarray(np.take(x, attributes["rows"], axis=attributes["axis"] + 1))
    if kind == "add":
        return inputs[0] + inputs[1]
    if kind == "sub":
        return inputs[0] - inputs[1]
    if kind == "scale":
        return x * np.asarray(attributes["factor"], dtype=np.int64)
    if kind == "offset":
        return x + np.int64(attributes["value"]) if lead else x
    if kind == "add_parameter":
        return x + parameters[attributes["parameter"]]
    if kind == "sum_pool":
        return sum_pool(x, attributes)
    raise ModelError(f"the engine 'ottt' does not know the op '{kind}'; update this party")


def sum_pool(x: Shares, attributes: Mapping[str, Any]) -> Shares:
    """Sums over windows of the last two axes: x int64[B, C, H, W] -> int64[B, C, H', W']."""
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
