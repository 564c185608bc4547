"""How exact a compiled model is, and as many fraction bits as that takes.

The compiler's samples go through the program as the parties would compute it (`simulate`),
and the difference from the model itself is what users will see, up to the luck of a rounding.
A model whose outputs differ by a thousandth of the values inside it, such as the discriminator
of a GAN, needs more fraction bits than others; so as long as the error is too large, the
model is compiled again with two more and with finer splines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from privserve.activations import ROOT, apply_activation
from privserve.compiler.compile import Compiled, compile_with_samples
from privserve.compiler.plan import TOLERANCE
from privserve.compiler.ranges import Floats
from privserve.compiler.simulate import simulate
from privserve.errors import ModelError
from privserve.fixedpoint import DEFAULT_FRACTION_BITS, encode
from privserve.geometry import Geometry
from privserve.prg import KEY_BYTES, Prg
from privserve.program import OP_KINDS, Port, Program

if TYPE_CHECKING:
    import onnx

GOAL = 0.001
"""More fraction bits are tried as long as an output's error exceeds this part of what makes its
elements differ from sample to sample."""

TOLERABLE = 0.01
"""An error of more than this part of the outputs' spread is warned of."""

FLAT, SMALLEST = 1e-9, 1e-30
"""Values that spread less than this, in parts of their magnitude or at all, are alike."""

GROWING = (ROOT, "Exp")
LARGEST_EXPONENT = 700.0

MOST_FRACTION_BITS = 20
MOST_DRAWS = 16
"""Of what is random under MPC: what a tie that every party rounds up costs, once in 32 values or
in 2^shift, or a spline whose samples all fall into the midst of its segments. Models that take
long to simulate get fewer draws, one at least; they have the more values to be unlucky with."""

PRODUCTS = 4e9
"""Of samples that are simulated: this many multiplications at most, but two samples at least."""
PER_VALUE = 100
"""What one more value costs to simulate, in multiplications."""


@dataclass(frozen=True)
class OutputError:
    """What one output was off by, at most, and how far its values spread, over all samples."""

    name: str
    error: float
    rounded: float
    """The error with every rounding to the nearest unit: what GOAL is about, since a few draws of
    luck say little of how much more fraction bits would gain."""
    spread: float
    variation: float
    """The spread of the one element that varies most from sample to sample."""
    magnitude: float
    """The largest absolute value."""

    @property
    def is_flat(self) -> bool:
        """Whether all values are alike, but for what arithmetic makes of it."""
        return self.spread <= max(FLAT * self.magnitude, SMALLEST)

    @property
    def relative(self) -> float:
        """The error as a part of the spread, or of flat values' magnitude, or of 1 if that is 0."""
        if not self.is_flat:
            return self.error / self.spread
        return self.error / self.magnitude if self.magnitude > SMALLEST else self.error

    def __str__(self) -> str:
        said = f"output '{self.name}': expected error {self.error:.2g}, "
        if self.is_flat:
            return f"{said}and its values are all alike ({self.magnitude:.3g} at most)"
        return f"{said}{self.relative:.2g} of the spread of its values ({self.spread:.3g})"


@dataclass(frozen=True)
class Measured:
    """A compiled model, and its expected errors."""

    compiled: Compiled
    errors: tuple[OutputError, ...]
    samples: int
    fraction_bits: int

    @property
    def worst(self) -> float:
        """The largest error of an output, as a part of its spread."""
        return max(e.relative for e in self.errors)

    @property
    def is_fine(self) -> bool:
        """Whether no output calls for more fraction bits."""
        return self.worst <= TOLERABLE and all(
            e.rounded <= GOAL * e.variation or not e.variation for e in self.errors
        )

    def lines(self) -> list[str]:
        """Return what to tell the model's owner, and nobody else: it depends on the weights."""
        said = [f"{error} over {self.samples} samples" for error in self.errors]
        if self.fraction_bits != DEFAULT_FRACTION_BITS:
            said.append(f"computed with {self.fraction_bits} fraction bits")
        return said


