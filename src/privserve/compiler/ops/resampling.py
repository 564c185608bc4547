"""Lowerings that change sizes: transposed convolutions, resizing, gathering, repeating."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx

from privserve.compiler.builder import Traced
from privserve.compiler.compile import Tensor, _Compiler, _layer, geometry_of, lowers
from privserve.geometry import Geometry

Attributes = dict[str, Any]


@lowers("ConvTranspose")
def conv_transpose(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    """One convolution that makes all stride phases as channels, which are then interleaved.

    With p pads cut off and j = s q + r the place in the uncut output, out[j] = sum over m of
    w[r + s m] x[q - m]: a plain convolution over q for each phase r.
    """
    b, layer = c.builder, _layer(node)
    x, weight, bias = c.traced(node.input[0]), c.constant(node, 1), c.constant(node, 2)
    if weight is None:
        raise c.refuse(node, "its weight must be a constant")
    flat = len(x.shape) == 2
    attributes.setdefault("kernel_shape", weight.shape[2:])
    window = geometry_of(c, node, {**attributes, "auto_pad": b"NOTSET"}, x.shape[1:])
    kernel, strides, dilations = window["kernel"], window["strides"], window["dilations"]
    channels, height, width = (*x.shape, 1)[:3]
    groups = int(attributes.get("group", 1))
    each = weight.shape[1]
    outputs = each * groups
    extra = (
        [*attributes.get("output_padding", (0, 0)), 0][:2]
        if flat
        else [*attributes.get("output_padding", (0, 0))]
    )
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    natural = [
        (n - 1) * s + k + e
        for n, s, k, e in zip((height, width), strides, reach, extra, strict=True)
    ]
    begins, sizes = _cut(c, node, attributes, window["pads"], natural, (height, width), strides)

    dilated = np.zeros((channels, each, *reach))
    dilated[:, :, :: dilations[0], :: dilations[1]] = weight.reshape(channels, each, *kernel)
    taps = [-(-k // s) for k, s in zip(reach, strides, strict=True)]
    phases = np.zeros((channels, each, taps[0] * strides[0], taps[1] * strides[1]))
    phases[:, :, : reach[0], : reach[1]] = dilated
    # [g, C / g, O / g, m_h, r_h, m_w, r_w] -> [g, O / g, r_h, r_w, C / g, m_h, m_w], m reversed.
    split = phases.reshape(
        groups, channels // groups, each, taps[0], strides[0], taps[1], strides[1]
    )
    arranged = split.transpose(0, 2, 4, 6, 1, 3, 5)[..., ::-1, ::-1]
    steps = math.prod(strides)
    full = arranged.reshape(outputs * steps, channels // groups, taps[0], taps[1])

    quotients = [-(-(p + n) // s) for p, n, s in zip(begins, sizes, strides, strict=True)]
    after = [max(0, q - n) for q, n in zip(quotients, (height, width), strict=True)]
    planes = b.reshape(x, (channels, height, width), layer)
    geometry = Geometry(
        (channels, height, width),
        outputs * steps,
        (taps[0], taps[1]),
        (1, 1),
        (taps[0] - 1, taps[1] - 1, after[0], after[1]),
        (1, 1),
        groups,
    )
    shift = None if bias is None else np.repeat(bias.astype(np.float64), steps)
    out = b.linear(planes, geometry, np.ascontiguousarray(full), shift, layer)
    _, rows, columns = out.shape
    out = b.reshape(out, (outputs, *strides, rows, columns), layer)
    out = b.transpose(out, (0, 3, 1, 4, 2), layer)
    out = b.reshape(out, (outputs, rows * strides[0], columns * strides[1]), layer)
    cut = [slice(p, p + n, 1) for p, n in zip(begins, sizes, strict=True)]
    out = b.slice(out, [slice(0, outputs, 1), *cut], layer)
    return b.reshape(out, out.shape[:2] if flat else out.shape, layer)


def _cut(
    c: _Compiler,
    node: onnx.NodeProto,
    attributes: Attributes,
    pads: tuple[int, ...],
    natural: list[int],
    inputs: tuple[int, int],
    strides: tuple[int, ...],
) -> tuple[list[int], list[int]]:
    """Where the kept part of the uncut output begins, and its size, per axis."""
    auto = attributes.get("auto_pad", b"NOTSET").decode()
    target = attributes.get("output_shape")
    if target is None and not auto.startswith("SAME"):
        begins = [pads[0], pads[1]]
        return begins, [n - pads[i] - pads[i + 2] for i, n in enumerate(natural)]
    if target is None:
        sizes = [n * s for n, s in zip(inputs, strides, strict=True)]
    else:
        sizes = [*map(int, target), 1][:2]
    begins = []
    for size, n in zip(sizes, natural, strict=True):
        total = max(0, n - size)
        begins.append(total // 2 if auto != "SAME_LOWER" else total - total // 2)
    return begins, sizes


@lowers("Resize")
def resize(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    """Nearest neighbours (asymmetric, rounded down), or linear (half a pixel), axis by axis."""
    b, layer = c.builder, _layer(node)
    x = c.traced(node.input[0])
    scales, sizes = c.constant(node, 2), c.constant(node, 3)
    full = (1, *x.shape)
    if sizes is not None and sizes.size:
        target = [int(n) for n in sizes.tolist()]
        factors = [t / n for t, n in zip(target, full, strict=True)]
    elif scales is not None:
        factors = [float(s) for s in scales.tolist()]
        target = [math.floor(n * s) for n, s in zip(full, factors, strict=True)]
    else:
        raise c.refuse(node, "its sizes must be constants")
    mode = attributes.get("mode", b"nearest").decode()
    places = attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    rounding = attributes.get("nearest_mode", b"round_prefer_floor").decode()
    nearest = mode == "nearest" and places == "asymmetric" and rounding == "floor"
    linear = mode == "linear" and places == "half_pixel"
    if not nearest and not linear:
        raise c.refuse(node, f"mode {mode}, {places}, {rounding} is not supported")
    for axis, (wanted, size) in enumerate(zip(target[1:], x.shape, strict=True)):
        if wanted == size:
            continue
        places_of = np.arange(wanted) / factors[axis + 1]
        if nearest:
            # A quotient that should be whole must not fall below it.
            rows = np.minimum(np.floor(places_of + 1e-9), size - 1).astype(int)
            x = b.gather(x, rows, axis, layer)
            continue
        at = np.clip((np.arange(wanted) + 0.5) / factors[axis + 1] - 0.5, 0, size - 1)
        lower = np.minimum(np.floor(at), max(size - 2, 0)).astype(int)
        upper = np.minimum(lower + 1, size - 1)
        x = b.narrow(x, layer)
        weight = (at - lower).reshape(-1, *(1,) * (len(x.shape) - axis - 1))
        one = b.multiply_public(b.gather(x, lower, axis, layer), 1 - weight, layer)
        other = b.multiply_public(b.gather(x, upper, axis, layer), weight, layer)
        bounds = one.range.plus(other.range)
        x = b.replace_range(b.add(one, other, layer), bounds)
    return x


@lowers("Gather")
def gather(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    x, indices = c.traced(node.input[0]), c.constant(node, 1)
    axis = int(attributes.get("axis", 0))
    axis = axis + len(x.shape) if axis < 0 else axis - 1
    if indices is None or axis < 0:
        raise c.refuse(node, "only constant places along an axis other than the batch's")
    rows = indices.astype(int).ravel() % x.shape[axis]
    out = c.builder.gather(x, rows, axis, _layer(node))
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return c.builder.reshape(out, shape, _layer(node))


@lowers("Tile")
def tile(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    x: Traced = c.traced(node.input[0])
    repeats = c.constant(node, 1)
    if repeats is None or int(repeats[0]) != 1:
        raise c.refuse(node, "it repeats along the batch, or not by constants")
    for axis, times in enumerate(repeats.tolist()[1:]):
        if times != 1:
            rows = np.tile(np.arange(x.shape[axis]), int(times))
            x = c.builder.gather(x, rows, axis, _layer(node))
    return x
