"""Lowerings that change sizes by interpolation: transposed convolutions and resizing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from privserve.compiler import moves
from privserve.compiler.builder import ProgramBuilder
from privserve.compiler.lowering import Lowering, Tensor
from privserve.compiler.onnx_graph import Constant
from privserve.compiler.ops.windows import Pair, SlidingWindow, check_auto_pad, planes, window_of
from privserve.compiler.products import linear
from privserve.compiler.ranges import Floats
from privserve.compiler.registry import lowers
from privserve.compiler.traced import Traced
from privserve.geometry import Geometry


@lowers("ConvTranspose")
def conv_transpose(
    c: Lowering,
    *,
    kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    output_padding: Sequence[int] = (0, 0),
    output_shape: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    group: int = 1,
) -> Tensor:
    """One convolution that makes all stride phases as channels, which are then interleaved.

    With p pads cut off and j = s q + r the place in the uncut output, out[j] = sum over m of
    w[r + s m] x[q - m]: a plain convolution over q for each phase r.
    """
    b, x, weight, bias = c.builder, c.traced(0), c.constant(1), c.constant(2)
    if weight is None:
        raise c.refuse("its weight must be a constant")
    check_auto_pad(c, auto_pad)
    flat = len(x.shape) == 2
    kernel = kernel_shape or weight.shape[2:]
    stated = window_of(c, x.shape[1:], kernel, strides, dilations, pads, "NOTSET")
    shape = planes(x)
    extra = [*output_padding, 0][:2] if flat else [*output_padding]
    begins, sizes = _kept(c, stated, shape[1:], extra, output_shape, auto_pad)
    full, taps = _phases(weight, stated, group)
    quotients = [-(-(p + n) // s) for p, n, s in zip(begins, sizes, stated.strides, strict=True)]
    after = [max(0, q - n) for q, n in zip(quotients, shape[1:], strict=True)]
    geometry = Geometry(
        shape,
        len(full),
        taps,
        (1, 1),
        (taps[0] - 1, taps[1] - 1, after[0], after[1]),
        (1, 1),
        group,
    )
    steps = math.prod(stated.strides)
    shift = None if bias is None else np.repeat(bias.astype(np.float64), steps)
    out = linear(b, moves.reshape(b, x, shape), geometry, full, shift)
    out = _interleaved(b, out, stated.strides)
    cut = [slice(p, p + n, 1) for p, n in zip(begins, sizes, strict=True)]
    out = moves.slice_(b, out, [slice(0, out.shape[0], 1), *cut])
    return moves.reshape(b, out, out.shape[:2] if flat else out.shape)


def _reach(window: SlidingWindow) -> list[int]:
    """The dilated kernel's height and width."""
    return [d * (k - 1) + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]


