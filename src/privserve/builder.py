"""Builds a `Program` op by op: chooses steps, shifts and the K of each comparison.

Activations carry f fraction bits (step 2^-f), weights f + 4, products their sum; a ReLU or
a truncation shifts back. The weights' rounding is what limits accuracy (it adds up over a
sum, an activation's averages out), and finer weights widen nothing that is compared. Each
value's range is tracked as it is built, and a comparison gets the smallest K that holds
it: u = x >> shift must satisfy |u| < 2^(K-1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privserve.engines.ottt import local
from privserve.engines.ottt.comparison import MAX_BITS, MIN_BITS
from privserve.engines.ottt.linear import Geometry
from privserve.errors import ModelError
from privserve.fixedpoint import RingArray
from privserve.formats import ROUNDING_UNITS, exact_bits, lookup_format, repetition
from privserve.functions import Expression
from privserve.program import Op, Port, Program, Value
from privserve.ranges import Floats, Range, joined
from privserve.splines import Piece

WEIGHT_EXTRA_BITS = 4
"""A weight carries so many fraction bits more than an activation."""

SOUND_BITS = 30
"""A sound bound that asks for a longer comparison is taken for hopeless.

From there on samples bound everything: what follows a guess is no sounder than the guess.
"""

CALIBRATION_MARGIN = 8.0
"""A range that comes from samples is taken so many times wider than what they reached."""


@dataclass(frozen=True)
class Traced:
    """A value while the program is built: its number, shape, step and range (in reals)."""

    number: int
    shape: tuple[int, ...]
    step: float
    range: Range


class ProgramBuilder:
    """Collects values, ops and encoded parameters; `finish` makes the program."""

    def __init__(self, fraction_bits: int) -> None:
        self.fraction_bits = fraction_bits
        self.parameters: dict[str, RingArray] = {}
        # Without their ranges: those of a large network are gigabytes.
        self._values: list[Value] = []
        self._ops: list[Op] = []
        self._calibrated: list[str] = []
        self._notes: list[str] = []
        self._truncated: dict[tuple[int, int], Traced] = {}

    def input(self, shape: tuple[int, ...], low: float, high: float, samples: Floats) -> Traced:
        """A model input with values in [low, high]."""
        bounds = Range(np.full(shape, low), np.full(shape, high), samples)
        return self._new(shape, 2.0**-self.fraction_bits, bounds)

    def excess(self, x: Traced) -> int:
        """How many fraction bits more than f the value carries."""
        return max(0, round(-math.log2(x.step)) - self.fraction_bits)

    # Ops that communicate.

    def linear(
        self, x: Traced, geometry: Geometry, weight: Floats, bias: Floats | None, layer: str
    ) -> Traced:
        """weight * x + bias; weight: [O, C / groups, kh, kw], bias: [O]; returns [O, H', W']."""
        x = self.narrow(x, layer)
        step = 2.0 ** -(2 * self.fraction_bits + WEIGHT_EXTRA_BITS + self.excess(x))
        factor = x.step / step
        encoded = self._encode(weight, 1 / factor, layer, "weight")
        bounds = x.range.convolved(geometry, encoded / factor)
        name = f"{len(self._ops)}.weight"
        self.parameters[name] = encoded.astype(np.int64)
        bias_name = None
        if bias is not None and np.any(bias):
            bias_name = f"{len(self._ops)}.bias"
            self.parameters[bias_name] = self._encode(bias, step, layer, "bias").astype(np.int64)
            bounds = bounds.shifted(bias[:, None, None])
        if bounds.magnitude / step >= 2.0**62:
            bounds = self._calibrate(bounds, layer)
        attributes = {"geometry": geometry.to_json(), "weight": name, "bias": bias_name}
        return self._emit("linear", layer, (x,), geometry.output_shape, step, bounds, attributes)

    def relu(self, x: Traced, layer: str) -> Traced:
        """max(x, 0), at f fraction bits."""
        shift = self.excess(x)
        k, bounds = self._comparison_bits(x, shift, layer, spare=1)
        step = x.step * 2**shift
        slack = ROUNDING_UNITS * step if shift else 0.0
        bounds = bounds.widened(slack).map(lambda v: np.maximum(v, 0))
        attributes = {"shift": shift, "comparison_bits": k}
        return self._emit("relu", layer, (x,), x.shape, step, bounds, attributes)

    def truncate(self, x: Traced, layer: str) -> Traced:
        """x, at f fraction bits."""
        if not (shift := self.excess(x)):
            return x
        if (x.number, shift) not in self._truncated:
            k, bounds = self._comparison_bits(x, shift, layer, spare=2)
            step = x.step * 2**shift
            bounds = bounds.widened(ROUNDING_UNITS * step)
            attributes = {"shift": shift, "comparison_bits": k}
            self._truncated[x.number, shift] = self._emit(
                "truncate", layer, (x,), x.shape, step, bounds, attributes
            )
        return self._truncated[x.number, shift]

    def narrow(self, x: Traced, layer: str) -> Traced:
        """x, truncated if it carries so many fraction bits that a product would not fit."""
        return self.truncate(x, layer) if self.excess(x) > 10 else x

    def maximum(self, x: Traced, y: Traced, layer: str) -> Traced:
        """max(x, y) = y + relu(x - y)."""
        x, y = self.truncate(x, layer), self.truncate(y, layer)
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
        step = x.step * y.step
        if bounds.magnitude / step >= 2.0**62:
            bounds = self._calibrate(bounds, layer)
        return self._emit("multiply", layer, (x, y), shape, step, bounds, {"inner": inner})

    def lookup(
        self, x: Traced, expression: Expression, piece: Piece, bounds: Range, layer: str
    ) -> Traced:
        """A function of x on one of its pieces, a spline; `bounds`: of the result."""
        if self.excess(x) > 30:  # shift and K together must fit in the ring
            x = self.truncate(x, layer)
        attributes = lookup_format(x.step, self.excess(x), piece, bounds.magnitude)
        if attributes["output_bits"] < self.fraction_bits:
            self._refuse(bounds.magnitude, layer)
        factor = attributes.pop("factor")
        x = self.scale(x, factor, x.step / factor, layer)
        attributes["function"] = expression
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
        aligned = self._align(parts, layer)
        shape = list(aligned[0].shape)
        shape[axis] = sum(p.shape[axis] for p in aligned)
        bounds = joined([p.range for p in aligned], axis)
        return self._emit(
            "concat", layer, aligned, tuple(shape), aligned[0].step, bounds, {"axis": axis}
        )

    def add(self, x: Traced, y: Traced, layer: str) -> Traced:
        """x + y."""
        x, y = self._align((x, y), layer)
        bounds = x.range.plus(y.range)
        return self._emit("add", layer, (x, y), bounds.low.shape, x.step, bounds, {})

    def subtract(self, x: Traced, y: Traced, layer: str) -> Traced:
        """x - y."""
        x, y = self._align((x, y), layer)
        bounds = x.range.plus(y.range.scaled(-1.0))
        return self._emit("sub", layer, (x, y), bounds.low.shape, x.step, bounds, {})

    def scale(self, x: Traced, factor: int | RingArray, step: float, layer: str) -> Traced:
        """x times a public integer (or integers), read with another step."""
        if isinstance(factor, int) and factor == 1:
            return self.with_step(x, step / x.step)
        real = np.asarray(factor, dtype=np.float64) * (step / x.step)
        listed = factor if isinstance(factor, int) else factor.tolist()
        bounds = x.range.scaled(real)
        return self._emit("scale", layer, (x,), x.shape, step, bounds, {"factor": listed})

    def multiply_public(self, x: Traced, real: float, layer: str, bits: int = 14) -> Traced:
        """x times a public real, exact where `bits` fraction bits hold it."""
        bits = exact_bits(np.array([real]), bits)
        return self.scale(x, round(real * 2**bits), x.step * 2.0**-bits, layer)

    def with_step(self, x: Traced, factor: float) -> Traced:
        """x times a public positive real, by reading its units differently: no op at all."""
        return Traced(x.number, x.shape, x.step * factor, x.range.scaled(factor))

    def offset(self, x: Traced, real: float, layer: str) -> Traced:
        """x + a public constant."""
        value = round(real / x.step)
        if not value:
            return x
        bounds = x.range.shifted(value * x.step)
        return self._emit("offset", layer, (x,), x.shape, x.step, bounds, {"value": value})

    def note_saturation(self, layer: str, low: float, high: float) -> None:
        """Say in the summary that a layer's input is clipped to a range taken from samples."""
        note = f"layer '{layer}' saturates outside [{low:g}, {high:g}], from calibration samples"
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
        ready = []
        largest = max((x.range.magnitude for _, x, _ in outputs), default=0.0)
        for name, x, activation in outputs:
            if not float(math.log2(x.step)).is_integer():
                # The factor errs by half a unit: it takes as many bits as the ring has room for.
                room = 60 - math.ceil(math.log2(max(largest, x.step) / x.step))
                target = 2.0 ** (math.floor(math.log2(x.step)) - min(24, max(12, room)))
                x = self.scale(x, round(x.step / target), target, name)
            ready.append((name, x, activation))
        finest = min(x.step for _, x, _ in ready)
        ports = []
        for name, x, activation in ready:
            if x.step != finest:
                x = self.scale(x, round(x.step / finest), finest, name)
            if x.range.magnitude / finest >= 2.0**62:
                self._refuse(x.range.magnitude, name)
            ports.append(Port(name, x.number, activation))
        notes = list(self._notes)
        if self._calibrated:
            notes.append(
                "ranges taken from calibration samples, times a margin of "
                f"{CALIBRATION_MARGIN:g}, not from sound bounds: {', '.join(self._calibrated)}"
            )
        return Program(
            inputs=tuple(Port(name, x.number) for name, x in inputs),
            outputs=tuple(ports),
            values=self._formats([p.value for p in ports]),
            ops=tuple(self._ops),
            fraction_bits=self.fraction_bits,
            output_fraction_bits=-round(math.log2(finest)),
            input_range=input_range,
            notes=tuple(notes),
        )

    def _formats(self, outputs: Sequence[int]) -> tuple[Value, ...]:
        """Per value the bits that matter, from the last op back to the first."""
        bits = [1] * len(self._values)
        for number in outputs:
            bits[number] = 64
        for op in reversed(self._ops):
            if op.kind == "lookup":
                needed = op.attributes["shift"] + op.attributes["comparison_bits"]
            elif op.kind in ("relu", "truncate"):
                k = op.attributes["comparison_bits"]
                bits[op.output] = max(bits[op.output], k)
                needed = op.attributes["shift"] + k
            else:
                needed = bits[op.output]
            for number in op.inputs:
                bits[number] = max(bits[number], needed)
        # A power of two: exact bounds would tell about the weights, K tells this much.
        return tuple(
            Value(v.shape, b, v.step, 2.0 ** math.ceil(math.log2(max(v.bound, 1e-9))))
            for v, b in zip(self._values, bits, strict=True)
        )

    def _comparison_bits(self, x: Traced, shift: int, layer: str, spare: int) -> tuple[int, Range]:
        """The smallest K with |x >> shift| < 2^(K - spare), by a sound bound or by samples."""

        def bits_for(magnitude: float) -> int:
            units = magnitude / x.step / 2**shift + ROUNDING_UNITS
            return max(MIN_BITS, math.floor(math.log2(units)) + 1 + spare)

        most = min(MAX_BITS, 64 - shift)
        k = bits_for(x.range.magnitude)
        if k <= min(most, SOUND_BITS) and not self._calibrated:
            return k, x.range
        bounds = self._calibrate(x.range, layer)
        if (k := bits_for(bounds.magnitude)) > most:
            self._refuse(bounds.magnitude, layer)
        return k, bounds

    def _calibrate(self, bounds: Range, layer: str) -> Range:
        if layer not in self._calibrated:
            self._calibrated.append(layer)
        return bounds.within(CALIBRATION_MARGIN * bounds.sampled_magnitude)

    def _refuse(self, magnitude: float, layer: str) -> None:
        raise ModelError(
            f"layer '{layer}': its values reach +-{magnitude:.3g}, which does not fit in the ring "
            f"with {self.fraction_bits} fraction bits; scale the inputs down (input_range), "
            "normalise the weights, or use fewer fraction bits (--fraction-bits)"
        )

    def _encode(self, values: Floats, step: float, layer: str, what: str) -> Floats:
        scaled = np.asarray(values, dtype=np.float64) / step
        if not np.isfinite(scaled).all():
            raise ModelError(
                f"layer '{layer}': its {what} holds NaN or infinity; retrain or repair it"
            )
        if scaled.size and np.abs(scaled).max() >= 2.0**62:
            self._refuse(float(np.abs(values).max()), layer)
        return np.rint(scaled)

    def _align(self, parts: Sequence[Traced], layer: str) -> tuple[Traced, ...]:
        """The parts with one common step: coarser ones are multiplied by public integers."""
        finest = min(p.step for p in parts)
        ratios = [Fraction(p.step / finest).limit_denominator(4096) for p in parts]
        common = math.lcm(*(r.denominator for r in ratios))
        for part, ratio in zip(parts, ratios, strict=True):
            if abs(float(ratio) * finest / part.step - 1) > 1e-9:
                # Steps without a common measure: bring everything to f fraction bits.
                return self._align([self._standard(p, layer) for p in parts], layer)
        step = finest / common
        return tuple(
            self.scale(p, int(r * common), step, layer) for p, r in zip(parts, ratios, strict=True)
        )

    def _standard(self, x: Traced, layer: str) -> Traced:
        """x with step exactly 2^-(f + 14)."""
        step = 2.0 ** -(self.fraction_bits + 14)
        return self.scale(x, round(x.step / step), step, layer)

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
