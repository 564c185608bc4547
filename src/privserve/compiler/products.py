"""Ops that open a value once: products with secrets, and lookups; functions of their builder."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from privserve.compiler import moves
from privserve.compiler.formats import lookup_format, repetition, rounding_error
from privserve.compiler.plan import Piece
from privserve.compiler.ranges import Floats, Range
from privserve.compiler.traced import Traced, extra_bits
from privserve.functions import Expression, steepest
from privserve.geometry import Geometry

if TYPE_CHECKING:
    from privserve.compiler.builder import ProgramBuilder

WEIGHT_EXTRA_BITS = 4
"""A weight carries this many fraction bits more than an activation."""


def linear(
    b: ProgramBuilder, x: Traced, geometry: Geometry, weight: Floats, bias: Floats | None
) -> Traced:
    """Return weight * x + bias; weight: [O, C / groups, kh, kw], bias: [O]; [O, H', W']."""
    x = b.narrow(x)
    size = float(np.abs(weight).max()) if weight.size else 1.0
    fine = extra_bits(size) if math.isfinite(size) else 0
    output = 2.0 ** -(2 * b.fraction_bits + WEIGHT_EXTRA_BITS + b.excess(x) + fine)
    unit = output / x.step
    encoded = b.encode(weight, unit, "weight")
    bounds = x.range.convolved(geometry, encoded * unit, weight)
    if bias is not None:
        encoded_bias = b.encode(bias, output, "bias")
        bounds = bounds.shifted(bias[:, None, None])
    if bounds.magnitude / output >= 2.0**62:
        tamed = b.tamed(x, bounds.magnitude)
        return linear(b, tamed, geometry, weight, bias)
    attributes: dict[str, Any] = {
        "geometry": geometry.to_json(),
        "weight": b.parameter("weight", encoded),
        "bias": None,
    }
    if bias is not None and np.any(bias):
        attributes["bias"] = b.parameter("bias", encoded_bias)
    return b.emit("linear", (x,), geometry.output_shape, output, bounds, attributes)


def multiply(b: ProgramBuilder, x: Traced, y: Traced) -> Traced:
    """Return x * y, both computed; shapes that broadcast as in NumPy."""
    x, y = b.truncate(x), b.truncate(y)
    shape = np.broadcast_shapes(x.shape, y.shape)
    if math.prod(x.shape) < math.prod(y.shape):
        x, y = y, x
    x = moves.expand(b, x, shape)
    if (inner := repetition(y.shape, shape)) is None:
        y, inner = moves.expand(b, y, shape), 1
    if x.number == y.number:
        return square(b, x)
    bounds = x.range.times(y.range)
    step = x.step * y.step
    if bounds.magnitude / step >= 2.0**62:
        x = b.tamed(x, bounds.magnitude)
        bounds = x.range.times(y.range)
        if bounds.magnitude / step >= 2.0**62:
            y = b.tamed(y, bounds.magnitude)
            bounds = x.range.times(y.range)
    if bounds.magnitude / step >= 2.0**62:
        b.refuse(bounds.magnitude)
    return b.emit("multiply", (x, y), shape, step, bounds, {"inner": inner})


def square(b: ProgramBuilder, x: Traced) -> Traced:
    """Return x * x, which opens x once."""
    x = b.truncate(x)
    if _squared(x).magnitude / x.step**2 >= 2.0**62:
        x = b.tamed(x, _squared(x).magnitude)
    bounds = _squared(x)
    if bounds.magnitude / x.step**2 >= 2.0**62:
        b.refuse(bounds.magnitude)
    return b.emit("square", (x,), x.shape, x.step**2, bounds, {})


def _squared(x: Traced) -> Range:
    """The range of x * x, of which intervals do not know that it is a square."""
    bounds = x.range.times(x.range)
    return Range(np.maximum(bounds.low, 0), bounds.high, bounds.samples)


def lookup(
    b: ProgramBuilder,
    x: Traced,
    expression: Expression,
    piece: Piece,
    bounds: Range,
    error: float,
) -> Traced:
    """Return a function of x on one of its pieces, a spline; `bounds`: of the result.

    error: by how much the spline itself may be off.
    """
    if b.excess(x) > 30:  # shift and K together must fit in the ring
        x = b.truncate(x)
    attributes = lookup_format(x.step, b.excess(x), piece, bounds.magnitude, b.fraction_bits)
    if attributes["output_bits"] < b.fraction_bits:
        b.refuse(bounds.magnitude)
    factor = attributes.pop("factor")
    x = b.scale(x, factor, x.step / factor)
    attributes["function"] = expression
    steep = steepest(expression, piece.low, piece.high)
    attributes["slope"] = steep
    attributes["error"] = error + rounding_error(attributes)
    step = 2.0 ** -attributes["output_bits"]
    return b.emit("lookup", (x,), x.shape, step, bounds, attributes)
