"""Builds a `Program` op by op: chooses steps, shifts and the K of each comparison.

Activations carry about f fraction bits (step 2^-f), weights f + 4, products their sum; a ReLU
or a truncation shifts back. The weights' rounding is what limits accuracy (it adds up over a
sum, an activation's averages out), and finer weights widen nothing that is compared. Small
values and small weights carry more bits, so that all keep about as many significant ones.

A step is any positive real: a mean is a sum that is read with a smaller one. Values that come
together (`align`) are brought to one step by public integers; where steps have no common
measure the integers are rounded, to a relative error of 2^-(f + 6) or so.

Each value's range is tracked as it is built; `bounds` picks the K of every comparison. What
the builder itself has are comparisons, sums and steps; `comparisons` has what else is made of
comparisons, `products` the ops with products and lookups, `moves` those that move elements around.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

from privserve import local
from privserve.compiler import moves
from privserve.compiler.bounds import Bounds
from privserve.compiler.formats import ROUNDING_UNITS, exact_bits, fitting_measure
from privserve.compiler.ranges import Floats, Range
from privserve.compiler.traced import Traced, extra_bits, rounded_bits
from privserve.errors import ModelError
from privserve.fixedpoint import RingArray
from privserve.program import Lift, Op, Port, Program, Value, needed_bits
from privserve.sharing import MAX_COMPUTE_PARTIES

LEAST_ALIGN_BITS = 10
"""Factors that bring values to one step have at least this many significant bits."""


class ProgramBuilder:
    """Collects values, ops and encoded parameters; `finish` makes the program.

    Ops are emitted in a `scope`, which names the layer that they and errors belong to.
    """

    def __init__(self, fraction_bits: int, bounds: Bounds | None = None) -> None:
        self.fraction_bits = fraction_bits
        self.bounds = bounds or Bounds(fraction_bits)
        self.parameters: dict[str, RingArray] = {}
        self.layer = ""
        # Without their ranges: those of a large network are gigabytes.
        self._values: list[Value] = []
        self._ops: list[Op] = []
        self._notes: list[str] = []
        self._truncated: dict[int, Traced] = {}

    @contextmanager
    def scope(self, layer: str) -> Iterator[None]:
        """Name the layer of what is emitted meanwhile."""
        outer, self.layer = self.layer, layer
        try:
            yield
        finally:
            self.layer = outer

    def refuse(self, magnitude: float) -> NoReturn:
        """Raise: values of the layer reach `magnitude`, which does not fit in the ring."""
        self.bounds.refuse(magnitude, self.layer)

    def input(self, shape: tuple[int, ...], bits: int, bounds: Range) -> Traced:
        """Return a model input whose elements the client encodes with `bits` fraction bits."""
        return self._new(shape, 2.0**-bits, bounds)

    def lifted(self, x: Traced, lift: Lift) -> Traced:
        """Return an input as the element of `lift` that it is, or, if it is none, is taken for.

        A comparison without a shift, start + relu(x - start), which is exact for every element
        of the ring and not only where it fits. Samples stay what they are.
        """
        low, high = lift.interval(x.step)
        bounds = Range(np.full(x.shape, low), np.full(x.shape, high), x.range.samples)
        if lift.start:
            x = self.emit(
                "offset", (x,), x.shape, x.step, x.range.shifted(-low), {"value": -lift.start}
            )
        attributes = {"shift": 0, "comparison_bits": lift.bits + 1, "guard": 0}
        x = self.emit("relu", (x,), x.shape, x.step, bounds.shifted(-low), attributes)
        if lift.start:
            x = self.emit("offset", (x,), x.shape, x.step, bounds, {"value": lift.start})
        return self.replace_range(x, bounds)

    def excess(self, x: Traced) -> int:
        """Return how many fraction bits more than f the value carries."""
        return max(0, round(-math.log2(x.step)) - self.fraction_bits)

    def surplus(self, x: Traced) -> int:
        """Return how many fraction bits x carries beyond those that its magnitude calls for."""
        return max(0, self.excess(x) - extra_bits(x.range.magnitude))

    def _is_crowded(self, bounds: Range, step: float) -> bool:
        """Whether a value would leave no room for its truncation: shift + K are 64 at most."""
        return bounds.magnitude / step >= 2.0**61

    # Comparisons.

    def relu(self, x: Traced) -> Traced:
        """Return max(x, 0), at f fraction bits."""
        step, held, attributes = self.comparison(x, spare=1)
        slack = ROUNDING_UNITS * step if attributes["shift"] else 0.0
        bounds = held.widened(slack).map(lambda v: np.maximum(v, 0))
        return self.emit("relu", (x,), x.shape, step, bounds, attributes)

    def truncate(self, x: Traced) -> Traced:
        """Return x, at f fraction bits."""
        return self._truncate(x) if self.surplus(x) else x

    def _truncate(self, x: Traced) -> Traced:
        if x.number not in self._truncated:
            step, held, attributes = self.comparison(x, spare=2)
            bounds = held.widened(ROUNDING_UNITS * step)
            self._truncated[x.number] = self.emit(
                "truncate", (x,), x.shape, step, bounds, attributes
            )
        return self._truncated[x.number]

    def comparison(self, x: Traced, *, spare: int) -> tuple[float, Range, dict[str, Any]]:
        """Return x's step after the shift to f bits, the range that is compared, and attributes."""
        shift = self.surplus(x)
        chosen = self.bounds.comparison(x.range, x.step, shift, self.layer, spare=spare)
        attributes = {"shift": shift, "comparison_bits": chosen.bits, "guard": chosen.guard}
        return x.step * 2**shift, chosen.range, attributes

    def narrow(self, x: Traced) -> Traced:
        """Return x, truncated if it carries so many fraction bits that a product would not fit."""
        return self.truncate(x) if self.surplus(x) > 10 else x

    def tamed(self, x: Traced, magnitude: float) -> Traced:
        """Return x with a guessed range, where what follows would outgrow the ring otherwise."""
        if not self.bounds.guess or x.number in self._truncated:
            self.refuse(magnitude)
        tamed = self._truncate(x)
        self._truncated[tamed.number] = tamed
        if tamed.range.magnitude >= x.range.magnitude:
            self.refuse(magnitude)
        return tamed

    # Sums and steps.

    def align(self, parts: Sequence[Traced], *, dyadic: bool = False) -> tuple[Traced, ...]:
        """Return the parts with one common step, each multiplied by a public integer.

        dyadic: the step is to be a power of two. The integers are exact where the steps have a
        common measure that the ring has room for; else they are rounded to f + 6 significant
        bits, so that a value errs by at most 2^-(f + 7) of itself, or to as many as there is
        room for, after truncation.
        """
        steps, rooms = [p.step for p in parts], [p.room for p in parts]
        most = self.fraction_bits + 6
        plan = fitting_measure(steps, rooms, (most,), dyadic)
        if plan is None:
            shorter = [self.truncate(p) for p in parts]
            if any(a.number != b.number for a, b in zip(shorter, parts, strict=True)):
                return self.align(shorter, dyadic=dyadic)
            plan = fitting_measure(steps, rooms, range(most, LEAST_ALIGN_BITS - 1, -2), dyadic)
        if plan is None:
            self.refuse(max(p.range.magnitude for p in parts))
        return tuple(
            self.scale(p, factor, plan.step, meant=1.0 if rounded else None)
            for p, factor, rounded in zip(parts, plan.factors, plan.rounded, strict=True)
        )

    def add(self, x: Traced, y: Traced) -> Traced:
        """Return x + y, which broadcast."""
        return self._sum("add", x, y, 1.0)

    def subtract(self, x: Traced, y: Traced) -> Traced:
        """Return x - y, which broadcast."""
        return self._sum("sub", x, y, -1.0)

    def _sum(self, kind: str, x: Traced, y: Traced, sign: float) -> Traced:
        x, y = self.align((x, y))
        shape = np.broadcast_shapes(x.shape, y.shape)
        x, y = moves.expand(self, x, shape), moves.expand(self, y, shape)
        bounds = x.range.plus(y.range.scaled(sign))
        if self._is_crowded(bounds, x.step) and max(self.surplus(x), self.surplus(y)):
            x, y = self.truncate(x), self.truncate(y)
            return self._sum(kind, x, y, sign)
        return self.emit(kind, (x, y), shape, x.step, bounds, {})

    def negate(self, x: Traced) -> Traced:
        """Return -x."""
        return self.scale(x, -1, x.step)

    def scale(
        self,
        x: Traced,
        factor: int | RingArray,
        step: float,
        *,
        meant: Floats | float | None = None,
    ) -> Traced:
        """Return x times a public integer (or integers), read with another step.

        meant: the real factor, where the integer is rounded.
        """
        if isinstance(factor, int) and factor == 1 and meant is None:
            return self.with_step(x, step / x.step)
        real = np.asarray(factor, dtype=np.float64) * (step / x.step)
        listed = factor if isinstance(factor, int) else factor.tolist()
        bounds = x.range.scaled(real)
        if meant is not None:
            bounds = bounds.covering(x.range.scaled(meant))
        attributes = {"factor": listed, "rounded": meant is not None}
        return self.emit("scale", (x,), x.shape, step, bounds, attributes)

    def multiply_public(self, x: Traced, real: Floats | float, bits: int | None = None) -> Traced:
        """Return x times a public real, or reals that broadcast to its shape.

        Exact where `bits` fraction bits hold them, or else nearly; by default f + 6, as many as
        in `align`.
        """
        real = np.asarray(real, np.float64)
        exact = exact_bits(real, self.fraction_bits + 6 if bits is None else bits)
        used = min(exact, x.room - math.ceil(math.log2(max(np.abs(real).max(), 2.0**-exact))))
        if used < min(exact, LEAST_ALIGN_BITS):
            self.refuse(x.range.magnitude)
        factor = np.rint(real * 2.0**used)
        meant = None if np.all(factor == real * 2.0**used) else real
        whole = factor.astype(np.int64)
        return self.scale(x, whole if whole.ndim else int(whole), x.step * 2.0**-used, meant=meant)

    def with_step(self, x: Traced, factor: float) -> Traced:
        """Return x times a public positive real: its units are read differently, without work."""
        if factor == 1:
            return x
        step = x.step * factor
        return self.emit("reread", (x,), x.shape, step, x.range.scaled(factor), {})

    def must_vanish(self, x: Traced) -> None:
        """Let the parties check that x is zero everywhere, or else give no answer."""
        nothing = Range(np.zeros(0), np.zeros(0), np.zeros((len(x.range.samples), 0)))
        bits = min(62, 64 - x.room)
        self.emit("check", (x,), (0,), 1.0, nothing, {"bits": bits})

    def offset(self, x: Traced, real: float) -> Traced:
        """Return x + a public constant."""
        value = round(real / x.step)
        if not value:
            return x
        bounds = x.range.shifted(value * x.step)
        return self.emit("offset", (x,), x.shape, x.step, bounds, {"value": value})

    def note(self, note: str) -> None:
        """Say something in the program's summary, once."""
        if note not in self._notes:
            self._notes.append(note)

    def bounded(self, x: Traced, low: float, high: float) -> Traced:
        """Return x, of which the caller knows that it lies in [low, high] up to rounding."""
        slack = 2 * ROUNDING_UNITS * x.step
        return self.replace_range(x, x.range.clipped(low - slack, high + slack))

    def add_parameter(self, x: Traced, constant: Floats) -> Traced:
        """Return x + a secret constant that broadcasts to x's shape."""
        name = self.parameter("constant", self.encode(constant, x.step, "constant"))
        bounds = x.range.shifted(constant)
        return self.emit("add_parameter", (x,), x.shape, x.step, bounds, {"parameter": name})

    def sum_pool(
        self,
        x: Traced,
        kernel: tuple[int, int],
        strides: tuple[int, int],
        pads: tuple[int, int, int, int],
    ) -> Traced:
        """Return sums over windows of x: [C, H, W]."""
        attributes = {"kernel": list(kernel), "strides": list(strides), "pads": list(pads)}
        bounds = x.range.map(lambda v: np.asarray(local.sum_pool(v, attributes)))
        if self._is_crowded(bounds, x.step) and self.surplus(x):
            return self.sum_pool(self.truncate(x), kernel, strides, pads)
        shape = bounds.low.shape
        return self.emit("sum_pool", (x,), shape, x.step, bounds, attributes)

    # The program.

    def finish(
        self,
        inputs: Sequence[tuple[str, Traced]],
        outputs: Sequence[tuple[str, Traced, dict[str, Any] | None]],
        input_range: tuple[float, float],
        lift: Lift | None = None,
    ) -> Program:
        """Return the program; outputs are brought to one power-of-two step.

        inputs: as a client sends them; lift: what all were `lifted` to.
        """
        with self.scope(outputs[0][0]):
            aligned = self.align([x for _, x, _ in outputs], dyadic=True)
        finest = aligned[0].step
        ports = []
        for (name, _, activation), x in zip(outputs, aligned, strict=True):
            rounded = rounded_bits(x, self.fraction_bits, activation)
            # Below 2^62 differences, which clients take of a softmax's input, are below 2^63.
            if x.range.magnitude / finest + MAX_COMPUTE_PARTIES * 2.0**rounded >= 2.0**62:
                self.bounds.refuse(x.range.magnitude, name)
            ports.append(Port(name, x.number, activation, rounded))
        return Program(
            inputs=tuple(Port(name, x.number) for name, x in inputs),
            outputs=tuple(ports),
            values=self._formats([p.value for p in ports]),
            ops=tuple(self._ops),
            fraction_bits=-round(math.log2(inputs[0][1].step)),
            output_fraction_bits=-round(math.log2(finest)),
            input_range=input_range,
            notes=(*self._notes, *self.bounds.notes()),
            lift=lift,
        )

    def _formats(self, outputs: Sequence[int]) -> tuple[Value, ...]:
        """Per value the bits that matter, from the last op back to the first."""
        bits = needed_bits(len(self._values), self._ops, outputs)
        # A power of two: exact bounds would tell about the weights, K tells this much.
        return tuple(
            Value(v.shape, b, v.step, 2.0 ** math.ceil(math.log2(max(v.bound, 1e-9))))
            for v, b in zip(self._values, bits, strict=True)
        )

    def parameter(self, what: str, encoded: Floats) -> str:
        """Keep a secret parameter of the next op, whole units; returns its name."""
        name = f"{len(self._ops)}.{what}"
        self.parameters[name] = encoded.astype(np.int64)
        return name

    def encode(self, values: Floats, step: float, what: str) -> Floats:
        """Return the values in units of `step`, rounded.

        Raises ModelError where they are no numbers, or do not fit in the ring.
        """
        scaled = np.asarray(values, dtype=np.float64) / step
        if not np.isfinite(scaled).all():
            raise ModelError(
                f"layer '{self.layer}': its {what} holds NaN or infinity; retrain or repair it"
            )
        if scaled.size and np.abs(scaled).max() >= 2.0**62:
            self.refuse(float(np.abs(values).max()))
        return np.rint(scaled)

    def emit(
        self,
        kind: str,
        inputs: Sequence[Traced],
        shape: tuple[int, ...],
        step: float,
        bounds: Range,
        attributes: dict[str, Any],
    ) -> Traced:
        """Add an op of `program.OP_KINDS`; step, bounds: of its result."""
        out = self._new(tuple(shape), step, bounds)
        numbers = tuple(x.number for x in inputs)
        self._ops.append(Op(kind, self.layer, numbers, out.number, attributes))
        return out

    def _new(self, shape: tuple[int, ...], step: float, bounds: Range) -> Traced:
        out = Traced(len(self._values), shape, step, bounds)
        self._values.append(Value(shape, step=step, bound=bounds.magnitude))
        return out

    def replace_range(self, x: Traced, bounds: Range) -> Traced:
        """Return x, of which the caller knows a better range than interval arithmetic does."""
        better = Traced(x.number, x.shape, x.step, bounds)
        self._values[x.number] = Value(x.shape, step=x.step, bound=bounds.magnitude)
        return better
