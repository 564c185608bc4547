"""One function per ONNX op, each lowering a node to the ops of a program."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from privserve.compiler.builder import Traced
from privserve.compiler.compile import (
    Pending,
    Tensor,
    _Compiler,
    _layer,
    geometry_of,
    lowers,
)
from privserve.geometry import Geometry

Attributes = dict[str, Any]

MOST_COMMON_COUNT = 2**12
"""Windows of unlike sizes are averaged exactly if their common multiple is no larger."""


def first_input(node: onnx.NodeProto) -> str:
    return str(node.input[0])


def _planes(x: Traced) -> tuple[int, int, int]:
    """(C, H, W) of a (C, L) or (C, H, W) value."""
    return (*x.shape, 1)[:3] if len(x.shape) == 2 else (x.shape[0], x.shape[1], x.shape[2])


def _axis(c: _Compiler, node: onnx.NodeProto, axis: int, rank: int) -> int:
    """An ONNX axis (batch axis counted) as an axis of a value (not counted)."""
    axis = axis if axis >= 0 else axis + rank + 1
    if axis == 0:
        raise c.refuse(node, "it works across the batch")
    return axis - 1


# Linear ops.


@lowers("Conv")
def conv(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    x, weight, bias = c.traced(first_input(node)), c.constant(node, 1), c.constant(node, 2)
    if weight is None:
        raise c.refuse(node, "it has no weight")
    attributes.setdefault("kernel_shape", weight.shape[2:])
    window = geometry_of(c, node, attributes, x.shape[1:])
    one_dimensional = len(x.shape) == 2
    x = c.builder.reshape(x, _planes(x), _layer(node))
    geometry = Geometry(
        x.shape,  # type: ignore[arg-type]
        weight.shape[0],
        groups=int(attributes.get("group", 1)),
        **window,  # type: ignore[arg-type]
    )
    shape: tuple[int, ...] = geometry.output_shape
    return Pending(
        x,
        geometry,
        weight.astype(np.float64).reshape(geometry.weight_shape),
        np.zeros(weight.shape[0]) if bias is None else bias.astype(np.float64),
        shape[:2] if one_dimensional else shape,
        _layer(node),
    )


@lowers("Gemm")
def gemm(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    weight, bias = c.constant(node, 1), c.constant(node, 2)
    if attributes.get("transA") or weight is None:
        raise c.refuse(node, "its first input must be (B, features), its second a constant")
    matrix = weight.astype(np.float64) * attributes.get("alpha", 1.0)
    matrix = matrix if attributes.get("transB") else matrix.T
    offset = np.zeros(len(matrix))
    if bias is not None:
        offset = offset + bias.astype(np.float64).reshape(-1) * attributes.get("beta", 1.0)
    return _dense(c, node, matrix, offset)


@lowers("MatMul")
def matmul(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    if isinstance(c.tensors[node.input[0]], np.ndarray):
        raise c.refuse(node, "its first input is a constant; transpose the product")
    weight = c.constant(node, 1)
    if weight is None or weight.ndim != 2:
        raise c.refuse(node, "its second input must be a constant matrix")
    return _dense(c, node, weight.astype(np.float64).T, np.zeros(weight.shape[1]))


def _dense(c: _Compiler, node: onnx.NodeProto, matrix: Any, bias: Any) -> Tensor:
    """x (..., K) times the transposed matrix [O, K]."""
    x, layer = c.traced(first_input(node)), _layer(node)
    outputs, features = matrix.shape
    if x.shape[-1] != features:
        raise c.refuse(node, f"it multiplies {x.shape[-1]} features by a weight for {features}")
    weight = matrix.reshape(outputs, features, 1, 1)
    positions = math.prod(x.shape[:-1])
    if positions == 1:
        flat = c.builder.reshape(x, (features, 1, 1), layer)
        shape = (*x.shape[:-1], outputs)
        geometry = Geometry((features, 1, 1), outputs)
        return Pending(flat, geometry, weight, bias, shape, layer, channels_last=len(shape) > 1)
    rows = c.builder.reshape(x, (positions, features), layer)
    columns = c.builder.transpose(rows, (1, 0), layer)
    columns = c.builder.reshape(columns, (features, positions, 1), layer)
    geometry = Geometry((features, positions, 1), outputs)
    shape = (*x.shape[:-1], outputs)
    return Pending(columns, geometry, weight, bias, shape, layer, channels_last=True)


@lowers("BatchNormalization")
def batch_normalization(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    gamma, beta, mean, variance = (c.constant(node, i) for i in range(1, 5))
    if gamma is None or beta is None or mean is None or variance is None:
        raise c.refuse(node, "its statistics must be constants")
    scale = gamma / np.sqrt(variance.astype(np.float64) + attributes.get("epsilon", 1e-5))
    shift = beta - mean * scale
    tensor = c.tensors[first_input(node)]
    assert not isinstance(tensor, np.ndarray)  # constants were folded before
    channels = (-1, *(1,) * (len(tensor.shape) - 1))
    return c.affine(node, first_input(node), scale.reshape(channels), shift.reshape(channels))


# Pooling.


@lowers("AveragePool")
def average_pool(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    tensor, layer = c.tensors[first_input(node)], _layer(node)
    assert not isinstance(tensor, np.ndarray)
    window = geometry_of(c, node, attributes, tensor.shape[1:])
    kernel, strides, stated = window["kernel"], window["strides"], window["pads"]
    pads = _pool_pads(window, tensor.shape[1:], attributes)
    if any(d != 1 for d in window["dilations"]):
        raise c.refuse(node, "dilated pooling is not supported")
    pending = c.foldable(first_input(node))
    if pending and not any(pads) and _is_image(pending):
        fused = _fuse_mean(pending, kernel, strides, len(tensor.shape) == 2)
        if fused.geometry.products <= pending.geometry.products:
            return fused
    x = c.traced(first_input(node))
    flat = len(x.shape) == 2
    x = c.builder.reshape(x, _planes(x), layer)
    area = math.prod(kernel)
    sums = c.builder.sum_pool(x, kernel, strides, pads, layer)  # type: ignore[arg-type]
    # What counts as an element: the input, and with count_include_pad its stated padding, but
    # never what ceil_mode adds beyond.
    included = stated if attributes.get("count_include_pad", 0) else (0, 0, 0, 0)
    if pads != included:
        ones = _counted(x.shape[1:], pads, included)
        rows = np.lib.stride_tricks.sliding_window_view(ones, kernel)
        counts = rows[:: strides[0], :: strides[1]].sum((-2, -1)).astype(np.int64)
        common = math.lcm(*np.unique(counts).tolist())
        if common <= MOST_COMMON_COUNT:
            out = c.builder.scale(sums, common // counts, sums.step, layer)
            out = c.builder.with_step(out, 1 / common, layer)
            return c.builder.reshape(out, out.shape[:2] if flat else out.shape, layer)
        sums = c.builder.multiply_public(sums, area / counts, layer)
    out = c.builder.with_step(sums, 1 / area, layer)
    return c.builder.reshape(out, out.shape[:2] if flat else out.shape, layer)


def _is_image(p: Pending) -> bool:
    """Whether the linear op's own axes are the tensor's, as with convolutions."""
    return not p.channels_last and (*p.shape, 1)[: len(p.geometry.output_shape)] == (
        p.geometry.output_shape
    )


def _pool_pads(
    window: dict[str, tuple[int, ...]], shape: tuple[int, ...], attributes: Attributes
) -> tuple[int, ...]:
    """top, left, bottom, right, with what ceil_mode adds at the end of each axis."""
    pads = list(window["pads"])
    if attributes.get("ceil_mode"):
        for axis, size in enumerate(shape):
            stride = window["strides"][axis]
            reach = (window["kernel"][axis] - 1) * window["dilations"][axis] + 1
            room = size + pads[axis] + pads[axis + 2] - reach
            start = room - room % stride + stride
            # A last window that would begin in the padding at the end is not taken.
            if room % stride and start < size + pads[axis]:
                pads[axis + 2] += stride - room % stride
    return tuple(pads)


def _counted(
    shape: tuple[int, ...], pads: tuple[int, ...], included: tuple[int, ...]
) -> NDArray[np.float64]:
    """Ones for a mean's elements, zeros for what `pads` adds beyond the `included` padding."""

    def pairs(amounts: Sequence[int]) -> tuple[tuple[int, int], ...]:
        return ((amounts[0], amounts[2]), (amounts[1], amounts[3]))

    ones = np.pad(np.ones(shape), pairs(included), constant_values=1)
    return np.pad(ones, pairs([p - i for p, i in zip(pads, included, strict=True)]))