def _phases(weight: Constant, window: SlidingWindow, groups: int) -> tuple[Floats, Pair]:
    """The convolution's weight, an output channel per channel and phase, and its taps per axis.

    weight: [C, O / groups, kh, kw] of the transposed convolution.
    """
    channels, each = weight.shape[:2]
    strides, reach = window.strides, _reach(window)
    dilated = np.zeros((channels, each, *reach))
    dilated[:, :, :: window.dilations[0], :: window.dilations[1]] = weight.reshape(
        channels, each, *window.kernel
    )
    taps = (-(-reach[0] // strides[0]), -(-reach[1] // strides[1]))
    phases = np.zeros((channels, each, taps[0] * strides[0], taps[1] * strides[1]))
    phases[:, :, : reach[0], : reach[1]] = dilated
    # [g, C / g, O / g, m_h, r_h, m_w, r_w] -> [g, O / g, r_h, r_w, C / g, m_h, m_w], m reversed.
    split = phases.reshape(
        groups, channels // groups, each, taps[0], strides[0], taps[1], strides[1]
    )
    arranged = split.transpose(0, 2, 4, 6, 1, 3, 5)[..., ::-1, ::-1]
    outputs = each * groups * math.prod(strides)
    full = arranged.reshape(outputs, channels // groups, taps[0], taps[1])
    return np.ascontiguousarray(full), taps


def _interleaved(b: ProgramBuilder, x: Traced, strides: Pair) -> Traced:
    """(O s_h s_w, H, W) as (O, H s_h, W s_w)."""
    phases, rows, columns = x.shape
    outputs = phases // math.prod(strides)
    x = moves.reshape(b, x, (outputs, *strides, rows, columns))
    x = moves.transpose(b, x, (0, 3, 1, 4, 2))
    return moves.reshape(b, x, (outputs, rows * strides[0], columns * strides[1]))


def _kept(
    c: Lowering,
    window: SlidingWindow,
    inputs: Sequence[int],
    extra: Sequence[int],
    target: Sequence[int] | None,
    auto_pad: str,
) -> tuple[list[int], list[int]]:
    """Where the kept part of the uncut output begins, and its size, per axis.

    extra: what is added at the ends; target: the size where it is stated.
    """
    natural = [
        (n - 1) * s + k + e
        for n, s, k, e in zip(inputs, window.strides, _reach(window), extra, strict=True)
    ]
    if target is None and not auto_pad.startswith("SAME"):
        begins = [window.pads[0], window.pads[1]]
        return begins, [n - window.pads[i] - window.pads[i + 2] for i, n in enumerate(natural)]
    if target is None:
        sizes = [n * s for n, s in zip(inputs, window.strides, strict=True)]
    else:
        sizes = [*map(int, target), 1][:2]
    begins = []
    for size, n in zip(sizes, natural, strict=True):
        total = max(0, n - size)
        begins.append(total // 2 if auto_pad != "SAME_LOWER" else total - total // 2)
    return begins, sizes


@lowers("Resize")
def resize(
    c: Lowering,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
) -> Tensor:
    """Nearest neighbours (asymmetric, rounded down), or linear (half a pixel), axis by axis.

    cubic_coeff_a and extrapolation_value are those of other modes. exclude_outside changes
    nothing here: of two neighbours the one that is outside has the edge's value.
    """
    b, x = c.builder, c.traced(0)
    target, factors = _target(c, x)
    nearest = (mode, coordinate_transformation_mode, nearest_mode) == (
        "nearest",
        "asymmetric",
        "floor",
    )
    linearly = mode == "linear" and coordinate_transformation_mode == "half_pixel"
    if not nearest and not linearly:
        places = f"{coordinate_transformation_mode}, {nearest_mode}"
        raise c.refuse(f"mode {mode}, {places} is not supported")
    if antialias or axes is not None or keep_aspect_ratio_policy != "stretch":
        raise c.refuse("antialias, axes and keep_aspect_ratio_policy are not supported")
    for axis, (wanted, size) in enumerate(zip(target, x.shape, strict=True)):
        if wanted == size:
            continue
        if nearest:
            # A quotient that should be whole must not fall below it.
            places_of = np.floor(np.arange(wanted) / factors[axis] + 1e-9)
            x = moves.gather(b, x, np.minimum(places_of, size - 1).astype(int), axis)
        else:
            x = _interpolated(b, x, axis, wanted, factors[axis])
    return x


def _target(c: Lowering, x: Traced) -> tuple[list[int], list[float]]:
    """The lengths of x's axes after a Resize, and by what factor each one grows."""
    scales, sizes = c.constant(2), c.constant(3)
    if sizes is not None and sizes.size:
        target = [int(n) for n in sizes.tolist()[1:]]
        return target, [t / n for t, n in zip(target, x.shape, strict=True)]
    if scales is None:
        raise c.refuse("its sizes must be constants")
    factors = [float(s) for s in scales.tolist()[1:]]
    return [math.floor(n * s) for n, s in zip(x.shape, factors, strict=True)], factors


def _interpolated(b: ProgramBuilder, x: Traced, axis: int, wanted: int, factor: float) -> Traced:
    """x resized linearly along one axis."""
    size = x.shape[axis]
    at = np.clip((np.arange(wanted) + 0.5) / factor - 0.5, 0, size - 1)
    lower = np.minimum(np.floor(at), max(size - 2, 0)).astype(int)
    upper = np.minimum(lower + 1, size - 1)
    x = b.narrow(x)
    weight = (at - lower).reshape(-1, *(1,) * (len(x.shape) - axis - 1))
    one = b.multiply_public(moves.gather(b, x, lower, axis), 1 - weight)
    other = b.multiply_public(moves.gather(b, x, upper, axis), weight)
    return b.replace_range(b.add(one, other), one.range.plus(other.range))
