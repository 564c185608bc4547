"""A value while the program is built, and the fraction bits that suit a magnitude."""

from __future__ import annotations

import math
from dataclasses import dataclass

from privserve.compiler.ranges import Range

SMALL = 2.0**-2
"""A value that stays below this carries more fraction bits than others."""

MOST_EXTRA_BITS = 10
"""How many more, at most; and how many more a small weight carries."""


@dataclass(frozen=True)
class Traced:
    """A value's number in the program, its shape, its step and its range (in reals)."""

    number: int
    shape: tuple[int, ...]
    step: float
    range: Range

    @property
    def room(self) -> int:
        """By how many bits the elements may grow, and still be compared afterwards."""
        return 61 - math.ceil(math.log2(max(self.range.magnitude / self.step, 1.0)))


def extra_bits(magnitude: float) -> int:
    """Return how many fraction bits more than usual a value or weight of this size carries."""
    if magnitude >= SMALL or magnitude <= 0:
        return 0
    return min(MOST_EXTRA_BITS, math.floor(math.log2(SMALL / magnitude)))
