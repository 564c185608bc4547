"""The compiled model: a list of ops on shared values, with static shapes and no weights.

`compile_onnx.compile_model` makes one; engines run it. Every value is an array of ring
elements whose real value is element * step. Only the low `bits` bits of a value's elements
ever matter to what consumes it, so that is what an engine has to compute and to send.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MIN_COMPARISON_BITS = 6
MAX_COMPARISON_BITS = 44
"""K of a comparison lies between these."""

OP_KINDS = {
    # One opening, and a multiplication by a secret parameter.
    "linear": "weight * x + bias: `geometry`, `weight`, `bias` (a parameter's name or null)",
    # Comparisons: x >> `shift`, which fits in `comparison_bits` bits with its sign, or else
    # in `guard` bits more, if there are any: then the client learns that the row left its range.
    "relu": "max(x >> shift, 0)",
    "truncate": "x >> shift; the value fits in comparison_bits - 1 bits with its sign",
    # One opening each.
    "multiply": "x * y: `inner`; element e takes element (e // inner) % len(y) of y",
    "lookup": "a smooth `function` of x >> `shift`, by quadratics: see engines.ottt.lookup",
    # Local: no communication.
    "reshape": "to the output's shape",
    "reread": "the same elements, with the output's step: times a public real",
    "transpose": "`axes`, without the batch axis",
    "pad": "`pads`: [[before, after] per axis] with the public ring element `value`",
    "slice": "`slices`: [[start, stop, step] per axis]",
    "concat": "along `axis`",
    "gather": "`rows` along `axis`, in that order",
    "expand": "to the output's shape, repeated along axes of length 1",
    "add": "x + y",
    "sub": "x - y",
    "scale": "x * `factor`, a public integer or one per element; `rounded`: it is not exact",
    "offset": "x + `value`, a public integer",
    "add_parameter": "x + the secret `parameter`",
    "check": "no output: where x mod 2^`bits` is not zero, the client learns that the row left "
    "its range",
    "sum_pool": "sums over windows: `kernel`, `strides`, `pads` [top, left, bottom, right]",
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
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Port:
    """A model input or output."""

    name: str
    value: int
    activation: Mapping[str, Any] | None = None
    """What the client applies to the joined output: {"op": "Softmax", "axis": -1}."""


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
    notes: tuple[str, ...] = ()
    """What a user should know, such as bounds that come from calibration."""

    @property
    def guards(self) -> tuple[str, ...]:
        """The layers whose guessed ranges are checked, in the order of an answer's flags."""
        return tuple(
            op.layer for op in self.ops if op.kind == "check" or op.attributes.get("guard")
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-able description; everything in it is public."""
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
                }
                for p in self.outputs
            ],
            "fraction_bits": self.fraction_bits,
            "output_fraction_bits": self.output_fraction_bits,
            "input_range": list(self.input_range),
            "notes": list(self.notes),
            "guards": list(self.guards),
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

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Program:
        """The inverse of `to_json`; ignores further keys."""
        low, high = fields["input_range"]
        return cls(
            inputs=tuple(Port(p["name"], p["value"]) for p in fields["inputs"]),
            outputs=tuple(Port(p["name"], p["value"], p["activation"]) for p in fields["outputs"]),
            values=tuple(
                Value(tuple(v["shape"]), v["bits"], v["step"], v["bound"]) for v in fields["values"]
            ),
            ops=tuple(
                Op(o["kind"], o["layer"], tuple(o["inputs"]), o["output"], o["attributes"])
                for o in fields["ops"]
            ),
            fraction_bits=fields["fraction_bits"],
            output_fraction_bits=fields["output_fraction_bits"],
            input_range=(low, high),
            notes=tuple(fields["notes"]),
        )
