"""What the parties' answers would be: a program on plain integers, with no shares and no MPC.

Every op is computed as its shares would sum up to, modulo 2^64. Three things are random under
MPC: a truncation, which n parties' roundings of their shares put off by up to n / 2, a
lookup's mask r, which decides where its segments begin, and the rounding of an output's shares
before its client gets them. Without `luck` a truncation is rounded to the nearest unit, r is 0 and
outputs are not rounded, so that an answer of the parties differs by what these cost, as
little as by one run from the next; with it they are drawn as two parties would have them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from privserve import local
from privserve.compiler.ranges import convolve
from privserve.fixedpoint import RingArray
from privserve.geometry import Geometry
from privserve.prg import Prg
from privserve.program import Attributes, Op, Program
from privserve.splines import quadratics

Floats = NDArray[np.float64]

Luck = Prg | None

Meant = tuple[RingArray, NDArray[np.bool_] | None]
"""An op's result, and the rows whose value left its range (None where there is none)."""

EXACT = 2.0**52
"""Sums of products below this are exact in float64."""


@dataclass
class Simulated:
    """The outputs, int64[S, *shape] each, and which rows left a range, bool[S], by layer."""

    outputs: list[RingArray]
    left: dict[str, NDArray[np.bool_]] = field(default_factory=dict)


def simulate(
    program: Program,
    parameters: Mapping[str, RingArray],
    inputs: Sequence[RingArray],
    luck: Luck = None,
) -> Simulated:
    """Run `program` on plain ring elements; inputs: int64[S, *shape] each.

    luck: what all of these are drawn from. No secret is: no share is computed here.
    """
    values = dict(zip((port.value for port in program.inputs), inputs, strict=True))
    last = {number: index for index, op in enumerate(program.ops) for number in op.inputs}
    kept = {port.value for port in program.outputs}
    result = Simulated([])
    for index, op in enumerate(program.ops):
        operands = [values[number] for number in op.inputs]
        values[op.output], left = _run(program, parameters, op, operands, luck)
        if left is not None and left.any():
            rows = result.left.setdefault(op.layer, np.zeros(len(left), np.bool_))
            rows |= left
        for number in {n for n in op.inputs if last[n] == index} - kept:
            del values[number]
    result.outputs = [told(values[port.value], port.rounded_bits, luck) for port in program.outputs]
    return result


def told(x: RingArray, rounded_bits: int, luck: Luck) -> RingArray:
    """Return an output as its client joins it: by luck each of two parties rounds its share."""
    if luck is None or not rounded_bits:
        return x
    share, below = luck.int64(x.shape), (1 << rounded_bits) - 1
    parts = [part + (luck.int64(x.shape) & below) for part in (share, x - share)]
    return (parts[0] & ~below) + (parts[1] & ~below)


def _run(
    program: Program,
    parameters: Mapping[str, RingArray],
    op: Op,
    inputs: Sequence[RingArray],
    luck: Luck,
) -> Meant:
    shape = program.values[op.output].shape
    if op.kind in _SHIFTING:
        return _SHIFTING[op.kind](op.attributes, inputs[0], luck)
    if op.kind == "relu_linear":
        positive, left = _relu(op.attributes, inputs[0], luck)
        return _linear(op.attributes, [positive], parameters)[0], left
    if op.kind in _MEANINGS:
        return _MEANINGS[op.kind](op.attributes, inputs, parameters)
    return local.apply(op.kind, op.attributes, inputs, shape, True, parameters), None


def _linear(
    attributes: Attributes, inputs: Sequence[RingArray], parameters: Mapping[str, RingArray]
) -> Meant:
    geometry = Geometry.from_json(attributes["geometry"])
    out = convolve_exactly(inputs[0], parameters[attributes["weight"]], geometry)
    if attributes["bias"]:
        out += parameters[attributes["bias"]][:, None, None]
    return out, None


def _compared(
    x: RingArray, attributes: Attributes, luck: Luck
) -> tuple[RingArray, NDArray[np.bool_]]:
    """u as a comparison computes with it, and the rows in which that is not u."""
    u = shifted(x, attributes["shift"], luck)
    kept = wrapped(u, attributes["comparison_bits"])
    return kept, rows_with(kept != u)


def _relu(attributes: Attributes, x: RingArray, luck: Luck) -> Meant:
    kept, left = _compared(x, attributes, luck)
    return np.maximum(kept, 0), left


def _halves(attributes: Attributes, x: RingArray, luck: Luck) -> Meant:
    kept, left = _compared(x, attributes, luck)
    return np.concatenate([np.maximum(kept, 0), np.minimum(kept, 0)], 1), left


