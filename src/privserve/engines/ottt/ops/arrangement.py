"""How a linear op's operands lie for its kernels.

Small layers have an index map: which input element every tap of every output position reads.
Large ones, whose map would be larger than their weights, have a *window*, thirteen numbers from
which the kernels in `blocked` find that out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privserve.fixedpoint import RingArray
from privserve.geometry import Geometry

FEW_OUTPUTS = 4
"""Below this many outputs per group (depthwise), positions are the inner loop instead."""


@dataclass(frozen=True)
class Arrangement:
    """What the kernels need to know of a convolution's shape."""

    index: NDArray[np.int32]
    """The index map, or int32[0, 0]."""
    window: RingArray
    """The window, or int64[0]."""
    each: int
    """Outputs per group."""
    inputs: int
    """Elements of an input."""
    group_size: int
    """Those of them that a group reads."""


@dataclass(frozen=True)
class HeldWeight:
    """What a compute party holds of a linear op for a session, arranged for the kernels."""

    arrangement: Arrangement
    share: RingArray
    """W_i"""
    opened: RingArray
    """open_weight = W - B"""
    bias: RingArray
    """This party's share, int64[outputs]."""


def arrangement(geometry: Geometry) -> Arrangement:
    """Return how the kernels find what a tap reads: by index map, or by window."""
    inputs = int(np.prod(geometry.shape))
    index, window = np.zeros((0, 0), np.int32), np.zeros(0, np.int64)
    if is_large(geometry):
        window = window_of(geometry)
    else:
        index = index_map(geometry)
    each, groups = geometry.outputs // geometry.groups, geometry.groups
    return Arrangement(index, window, each, inputs, inputs // groups)


def is_large(geometry: Geometry) -> bool:
    """Tell whether the kernels in `blocked` are faster, as measured on layers of all sizes."""
    positions = geometry.output_shape[1] * geometry.output_shape[2]
    if geometry.outputs // geometry.groups < FEW_OUTPUTS:
        return geometry.products >= 1 << 14
    return positions >= 16 and geometry.products >= 1 << (21 if positions >= 128 else 23)


def window_of(geometry: Geometry) -> RingArray:
    """Return int64[13]: the numbers that `blocked` reads, in the order that it names them."""
    channels, height, width = geometry.shape
    _, out_height, out_width = geometry.output_shape
    inputs = (channels // geometry.groups, height, width)
    taps = (*geometry.kernel, *geometry.strides, *geometry.pads[:2], *geometry.dilations)
    return np.array((*inputs, *taps, out_height, out_width), dtype=np.int64)


def index_map(geometry: Geometry) -> NDArray[np.int32]:
    """Return int32[positions, C / groups * kh * kw]: the element of group 0 that a tap reads.

    -1 for padding.
    """
    _, height, width = geometry.shape
    _, out_height, out_width = geometry.output_shape
    kh, kw = geometry.kernel
    rows = (
        np.arange(out_height)[:, None] * geometry.strides[0]
        + np.arange(kh)[None, :] * geometry.dilations[0]
        - geometry.pads[0]
    )
    columns = (
        np.arange(out_width)[:, None] * geometry.strides[1]
        + np.arange(kw)[None, :] * geometry.dilations[1]
        - geometry.pads[1]
    )
    channels = np.arange(geometry.shape[0] // geometry.groups)
    # Axes: out row, out column, channel, kernel row, kernel column.
    row = rows[:, None, None, :, None]
    column = columns[None, :, None, None, :]
    flat = (channels[None, None, :, None, None] * height + row) * width + column
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    taps = len(channels) * kh * kw
    return np.ascontiguousarray(
        np.where(inside, flat, -1).reshape(out_height * out_width, taps), dtype=np.int32
    )


def arrange(geometry: Geometry, weight: RingArray) -> RingArray:
    """Return a weight as the kernels read it: int64[groups, taps, outputs per group, padded to 8].

    Full vectors of eight outputs; the padding is zeros that are never written out.
    """
    groups, each = geometry.groups, geometry.outputs // geometry.groups
    taps = int(np.prod(geometry.weight_shape[1:]))
    padded = each if each < FEW_OUTPUTS else -(-each // 8) * 8
    out = np.zeros((groups, taps, padded), dtype=np.int64)
    out[:, :, :each] = weight.reshape(groups, each, taps).transpose(0, 2, 1)
    return out
