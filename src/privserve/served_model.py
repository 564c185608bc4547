"""What a client knows of the served model: how to encode a query, and to read its answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privserve import fixedpoint, sharing
from privserve.activations import joined
from privserve.description import (
    SHARING_DIGITS,
    Description,
    TensorDescription,
    read_description,
)
from privserve.errors import ClusterError, GuessedRangeError, InputError, RangeError
from privserve.fixedpoint import RingArray
from privserve.inputs import Inputs, batched, by_name

OF_OUTPUTS = ("activation", "rounded_bits")
"""What a model's metadata have among an output's parameters."""


@dataclass(frozen=True)
class ServedModel:
    """The model of one session, as its parties describe it."""

    name: str
    session: str
    description: Description
    max_rows: int

    @property
    def sharing(self) -> str:
        """What tells this model's sharing from others: the same for all of its sessions."""
        return self.session[:SHARING_DIGITS]

    def is_like(self, other: ServedModel) -> bool:
        """Whether another session is of a model that is asked and answers in the same way."""
        mine = (self.name, self.description, self.max_rows)
        return mine == (other.name, other.description, other.max_rows)

    def encode(self, x: Inputs) -> dict[str, RingArray]:
        """Check every input and encode it; int64 by input name."""
        described = self.description
        given = by_name({tensor["name"]: tensor["shape"] for tensor in described["inputs"]}, x)
        elements: dict[str, RingArray] = {}
        rows: dict[str, int] = {}
        for tensor in described["inputs"]:
            values = self._check(tensor, given[tensor["name"]])
            rows[tensor["name"]] = len(values)
            elements[tensor["name"]] = fixedpoint.encode(values, described["fraction_bits"])
        if len(rows) > 1 and len(set(rows.values())) != 1:
            found = ", ".join(f"{count} of '{name}'" for name, count in rows.items())
            raise InputError(f"all inputs need the same number of rows, not {found}")
        return elements

    def _check(self, tensor: TensorDescription, values: ArrayLike) -> NDArray[np.float64]:
        name, shape = tensor["name"], tuple(tensor["shape"])
        try:
            array = np.asarray(values)
        except ValueError:
            raise InputError(f"input '{name}' is not a rectangular array") from None
        if array.dtype.kind not in "fiub":
            raise InputError(f"input '{name}' must hold real numbers, not {array.dtype}")
        if array.shape[1:] != shape or array.ndim != len(shape) + 1:
            hint = "; add a batch axis: x[None]" if array.shape == shape else ""
            raise InputError(
                f"input '{name}' must have the shape {batched(shape)}, not {array.shape}{hint}"
            )
        if not 1 <= len(array) <= self.max_rows:
            raise InputError(
                f"a query holds 1 to {self.max_rows} rows, not {len(array)}; split it into several"
            )
        array = array.astype(np.float64)
        least, most = float(array.min()), float(array.max())
        if not (math.isfinite(least) and math.isfinite(most)):  # NaN is both, if there is any
            raise RangeError(f"input '{name}' contains NaN or infinity")
        low, high = self.description["input_range"]
        if least < low or most > high:
            raise RangeError(
                f"input '{name}' holds values from {least:g} to {most:g}, outside "
                f"[{low:g}, {high:g}], for which the model was shared; scale the input as for "
                "training (pixels / 255?) or have the model shared with a wider input range"
            )
        return array

    def words(self, payload: memoryview, asked: int) -> list[RingArray]:
        """Return one party's shares of the outputs, and of the guards' flags if there are any.

        payload: the shares one after the other; asked: how many rows were. Raises InputError where
        they are not these.
        """
        shapes = [tensor["shape"] for tensor in self.description["outputs"]]
        sizes = [math.prod(shape) for shape in shapes]
        if len(payload) < 8:
            raise InputError("it is empty")
        rows, words = int.from_bytes(payload[:8], "little"), np.frombuffer(payload[8:], "<i8")
        left = words.size - rows * sum(sizes)
        guards = len(self.description["guards"])
        if rows != asked or (left % (rows * guards) if guards * rows else left) or left < 0:
            raise InputError("it has another size than the model's outputs")
        answers, start = [], 0
        for shape, size in zip(shapes, sizes, strict=True):
            answers.append(words[start : start + rows * size].reshape(rows, *shape))
            start += rows * size
        return [*answers, words[start:].reshape(rows, guards, -1)] if guards else answers

    def decode(self, shares: Sequence[Sequence[RingArray]], *, logits: bool) -> dict[str, Any]:
        """Return the outputs by name, float32, from every party's shares of them.

        logits: what goes into the final activation, as far as it is told. Raises GuessedRangeError
        where there is no answer.
        """
        described = self.description
        if described["guards"]:
            _check_guards(described["guards"], sharing.join([parts[-1] for parts in shares]))
            shares = [parts[:-1] for parts in shares]
        outputs, bits = {}, described["output_fraction_bits"]
        for tensor, parts in zip(described["outputs"], zip(*shares, strict=True), strict=True):
            values = joined(parts, tensor["activation"], bits, logits=logits)
            outputs[tensor["name"]] = values.astype(np.float32)
        return outputs


def parse_model(party: str, described: Mapping[str, Any]) -> ServedModel:
    """Read what a party's front says of its model; raises ClusterError where it is malformed."""
    try:
        outputs = [
            {**_unbatched(tensor), **{key: tensor["parameters"][key] for key in OF_OUTPUTS}}
            for tensor in described["outputs"]
        ]
        inputs = [_unbatched(tensor) for tensor in described["inputs"]]
        facts = described["parameters"]
        return ServedModel(
            name=str(described["name"]),
            session=str(described["versions"][0]),
            description=read_description({**facts, "inputs": inputs, "outputs": outputs}),
            max_rows=int(facts["max_rows"]),
        )
    except (InputError, LookupError, TypeError, ValueError) as error:
        raise ClusterError(f"{party} gave a malformed answer: {error}") from None


def _unbatched(tensor: Mapping[str, Any]) -> dict[str, Any]:
    """A tensor's name and its shape without the batch axis."""
    return {"name": tensor["name"], "shape": tensor["shape"][1:]}


def _check_guards(layers: Sequence[str], flags: RingArray) -> None:
    """Raise GuessedRangeError unless all flags, int64[rows, layers, words], are zero."""
    left: dict[int, list[str]] = {}
    for row, guard in zip(*np.nonzero(np.any(flags, axis=2)), strict=True):
        names = left.setdefault(int(row), [])
        if layers[int(guard)] not in names:
            names.append(layers[int(guard)])
    if not left:
        return
    first = next(iter(left))
    rows = ", ".join(map(str, list(left)[:10])) + (", ..." if len(left) > 10 else "")
    raise GuessedRangeError(
        f"there is no answer: in layer '{left[first][0]}' a value left the range that was guessed "
        f"from samples when the model was shared (row {rows} of {len(flags)}); leave such rows "
        "away, or have the model shared with calibration samples that include their like or with "
        "a narrower input range",
        left,
    )
