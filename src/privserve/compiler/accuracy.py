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
from privserve.program import Port, Program

if TYPE_CHECKING:
    import onnx

GOAL = 0.001
"""More fraction bits are tried as long as an output's error exceeds this part of what makes its
elements differ from sample to sample."""

TOLERABLE = 0.01
"""An error of more than this part of the outputs' spread is warned of."""

MOST_FRACTION_BITS = 20
PRODUCTS = 4e9
"""Of samples that are simulated: this many multiplications at most, but two samples at least."""


@dataclass(frozen=True)
class OutputError:
    """What one output was off by, at most, and how far its values spread, over all samples."""

    name: str
    error: float
    spread: float
    variation: float
    """The spread of the one element that varies most from sample to sample."""

    @property
    def relative(self) -> float:
        """The error as a part of the spread; 0 where there is no spread to compare with."""
        return self.error / self.spread if self.spread else 0.0

    def __str__(self) -> str:
        return (
            f"output '{self.name}': expected error {self.error:.2g}, "
            f"{self.relative:.2g} of the spread of its values ({self.spread:.3g})"
        )


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
        return all(e.error <= GOAL * e.variation or not e.variation for e in self.errors)

    def lines(self) -> list[str]:
        """Return what to tell the model's owner, and nobody else: it depends on the weights."""
        said = [f"{error} over {self.samples} samples" for error in self.errors]
        if self.fraction_bits != DEFAULT_FRACTION_BITS:
            said.append(f"computed with {self.fraction_bits} fraction bits")
        return said


def measured(compiled: Compiled, fraction_bits: int) -> Measured:
    """Simulate the samples of a compiled model, those that stay in all guessed ranges."""
    program = compiled.program
    count = min(len(compiled.samples[0]), max(2, int(PRODUCTS / max(1, _products(program)))))
    inputs = [encode(samples[:count], program.fraction_bits) for samples in compiled.samples]
    result = simulate(program, compiled.parameters, inputs)
    left = np.logical_or.reduce([np.zeros(count, np.bool_), *result.left.values()])
    step = 2.0**-program.output_fraction_bits
    errors = []
    for port, units, before in zip(program.outputs, result.outputs, compiled.ideal, strict=True):
        got, ideal = _judged(port, np.asarray(units * step)), _judged(port, before)
        off = np.abs(got - ideal[:count])[~left]
        variation = float(np.ptp(ideal, axis=0).max(initial=0.0))
        error = OutputError(port.name, off.max(initial=0.0).item(), np.ptp(ideal).item(), variation)
        errors.append(error)
    return Measured(compiled, tuple(errors), int((~left).sum()), fraction_bits)


def _judged(port: Port, values: Floats) -> Floats:
    """An output as it is compared: after a root, since near zero that makes errors grow.

    The client's other activations hardly do.
    """
    if port.activation is None or port.activation["op"] != ROOT:
        return values
    return apply_activation(values, port.activation)


def _products(program: Program) -> int:
    """Multiplications per sample."""
    return sum(
        Geometry.from_json(op.attributes["geometry"]).products
        for op in program.ops
        if op.kind == "linear"
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
