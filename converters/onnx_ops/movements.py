"""Operators that move, pick, repeat, join or drop elements."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from converters.errors import ConversionError
from converters.onnx_ops.registry import Attributes, operator


@operator("Flatten")
def flatten(attributes: Attributes, x: Tensor) -> Tensor:
    """Two axes: all before `axis`, and the rest."""
    axis = attributes.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    if axis == 1:
        return x.flatten(1) if x.ndim > 1 else x.reshape(-1, 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


@operator("Reshape")
def reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    """0 keeps an axis, -1 takes what is left."""
    wanted = [int(n) for n in shape.tolist()]
    if not attributes.get("allowzero", 0):
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(wanted)


@operator("Transpose")
def transpose(attributes: Attributes, x: Tensor) -> Tensor:
    """Reorder the axes."""
    return x.permute(attributes.get("perm") or list(range(x.ndim))[::-1])


@operator("Concat")
def concat(attributes: Attributes, *tensors: Tensor) -> Tensor:
    """Join along one axis."""
    return torch.cat(tensors, attributes["axis"])


@operator("Gather")
def gather(attributes: Attributes, x: Tensor, places: Tensor) -> Tensor:
    """Pick elements along one axis."""
    axis = attributes.get("axis", 0) % x.ndim
    picked = x.index_select(axis, places.reshape(-1) % x.shape[axis])
    return picked.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


@operator("Squeeze")
def squeeze(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Drop axes of length 1."""
    if axes is None:
        return x.squeeze()
    return x.squeeze([int(n) for n in axes.tolist()])


@operator("Unsqueeze")
def unsqueeze(attributes: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    """Add axes of length 1."""
    rank = x.ndim + axes.numel()
    for axis in sorted(int(n) % rank for n in axes.reshape(-1).tolist()):
        x = x.unsqueeze(axis)
    return x


@operator("Tile")
def tile(attributes: Attributes, x: Tensor, repeats: Tensor) -> Tensor:
    """Repeat along each axis."""
    return x.repeat([int(n) for n in repeats.tolist()])


@operator("Expand")
def expand(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    """Broadcast against a shape."""
    wanted = [int(n) for n in shape.tolist()]
    rank = max(x.ndim, len(wanted))
    x = x.reshape(*[1] * (rank - x.ndim), *x.shape)
    wanted = [1] * (rank - len(wanted)) + wanted
    return x.expand([h if w == 1 else w for h, w in zip(x.shape, wanted, strict=True)])


@operator("Slice")
def slice_(
    attributes: Attributes,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Cut ranges out of axes; a negative step turns around."""
    numbers = range(starts.numel()) if axes is None else axes.tolist()
    pace = [1] * starts.numel() if steps is None else steps.tolist()
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), numbers, pace, strict=True):
        places = range(*slice(start, end, step).indices(x.shape[axis]))
        if step > 0:
            index = [slice(None)] * x.ndim
            index[axis] = slice(places.start, places.stop, step)
            x = x[tuple(index)]
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x


def padded(x: Tensor, pads: Sequence[int], fill: float = 0.0) -> Tensor:
    """Return `x` with `fill` around its last axes; pads: (begin of each axis, end of each)."""
    rank = len(pads) // 2
    if not any(pads):
        return x
    # torch wants the last axis first, each as (begin, end)
    flat = [n for i in reversed(range(rank)) for n in (pads[i], pads[rank + i])]
    return F.pad(x, flat, value=fill)


@operator("Pad")
def pad(
    attributes: Attributes,
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    """Add constants around."""
    if attributes.get("mode", "constant") != "constant":
        raise ConversionError("Pad is supported with constants only")
    rank = x.ndim
    given = [int(n) for n in pads.tolist()]
    if axes is not None:
        full = [0] * 2 * rank
        for i, axis in enumerate(axes.tolist()):
            full[axis % rank] = given[i]
            full[axis % rank + rank] = given[i + axes.numel()]
        given = full
    return padded(x, given, 0.0 if value is None else float(value))
