"""A program by its definition, in Python integers, with a bound on how far any answer can be off.

`run` computes one row: every element is a Python integer, and beside it stands a bound on
|served - meant|, where `served` is what any set of parties may answer and `meant` is what the
model itself makes of the input. Bounds follow from what the ops say of themselves: half a unit
for what is rounded once (inputs, weights, constants, scales), n / 2 + 1 units for a truncation
by n parties, a lookup's error and slope, n times 2^rounded_bits units where an output is told.
Nothing here is shared with `privserve.compiler.simulate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np

from privserve.compiler import smooth
from privserve.functions import evaluate
from privserve.program import Lift, Op, Program

RING = 2**64
FLOAT_SLACK = 1e-12
"""Steps and bounds are floats: relative errors of a few of their units go in here."""


@dataclass
class Element:
    """An array of ring elements (objects: Python integers) and of error bounds (reals)."""

    units: np.ndarray
    error: np.ndarray


@dataclass
class Row:
    """What one row comes to: real outputs, bounds on their errors, and which ranges it left."""

    outputs: list[np.ndarray]
    units: list[np.ndarray]
    errors: list[np.ndarray]
    left: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Tail:
    """By how much the pieces of a smooth function without a spline miss it, by construction."""

    parameters: Mapping[str, Any]
    """Those of the program that it belongs to, the same object."""
    value: int
    deviation: float


@contextmanager
def tails_recorded() -> Iterator[list[Tail]]:
    """Collect the tails of every function that is lowered meanwhile.

    No op of a program tells that a line stands for a curve, so no bound could follow from it.
    """
    tails: list[Tail] = []
    assemble = smooth._assemble

    def recording(b: Any, x: Any, expression: Any, pieces: Any, *rest: Any) -> Any:
        out = assemble(b, x, expression, pieces, *rest)
        worst = 0.0
        for piece in pieces:
            if piece.slope is not None:
                at = np.linspace(piece.low, piece.high, 2049)
                meant = evaluate(expression, at)
                # A first piece ends at a breakpoint, where the function is met; a last begins.
                end = -1 if piece is pieces[0] else 0
                line = meant[end] + piece.slope * (at - at[end])
                worst = max(worst, float(np.abs(line - meant).max()))
        tails.append(Tail(b.parameters, out.number, 1.001 * worst))
        return out

    with mock.patch.object(smooth, "_assemble", recording):
        yield tails


def run(
    program: Program,
    parameters: Mapping[str, np.ndarray],
    inputs: Sequence[np.ndarray],
    *,
    parties: int = 2,
    tails: Sequence[Tail] = (),
) -> Row:
    """One row; inputs: ring elements without a batch axis."""
    machine = _Machine(program, parameters, parties)
    for port, x in zip(program.inputs, inputs, strict=True):
        shape, step = program.values[port.value].shape, program.values[port.value].step
        units = np.array([int(v) for v in np.asarray(x).ravel()], dtype=object).reshape(shape)
        machine.values[port.value] = Element(units, np.full(shape, step / 2))
    deviations = {t.value: t.deviation for t in tails if t.parameters is parameters}
    for op in program.ops:
        out = machine.compute(op)
        more = deviations.get(op.output, 0.0)
        # An offset that rounds to nothing leaves no op, but up to half a unit.
        own = 0.5 * program.values[op.output].step if op.kind not in MOVEMENTS else 0.0
        machine.values[op.output] = Element(out.units, (out.error + own + more) * (1 + FLOAT_SLACK))
    row = Row([], [], [], machine.left)
    for port in program.outputs:
        element, step = machine.values[port.value], 2.0**-program.output_fraction_bits
        row.units.append(element.units)
        row.outputs.append(element.units.astype(np.float64) * step)
        # Each party rounds its share of an answer up or down to a multiple of 2^rounded_bits.
        told = parties * 2.0**port.rounded_bits * step if port.rounded_bits else 0.0
        row.errors.append(element.error + told)
    return row


MOVEMENTS = ("reshape", "transpose", "slice", "gather", "expand", "check", "reread", "pad")


def signed(value: int, bits: int = 64) -> int:
    """The integer modulo 2^bits that lies in [-2^(bits - 1), 2^(bits - 1))."""
    value %= 1 << bits
    return value - (1 << bits) if value >> (bits - 1) else value


def lifted(value: int, lift: Lift) -> int:
    """What strict inputs make of a ring element, by its definition in docs/protocol.md."""
    return lift.start + max(signed(int(value) - lift.start, lift.bits + 1), 0)


def shifted(value: int, shift: int) -> int:
    """value / 2^shift to the nearest integer, halves upwards."""
    return (value + ((1 << shift) >> 1)) // (1 << shift)


def each(function: Callable[..., int], *arrays: np.ndarray) -> np.ndarray:
    """The function at every element, one at a time."""
    out = np.empty(arrays[0].shape, dtype=object)
    flat = [a.ravel() for a in arrays]
    values = [function(*elements) for elements in zip(*flat, strict=True)]
    out.ravel()[:] = values
    return out


class _Machine:
    """The values so far, and one method per kind of op."""

    def __init__(
        self, program: Program, parameters: Mapping[str, np.ndarray], parties: int
    ) -> None:
        self.program, self.parameters, self.parties = program, parameters, parties
        self.values: dict[int, Element] = {}
        self.makers = {op.output: op for op in program.ops}
        self.left: set[str] = set()

    def compute(self, op: Op) -> Element:
        operands = [self.values[number] for number in op.inputs]
        return getattr(self, f"_{op.kind}")(op, *operands)

    def step(self, number: int) -> float:
        return self.program.values[number].step

    def reals(self, number: int) -> np.ndarray:
        """|real value| of what the value is meant to be, at most."""
        element = self.values[number]
        return np.abs(element.units.astype(np.float64)) * self.step(number) + element.error

    def noise(self, op: Op) -> float:
        """What a shift is off by, in reals."""
        return (self.parties / 2 + 1) * self.step(op.output) if op.attributes["shift"] else 0.0

    def parameter(self, name: str) -> np.ndarray:
        values = np.asarray(self.parameters[name])
        return np.array([int(v) for v in values.ravel()], dtype=object).reshape(values.shape)

    # Comparisons.

    def _relu(self, op: Op, x: Element) -> Element:
        kept = self._compared(op, x, room=1)
        return Element(each(lambda v: max(v, 0), kept), x.error + self.noise(op))

    def _halves(self, op: Op, x: Element) -> Element:
        kept = self._compared(op, x, room=1)
        halves = [each(lambda v: max(v, 0), kept), each(lambda v: min(v, 0), kept)]
        return Element(np.concatenate(halves), np.concatenate([x.error] * 2) + self.noise(op))

    def _relu_linear(self, op: Op, x: Element) -> Element:
        """What a ReLU and then a linear op would be, by those two."""
        step = self.step(op.inputs[0]) * 2 ** op.attributes["shift"]
        own = (self.parties / 2 + 1) * step if op.attributes["shift"] else 0.0
        units = each(lambda v: max(v, 0), self._compared(op, x, room=1))
        return self._weighed(op, Element(units, x.error + own), step)

    def _truncate(self, op: Op, x: Element) -> Element:
        return Element(self._compared(op, x, room=2), x.error + self.noise(op))

    def _compared(self, op: Op, x: Element, room: int) -> np.ndarray:
        shift, k = op.attributes["shift"], op.attributes["comparison_bits"]
        limit = 1 << (k - room)
        for value in x.units.ravel():
            u = shifted(value, shift)
            if not (-limit <= u < limit if room == 1 else abs(u) < limit):
                self.left.add(op.layer)
        return each(lambda v: signed(shifted(v, shift), k), x.units)

    def _check(self, op: Op, x: Element) -> Element:
        if any(signed(v, op.attributes["bits"]) for v in x.units.ravel()):
            self.left.add(op.layer)
        return Element(np.zeros(0, dtype=object), np.zeros(0))

    # Products.

    def _linear(self, op: Op, x: Element) -> Element:
        return self._weighed(op, x, self.step(op.inputs[0]))

    def _weighed(self, op: Op, x: Element, step: float) -> Element:
        """The linear op on x, of which one unit is worth `step`."""
        g = op.attributes["geometry"]
        weight = self.parameter(op.attributes["weight"])
        unit = self.step(op.output) / step
        top, left, bottom, right = g["pads"]
        around = ((0, 0), (top, bottom), (left, right))
        units, error, reals = (
            np.pad(a.reshape(g["shape"]), around, constant_values=0)
            for a in (x.units, x.error, np.abs(x.units.astype(np.float64)) * step + x.error)
        )
        (kh, kw), (sh, sw), (dh, dw) = g["kernel"], g["strides"], g["dilations"]
        outs, channels = g["outputs"], weight.shape[1]
        size = np.abs(weight.astype(np.float64)) * unit
        shape = self.program.values[op.output].shape
        out, bound = np.empty(shape, dtype=object), np.zeros(shape)
        for o, i, j in np.ndindex(*shape):
            first = o // (outs // g["groups"]) * channels
            patch = (
                slice(first, first + channels),
                slice(i * sh, i * sh + dh * (kh - 1) + 1, dh),
                slice(j * sw, j * sw + dw * (kw - 1) + 1, dw),
            )
            out[o, i, j] = sum(
                int(a) * int(w)
                for a, w in zip(units[patch].ravel(), weight[o].ravel(), strict=True)
            )
            # What was meant: |w - rounded w| is at most half a unit.
            bound[o, i, j] = (size[o] * error[patch]).sum() + unit / 2 * reals[patch].sum()
        if op.attributes["bias"]:
            bias = self.parameter(op.attributes["bias"])
            for o in range(outs):
                out[o] = each(lambda v, b=bias[o]: v + b, out[o])
        return Element(each(signed, out), bound + self.step(op.output) / 2)

    def _multiply(self, op: Op, x: Element, y: Element) -> Element:
        shape = self.program.values[op.output].shape
        place = [e // op.attributes["inner"] % y.units.size for e in range(x.units.size)]
        one, other = self.reals(op.inputs[0]).ravel(), self.reals(op.inputs[1]).ravel()[place]
        error, second = x.error.ravel(), y.error.ravel()[place]
        factors = y.units.ravel()[place]
        units = each(lambda a, b: signed(a * b), x.units.ravel(), factors)
        bound = one * second + other * error + error * second
        return Element(units.reshape(shape), bound.reshape(shape))

    def _square(self, op: Op, x: Element) -> Element:
        units = each(lambda a: signed(a * a), x.units)
        return Element(units, 2 * self.reals(op.inputs[0]) * x.error + x.error**2)

    def _scale(self, op: Op, x: Element) -> Element:
        shape = self.program.values[op.output].shape
        factor = np.broadcast_to(np.array(op.attributes["factor"], dtype=object), shape)
        quotient = self.step(op.output) / self.step(op.inputs[0])
        bound = np.abs(factor.astype(np.float64)) * quotient * x.error
        if op.attributes["rounded"]:
            bound = bound + quotient / 2 * self.reals(op.inputs[0])
        units = each(lambda v, f: signed(int(v) * int(f)), x.units, factor)
        return Element(units, bound)

    def _lookup(self, op: Op, x: Element) -> Element:
        """The function itself; only its bound knows of splines."""
        a, step = op.attributes, self.step(op.output)
        bits, width = a["comparison_bits"], 1 << a["segment_bits"]
        for value in x.units.ravel():
            if not 0 <= shifted(value, a["shift"]) - a["low"] < (1 << bits) - width:
                self.left.add(op.layer)
        low, high = a["piece"]

        def function(value: int) -> int:
            real = min(max(value * self.step(op.inputs[0]), low), high)
            return round(_function(a["function"], real) / step)

        bound = a["error"] + a["slope"] * x.error + step / 2
        return Element(each(function, x.units), bound)

    # Sums.

    def _add(self, op: Op, x: Element, y: Element) -> Element:
        units = each(lambda a, b: signed(a + b), x.units, y.units)
        bound = x.error + y.error
        positive = self.makers.get(op.inputs[1])
        while positive is not None and positive.kind in ("scale", "reread"):
            positive = self.makers.get(positive.inputs[0])  # of surplus bits that stay
        if positive is not None and positive.kind == "relu":
            difference = self.makers.get(positive.inputs[0])
            if difference is not None and difference.kind == "sub":
                one, other = difference.inputs
                if other == op.inputs[0]:  # y + relu(x - y): a maximum errs no more than both
                    most = np.maximum(self.values[one].error, self.values[other].error)
                    own = self.noise(positive) + 2 * self.step(positive.output)
                    bound = np.minimum(bound, most + own)
        return Element(units, bound)

    def _sub(self, op: Op, x: Element, y: Element) -> Element:
        return Element(each(lambda a, b: signed(a - b), x.units, y.units), x.error + y.error)

    def _offset(self, op: Op, x: Element) -> Element:
        value = op.attributes["value"]
        half = self.step(op.output) / 2
        return Element(each(lambda a: signed(a + value), x.units), x.error + half)

    def _add_parameter(self, op: Op, x: Element) -> Element:
        constant = self.parameter(op.attributes["parameter"])
        constant = np.broadcast_to(constant, x.units.shape)
        half = self.step(op.output) / 2
        return Element(each(lambda a, b: signed(a + b), x.units, constant), x.error + half)

    def _sum_pool(self, op: Op, x: Element) -> Element:
        a = op.attributes
        (kh, kw), (sh, sw), (top, left, bottom, right) = a["kernel"], a["strides"], a["pads"]
        around = ((0, 0), (top, bottom), (left, right))
        units, error = (np.pad(v, around, constant_values=0) for v in (x.units, x.error))
        shape = self.program.values[op.output].shape
        out, bound = np.empty(shape, dtype=object), np.zeros(shape)
        for c, i, j in np.ndindex(*shape):
            patch = (c, slice(i * sh, i * sh + kh), slice(j * sw, j * sw + kw))
            out[c, i, j] = signed(sum(int(v) for v in units[patch].ravel()))
            bound[c, i, j] = error[patch].sum()
        return Element(out, bound)

    # Movements.

    def _moved(self, x: Element, move: Callable[[np.ndarray], np.ndarray]) -> Element:
        return Element(move(x.units), move(x.error))

    def _reshape(self, op: Op, x: Element) -> Element:
        return self._moved(x, lambda v: v.reshape(self.program.values[op.output].shape))

    def _transpose(self, op: Op, x: Element) -> Element:
        return self._moved(x, lambda v: v.transpose(op.attributes["axes"]))

    def _slice(self, op: Op, x: Element) -> Element:
        cut = tuple(slice(*s) for s in op.attributes["slices"])
        return self._moved(x, lambda v: v[cut])

    def _gather(self, op: Op, x: Element) -> Element:
        a = op.attributes
        return self._moved(x, lambda v: v.take(a["rows"], axis=a["axis"]))

    def _expand(self, op: Op, x: Element) -> Element:
        shape = self.program.values[op.output].shape
        return self._moved(x, lambda v: np.broadcast_to(v, shape))

    def _concat(self, op: Op, *parts: Element) -> Element:
        axis = op.attributes["axis"]
        return Element(
            np.concatenate([p.units for p in parts], axis),
            np.concatenate([p.error for p in parts], axis),
        )

    def _reread(self, op: Op, x: Element) -> Element:
        return Element(x.units, x.error * (self.step(op.output) / self.step(op.inputs[0])))

    def _pad(self, op: Op, x: Element) -> Element:
        a = op.attributes
        half = self.step(op.output) / 2
        return Element(
            each(int, np.pad(x.units, a["pads"], constant_values=a["value"])),
            np.pad(x.error, a["pads"], constant_values=half),
        )


def _function(expression: Any, x: float) -> float:
    """The expression at one real, by the functions of `math`."""
    if isinstance(expression, str):
        return x
    if isinstance(expression, int | float):
        return float(expression)
    return MATH[expression[0]](*(_function(e, x) for e in expression[1:]))


def _negative_side(x: float, low: float) -> float:
    return x if x > 0 else low


MATH: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "sigmoid": lambda a: 1 / (1 + math.exp(-a)) if a > -700 else 0.0,
    "tanh": math.tanh,
    "erf": math.erf,
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "softplus": lambda a: max(a, 0.0) + math.log1p(math.exp(-abs(a))),
    "softsign": lambda a: a / (1 + abs(a)),
    "elu": lambda a, alpha: _negative_side(a, alpha * math.expm1(min(a, 0))),
    "celu": lambda a, alpha: _negative_side(a, alpha * math.expm1(min(a, 0) / alpha)),
    "selu": lambda a, alpha, gamma: gamma * _negative_side(a, alpha * math.expm1(min(a, 0))),
}
