"""Hidden activations other than ReLU: a function on a computed value, lowered piece by piece.

`plan.plan` cuts the function into affine tails and splines; here the pieces become ops.
With breakpoints b_1 < .. < b_m and r_j = relu(x - b_j), all in one comparison, piece j sees
x clipped to its range, b_j + r_j - r_(j+1), and the result is a sum over the pieces of what
each adds beyond the end that faces a chosen one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from privserve.compiler import moves
from privserve.compiler.builder import ProgramBuilder
from privserve.compiler.comparisons import relu_each
from privserve.compiler.formats import ROUNDING_UNITS
from privserve.compiler.plan import TOLERANCE, Piece, plan
from privserve.compiler.products import lookup
from privserve.compiler.ranges import Range
from privserve.compiler.traced import Traced
from privserve.errors import ModelError
from privserve.functions import Expression, evaluate, steepest

LARGEST = 2.0**12
"""A function that outgrows this, and grows faster than x, is clipped to a guessed range."""

STEEPEST = 64.0
"""What grows no faster than this many times x is not clipped: its tails are lines."""


def apply_function(
    builder: ProgramBuilder,
    x: Traced,
    expression: Expression,
    *,
    domain: tuple[float, float] | None = None,
    tolerance: float = TOLERANCE,
) -> Traced:
    """Return the expression at every element of x, within about `tolerance`.

    domain: what x lies in, where that is public; else x's range, up to a power of two.
    Raises ModelError naming the layer where the function cannot be followed there.
    """
    flat = moves.reshape(builder, x, (math.prod(x.shape),))
    if domain is None:
        bound = 2.0 ** math.ceil(math.log2(max(flat.range.magnitude, 2.0**-4)))
        domain = (-bound, bound)
        if is_nonnegative(builder, flat):
            domain = (0.0, bound)
            flat = builder.bounded(flat, *domain)
    saturated = _saturated(builder, flat, expression, domain)
    if saturated is not None:
        flat, domain = saturated
    try:
        pieces = plan(expression, *domain, tolerance)
    except ModelError as failure:
        raise ModelError(f"layer '{builder.layer}': {failure}; scale its input down") from None
    bounds = _image(flat.range, expression, pieces, domain, tolerance)
    out = _assemble(builder, flat, expression, pieces, bounds, tolerance)
    out = builder.replace_range(out, bounds)
    return moves.reshape(builder, out, x.shape)


def is_nonnegative(builder: ProgramBuilder, x: Traced) -> bool:
    """Return whether x's range says so, but for what truncations take off a sum of squares."""
    slack = 2 * ROUNDING_UNITS * 2.0**-builder.fraction_bits
    return bool(x.range.low.min(initial=0.0) >= -slack)


def _saturated(
    builder: ProgramBuilder,
    x: Traced,
    expression: Expression,
    domain: tuple[float, float],
) -> tuple[Traced, tuple[float, float]] | None:
    """x clipped to a range that samples suggest, where the function is huge beyond it."""
    grid = _fine_grid(*domain)
    with np.errstate(all="ignore"):
        values = evaluate(expression, grid)
        slopes = np.abs(np.diff(values) / np.diff(grid))
    if np.isfinite(values).all() and (np.abs(values).max() <= LARGEST or slopes.max() <= STEEPEST):
        return None
    samples = x.range.samples
    low, high = float(samples.min()), float(samples.max())
    margin = 1.0 + (high - low) / 4
    low, high = max(domain[0], low - margin), min(domain[1], high + margin)
    # Quarters, so that the public range tells little about the weights.
    low, high = math.floor(low * 4) / 4, math.ceil(high * 4) / 4
    said = "an input beyond gets a RangeError and no answer"
    if not builder.bounds.check:
        said = "NOT CHECKED: an input beyond gets a wrong answer"
    builder.note(
        f"layer '{builder.layer}' is computed on [{low:g}, {high:g}] only, guessed from "
        f"calibration samples, since it is huge elsewhere; {said}"
    )
    under = builder.offset(builder.negate(x), low)
    sides = [builder.offset(x, -low), builder.offset(x, -high), under]
    over_low, over_high, under_low = relu_each(builder, sides)
    if builder.bounds.check:
        builder.must_vanish(over_high)
        builder.must_vanish(under_low)
    clipped = builder.offset(builder.subtract(over_low, over_high), low)
    return builder.bounded(clipped, low, high), (low, high)