def _fuse_mean(
    p: Pending, kernel: tuple[int, ...], strides: tuple[int, ...], flat: bool
) -> Pending:
    """A convolution and the mean over its windows as one convolution."""
    g = p.geometry
    reach = [
        (k - 1) * d + 1 + (m - 1) * s
        for k, d, m, s in zip(g.kernel, g.dilations, kernel, g.strides, strict=True)
    ]
    weight = np.zeros((*p.weight.shape[:2], *reach))
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
    return Pending(
        p.x, geometry, weight, p.bias, shape[:2] if flat else shape, p.layer, p.channels_last
    )


@lowers("GlobalAveragePool")
def global_average_pool(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    return _mean(c, node, c.traced(first_input(node)))


def _mean(c: _Compiler, node: onnx.NodeProto, x: Traced) -> Traced:
    layer = _layer(node)
    rank = len(x.shape)
    planes = c.builder.reshape(x, _planes(x), layer)
    window = planes.shape[1:]
    sums = c.builder.sum_pool(planes, window, (1, 1), (0, 0, 0, 0), layer)  # type: ignore[arg-type]
    out = c.builder.with_step(sums, 1 / math.prod(window), layer)
    return c.builder.reshape(out, (out.shape[0], *(1,) * (rank - 1)), layer)


@lowers("MaxPool")
def max_pool(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    x, layer = c.traced(first_input(node)), _layer(node)
    window = geometry_of(c, node, attributes, x.shape[1:])
    top, left, bottom, right = _pool_pads(window, x.shape[1:], attributes)
    flat = len(x.shape) == 2
    x = c.builder.truncate(c.builder.reshape(x, _planes(x), layer), layer)
    lowest = float(x.range.low.min())
    # An element that is padding only must not win: it takes the lowest value possible.
    x = c.builder.pad(x, ((0, 0), (top, bottom), (left, right)), lowest, layer)
    for axis in (2, 1):
        size, stride, dilation = (window[n][axis - 1] for n in ("kernel", "strides", "dilations"))
        x = _max_along(c, x, axis, size, stride, dilation, layer)
    return c.builder.reshape(x, x.shape[:2] if flat else x.shape, layer)


@lowers("GlobalMaxPool")
def global_max_pool(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    x, layer = c.traced(first_input(node)), _layer(node)
    rank = len(x.shape)
    x = c.builder.truncate(c.builder.reshape(x, _planes(x), layer), layer)
    for axis in (2, 1):
        x = _max_along(c, x, axis, x.shape[axis], 1, 1, layer)
    return c.builder.reshape(x, (x.shape[0], *(1,) * (rank - 1)), layer)


def max_along_axis(c: _Compiler, x: Traced, axis: int, layer: str) -> Traced:
    """The maximum over one axis, which stays with length 1."""
    return _max_along(c, x, axis, x.shape[axis], 1, 1, layer)


def _max_along(
    c: _Compiler, x: Traced, axis: int, size: int, stride: int, dilation: int, layer: str
) -> Traced:
    """The maximum over windows along one axis: a tree, one comparison per level."""
    count = (x.shape[axis] - dilation * (size - 1) - 1) // stride + 1

    def tap(index: int) -> Traced:
        cut = [slice(0, d, 1) for d in x.shape]
        start = index * dilation
        cut[axis] = slice(start, start + stride * (count - 1) + 1, stride)
        return c.builder.slice(x, cut, layer)

    taps = [tap(i) for i in range(size)]
    while len(taps) > 1:
        pairs = len(taps) // 2
        one = c.builder.concat(taps[0 : 2 * pairs : 2], 0, layer)
        other = c.builder.concat(taps[1 : 2 * pairs : 2], 0, layer)
        best = c.builder.maximum(one, other, layer)
        each = best.shape[0] // pairs
        rest = taps[2 * pairs :]
        taps = []
        for i in range(pairs):
            cut = [slice(i * each, (i + 1) * each, 1), *(slice(0, d, 1) for d in best.shape[1:])]
            taps.append(c.builder.slice(best, cut, layer))
        taps += rest
    return taps[0]


# Movement.


@lowers("Identity", "Dropout", "Cast")
def identity(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    return c.traced(first_input(node))


@lowers("Transpose")
def transpose(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    x = c.traced(first_input(node))
    order = list(attributes.get("perm", range(len(x.shape), -1, -1)))
    if order[0] != 0:
        raise c.refuse(node, "it moves the batch axis")
    return c.builder.transpose(x, [a - 1 for a in order[1:]], _layer(node))


def _reshaped(shape_of: Callable[[_Compiler, onnx.NodeProto, Attributes, Traced], Any]) -> Any:
    def lowering(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
        x = c.traced(first_input(node))
        shape = [int(d) for d in shape_of(c, node, attributes, x)]
        if -1 in shape:
            known = math.prod(d for d in shape if d != -1)
            shape[shape.index(-1)] = math.prod(x.shape) // max(known, 1)
        if math.prod(shape) != math.prod(x.shape):
            raise c.refuse(node, f"it reshapes (B, {x.shape}) across the batch")
        return c.builder.reshape(x, tuple(shape), _layer(node))

    return lowering


@lowers("Reshape")
@_reshaped
def reshape(c: _Compiler, node: onnx.NodeProto, attributes: Attributes, x: Traced) -> Any:
    target = c.constant(node, 1)
    if target is None:
        raise c.refuse(node, "its shape must be a constant")
    full = (1, *x.shape)
    dims = [full[i] if d == 0 and i < len(full) else int(d) for i, d in enumerate(target.tolist())]
    return dims[1:]


@lowers("Flatten")
@_reshaped
def flatten(c: _Compiler, node: onnx.NodeProto, attributes: Attributes, x: Traced) -> Any:
    if int(attributes.get("axis", 1)) != 1:
        raise c.refuse(node, "only axis 1 keeps the batch apart")
    return [math.prod(x.shape)]


def _axes(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> list[int]:
    given = c.constant(node, 1)
    return [int(a) for a in (attributes.get("axes", []) if given is None else given.tolist())]


@lowers("Squeeze")
@_reshaped
def squeeze(c: _Compiler, node: onnx.NodeProto, attributes: Attributes, x: Traced) -> Any:
    axes = [_axis(c, node, a, len(x.shape)) for a in _axes(c, node, attributes)]
    return [d for i, d in enumerate(x.shape) if i not in axes]


@lowers("Unsqueeze")
@_reshaped
def unsqueeze(c: _Compiler, node: onnx.NodeProto, attributes: Attributes, x: Traced) -> Any:
    shape = list(x.shape)
    axes = _axes(c, node, attributes)
    for axis in sorted(_axis(c, node, a, len(shape) + len(axes)) for a in axes):
        shape.insert(axis, 1)
    return shape


@lowers("Concat")
def concat(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    parts = [c.traced(name) for name in node.input]
    axis = _axis(c, node, int(attributes["axis"]), len(parts[0].shape))
    return c.builder.concat(parts, axis, _layer(node))


@lowers("Pad")
def pad(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    x, amounts, value = c.traced(first_input(node)), c.constant(node, 1), c.constant(node, 2)
    if attributes.get("mode", b"constant") != b"constant" or amounts is None:
        raise c.refuse(node, "only constant padding by constant amounts is supported")
    flat = [int(p) for p in amounts.tolist()]
    rank = len(x.shape) + 1
    if (axes := c.constant(node, 3)) is not None:
        full = [0] * (2 * rank)
        for i, axis in enumerate(int(a) % rank for a in axes.tolist()):
            full[axis], full[axis + rank] = flat[i], flat[i + len(axes)]
        flat = full
    if flat[0] or flat[rank] or min(flat) < 0:
        raise c.refuse(node, "it pads the batch axis, or cuts")
    pads = [(flat[i], flat[i + rank]) for i in range(1, rank)]
    real = 0.0 if value is None else float(value.item())
    return c.builder.pad(x, pads, real, _layer(node))


@lowers("Slice")
def slice_(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    x = c.traced(first_input(node))
    starts, ends, axes, steps = (c.constant(node, i) for i in range(1, 5))
    if starts is None or ends is None:
        raise c.refuse(node, "its ends must be constants")
    chosen = range(len(starts)) if axes is None else axes.tolist()
    cut = [slice(0, d, 1) for d in x.shape]
    for i, axis in enumerate(chosen):
        at = _axis(c, node, int(axis), len(x.shape))
        step = 1 if steps is None else int(steps[i])
        whole = slice(int(starts[i]), int(ends[i]), step)
        cut[at] = slice(*whole.indices(x.shape[at]))
    return c.builder.slice(x, cut, _layer(node))
