"""The one reader of programs: every op is checked in full before anything relies on it.

A description comes over the network. Kernels check no bounds, and local ops index arrays by what
an op says of itself; so an op is let through only if its references, shapes, bits, shifts and
attributes are what the compiler could have made. What is refused here raises ModelError that
names the op; nothing else may come of any JSON at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from privserve.errors import ModelError
from privserve.fields import Fields, items, malformed, real, record, text, whole, wholes
from privserve.fixedpoint import RING_BITS
from privserve.functions import evaluate
from privserve.geometry import Geometry
from privserve.lift import lifting_ops, read_lift
from privserve.program import (
    LAN,
    MAX_COMPARISON_BITS,
    MIN_COMPARISON_BITS,
    OP_KINDS,
    Op,
    Port,
    Program,
    Value,
)

MAX_ELEMENTS = 1 << 31
"""Of one value; indices into one fit in 32 bits."""
MAX_AXES = 16
MAX_OPS = 100_000
MAX_LOOKUP_BITS = 20
"""K of a lookup: the dealer holds a table of 2^K rows."""
SMALLEST_UNIT = 2.0**-128
"""Of what a lookup takes, and its inverse the largest; squares of both are numbers still."""
MAX_FRACTION_BITS = 62
MOST_PRICE = 1 << 40
"""What an exchange may be worth, in bytes."""
MAX_UNIT_BITS = 512
"""An output's unit may be worth less than 2^-64."""


def read_program(fields: Fields) -> Program:
    """Return the program of a description that `Program.to_json` made; further keys are ignored.

    Raises ModelError for anything that is not a program that the compiler could have made.
    """
    values = tuple(
        _value(f"value {number}", one)
        for number, one in enumerate(items(fields, "values", MAX_OPS))
    )
    inputs = tuple(_port(one, values) for one in items(fields, "inputs", MAX_OPS))
    known = {port.value for port in inputs}
    if len(known) != len(inputs):
        raise malformed("two inputs are one value")
    ops: list[Op] = []
    for number, one in enumerate(items(fields, "ops", MAX_OPS)):
        ops.append(_op(number, one, values, known))
        known.add(ops[-1].output)
    outputs = tuple(_port(one, values, True) for one in items(fields, "outputs", MAX_OPS))
    if not inputs or not outputs or any(port.value not in known for port in outputs):
        raise malformed("it has no input, no output, or an output that no op makes")
    low, high = (real(end, "input_range") for end in items(fields, "input_range", 2))
    if not low < high:
        raise malformed("its input range is empty")
    program = Program(
        inputs=inputs,
        outputs=outputs,
        values=values,
        ops=tuple(ops),
        fraction_bits=whole(fields, "fraction_bits", 0, MAX_FRACTION_BITS),
        output_fraction_bits=whole(fields, "output_fraction_bits", -MAX_UNIT_BITS, MAX_UNIT_BITS),
        input_range=(low, high),
        # Shares that a party kept from before say nothing of it.
        exchange_bytes=whole({"exchange_bytes": LAN, **fields}, "exchange_bytes", 0, MOST_PRICE),
        notes=tuple(text(note, "a note") for note in items(fields, "notes", MAX_OPS)),
        lift=read_lift(fields.get("lift")),
    )
    lifting_ops(program)
    if list(program.guards) != fields.get("guards", []):
        raise malformed("its guards are not those of its ops")
    return program


# -- values and ports -----------------------------------------------------------------------


def _value(what: str, given: object) -> Value:
    fields = record(given, what)
    shape = wholes(fields.get("shape"), f"{what}'s shape", 0, MAX_ELEMENTS)
    if len(shape) > MAX_AXES or math.prod(shape) > MAX_ELEMENTS:
        raise malformed(f"{what} is too large")
    step, bound = (real(fields.get(key), f"{what}'s {key}") for key in ("step", "bound"))
    if step <= 0 or bound < 0:
        raise malformed(f"{what} has no positive step, or a negative bound")
    return Value(tuple(shape), whole(fields, "bits", 1, RING_BITS), step, bound)