def measured(compiled: Compiled, fraction_bits: int) -> Measured:
    """Simulate the samples of a compiled model, those that stay in all guessed ranges."""
    program = compiled.program
    count = affordable(program, len(compiled.samples[0]))
    inputs = [encode(samples[:count], program.fraction_bits) for samples in compiled.samples]
    # Keys that everybody knows: a model is not to be warned of by chance, and nothing is secret.
    draws = [Prg(bytes([key]) * KEY_BYTES) for key in range(_draws(program, count))]
    results = [simulate(program, compiled.parameters, inputs, luck) for luck in (None, *draws)]
    ranges = [left for result in results for left in result.left.values()]
    left = np.logical_or.reduce([np.zeros(count, np.bool_), *ranges])
    step = 2.0**-program.output_fraction_bits
    errors = []
    for index, (port, before) in enumerate(zip(program.outputs, compiled.ideal, strict=True)):
        ideal = _judged(port, before)
        got = np.stack([_judged(port, np.asarray(r.outputs[index] * step)) for r in results])
        off = np.abs(got - ideal[:count])[:, ~left]
        variation = float(np.ptp(ideal, axis=0).max(initial=0.0))
        spread, magnitude = float(np.ptp(ideal)), float(np.abs(ideal).max())
        largest, rounded = float(off.max(initial=0.0)), float(off[0].max(initial=0.0))
        errors.append(OutputError(port.name, largest, rounded, spread, variation, magnitude))
    return Measured(compiled, tuple(errors), int((~left).sum()), fraction_bits)


def _judged(port: Port, values: Floats) -> Floats:
    """An output as it is compared: after what makes errors grow, a root near zero and exp.

    The client's other activations do not.
    """
    if port.activation is None or port.activation["op"] not in GROWING:
        return values
    if port.activation["op"] == "Exp":
        values = np.minimum(values, LARGEST_EXPONENT)
    return apply_activation(values, port.activation)


def affordable(program: Program, rows: int) -> int:
    """Return how many of so many rows `simulate` takes in a time that one waits for, 2 at least."""
    return min(rows, max(2, int(PRODUCTS / max(1, _products(program)))))


def _draws(program: Program, count: int) -> int:
    """How often luck is drawn: as long as it takes a part of the time of the samples' limit."""
    values = sum(value.size for value in program.values)
    work = count * (_products(program) + PER_VALUE * values)
    return int(np.clip(PRODUCTS / 4 / work, 1, MOST_DRAWS))


def _products(program: Program) -> int:
    """Multiplications per sample."""
    return sum(
        Geometry.from_json(op.attributes["geometry"]).products
        for op in program.ops
        if OP_KINDS[op.kind].is_weighted
    )


def compile_accurately(
    model: onnx.ModelProto, *, fraction_bits: int | None = None, **options: Any
) -> Measured:
    """Compile `model` with as many fraction bits as its outputs call for.

    fraction_bits: to be used whatever the error is; options: see `compile_with_samples`.
    An error above TOLERABLE is said in the program's notes. Raises ModelError.
    """
    bits = DEFAULT_FRACTION_BITS if fraction_bits is None else fraction_bits
    best = _attempt(model, bits, options)
    while fraction_bits is None and not best.is_fine and bits < MOST_FRACTION_BITS:
        bits += 2
        try:
            finer = _attempt(model, bits, options)
        except ModelError:  # the ring, or the splines, have no room for more
            break
        if finer.worst < best.worst:
            best = finer
    if best.worst > TOLERABLE:
        program = best.compiled.program
        way_out = (
            "use more (--fraction-bits)"
            if fraction_bits is not None
            else "declare a narrower --input-range, or use --engine crypten"
        )
        note = (
            "THE ANSWERS WILL BE INEXACT: with "
            f"{best.fraction_bits} fraction bits the outputs err by more than "
            f"{100 * TOLERABLE:g} % of their spread; {way_out}"
        )
        program = replace(program, notes=(*program.notes, note))
        best = replace(best, compiled=best.compiled._replace(program=program))
    return best


def _attempt(model: onnx.ModelProto, bits: int, options: dict[str, Any]) -> Measured:
    tolerance = TOLERANCE * 2.0 ** min(0, DEFAULT_FRACTION_BITS - bits)
    compiled = compile_with_samples(model, fraction_bits=bits, tolerance=tolerance, **options)
    return measured(compiled, bits)
