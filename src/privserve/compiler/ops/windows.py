"""Windows over one or two axes, as convolutions and pooling have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from privserve.compiler.lowering import Lowering
from privserve.compiler.traced import Traced

AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")

Pair = tuple[int, int]


@dataclass(frozen=True)
class SlidingWindow:
    """A window over (height, width); one over a single axis has a width of 1."""

    kernel: Pair
    strides: Pair
    dilations: Pair
    pads: tuple[int, int, int, int]
    """top, left, bottom, right"""


def window_of(
    c: Lowering,
    spatial: Sequence[int],
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
) -> SlidingWindow:
    """Return the window of a node by its attributes, over axes of the lengths `spatial`."""
    rank = len(spatial)
    if rank > 2:
        raise c.refuse("windows over three or more axes are not supported")
    check_auto_pad(c, auto_pad)
    kernel = [int(k) for k in kernel_shape]
    steps = [int(s) for s in strides or [1] * rank]
    spread = [int(d) for d in dilations or [1] * rank]
    around = [int(p) for p in pads or [0] * (2 * rank)]
    if auto_pad.startswith("SAME"):
        before, after = [], []
        for size, k, s, d in zip(spatial, kernel, steps, spread, strict=True):
            total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
            small, large = total // 2, total - total // 2
            before.append(small if auto_pad == "SAME_UPPER" else large)
            after.append(large if auto_pad == "SAME_UPPER" else small)
        around = before + after
    if rank == 1:
        around = [around[0], 0, around[1], 0]
        kernel, steps, spread = [*kernel, 1], [*steps, 1], [*spread, 1]
    top, left, bottom, right = around
    return SlidingWindow(
        (kernel[0], kernel[1]),
        (steps[0], steps[1]),
        (spread[0], spread[1]),
        (top, left, bottom, right),
    )


def check_auto_pad(c: Lowering, auto_pad: str) -> None:
    """Refuse what is none of ONNX's values."""
    if auto_pad not in AUTO_PADS:
        raise c.refuse(f"its auto_pad '{auto_pad}' is none of {', '.join(AUTO_PADS)}")


def planes(x: Traced) -> tuple[int, int, int]:
    """Return (C, H, W) of a (C, L) or (C, H, W) value."""
    return (*x.shape, 1)[:3] if len(x.shape) == 2 else (x.shape[0], x.shape[1], x.shape[2])
