"""The compiled model: a list of ops on shared values, with static shapes and no weights.

`compiler.compile.compile_model` makes one; engines run it. Every value is an array of ring
elements whose real value is element * step. Only the low `bits` bits of a value's elements
ever matter to what consumes it, so that is what an engine has to compute and to send.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

MIN_COMPARISON_BITS = 6
MAX_COMPARISON_BITS = 44
"""K of a comparison lies between these."""

LAN, WAN = 4_096, 262_144
"""What an exchange is worth, in bytes that a party sends: what a link of 1 Gbit/s carries in 30 us,
and what one of 100 Mbit/s carries in 20 ms."""

PROFILES: Mapping[str, int] = {"lan": LAN, "wan": WAN}
"""By the name of what lies between the parties."""

Attributes = Mapping[str, Any]


class Memory(Enum):
    """What memory a local op's result takes."""

    NEW = "its own: it shares none with the inputs"
    VIEW = "possibly that of its input"
    SAME = "that of its input, element by element in the same order"


def _as_output(attributes: Attributes, output_bits: int) -> int:
    return output_bits


def _compared(attributes: Attributes) -> int:
    """The bits of a comparison that may be guarded."""
    return int(attributes["comparison_bits"] + attributes["guard"])


def _shifted(attributes: Attributes, output_bits: int) -> int:
    return int(attributes["shift"] + attributes["comparison_bits"] + attributes.get("guard", 0))


def _scaled(attributes: Attributes, output_bits: int) -> int:
    """A multiple of 2^t does not depend on what is multiplied beyond 2^(output_bits - t)."""
    factors = attributes["factor"]
    while isinstance(factors, list) and factors and isinstance(factors[0], list):
        factors = [factor for row in factors for factor in row]
    common = math.gcd(*factors) if isinstance(factors, list) else factors
    return max(1, output_bits - ((common & -common).bit_length() - 1 if common else output_bits))


def _named(attributes: Attributes, output_bits: int) -> int:
    return int(attributes["bits"])


@dataclass(frozen=True)
class Kind:
    """What everybody needs to know of a kind of op."""

    says: str
    """What it computes; `names` are attributes."""
    communicates: bool = False
    is_weighted: bool = False
    """Whether it multiplies by a secret parameter."""
    memory: Memory = Memory.NEW
    needs: Callable[[Attributes, int], int] = _as_output
    """From an op's attributes and its output's bits: how many low bits of its inputs matter."""
    makes: Callable[[Attributes], int] = lambda attributes: 1
    """From an op's attributes: how many low bits of its output matter at least."""


OP_KINDS: Mapping[str, Kind] = {
    # One opening, and a multiplication by a secret parameter.
    "linear": Kind(
        "weight * x + bias: `geometry`, `weight`, `bias` (a parameter's name or null)",
        communicates=True,
        is_weighted=True,
    ),
    # Comparisons: x >> `shift`, which fits in `comparison_bits` bits with its sign, or else
    # in `guard` bits more, if there are any: then the client learns that the row left its range.
    "relu": Kind("max(x >> shift, 0)", communicates=True, needs=_shifted, makes=_compared),
    "halves": Kind(
        "max(x >> shift, 0), and behind it along the first axis min(x >> shift, 0)",
        communicates=True,
        needs=_shifted,
        makes=_compared,
    ),
    "truncate": Kind(
        "x >> shift; the value fits in comparison_bits - 1 bits with its sign",
        communicates=True,
        needs=_shifted,
        makes=_compared,
    ),
    # A comparison, and beside it the opening of a dense layer: one exchange less than by both.
    "relu_linear": Kind(
        "weight * max(x >> shift, 0) + bias: as of both, the geometry is a dense layer's",
        communicates=True,
        is_weighted=True,
        needs=_shifted,
    ),
    # One opening each.
    "multiply": Kind(
        "x * y: `inner`; element e takes element (e // inner) % len(y) of y", communicates=True
    ),
    "square": Kind("x * x", communicates=True),
    "lookup": Kind(
        "a smooth `function` of x >> `shift`, by quadratics: see engines.ottt.ops.lookup",
        communicates=True,
        needs=_shifted,
    ),
    # Local: no communication.
    "reshape": Kind("to the output's shape", memory=Memory.SAME),
    "reread": Kind(
        "the same elements, with the output's step: times a public real", memory=Memory.SAME
    ),
    "transpose": Kind("`axes`, without the batch axis", memory=Memory.VIEW),
    "pad": Kind("`pads`: [[before, after] per axis] with the public ring element `value`"),
    "slice": Kind("`slices`: [[start, stop, step] per axis]", memory=Memory.VIEW),
    "concat": Kind("along `axis`"),
    "gather": Kind("`rows` along `axis`, in that order"),
    "expand": Kind("to the output's shape, repeated along axes of length 1", memory=Memory.VIEW),
    "add": Kind("x + y"),
    "sub": Kind("x - y"),
    "scale": Kind(
        "x * `factor`, a public integer or one per element; `rounded`: it is not exact",
        needs=_scaled,
    ),
    "offset": Kind("x + `value`, a public integer", memory=Memory.VIEW),
    "add_parameter": Kind("x + the secret `parameter`"),
    "check": Kind(
        "no output: where x mod 2^`bits` is not zero, the client learns that the row left "
        "its range",
        needs=_named,
    ),
    "sum_pool": Kind("sums over windows: `kernel`, `strides`, `pads` [top, left, bottom, right]"),
}


