"""How long each comparison is: by a sound bound, or by a guess that the parties guard.

A program is first compiled with sound bounds alone: interval arithmetic says what every value
can reach for inputs in the declared range, and K is the smallest that holds it. Only where the
ring has no room for that (deep networks) is it compiled again with guesses, from samples.
A guessed comparison carries `guard` bits more of its value, enough to tell whether the value
left the guessed range, and the client is told so instead of a number. Therefore what follows
a guess may rely on it: bounds behind it are sound for every answer that is given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NoReturn

from privserve.compiler.formats import ROUNDING_UNITS
from privserve.compiler.ranges import Range
from privserve.errors import ModelError
from privserve.program import MAX_COMPARISON_BITS, MIN_COMPARISON_BITS

SOUND_BITS = 30
"""In a network that has to be guessed, comparisons before the first guess may be this long."""

CALIBRATION_MARGIN = 8.0
"""A range that comes from samples is taken this many times wider than what they reached."""


class UnaffordableError(ModelError):
    """A sound bound does not fit in the ring; raised while nothing may be guessed."""


def _most(shift: int) -> int:
    """The longest comparison of what is shifted so far."""
    return min(MAX_COMPARISON_BITS, 64 - shift)


def does_not_fit(magnitude: float, layer: str, fraction_bits: int) -> str:
    """Return what to tell somebody whose model's values outgrow the ring."""
    return (
        f"layer '{layer}': its values reach +-{magnitude:.3g}, which does not fit in the ring "
        f"with {fraction_bits} fraction bits; scale the inputs down (input_range), "
        "normalise the weights, or use fewer fraction bits (--fraction-bits)"
    )


@dataclass(frozen=True)
class Comparison:
    """A comparison's K, the guard bits above it (0: its bound is sound) and the value's range."""

    bits: int
    guard: int
    range: Range


@dataclass
class Bounds:
    """Chooses comparisons for one program."""

    fraction_bits: int
    guess: bool = False
    check: bool = True
    """Whether guesses are guarded."""
    calibrated: bool = False
    """Whether the samples are the model owner's."""
    guessed: list[str] = field(default_factory=list)
    """The layers with a guessed comparison, in order."""

    def affords(self, bounds: Range, step: float, shift: int) -> bool:
        """Tell whether a ReLU of values with this range needs no other guess than others do."""
        return self.guess or self._bits(bounds.magnitude, step, shift, 1) <= _most(shift)

    def _bits(self, magnitude: float, step: float, shift: int, spare: int) -> int:
        units = magnitude / step / 2**shift + ROUNDING_UNITS
        return max(MIN_COMPARISON_BITS, math.floor(math.log2(units)) + 1 + spare)

    def comparison(
        self, bounds: Range, step: float, shift: int, layer: str, *, spare: int
    ) -> Comparison:
        """Return the smallest K with |x >> shift| < 2^(K - spare); step: of x.

        Raises ModelError where neither a sound bound nor a guess fits.
        """

        def bits_for(magnitude: float, spare: int) -> int:
            return self._bits(magnitude, step, shift, spare)

        most = _most(shift)
        sound = bits_for(bounds.magnitude, spare)
        if sound <= (most if not self.guess else min(most, SOUND_BITS)) and not self.guessed:
            return Comparison(sound, 0, bounds)
        if not self.guess:
            self.refuse(bounds.magnitude, layer)
        bits = bits_for(CALIBRATION_MARGIN * bounds.sampled_magnitude, spare)
        if sound <= min(bits, most):
            return Comparison(sound, 0, bounds)
        guard = max(1, bits_for(bounds.magnitude, 1) - bits)
        if bits > most or shift + bits + guard > 64:
            self.refuse(bounds.magnitude, layer)
        if layer not in self.guessed:
            self.guessed.append(layer)
        # A result that is right although its value left |u| < 2^(K - 2) exists for truncations.
        held = bounds.within(2.0**bits * step * 2.0**shift)
        return Comparison(bits, guard if self.check else 0, held)

    def refuse(self, magnitude: float, layer: str) -> NoReturn:
        """Raise: the layer's values do not fit."""
        message = does_not_fit(magnitude, layer, self.fraction_bits)
        if not self.guess:
            raise UnaffordableError(message)
        if not self.calibrated:
            message += (
                ". It is a deep network, judged by made-up inputs: give inputs like those to come "
                "(--calibration FILE)"
            )
        raise ModelError(message)

    def notes(self) -> list[str]:
        """Return what a user has to know of the guesses."""
        if not self.guessed:
            return []
        text = (
            "ranges guessed from calibration samples, times a margin of "
            f"{CALIBRATION_MARGIN:g}, since sound bounds do not fit: {', '.join(self.guessed)}; "
        )
        if self.check:
            return [text + "an input that leaves them gets a RangeError and no answer"]
        return [text + "NOT CHECKED: an input that leaves them gets a wrong answer"]
