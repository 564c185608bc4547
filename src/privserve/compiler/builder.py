"""Builds a `Program` op by op: chooses steps, shifts and the K of each comparison.

Activations carry about f fraction bits (step 2^-f), weights f + 4, products their sum; a ReLU
or a truncation shifts back. The weights' rounding is what limits accuracy (it adds up over a
sum, an activation's averages out), and finer weights widen nothing that is compared. Small
values and small weights carry more bits, so that all keep about as many significant ones.

A step is any positive real: a mean is a sum that is read with a smaller one. Values that come
together (`align`) are brought to one step by public integers; where steps have no common
measure the integers are rounded, to a relative error of 2^-(f + 6) or so.

Each value's range is tracked as it is built; `bounds` picks the K of every comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privserve import local
from privserve.compiler.bounds import Bounds
from privserve.compiler.formats import (
    ROUNDING_UNITS,
    Measure,
    common_measure,
    exact_bits,
    lookup_format,
    repetition,
    rounded_measure,
    rounding_error,
)
from privserve.compiler.plan import Piece
from privserve.compiler.ranges import Floats, Range, joined
from privserve.errors import ModelError
from privserve.fixedpoint import RingArray
from privserve.functions import Expression, steepest
from privserve.geometry import Geometry
from privserve.program import OP_KINDS, Op, Port, Program, Value

WEIGHT_EXTRA_BITS = 4
"""A weight carries so many fraction bits more than an activation."""

SMALL = 2.0**-2
"""A value that stays below this carries more fraction bits than others."""

MOST_EXTRA_BITS = 10
"""How many more, at most; and how many more a small weight carries."""

LEAST_ALIGN_BITS = 10
"""Factors that bring values to one step have at least this many significant bits."""


@dataclass(frozen=True)
class Traced:
    """A value while the program is built: its number, shape, step and range (in reals)."""

    number: int
    shape: tuple[int, ...]
    step: float
    range: Range


def extra_bits(magnitude: float) -> int:
    """How many fraction bits more than usual a value or weight of this magnitude carries."""
    if magnitude >= SMALL or magnitude <= 0:
        return 0
    return min(MOST_EXTRA_BITS, math.floor(math.log2(SMALL / magnitude)))


class ProgramBuilder:
    """Collects values, ops and encoded parameters; `finish` makes the program."""

    def __init__(self, fraction_bits: int, bounds: Bounds | None = None) -> None:
        self.fraction_bits = fraction_bits
        self.bounds = bounds or Bounds(fraction_bits)
        self.parameters: dict[str, RingArray] = {}
        # Without their ranges: those of a large network are gigabytes.
        self._values: list[Value] = []
        self._ops: list[Op] = []
        self._notes: list[str] = []
        self._truncated: dict[int, Traced] = {}

    def input(self, shape: tuple[int, ...], bits: int, bounds: Range) -> Traced:
        """A model input whose elements the client encodes with `bits` fraction bits."""
        return self._new(shape, 2.0**-bits, bounds)

    def excess(self, x: Traced) -> int:
        """How many fraction bits more than f the value carries."""
        return max(0, round(-math.log2(x.step)) - self.fraction_bits)

    def surplus(self, x: Traced) -> int:
        """How many fraction bits the value carries beyond those that its magnitude calls for."""
        return max(0, self.excess(x) - extra_bits(x.range.magnitude))

    def room(self, x: Traced) -> int:
        """By how many bits the value's elements may grow, and still be compared afterwards."""
        return 61 - math.ceil(math.log2(max(x.range.magnitude / x.step, 1.0)))

    def _is_crowded(self, bounds: Range, step: float) -> bool:
        """Whether a value would leave no room for its truncation: shift + K are 64 at most."""
        return bounds.magnitude / step >= 2.0**61

    # Ops that communicate.

    def linear(
        self, x: Traced, geometry: Geometry, weight: Floats, bias: Floats | None, layer: str
    ) -> Traced:
        """weight * x + bias; weight: [O, C / groups, kh, kw], bias: [O]; returns [O, H', W']."""
        x = self.narrow(x, layer)
        size = float(np.abs(weight).max()) if weight.size else 1.0
        fine = extra_bits(size) if math.isfinite(size) else 0
        output = 2.0 ** -(2 * self.fraction_bits + WEIGHT_EXTRA_BITS + self.excess(x) + fine)
        unit = output / x.step
        encoded = self._encode(weight, unit, layer, "weight")
        bounds = x.range.convolved(geometry, encoded * unit, weight)
        if bias is not None:
            encoded_bias = self._encode(bias, output, layer, "bias")
            bounds = bounds.shifted(bias[:, None, None])
        if bounds.magnitude / output >= 2.0**62:
            tamed = self._tamed(x, bounds.magnitude, layer)
            return self.linear(tamed, geometry, weight, bias, layer)
        name = f"{len(self._ops)}.weight"
        self.parameters[name] = encoded.astype(np.int64)
        bias_name = None
        if bias is not None and np.any(bias):
            bias_name = f"{len(self._ops)}.bias"
            self.parameters[bias_name] = encoded_bias.astype(np.int64)
        attributes = {"geometry": geometry.to_json(), "weight": name, "bias": bias_name}
        return self._emit("linear", layer, (x,), geometry.output_shape, output, bounds, attributes)

    def relu(self, x: Traced, layer: str) -> Traced:
        """max(x, 0), at f fraction bits."""
        shift = self.surplus(x)
        chosen = self.bounds.comparison(x.range, x.step, shift, layer, spare=1)
        step = x.step * 2**shift
        slack = ROUNDING_UNITS * step if shift else 0.0
        bounds = chosen.range.widened(slack).map(lambda v: np.maximum(v, 0))
        attributes = {"shift": shift, "comparison_bits": chosen.bits, "guard": chosen.guard}
        return self._emit("relu", layer, (x,), x.shape, step, bounds, attributes)

    def truncate(self, x: Traced, layer: str) -> Traced:
        """x, at f fraction bits."""
        return self._truncate(x, layer) if self.surplus(x) else x

    def _truncate(self, x: Traced, layer: str) -> Traced:
        if x.number not in self._truncated:
            shift = self.surplus(x)
            chosen = self.bounds.comparison(x.range, x.step, shift, layer, spare=2)
            step = x.step * 2**shift
            bounds = chosen.range.widened(ROUNDING_UNITS * step)
            attributes = {"shift": shift, "comparison_bits": chosen.bits, "guard": chosen.guard}
            self._truncated[x.number] = self._emit(
                "truncate", layer, (x,), x.shape, step, bounds, attributes
            )
        return self._truncated[x.number]

    def narrow(self, x: Traced, layer: str) -> Traced:
        """x, truncated if it carries so many fraction bits that a product would not fit."""
        return self.truncate(x, layer) if self.surplus(x) > 10 else x

    def _tamed(self, x: Traced, magnitude: float, layer: str) -> Traced:
        """x with a guessed range, where what follows would outgrow the ring otherwise."""
        if not self.bounds.guess or x.number in self._truncated:
            self.bounds.refuse(magnitude, layer)
        tamed = self._truncate(x, layer)
        self._truncated[tamed.number] = tamed
        if tamed.range.magnitude >= x.range.magnitude:
            self.bounds.refuse(magnitude, layer)
        return tamed

    def maximum(self, x: Traced, y: Traced, layer: str) -> Traced:
        """max(x, y) = y + relu(x - y)."""
        x, y = self.align((self.truncate(x, layer), self.truncate(y, layer)), layer)
        positive = self.relu(self.subtract(x, y, layer), layer)
        out = self.add(y, positive, layer)
        # Interval arithmetic does not see that the terms of y + relu(x - y) go together.
        bounds = Range(
            np.maximum(x.range.low, y.range.low),
            np.maximum(x.range.high, y.range.high),
            np.maximum(x.range.samples, y.range.samples),
        )
        return self.replace_range(out, bounds)

    def multiply(self, x: Traced, y: Traced, layer: str) -> Traced:
        """x * y, both computed; shapes that broadcast as in NumPy."""
        x, y = self.truncate(x, layer), self.truncate(y, layer)
        shape = np.broadcast_shapes(x.shape, y.shape)
        if math.prod(x.shape) < math.prod(y.shape):
            x, y = y, x
        x = self.expand(x, shape, layer)
        if (inner := repetition(y.shape, shape)) is None:
            y, inner = self.expand(y, shape, layer), 1
        bounds = x.range.times(y.range)
        if x.number == y.number:  # a square, of which intervals do not know that
            bounds = Range(np.maximum(bounds.low, 0), bounds.high, bounds.samples)
        step = x.step * y.step
        if bounds.magnitude / step >= 2.0**62:
            x = self._tamed(x, bounds.magnitude, layer)
            bounds = x.range.times(y.range)
            if bounds.magnitude / step >= 2.0**62:
                y = self._tamed(y, bounds.magnitude, layer)
                bounds = x.range.times(y.range)
        if bounds.magnitude / step >= 2.0**62:
            self.bounds.refuse(bounds.magnitude, layer)
        return self._emit("multiply", layer, (x, y), shape, step, bounds, {"inner": inner})

    def lookup(
        self,
        x: Traced,
        expression: Expression,
        piece: Piece,
        bounds: Range,
        layer: str,
        error: float,
    ) -> Traced:
        """A function of x on one of its pieces, a spline; `bounds`: of the result.

        error: by how much the spline itself may be off.
        """
        if self.excess(x) > 30:  # shift and K together must fit in the ring
            x = self.truncate(x, layer)
        attributes = lookup_format(
            x.step, self.excess(x), piece, bounds.magnitude, self.fraction_bits
        )
        if attributes["output_bits"] < self.fraction_bits:
            self.bounds.refuse(bounds.magnitude, layer)
        factor = attributes.pop("factor")
        x = self.scale(x, factor, x.step / factor, layer)
        attributes["function"] = expression
        steep = steepest(expression, piece.low, piece.high)
        attributes["slope"] = steep
        attributes["error"] = error + rounding_error(attributes)
        step = 2.0 ** -attributes["output_bits"]
        return self._emit("lookup", layer, (x,), x.shape, step, bounds, attributes)

    # Local ops.

    def expand(self, x: Traced, shape: tuple[int, ...], layer: str) -> Traced:
        """x broadcast to `shape`, as NumPy does it."""
        if x.shape == shape:
            return x
        x = self.reshape(x, (1,) * (len(shape) - len(x.shape)) + x.shape, layer)
        return x if x.shape == shape else self._local("expand", layer, x, {}, shape)

    def reshape(self, x: Traced, shape: tuple[int, ...], layer: str) -> Traced:
        """x in another shape of the same size."""
        if x.shape == shape:
            return x
        return self._local("reshape", layer, x, {}, shape)

    def transpose(self, x: Traced, axes: Sequence[int], layer: str) -> Traced:
        """x with its axes (the batch axis not counted) in another order."""
        if list(axes) == list(range(len(x.shape))):
            return x
        shape = tuple(x.shape[a] for a in axes)
        moved = [a for a in axes if x.shape[a] != 1]
        if moved == sorted(moved):
            return self.reshape(x, shape, layer)
        return self._local("transpose", layer, x, {"axes": [int(a) for a in axes]}, shape)

    def pad(self, x: Traced, pads: Sequence[tuple[int, int]], real: float, layer: str) -> Traced:
        """x with a public constant around it; pads: (before, after) per axis."""
        if not any(map(any, pads)):
            return x
        value = round(real / x.step)
        shape = tuple(d + a + b for d, (a, b) in zip(x.shape, pads, strict=True))
        bounds = x.range.map(lambda v: np.pad(v, ((0, 0), *pads), constant_values=value * x.step))
        attributes = {"pads": [list(map(int, p)) for p in pads], "value": value}
        return self._emit("pad", layer, (x,), shape, x.step, bounds, attributes)

    def slice(self, x: Traced, slices: Sequence[slice], layer: str) -> Traced:
        """x[slices]; the slices have positive or negative steps and plain integer ends."""
        triples = [
            [s.start, s.stop if s.stop is not None and s.stop >= 0 else None, s.step]
            for s in slices
        ]
        shape = tuple(
            len(range(*slice(*t).indices(d))) for t, d in zip(triples, x.shape, strict=True)
        )
        if shape == x.shape and all(t[2] in (1, None) for t in triples):
            return x
        return self._local("slice", layer, x, {"slices": triples}, shape)

    def gather(self, x: Traced, rows: NDArray[Any], axis: int, layer: str) -> Traced:
        """x's rows along `axis`, in the order of `rows`, which may repeat."""
        listed = [int(r) for r in rows]
        if listed == list(range(x.shape[axis])):
            return x
        shape = (*x.shape[:axis], len(listed), *x.shape[axis + 1 :])
        return self._local("gather", layer, x, {"rows": listed, "axis": axis}, shape)

    def concat(self, parts: Sequence[Traced], axis: int, layer: str) -> Traced:
        """The parts side by side along `axis`."""
        if len(parts) == 1:
            return parts[0]
        aligned = self.align(parts, layer)
        shape = list(aligned[0].shape)
        shape[axis] = sum(p.shape[axis] for p in aligned)
        bounds = joined([p.range for p in aligned], axis)
        return self._emit(
            "concat", layer, aligned, tuple(shape), aligned[0].step, bounds, {"axis": axis}
        )

    def add(self, x: Traced, y: Traced, layer: str) -> Traced:
        """x + y, which broadcast."""
        return self._sum("add", x, y, 1.0, layer)

    def subtract(self, x: Traced, y: Traced, layer: str) -> Traced:
        """x - y, which broadcast."""
        return self._sum("sub", x, y, -1.0, layer)

    def _sum(self, kind: str, x: Traced, y: Traced, sign: float, layer: str) -> Traced:
        x, y = self.align((x, y), layer)
        shape = np.broadcast_shapes(x.shape, y.shape)
        x, y = self.expand(x, shape, layer), self.expand(y, shape, layer)
        bounds = x.range.plus(y.range.scaled(sign))
        if self._is_crowded(bounds, x.step) and max(self.surplus(x), self.surplus(y)):
            x, y = self.truncate(x, layer), self.truncate(y, layer)
            return self._sum(kind, x, y, sign, layer)
        return self._emit(kind, layer, (x, y), shape, x.step, bounds, {})

    def negate(self, x: Traced, layer: str) -> Traced:
        """-x."""
        return self.scale(x, -1, x.step, layer)

    def scale(
        self,
        x: Traced,
        factor: int | RingArray,
        step: float,
        layer: str,
        *,
        meant: Floats | float | None = None,
    ) -> Traced:
        """x times a public integer (or integers), read with another step.

        meant: the real factor, where the integer is rounded.
        """
        if isinstance(factor, int) and factor == 1 and meant is None:
            return self.with_step(x, step / x.step, layer)
        real = np.asarray(factor, dtype=np.float64) * (step / x.step)
        listed = factor if isinstance(factor, int) else factor.tolist()
        bounds = x.range.scaled(real)
        if meant is not None:
            ideal = x.range.scaled(meant)
            bounds = Range(
                np.minimum(bounds.low, ideal.low),
                np.maximum(bounds.high, ideal.high),
                ideal.samples,
            )
        attributes = {"factor": listed, "rounded": meant is not None}
        return self._emit("scale", layer, (x,), x.shape, step, bounds, attributes)

    def multiply_public(
        self, x: Traced, real: Floats | float, layer: str, bits: int | None = None
    ) -> Traced:
        """x times a public real, or reals that broadcast to its shape.

        Exact where `bits` fraction bits hold them, or else nearly; by default f + 6, as many as
        in `align`.
        """
        real = np.asarray(real, np.float64)
        exact = exact_bits(real, self.fraction_bits + 6 if bits is None else bits)
        used = min(exact, self.room(x) - math.ceil(math.log2(max(np.abs(real).max(), 2.0**-exact))))
        if used < min(exact, LEAST_ALIGN_BITS):
            self.bounds.refuse(x.range.magnitude, layer)
        factor = np.rint(real * 2.0**used)
        meant = None if np.all(factor == real * 2.0**used) else real
        whole = factor.astype(np.int64)
        return self.scale(
            x, whole if whole.ndim else int(whole), x.step * 2.0**-used, layer, meant=meant
        )

    def with_step(self, x: Traced, factor: float, layer: str) -> Traced:
        """x times a public positive real, by reading its units differently: no work at all."""
        if factor == 1:
            return x
        step = x.step * factor
        return self._emit("reread", layer, (x,), x.shape, step, x.range.scaled(factor), {})

    def must_vanish(self, x: Traced, layer: str) -> None:
        """Let the parties check that x is zero everywhere, or else give no answer."""
        nothing = Range(np.zeros(0), np.zeros(0), np.zeros((len(x.range.samples), 0)))
        bits = min(62, 64 - self.room(x))
        self._emit("check", layer, (x,), (0,), 1.0, nothing, {"bits": bits})

    def offset(self, x: Traced, real: float, layer: str) -> Traced:
        """x + a public constant."""
        value = round(real / x.step)
        if not value:
            return x
        bounds = x.range.shifted(value * x.step)
        return self._emit("offset", layer, (x,), x.shape, x.step, bounds, {"value": value})

    def note(self, note: str) -> None:
        """Say something in the program's summary, once."""
        if note not in self._notes:
            self._notes.append(note)

    def bounded(self, x: Traced, low: float, high: float) -> Traced:
        """x, of which the caller knows that it lies in [low, high] up to rounding."""
        slack = 2 * ROUNDING_UNITS * x.step
        r = x.range
        lowest, highest = low - slack, high + slack
        bounds = Range(np.clip(r.low, lowest, highest), np.clip(r.high, lowest, highest), r.samples)
        return self.replace_range(x, bounds)

    def add_parameter(self, x: Traced, constant: Floats, layer: str) -> Traced:
        """x + a secret constant that broadcasts to x's shape."""
        name = f"{len(self._ops)}.constant"
        self.parameters[name] = self._encode(constant, x.step, layer, "constant").astype(np.int64)
        bounds = x.range.shifted(constant)
        return self._emit(
            "add_parameter", layer, (x,), x.shape, x.step, bounds, {"parameter": name}
        )

    def sum_pool(
        self,
        x: Traced,
        kernel: tuple[int, int],
        strides: tuple[int, int],
        pads: tuple[int, int, int, int],
        layer: str,
    ) -> Traced:
        """Sums over windows of x: [C, H, W]."""
        attributes = {"kernel": list(kernel), "strides": list(strides), "pads": list(pads)}
        bounds = x.range.map(lambda v: np.asarray(local.sum_pool(v, attributes)))
        if self._is_crowded(bounds, x.step) and self.surplus(x):
            return self.sum_pool(self.truncate(x, layer), kernel, strides, pads, layer)
        shape = bounds.low.shape
        return self._emit("sum_pool", layer, (x,), shape, x.step, bounds, attributes)

    # The program.

    def finish(
        self,
        inputs: Sequence[tuple[str, Traced]],
        outputs: Sequence[tuple[str, Traced, dict[str, Any] | None]],
        input_range: tuple[float, float],
    ) -> Program:
        """The program; outputs are brought to one power-of-two step."""
        aligned = self.align([x for _, x, _ in outputs], outputs[0][0], dyadic=True)
        finest = aligned[0].step
        ports = []
        for (name, _, activation), x in zip(outputs, aligned, strict=True):
            if x.range.magnitude / finest >= 2.0**62:
                self.bounds.refuse(x.range.magnitude, name)
            ports.append(Port(name, x.number, activation))
        return Program(
            inputs=tuple(Port(name, x.number) for name, x in inputs),
            outputs=tuple(ports),
            values=self._formats([p.value for p in ports]),
            ops=tuple(self._ops),
            fraction_bits=-round(math.log2(inputs[0][1].step)),
            output_fraction_bits=-round(math.log2(finest)),
            input_range=input_range,
            notes=(*self._notes, *self.bounds.notes()),
        )

    def _formats(self, outputs: Sequence[int]) -> tuple[Value, ...]:
        """Per value the bits that matter, from the last op back to the first."""
        bits = [1] * len(self._values)
        for number in outputs:
            bits[number] = 64
        for op in reversed(self._ops):
            kind = OP_KINDS[op.kind]
            bits[op.output] = max(bits[op.output], kind.makes(op.attributes))
            needed = kind.needs(op.attributes, bits[op.output])
            for number in op.inputs:
                bits[number] = max(bits[number], needed)
        # A power of two: exact bounds would tell about the weights, K tells this much.
        return tuple(
            Value(v.shape, b, v.step, 2.0 ** math.ceil(math.log2(max(v.bound, 1e-9))))
            for v, b in zip(self._values, bits, strict=True)
        )

    def _encode(self, values: Floats, step: float, layer: str, what: str) -> Floats:
        scaled = np.asarray(values, dtype=np.float64) / step
        if not np.isfinite(scaled).all():
            raise ModelError(
                f"layer '{layer}': its {what} holds NaN or infinity; retrain or repair it"
            )
        if scaled.size and np.abs(scaled).max() >= 2.0**62:
            self.bounds.refuse(float(np.abs(values).max()), layer)
        return np.rint(scaled)

    def align(
        self, parts: Sequence[Traced], layer: str, *, dyadic: bool = False
    ) -> tuple[Traced, ...]:
        """The parts with one common step, each multiplied by a public integer.

        dyadic: the step is to be a power of two. The integers are exact where the steps have a
        common measure that the ring has room for; else they are rounded to f + 6 significant
        bits, so that a value errs by at most 2^-(f + 7) of itself, or to as many as there is
        room for, after truncation.
        """
        plan = common_measure([p.step for p in parts], dyadic)
        if plan is not None and self._has_room(parts, plan):
            return self._scaled(parts, plan, layer)
        for bits in range(self.fraction_bits + 6, LEAST_ALIGN_BITS - 1, -2):
            plan = rounded_measure([p.step for p in parts], bits)
            if self._has_room(parts, plan):
                return self._scaled(parts, plan, layer)
            shorter = [self.truncate(p, layer) for p in parts]
            if any(a.number != b.number for a, b in zip(shorter, parts, strict=True)):
                return self.align(shorter, layer, dyadic=dyadic)
        self.bounds.refuse(max(p.range.magnitude for p in parts), layer)
        raise AssertionError  # refuse raises

    def _has_room(self, parts: Sequence[Traced], plan: Measure) -> bool:
        return all(
            factor.bit_length() - 1 <= self.room(p)
            for p, factor in zip(parts, plan.factors, strict=True)
        )

    def _scaled(self, parts: Sequence[Traced], plan: Measure, layer: str) -> tuple[Traced, ...]:
        return tuple(
            self.scale(p, factor, plan.step, layer, meant=1.0 if rounded else None)
            for p, factor, rounded in zip(parts, plan.factors, plan.rounded, strict=True)
        )

    def _local(
        self, kind: str, layer: str, x: Traced, attributes: dict[str, Any], shape: tuple[int, ...]
    ) -> Traced:
        """Emit an op that only moves elements around, and move the range's alike."""
        bounds = x.range.map(
            lambda v: np.asarray(local.apply(kind, attributes, [v], shape, False, {}))
        )
        return self._emit(kind, layer, (x,), shape, x.step, bounds, attributes)

    def _emit(
        self,
        kind: str,
        layer: str,
        inputs: Sequence[Traced],
        shape: tuple[int, ...],
        step: float,
        bounds: Range,
        attributes: dict[str, Any],
    ) -> Traced:
        out = self._new(tuple(shape), step, bounds)
        numbers = tuple(x.number for x in inputs)
        self._ops.append(Op(kind, layer, numbers, out.number, attributes))
        return out

    def _new(self, shape: tuple[int, ...], step: float, bounds: Range) -> Traced:
        out = Traced(len(self._values), shape, step, bounds)
        self._values.append(Value(shape, step=step, bound=bounds.magnitude))
        return out

    def replace_range(self, x: Traced, bounds: Range) -> Traced:
        """x, of which the caller knows a better range than interval arithmetic does."""
        better = Traced(x.number, x.shape, x.step, bounds)
        self._values[x.number] = Value(x.shape, step=x.step, bound=bounds.magnitude)
        return better
