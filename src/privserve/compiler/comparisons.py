"""What is made of a comparison besides a ReLU, as functions of the builder that emits it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from privserve.compiler import moves
from privserve.compiler.formats import ROUNDING_UNITS
from privserve.compiler.ranges import joined
from privserve.compiler.traced import Traced

if TYPE_CHECKING:
    from privserve.compiler.builder import ProgramBuilder


def relu_each(b: ProgramBuilder, parts: Sequence[Traced]) -> list[Traced]:
    """Return the ReLU of every part, values of one shape, in one comparison."""
    return moves.parted(b, b.relu(moves.concat(b, parts, 0)), len(parts))


def halves_each(b: ProgramBuilder, parts: Sequence[Traced]) -> list[tuple[Traced, Traced]]:
    """Return max(x, 0) and min(x, 0) of every part, values of one shape, in one comparison."""
    x = moves.concat(b, parts, 0)
    step, held, attributes = b.comparison(x, spare=1)
    held = held.widened(ROUNDING_UNITS * step if attributes["shift"] else 0.0)
    bounds = joined([held.map(lambda v: np.maximum(v, 0)), held.map(lambda v: np.minimum(v, 0))], 0)
    shape = (2 * x.shape[0], *x.shape[1:])
    both = moves.parted(b, b.emit("halves", (x,), shape, step, bounds, attributes), 2 * len(parts))
    return list(zip(both[: len(parts)], both[len(parts) :], strict=True))


def maximum(b: ProgramBuilder, x: Traced, y: Traced) -> Traced:
    """Return max(x, y) = y + 2^s relu((x - y) >> s), s the surplus bits, which stay.

    It is off by what a truncation is. Without a surplus it is exact.
    """
    x, y = b.align((x, y))
    difference = b.subtract(x, y)
    if difference.step != x.step:  # it was too crowded
        return maximum(b, b.truncate(x), b.truncate(y))
    positive = b.relu(difference)
    surplus = round(math.log2(positive.step / x.step))
    slack = ROUNDING_UNITS * positive.step if surplus else 0.0
    out = b.add(y, b.scale(positive, 2**surplus, x.step))
    # Interval arithmetic does not see that the terms of y + relu(x - y) go together.
    return b.replace_range(out, x.range.maximum(y.range).widened(slack))