def _port(given: object, values: Sequence[Value], is_output: bool = False) -> Port:
    fields = record(given, "a port")
    number = whole(fields, "value", 0, len(values) - 1)
    if fields.get("shape") != list(values[number].shape) or not values[number].size:
        raise malformed("a port's shape is not that of its value")
    bits = whole(fields, "rounded_bits", 0, RING_BITS - 1) if is_output else 0
    return Port(text(fields.get("name"), "a port's name"), number, fields.get("activation"), bits)


# -- ops ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Checked:
    """An op whose references are sound, while its attributes are checked."""

    attributes: Fields
    inputs: tuple[Value, ...]
    output: Value

    @property
    def x(self) -> Value:
        return self.inputs[0]

    def expect(self, fits: bool, why: str) -> None:
        if not fits:
            raise malformed(why)

    def takes(self, count: int) -> None:
        self.expect(len(self.inputs) == count, f"it takes {count} inputs")

    def same_size(self) -> None:
        self.expect(self.x.size == self.output.size, "input and output differ in size")

    def same_shape(self, *shapes: tuple[int, ...]) -> None:
        shapes = shapes or (self.x.shape,)
        self.expect(all(s == self.output.shape for s in shapes), "its output has another shape")

    def whole(self, key: str, low: int, high: int) -> int:
        return whole(self.attributes, key, low, high)

    def wholes(self, key: str, low: int, high: int, count: int | None = None) -> list[int]:
        return wholes(self.attributes.get(key), f"'{key}'", low, high, count)

    def axis(self) -> int:
        return self.whole("axis", 0, len(self.x.shape) - 1)


def _op(number: int, given: object, values: Sequence[Value], known: set[int]) -> Op:
    fields = record(given, f"op {number}")
    kind, layer = fields.get("kind"), text(fields.get("layer"), f"op {number}'s layer")
    if not isinstance(kind, str) or kind not in OP_KINDS:
        raise ModelError(f"the engine 'ottt' does not know the op '{kind}'; update this party")
    try:
        inputs = wholes(fields.get("inputs"), "'inputs'", 0, len(values) - 1)
        output = whole(fields, "output", 0, len(values) - 1)
        attributes = record(fields.get("attributes"), "'attributes'")
        if not inputs or not known.issuperset(inputs):
            raise malformed("it reads what no op before it makes")
        if output in known:
            raise malformed("it makes what is made already")
        checked = _Checked(attributes, tuple(values[i] for i in inputs), values[output])
        if not checked.output.size and kind != "check":
            raise malformed("its output is empty")
        CHECKS[kind](checked)
        needed = OP_KINDS[kind].needs(attributes, checked.output.bits)
        if not all(value.bits >= needed for value in checked.inputs):
            raise malformed(f"it needs {needed} bits of an input that carries fewer")
        if OP_KINDS[kind].makes(attributes) > checked.output.bits:
            raise malformed("its output carries fewer bits than it makes")
    except ModelError as error:
        why = str(error).removeprefix("the model's description is not valid: ")
        raise malformed(f"op {number} ('{kind}' of layer '{layer[:80]}'): {why}") from None
    return Op(kind, layer, tuple(inputs), output, attributes)


def _linear(op: _Checked) -> None:
    op.takes(1)
    fields = record(op.attributes.get("geometry"), "its geometry")
    if set(fields) != set(Geometry((1, 1, 1), 1).to_json()):
        raise malformed("its geometry has other fields than a geometry")
    for key, count, least in (
        ("shape", 3, 1),
        ("kernel", 2, 1),
        ("strides", 2, 1),
        ("pads", 4, 0),
        ("dilations", 2, 1),
    ):
        wholes(fields[key], f"its geometry's {key}", least, MAX_ELEMENTS, count)
    whole(fields, "outputs", 1, MAX_ELEMENTS)
    whole(fields, "groups", 1, MAX_ELEMENTS)
    geometry = Geometry.from_json(fields)
    channels, height, width = geometry.shape
    op.expect(
        channels % geometry.groups == 0 and geometry.outputs % geometry.groups == 0,
        "its groups do not divide its channels",
    )
    op.expect(math.prod(geometry.shape) == op.x.size, "its geometry is not its input's")
    op.expect(min(geometry.output_shape) >= 1, "its kernel is larger than its input")
    op.same_shape(geometry.output_shape)
    top, left, bottom, right = geometry.pads
    padded = channels * (height + top + bottom) * (width + left + right)
    op.expect(padded <= MAX_ELEMENTS, "its padded input is too large")
    op.expect(math.prod(geometry.weight_shape) <= MAX_ELEMENTS, "its weight is too large")
    taps = math.prod(geometry.weight_shape[1:])
    positions = geometry.output_shape[1] * geometry.output_shape[2]
    op.expect(taps * positions <= 1 << 42, "it is too large")
    text(op.attributes.get("weight"), "its weight's name")
    if op.attributes.get("bias") is not None:
        text(op.attributes["bias"], "its bias' name")


