"""Quadratic splines of a smooth function, and their coefficients as ring elements.

`compiler.plan` decides where a function is cut into pieces; here a piece becomes numbers. The
engine deals these, and the compiler simulates with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privserve.fixedpoint import RingArray
from privserve.functions import evaluate

Floats = NDArray[np.float64]
Function = Callable[[Floats], Floats]

ENTRIES = 3
"""Words per segment."""


def fit(function: Function, piece: tuple[float, float], starts: Floats, width: float) -> Floats:
    """Return quadratics for segments that begin at `starts` and are `width` wide: float64[3, S].

    Row k belongs to (x - centre)^k, centre being the segment's middle. Each interpolates the
    function in Chebyshev's nodes; a segment that sticks out of the piece gets the quadratic
    of the outermost one that does not, so the function is never asked beyond the piece.
    """
    low, high = piece
    inside = np.clip(starts, low, max(low, high - width))
    reach = width / 2 * math.cos(math.pi / 6)
    centre = inside + width / 2
    # At the very ends one-sided values count: there may be a kink.
    edge = 1e-9 * (high - low)
    before, middle, after = (
        function(np.clip(centre + at, low + edge, high - edge)) for at in (-reach, 0.0, reach)
    )
    c2 = (before - 2 * middle + after) / (2 * reach**2)
    c1 = (after - before) / (2 * reach)
    # From the middle of the segment that was fitted to that of the one that was asked for.
    moved = starts - inside
    return np.stack([middle + c1 * moved + c2 * moved**2, c1 + 2 * c2 * moved, c2])


def quadratics(attributes: Mapping[str, Any]) -> RingArray:
    """Return int64[2^K, 3]: row a + 2^s holds c_0, c_1, c_2 of the interval that begins at a.

    a goes from -2^s, since the interval that wraps around holds small t only.
    """
    return _quadratics(
        _frozen(attributes["function"]),
        tuple(attributes["piece"]),
        float(attributes["unit"]),
        int(attributes["low"]),
        int(attributes["comparison_bits"]),
        int(attributes["segment_bits"]),
        int(attributes["output_bits"]),
    )


def _frozen(expression: Any) -> Any:
    if isinstance(expression, list | tuple):
        return tuple(map(_frozen, expression))
    return expression


@lru_cache(maxsize=8)
def _quadratics(
    function: Any,
    piece: tuple[float, float],
    unit: float,
    low: int,
    bits: int,
    segment_bits: int,
    output_bits: int,
) -> RingArray:
    first = -(1 << segment_bits)
    starts = (np.arange(first, first + (1 << bits), dtype=np.float64) + low) * unit
    fitted = fit(lambda x: evaluate(function, x), piece, starts, unit * 2.0**segment_bits)
    scale = 2.0**output_bits * unit ** np.arange(ENTRIES)
    table: RingArray = np.ascontiguousarray(np.rint(fitted.T * scale).astype(np.int64))
    table.setflags(write=False)
    return table
