"""Lowerings of pooling: means are sums with a smaller step, maxima trees of comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from privserve.compiler import moves
from privserve.compiler.lowering import Lowering, PendingLinear, PendingRelu, Tensor
from privserve.compiler.ops.reductions import max_of_windows
from privserve.compiler.ops.windows import Pair, SlidingWindow, planes, window_of
from privserve.compiler.ranges import Floats
from privserve.compiler.registry import lowers
from privserve.compiler.traced import Traced
from privserve.geometry import Geometry

MOST_ROUNDED = 4
"""Maxima of more levels are taken of truncated values: a level of others errs by a truncation."""

MOST_COMMON_COUNT = 2**12
"""Windows of unlike sizes are averaged exactly if their common multiple is no larger."""

Pads = tuple[int, int, int, int]


@lowers("AveragePool")
def average_pool(
    c: Lowering,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
) -> Tensor:
    """Sums over windows, times what each window counts; or part of a convolution before it."""
    b, tensor = c.builder, c.tensor(0)
    assert not isinstance(tensor, np.ndarray)  # constants were folded before
    shape = tensor.shape
    window = window_of(c, shape[1:], kernel_shape, strides, dilations, pads, auto_pad)
    around = _pads(window, shape[1:], ceil_mode)
    if window.dilations != (1, 1):
        raise c.refuse("dilated pooling is not supported")
    flat = len(shape) == 2
    pending = c.foldable(0)
    if pending and not any(around) and _is_image(pending):
        fused = _fuse_mean(pending, window.kernel, window.strides, flat)
        if fused.geometry.products <= pending.geometry.products:
            return fused
    x = c.traced(0)
    x = moves.reshape(b, x, planes(x))
    area = math.prod(window.kernel)
    sums = b.sum_pool(x, window.kernel, window.strides, around)
    # What counts as an element: the input, and with count_include_pad its stated padding, but
    # never what ceil_mode adds beyond.
    included = window.pads if count_include_pad else (0, 0, 0, 0)
    if around != included:
        counts = _counts(window, x.shape[1:], around, included)
        common = math.lcm(*np.unique(counts).tolist())
        if common <= MOST_COMMON_COUNT:
            sums, area = b.scale(sums, common // counts, sums.step), common
        else:
            sums = b.multiply_public(sums, area / counts)
    out = b.with_step(sums, 1 / area)
    return moves.reshape(b, out, out.shape[:2] if flat else out.shape)


def _is_image(p: PendingLinear) -> bool:
    """Whether the linear op's own axes are the tensor's, as with convolutions."""
    return not p.channels_last and (*p.shape, 1)[: len(p.geometry.output_shape)] == (
        p.geometry.output_shape
    )


def _pads(window: SlidingWindow, shape: tuple[int, ...], ceil_mode: int) -> Pads:
    """top, left, bottom, right, with what ceil_mode adds at the end of each axis."""
    pads = list(window.pads)
    if ceil_mode:
        for axis, size in enumerate(shape):
            stride = window.strides[axis]
            reach = (window.kernel[axis] - 1) * window.dilations[axis] + 1
            room = size + pads[axis] + pads[axis + 2] - reach
            start = room - room % stride + stride
            # A last window that would begin in the padding at the end is not taken.
            if room % stride and start < size + pads[axis]:
                pads[axis + 2] += stride - room % stride
    top, left, bottom, right = pads
    return top, left, bottom, right


def _counts(
    window: SlidingWindow, shape: tuple[int, ...], pads: Pads, included: Pads
) -> NDArray[np.int64]:
    """How many elements each window counts: those of the input and of the `included` padding."""

    def pairs(amounts: Sequence[int]) -> tuple[Pair, Pair]:
        return ((amounts[0], amounts[2]), (amounts[1], amounts[3]))

    ones = np.pad(np.ones(shape), pairs(included), constant_values=1)
    ones = np.pad(ones, pairs([p - i for p, i in zip(pads, included, strict=True)]))
    rows = np.lib.stride_tricks.sliding_window_view(ones, window.kernel)
    down, right = window.strides
    counts: NDArray[np.int64] = rows[::down, ::right].sum((-2, -1)).astype(np.int64)
    return counts


def _fuse_mean(p: PendingLinear, kernel: Pair, strides: Pair, flat: bool) -> PendingLinear:
    """A convolution and the mean over its windows as one convolution."""
    g = p.geometry
    reach = [
        (k - 1) * d + 1 + (m - 1) * s
        for k, d, m, s in zip(g.kernel, g.dilations, kernel, g.strides, strict=True)
    ]
    weight: Floats = np.zeros((*p.weight.shape[:2], *reach))
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * g.strides[0], j * g.strides[1]
            height = (g.kernel[0] - 1) * g.dilations[0] + 1
            width = (g.kernel[1] - 1) * g.dilations[1] + 1
            weight[
                :,
                :,
                top : top + height : g.dilations[0],
                left : left + width : g.dilations[1],
            ] += p.weight / math.prod(kernel)
    # The window that the pooling never reaches at the far edge is cut off by the stride.
    _, rows, columns = g.output_shape
    out = [(rows - kernel[0]) // strides[0] + 1, (columns - kernel[1]) // strides[1] + 1]
    step = (g.strides[0] * strides[0], g.strides[1] * strides[1])
    top, left, _, _ = g.pads
    bottom = max(0, (out[0] - 1) * step[0] + reach[0] - g.shape[1] - top)
    right = max(0, (out[1] - 1) * step[1] + reach[1] - g.shape[2] - left)
    geometry = Geometry(
        g.shape, g.outputs, (reach[0], reach[1]), step, (top, left, bottom, right), (1, 1), g.groups
    )
    shape: tuple[int, ...] = geometry.output_shape
    return replace(p, geometry=geometry, weight=weight, shape=shape[:2] if flat else shape)


@lowers("GlobalAveragePool")
def global_average_pool(c: Lowering) -> Tensor:
    """A sum that is read with a smaller step."""
    b, x = c.builder, c.traced(0)
    rank = len(x.shape)
    x = moves.reshape(b, x, planes(x))
    height, width = x.shape[1:]
    sums = b.sum_pool(x, (height, width), (1, 1), (0, 0, 0, 0))
    out = b.with_step(sums, 1 / (height * width))
    return moves.reshape(b, out, (out.shape[0], *(1,) * (rank - 1)))


@lowers("MaxPool")
def max_pool(
    c: Lowering,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    storage_order: int = 0,
) -> Tensor:
    """Axis by axis; storage_order is that of the places of maxima, which nobody may read.

    A ReLU that nothing else reads comes after, on what is left.
    """
    tensor = c.tensor(0)
    assert not isinstance(tensor, np.ndarray)  # constants were folded before
    shape = tensor.shape
    window = window_of(c, shape[1:], kernel_shape, strides, dilations, pads, auto_pad)
    around = _pads(window, shape[1:], ceil_mode)
    if isinstance(tensor, PendingRelu) and _may_come_after(c, tensor, window, around):
        return replace(tensor, x=_max_pooled(c, tensor.x, window, around))
    return _max_pooled(c, c.traced(0), window, around)


def _may_come_after(c: Lowering, relu: PendingRelu, window: SlidingWindow, around: Pads) -> bool:
    """Whether a ReLU is worth fewer comparisons after a maximum, and these have room."""
    b, x = c.builder, relu.x
    if c.tensors.readers(c.inputs[0]) > 1:
        return False
    rows, columns = (
        (size + sum(around[axis::2]) - (k - 1) * d - 1) // s + 1
        for axis, (size, k, d, s) in enumerate(
            zip(planes(x)[1:], window.kernel, window.dilations, window.strides, strict=True)
        )
    )
    is_less = planes(x)[0] * rows * columns < math.prod(x.shape)
    return is_less and b.bounds.affords(x.range.scaled(2.0), x.step, b.surplus(x))


def _max_pooled(c: Lowering, x: Traced, window: SlidingWindow, around: Pads) -> Traced:
    b, flat = c.builder, len(x.shape) == 2
    top, left, bottom, right = around
    x = moves.reshape(b, x, planes(x))
    if sum(math.ceil(math.log2(size)) for size in window.kernel) > MOST_ROUNDED:
        x = b.truncate(x)
    lowest = float(x.range.low.min())
    # An element that is padding only must not win: it takes the lowest value possible.
    x = moves.pad(b, x, ((0, 0), (top, bottom), (left, right)), lowest)
    for axis in (1, 0):
        size, stride = window.kernel[axis], window.strides[axis]
        x = max_of_windows(b, x, axis + 1, size, stride, window.dilations[axis])
    return moves.reshape(b, x, x.shape[:2] if flat else x.shape)


@lowers("GlobalMaxPool")
def global_max_pool(c: Lowering) -> Tensor:
    """Axis by axis."""
    b, x = c.builder, c.traced(0)
    rank = len(x.shape)
    x = b.truncate(moves.reshape(b, x, planes(x)))
    for axis in (2, 1):
        x = max_of_windows(b, x, axis, x.shape[axis], 1, 1)
    return moves.reshape(b, x, (x.shape[0], *(1,) * (rank - 1)))
