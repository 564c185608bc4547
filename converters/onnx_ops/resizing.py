"""Images in other sizes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from converters.errors import ConversionError
from converters.onnx_ops.registry import Attributes, operator


@operator("Resize")
def resize(
    attributes: Attributes,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Nearest or linear, one axis after the other."""
    mode = attributes.get("mode", "nearest")
    if mode not in ("nearest", "linear") or attributes.get("antialias", 0):
        raise ConversionError(f"Resize with mode {mode!r} or antialiasing is not supported")
    for axis in range(x.ndim):
        old = x.shape[axis]
        if sizes is not None:
            new = int(sizes[axis])
            scale = new / old
        elif scales is not None:
            scale = float(scales[axis])
            new = math.floor(old * scale)
        else:
            raise ConversionError("Resize without scales or sizes is not supported")
        if scale != 1:
            x = _resized(attributes, x, axis, new, scale)
    return x


def _resized(attributes: Attributes, x: Tensor, axis: int, new: int, scale: float) -> Tensor:
    """`x` with `axis` resized to `new` elements."""
    old = x.shape[axis]
    rule = attributes.get("coordinate_transformation_mode", "half_pixel")
    place = torch.arange(new, dtype=torch.float64)
    if rule == "asymmetric":
        place = place / scale
    elif rule == "align_corners":
        place = place * ((old - 1) / (new - 1)) if new > 1 else place
    elif rule == "half_pixel" or (rule == "pytorch_half_pixel" and new > 1):
        place = (place + 0.5) / scale - 0.5
    elif rule == "pytorch_half_pixel":
        place = torch.zeros(1, dtype=torch.float64)
    else:
        raise ConversionError(f"Resize with coordinates {rule!r} is not supported")
    if attributes.get("mode", "nearest") == "nearest":
        rounding = attributes.get("nearest_mode", "round_prefer_floor")
        rounded: dict[str, Callable[[Tensor], Tensor]] = {
            "floor": torch.floor,
            "ceil": torch.ceil,
            "round_prefer_floor": lambda t: torch.ceil(t - 0.5),
            "round_prefer_ceil": lambda t: torch.floor(t + 0.5),
        }
        nearest = rounded[rounding](place).long()
        return x.index_select(axis, nearest.clamp(0, old - 1))
    low = torch.floor(place)
    shape = [new if i == axis else 1 for i in range(x.ndim)]
    share = (place - low).to(x.dtype).reshape(shape)
    below = x.index_select(axis, low.long().clamp(0, old - 1))
    above = x.index_select(axis, (low.long() + 1).clamp(0, old - 1))
    return below + (above - below) * share