@dataclass(frozen=True)
class Value:
    """One intermediate value: its shape without the batch axis, and its format."""

    shape: tuple[int, ...]
    bits: int = 64
    """Elements matter modulo 2^bits."""
    step: float = 1.0
    """The real value of one unit."""
    bound: float = 0.0
    """No |real value| exceeds it; public, it follows from ranges and from K anyway."""

    @property
    def size(self) -> int:
        """Elements per query."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Op:
    """One op: its kind (OP_KINDS), the layer it came from, value numbers and attributes."""

    kind: str
    layer: str
    inputs: tuple[int, ...]
    output: int
    attributes: Attributes = field(default_factory=dict)

    @property
    def is_guarded(self) -> bool:
        """Whether its range is a guess that the parties check."""
        return self.kind == "check" or bool(self.attributes.get("guard"))


def needed_bits(values: int, ops: Sequence[Op], outputs: Iterable[int]) -> list[int]:
    """Return how many low bits of each of so many values matter to what consumes it.

    outputs: the values of which all bits matter.
    """
    bits = [1] * values
    for number in outputs:
        bits[number] = 64
    for op in reversed(ops):
        kind = OP_KINDS[op.kind]
        bits[op.output] = max(bits[op.output], kind.makes(op.attributes))
        needed = kind.needs(op.attributes, bits[op.output])
        for number in op.inputs:
            bits[number] = max(bits[number], needed)
    return bits


@dataclass(frozen=True)
class Port:
    """A model input or output."""

    name: str
    value: int
    activation: Mapping[str, Any] | None = None
    """What the client applies to the joined output: {"op": "Softmax", "axis": -1}."""
    rounded_bits: int = 0
    """Of an output: how many low bits the parties round away before the client gets it."""


@dataclass(frozen=True)
class Lift:
    """Where strict inputs are brought, whatever a client sends: start .. start + 2^bits - 1.

    In units of an input's step; an input that lies there stays what it is.
    """

    start: int
    bits: int

    def interval(self, step: float) -> tuple[float, float]:
        """Return the lowest and the highest real value, for inputs of this step."""
        return self.start * step, (self.start + 2**self.bits - 1) * step


@dataclass(frozen=True)
class Program:
    """A compiled model; see the module's docstring."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    values: tuple[Value, ...]
    ops: tuple[Op, ...]
    fraction_bits: int
    output_fraction_bits: int
    input_range: tuple[float, float]
    exchange_bytes: int = LAN
    """What an exchange is worth: the compiler spends fewer bytes than that to save one."""
    notes: tuple[str, ...] = ()
    """What a user should know, such as bounds that come from calibration."""
    lift: Lift | None = None
    """Where inputs are strict: what every one of them is brought to before anything reads it."""

    @cached_property
    def sharers(self) -> Mapping[int, tuple[Op, ...]]:
        """Linear ops that follow each other and read one value, by the output of the first.

        They share what it opens, and the mask of that.
        """
        found: dict[int, tuple[Op, ...]] = {}
        first = -1
        for before, op in zip((None, *self.ops), self.ops, strict=False):
            if op.kind == "linear":
                if before is None or before.kind != op.kind or before.inputs != op.inputs:
                    first = op.output
                found[first] = (*found.get(first, ()), op)
        return found

    @cached_property
    def leaders(self) -> Mapping[int, int]:
        """By the output of a linear op that opens nothing: that of the one that does it for it."""
        return {op.output: first for first, ops in self.sharers.items() for op in ops[1:]}

    @property
    def guards(self) -> tuple[str, ...]:
        """The layers whose guessed ranges are checked, in the order of an answer's flags."""
        return tuple(op.layer for op in self.ops if op.is_guarded)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able description; everything in it is public."""
        return {
            "inputs": [
                {"name": p.name, "shape": list(self.values[p.value].shape), "value": p.value}
                for p in self.inputs
            ],
            "outputs": [
                {
                    "name": p.name,
                    "shape": list(self.values[p.value].shape),
                    "value": p.value,
                    "activation": None if p.activation is None else dict(p.activation),
                    "rounded_bits": p.rounded_bits,
                }
                for p in self.outputs
            ],
            "fraction_bits": self.fraction_bits,
            "output_fraction_bits": self.output_fraction_bits,
            "input_range": list(self.input_range),
            "exchange_bytes": self.exchange_bytes,
            "notes": list(self.notes),
            "guards": list(self.guards),
            "lift": None if self.lift is None else asdict(self.lift),
            "values": [
                {"shape": list(v.shape), "bits": v.bits, "step": v.step, "bound": v.bound}
                for v in self.values
            ],
            "ops": [
                {
                    "kind": op.kind,
                    "layer": op.layer,
                    "inputs": list(op.inputs),
                    "output": op.output,
                    "attributes": dict(op.attributes),
                }
                for op in self.ops
            ],
        }
