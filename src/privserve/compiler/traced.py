"""A value while the program is built, and the fraction bits that suit its magnitude."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from privserve.activations import ROOT
from privserve.compiler.ranges import Range

SMALL = 2.0**-2
"""A value that stays below this carries more fraction bits than others."""

MOST_EXTRA_BITS = 10
"""How many more, at most; and how many more a small weight carries."""

ROUNDING_MARGIN = 3
"""An answer is told with this many fraction bits more than its magnitude calls for. A party's
rounding of it then errs by less than 1/8 of a unit; that of a truncation errs by up to 1/2."""


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


def rounded_bits(x: Traced, fraction_bits: int, activation: Mapping[str, Any] | None) -> int:
    """Return how many low bits of an output no client needs; activation: the client's."""
    if not x.range.magnitude:
        return 0
    excess = max(0, round(-math.log2(x.step)) - fraction_bits)
    # As many significant bits are left as other values have, however small it is.
    smaller = max(0, -2 - math.ceil(math.log2(x.range.magnitude)))
    spare = excess - smaller - ROUNDING_MARGIN
    if activation is not None and activation["op"] == ROOT:
        # Near zero a root needs twice as many fraction bits as it has itself.
        spare -= fraction_bits + ROUNDING_MARGIN
    return max(0, spare)
