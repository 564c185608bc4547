"""Numbers that an op's format needs: fraction bits, repetition, a lookup's segments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from privserve.compiler.plan import Piece
from privserve.compiler.ranges import Floats
from privserve.sharing import MAX_COMPUTE_PARTIES

ROUNDING_UNITS = MAX_COMPUTE_PARTIES // 2
"""Truncation is off by at most n/2 units for n compute parties."""


EXACT = 1e-12
"""Quotients of steps that are this close to a fraction are taken for it."""


def exact_bits(factors: Floats, most: int = 14) -> int:
    """Return the fraction bits that public factors need to be exact; `most` where none suffice."""
    for bits in range(most):
        if np.all(factors * 2.0**bits % 1 == 0):
            return bits
    return most


def repetition(small: tuple[int, ...], shape: tuple[int, ...]) -> int | None:
    """Return `inner` such that element e of `shape` takes element (e // inner) % len of `small`.

    small: a shape that broadcasts to `shape`. None where no number does it, because the
    axes that `small` has are not next to each other.
    """
    full = (1,) * (len(shape) - len(small)) + small
    kept = [i for i, d in enumerate(full) if d != 1]
    if not kept:
        return 1
    if any(full[i] == 1 and shape[i] != 1 for i in range(kept[0], kept[-1])):
        return None
    return math.prod(shape[kept[-1] + 1 :])


@dataclass(frozen=True)
class Measure:
    """A common step for several values, and the integer that takes each one there."""

    step: float
    factors: tuple[int, ...]
    rounded: tuple[bool, ...]
    """Whether a factor is not exact."""


def common_measure(steps: Sequence[float], dyadic: bool) -> Measure | None:
    """Return a step of which all are integer multiples, exactly; None where there is none."""
    finest = 2.0 ** math.floor(math.log2(min(steps))) if dyadic else min(steps)
    ratios = [Fraction(step / finest).limit_denominator(4096) for step in steps]
    if any(abs(float(r) * finest / s - 1) > EXACT for r, s in zip(ratios, steps, strict=True)):
        return None
    common = math.lcm(*(r.denominator for r in ratios))
    if dyadic and common & (common - 1):
        return None
    factors = tuple(int(r * common) for r in ratios)
    return Measure(finest / common, factors, (False,) * len(factors))


def rounded_measure(steps: Sequence[float], bits: int) -> Measure:
    """Return a power of two as step, by factors with at least `bits` bits where they are rounded.

    Half a unit of such a factor is at most 2^-bits of it.
    """
    exact = [math.frexp(step)[0] == 0.5 for step in steps]
    limits = [
        math.floor(math.log2(step)) - (0 if is_exact else bits)
        for step, is_exact in zip(steps, exact, strict=True)
    ]
    step = 2.0 ** min(limits)
    return Measure(step, tuple(round(s / step) for s in steps), tuple(not e for e in exact))


def fitting_measure(
    steps: Sequence[float], rooms: Sequence[int], bits: Iterable[int], dyadic: bool
) -> Measure | None:
    """Return the first measure whose factors fit: the common one, or one of rounded factors.

    rooms: by how many bits each value may grow; bits: of rounded factors, the best first.
    """
    candidates = itertools.chain(
        (common_measure(steps, dyadic),), (rounded_measure(steps, b) for b in bits)
    )
    for plan in candidates:
        if plan is not None and all(
            factor.bit_length() - 1 <= room
            for factor, room in zip(plan.factors, rooms, strict=True)
        ):
            return plan
    return None


def lookup_format(
    step: float, excess: int, piece: Piece, magnitude: float, fraction_bits: int
) -> dict[str, Any]:
    """Return the numbers of a lookup: its unit, segments, shift and the output's fraction bits.

    step, excess: of the value, which is multiplied by `factor` first; then units of `unit` =
    step / factor * 2^shift make the segments as wide as the piece needs.
    """
    base = step * 2.0**excess
    # What a clipped value may lie beyond the piece, on either side.
    slack = 2 * ROUNDING_UNITS * base
    length = piece.high - piece.low + 2 * slack
    index_bits = round(math.log2(piece.segments))
    width = max(piece.width, 1.005 * length / (piece.segments - 1))
    # As fine as the value itself, but a dealer's table of 2^20 rows is large enough.
    finest = max(12, math.floor(math.log2(width / base)))
    segment_bits = min(14, 20 - index_bits, finest)
    room = (piece.segments - 1) * 2**segment_bits - 2 * ROUNDING_UNITS - 2
    least = length / room
    most = max(1.005 * least, min(1.05 * least, width / 2**segment_bits))
    # Quotients 2^shift / factor come within half a percent of every number.
    for factor in range(1, 512):
        shift = max(0, math.ceil(math.log2(least * factor / step)))
        unit = step * 2.0**shift / factor
        if unit <= most:
            break
    integer_bits = max(1, math.ceil(math.log2(max(magnitude, 1e-9))) + 1)
    return {
        "factor": factor,
        "shift": shift,
        "unit": unit,
        "low": math.floor((piece.low - slack) / unit) - ROUNDING_UNITS,
        "comparison_bits": segment_bits + index_bits,
        "segment_bits": segment_bits,
        "output_bits": min(2 * segment_bits + max(11, fraction_bits - 3), 59 - integer_bits),
        "piece": [piece.low, piece.high],
    }


def rounding_error(attributes: Mapping[str, Any]) -> float:
    """Return what a lookup's units and coefficients add to the error of its spline.

    t is off by two units for two compute parties: half a unit each, its own rounding, and
    what the mask's alignment moves a segment's fit by. The coefficients are rounded to units
    of 2^-output_bits, and multiplied by z and z^2, |z| <= 2^(segment_bits - 1).
    """
    half = 2.0 ** (attributes["segment_bits"] - 1)
    coefficients = 0.5 * (1 + half + half**2) * 2.0 ** -attributes["output_bits"]
    return float(2 * attributes["slope"] * attributes["unit"] + coefficients)