def _relu_linear(op: _Checked) -> None:
    _compared(op)
    _linear(op)
    geometry = Geometry.from_json(op.attributes["geometry"])
    op.expect(geometry.is_dense, "its geometry is no dense layer's")


def _halves(op: _Checked) -> None:
    _compared(op)
    op.expect(len(op.x.shape) > 0, "it has no axis to put its halves on")
    op.same_shape((2 * op.x.shape[0], *op.x.shape[1:]))


def _comparison(op: _Checked) -> None:
    op.same_size()
    _compared(op)


def _compared(op: _Checked) -> None:
    op.takes(1)
    bits = op.whole("comparison_bits", MIN_COMPARISON_BITS, MAX_COMPARISON_BITS)
    guard, shift = op.whole("guard", 0, RING_BITS), op.whole("shift", 0, RING_BITS - 1)
    op.expect(shift + bits + guard <= RING_BITS, "shift, comparison and guard exceed the ring")


def _product(op: _Checked) -> None:
    op.takes(2)
    op.same_size()
    inner = op.whole("inner", 1, MAX_ELEMENTS)
    factors = op.inputs[1].size
    op.expect(factors > 0 and op.x.size % (factors * inner) == 0, "its factors do not repeat")


def _lookup(op: _Checked) -> None:
    op.takes(1)
    op.same_size()
    segment_bits = op.whole("segment_bits", 1, MAX_LOOKUP_BITS - 1)
    bits = op.whole("comparison_bits", segment_bits + 1, MAX_LOOKUP_BITS)
    op.expect(
        op.whole("shift", 0, RING_BITS - 1) + bits <= RING_BITS, "shift and K exceed the ring"
    )
    output_bits = op.whole("output_bits", 0, MAX_FRACTION_BITS)
    op.whole("low", -(1 << 62), 1 << 62)
    unit = real(op.attributes.get("unit"), "its unit")
    piece = op.attributes.get("piece")
    if not isinstance(piece, list) or len(piece) != 2:
        raise malformed("its piece is no pair")
    low, high = (real(end, "an end of its piece") for end in piece)
    op.expect(SMALLEST_UNIT <= unit <= 1 / SMALLEST_UNIT, "its unit is none of a fixed point")
    op.expect(low < high and math.isfinite(high - low), "its piece is empty")
    try:
        values = evaluate(op.attributes.get("function"), np.linspace(low, high, 33))
        largest = float(np.abs(values).max())
    except (TypeError, ValueError, OverflowError):
        raise malformed("its function is none") from None
    op.expect(largest * 2.0**output_bits <= 2.0**62, "its function outgrows the ring on its piece")


def _check(op: _Checked) -> None:
    op.takes(1)
    op.whole("bits", 1, RING_BITS)
    op.same_shape((0,))


def _each(op: _Checked) -> None:
    op.takes(1)
    op.same_size()


def _reread(op: _Checked) -> None:
    op.takes(1)
    op.same_shape()


def _transpose(op: _Checked) -> None:
    op.takes(1)
    axes = op.wholes("axes", 0, MAX_AXES, len(op.x.shape))
    op.expect(sorted(axes) == list(range(len(op.x.shape))), "its axes are no permutation")
    op.same_shape(tuple(op.x.shape[axis] for axis in axes))


def _pad(op: _Checked) -> None:
    op.takes(1)
    pads = op.attributes.get("pads")
    if not isinstance(pads, list) or len(pads) != len(op.x.shape):
        raise malformed("its pads are not one pair per axis")
    pairs = [wholes(pair, "a pair of pads", 0, MAX_ELEMENTS, 2) for pair in pads]
    op.whole("value", -(1 << 63), (1 << 63) - 1)
    op.same_shape(tuple(d + a + b for d, (a, b) in zip(op.x.shape, pairs, strict=True)))