def _fine_grid(low: float, high: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Points of [low, high]: equidistant ones, and some for every octave around zero."""
    octaves = 2.0 ** np.arange(-4, math.log2(max(abs(low), abs(high))) + 1e-9, 1 / 16)
    points = np.concatenate([np.linspace(low, high, 4097), octaves, -octaves, [0.0]])
    return np.unique(points[(points >= low) & (points <= high)])


def _image(
    x: Range,
    expression: Expression,
    pieces: Sequence[Piece],
    domain: tuple[float, float],
    tolerance: float,
) -> Range:
    """The function's range, the approximation's error included."""
    grid = np.unique(np.concatenate([np.linspace(p.low, p.high, 513) for p in pieces]))
    values = evaluate(expression, grid)
    steep = float(np.max(np.abs(np.diff(values)) / np.diff(grid)))
    slack = 2 * tolerance * max(1.0, steep / 4)
    low, high = np.clip(x.low, *domain), np.clip(x.high, *domain)
    samples = evaluate(expression, np.clip(x.samples, *domain))
    if np.all(np.diff(values) >= 0):
        one, other = evaluate(expression, low), evaluate(expression, high)
    else:
        one, other = np.full_like(low, values.min()), np.full_like(high, values.max())
    return Range(one - slack, other + slack, samples)


def _assemble(
    b: ProgramBuilder,
    x: Traced,
    expression: Expression,
    pieces: Sequence[Piece],
    bounds: Range,
    tolerance: float,
) -> Traced:
    breaks = [piece.low for piece in pieces[1:]]
    above = relu_each(b, [b.offset(x, -at) for at in breaks]) if breaks else []
    values = evaluate(expression, np.array(breaks)) if breaks else np.zeros(0)
    # Where the other pieces' parts begin to count from: a spline is not zero anywhere.
    chosen = next((j for j, piece in enumerate(pieces) if piece.slope is None), 0)
    total: Traced | None = None
    constant = 0.0
    for j, piece in enumerate(pieces):
        clipped = _clipped(b, x, pieces, above, j)
        if piece.slope is None:
            # What `plan.plan` promises, and twice that where a piece is used at its end.
            error = 1.5 * tolerance * max(1.0, steepest(expression, piece.low, piece.high) / 4)
            part: Traced | None = lookup(b, clipped, expression, piece, bounds, error)
            if j != chosen:
                constant -= float(values[j - 1] if j > chosen else values[j])
        else:
            part = b.multiply_public(clipped, piece.slope, bits=24) if piece.slope else None
            end = piece.low if j > chosen else piece.high
            constant -= piece.slope * end
            if j == chosen:  # there is no spline at all
                constant += evaluate(expression, np.array([end])).item()
        if part is not None:
            total = part if total is None else b.add(total, part)
    if total is None:
        total = b.scale(x, 0, x.step)
    return b.offset(total, constant)


def _clipped(
    b: ProgramBuilder,
    x: Traced,
    pieces: Sequence[Piece],
    above: Sequence[Traced],
    j: int,
) -> Traced:
    """x clipped to piece j."""
    piece = pieces[j]
    if len(pieces) == 1:
        return x
    if j == 0:
        part = b.subtract(x, above[0])
    elif j == len(pieces) - 1:
        part = b.offset(above[-1], piece.low)
    else:
        part = b.offset(b.subtract(above[j - 1], above[j]), piece.low)
    return b.bounded(part, piece.low, piece.high)