def _truncate(attributes: Attributes, x: RingArray, luck: Luck) -> Meant:
    kept, left = _compared(x, attributes, luck)
    return kept, left | rows_with(np.abs(kept) >= 1 << (attributes["comparison_bits"] - 2))


def _multiply(
    attributes: Attributes, inputs: Sequence[RingArray], parameters: Mapping[str, RingArray]
) -> Meant:
    x, factor = inputs[0], inputs[1].reshape(len(inputs[1]), -1)
    place = np.arange(math.prod(x.shape[1:])) // attributes["inner"] % factor.shape[1]
    return x * factor[:, place].reshape(x.shape), None


def _square(
    attributes: Attributes, inputs: Sequence[RingArray], parameters: Mapping[str, RingArray]
) -> Meant:
    return inputs[0] * inputs[0], None


def _lookup(attributes: Attributes, x: RingArray, luck: Luck) -> Meant:
    """The quadratics of segments that begin r before multiples of their width, one r for all."""
    bits, segment_bits = attributes["comparison_bits"], attributes["segment_bits"]
    width = 1 << segment_bits
    t = shifted(x, attributes["shift"], luck) - attributes["low"]
    left = rows_with((t < 0) | (t >= (1 << bits) - width))
    r = 0 if luck is None else int(luck.int64(1)[0]) & (width - 1)
    masked = (t + r) & ((1 << bits) - 1)
    z = (masked & (width - 1)) - width // 2
    # The last segment is met only by what left its range: it is the table's first.
    begins = ((masked >> segment_bits << segment_bits) - r + width) & ((1 << bits) - 1)
    entries = quadratics(attributes)[begins]
    return entries[..., 0] + z * (entries[..., 1] + z * entries[..., 2]), left


def _check(
    attributes: Attributes, inputs: Sequence[RingArray], parameters: Mapping[str, RingArray]
) -> Meant:
    x = inputs[0]
    return np.zeros((len(x), 0), np.int64), rows_with(wrapped(x, attributes["bits"]) != 0)


_SHIFTING: Mapping[str, Callable[[Attributes, RingArray, Luck], Meant]] = {
    "relu": _relu,
    "halves": _halves,
    "truncate": _truncate,
    "lookup": _lookup,
}
"""What an op means that rounds its input first, of its attributes and that input."""

_MEANINGS: Mapping[str, Callable[..., Meant]] = {
    "linear": _linear,
    "multiply": _multiply,
    "square": _square,
    "check": _check,
}
"""What an op that is not in `local` means: of its attributes, inputs and the parameters."""


def shifted(x: RingArray, shift: int, luck: Luck = None) -> RingArray:
    """Return x / 2^shift, rounded to the nearest unit, or by luck as two parties round shares."""
    if luck is None or not shift:
        return (x + (1 << (shift - 1))) >> shift if shift else x
    share = luck.int64(x.shape) & ((1 << shift) - 1)
    return shifted(x - share, shift) + shifted(share, shift)


def wrapped(x: RingArray, bits: int) -> RingArray:
    """Return x modulo 2^bits, as a signed number."""
    return (x << (64 - bits)) >> (64 - bits)


def rows_with(where: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the rows in which any element is true."""
    return np.asarray(where.reshape(len(where), -1).any(1), np.bool_)


def convolve_exactly(x: RingArray, weight: RingArray, geometry: Geometry) -> RingArray:
    """Return weight * x modulo 2^64, x: int64[S, C, H, W], by exact float64 convolutions.

    Both are cut into parts of few enough bits that no sum of their products is rounded.
    """
    x = np.asarray(x).reshape(len(x), *geometry.shape)
    taps = int(np.prod(weight.shape[1:]))
    room = int(EXACT) // taps
    sizes = [
        int(max(abs(int(a.max())), abs(int(a.min())), 1)) if a.size else 1 for a in (x, weight)
    ]
    if sizes[0] * sizes[1] < room:
        return np.rint(convolve(x.astype(np.float64), weight.astype(np.float64), geometry)).astype(
            np.int64
        )
    bits = max(1, (room.bit_length() - 2) // 2)
    out = np.zeros((len(x), *geometry.output_shape), np.int64)
    for i, part in enumerate(_parts(x, bits)):
        for j, other in enumerate(_parts(weight, bits)):
            if (i + j) * bits < 64:
                exact = np.rint(convolve(part, other, geometry)).astype(np.int64)
                out += exact << ((i + j) * bits)
    return out


def _parts(x: RingArray, bits: int) -> list[Floats]:
    """x as a sum of parts times 2^(i bits), each of at most `bits` bits and a sign."""
    parts: list[Floats] = []
    while x.any() and len(parts) * bits < 64:
        low = wrapped(x, bits)
        parts.append(low.astype(np.float64))
        x = (x - low) >> bits
    return parts