def _slice(op: _Checked) -> None:
    op.takes(1)
    triples = op.attributes.get("slices")
    if not isinstance(triples, list) or len(triples) != len(op.x.shape):
        raise malformed("its slices are not one per axis")
    for triple in triples:
        if (
            not isinstance(triple, list)
            or len(triple) != 3
            or not all(end is None or type(end) is int for end in triple)
            or triple[2] == 0
        ):
            raise malformed("a slice is no start, stop and step")
    op.same_shape(
        tuple(len(range(*slice(*t).indices(d))) for t, d in zip(triples, op.x.shape, strict=True))
    )


def _concat(op: _Checked) -> None:
    axis = op.axis()
    shapes = [list(value.shape) for value in op.inputs]
    op.expect(all(len(shape) == len(shapes[0]) for shape in shapes), "its inputs differ in rank")
    joined = [*shapes[0]]
    joined[axis] = sum(shape[axis] for shape in shapes)
    for shape in shapes:
        shape[axis] = joined[axis]
    op.expect(all(shape == joined for shape in shapes), "its inputs do not fit side by side")
    op.same_shape(tuple(joined))


def _gather(op: _Checked) -> None:
    op.takes(1)
    axis = op.axis()
    rows = op.wholes("rows", 0, op.x.shape[axis] - 1)
    op.same_shape((*op.x.shape[:axis], len(rows), *op.x.shape[axis + 1 :]))


def _expand(op: _Checked) -> None:
    op.takes(1)
    try:
        fits = np.broadcast_shapes(op.x.shape, op.output.shape) == op.output.shape
    except ValueError:
        fits = False
    op.expect(fits and len(op.x.shape) == len(op.output.shape), "it cannot be repeated to that")
    op.expect(op.x.shape != op.output.shape, "it repeats nothing")


def _sum(op: _Checked) -> None:
    op.takes(2)
    op.same_shape(op.inputs[0].shape, op.inputs[1].shape)


def _scale(op: _Checked) -> None:
    op.takes(1)
    op.same_shape()
    factor = op.attributes.get("factor")
    try:
        array = np.array(factor)
        fits = np.broadcast_shapes(array.shape, op.x.shape) == op.x.shape
    except (ValueError, TypeError, OverflowError):
        raise malformed("its factor is no array of whole numbers that fits") from None
    op.expect(fits and array.dtype == np.int64 and type(factor) is not bool, "its factor")


def _offset(op: _Checked) -> None:
    op.takes(1)
    op.same_shape()
    op.whole("value", -(1 << 63), (1 << 63) - 1)


def _add_parameter(op: _Checked) -> None:
    op.takes(1)
    op.same_shape()
    text(op.attributes.get("parameter"), "its parameter's name")


def _sum_pool(op: _Checked) -> None:
    op.takes(1)
    op.expect(len(op.x.shape) == 3, "it pools three axes")
    kernel, strides = (op.wholes(key, 1, MAX_ELEMENTS, 2) for key in ("kernel", "strides"))
    top, left, bottom, right = op.wholes("pads", 0, MAX_ELEMENTS, 4)
    channels, height, width = op.x.shape
    sizes = (height + top + bottom, width + left + right)
    op.expect(channels * sizes[0] * sizes[1] <= MAX_ELEMENTS, "its padded input is too large")
    op.expect(kernel[0] <= sizes[0] and kernel[1] <= sizes[1], "its window exceeds its input")
    out = ((n - k) // s + 1 for n, k, s in zip(sizes, kernel, strides, strict=True))
    op.same_shape((channels, *out))


CHECKS: Mapping[str, Callable[[_Checked], None]] = {
    "linear": _linear,
    "relu": _comparison,
    "truncate": _comparison,
    "relu_linear": _relu_linear,
    "halves": _halves,
    "multiply": _product,
    "square": _each,
    "lookup": _lookup,
    "check": _check,
    "reshape": _each,
    "reread": _reread,
    "transpose": _transpose,
    "pad": _pad,
    "slice": _slice,
    "concat": _concat,
    "gather": _gather,
    "expand": _expand,
    "add": _sum,
    "sub": _sum,
    "scale": _scale,
    "offset": _offset,
    "add_parameter": _add_parameter,
    "sum_pool": _sum_pool,
}
"""By kind of OP_KINDS; a test holds the two together."""
