"""The public description of a model: what its owner tells the parties, and they their clients.

Every engine's description has these facts, and further ones that it alone reads, such as its
program. It comes over the network, so whoever takes one reads it with `read_description`.
"""

from __future__ import annotations

import json
import math
from sys import float_info
from typing import Any, NotRequired, TypedDict, cast

from privserve.activations import APPLIED, NORMALISING
from privserve.errors import InputError
from privserve.fixedpoint import RING_BITS
from privserve.oip import MAX_AXES

SHARING_DIGITS = 16
"""Of a session's id, which has 32: the same for all sessions of one sharing of a model, in every
cell and when a party had lost its share; a client tells by them whether it may be another one."""
MAX_TENSORS = 1024
MAX_ELEMENTS = 1 << 31
MAX_FRACTION_BITS = 512
"""More than the ring has: a unit may be worth less than 2^-64, where all of a value is small."""
"""Of one input or output, per row of a query."""


class Activation(TypedDict):
    """What the client applies to an output that it joined."""

    op: str
    """One of APPLIED."""
    axis: NotRequired[int]
    """Of the output with its batch axis; where the op is one of NORMALISING."""


class TensorDescription(TypedDict):
    """An input."""

    name: str
    shape: list[int]
    """In the Keras layout, without the batch axis."""


class OutputDescription(TensorDescription):
    """An output."""

    activation: Activation | None
    rounded_bits: int
    """How many low bits of it the parties round away: all of its elements are told as multiples of
    2^rounded_bits."""


class Description(TypedDict):
    """What everybody may know of a model, JSON-able: no weights."""

    inputs: list[TensorDescription]
    outputs: list[OutputDescription]
    fraction_bits: int
    """Of the query's shares."""
    output_fraction_bits: int
    """Of the answer's shares."""
    input_range: list[float]
    """The lowest and the highest value that a query may hold."""
    guards: list[str]
    """The layers whose guessed ranges are checked, in the order of an answer's flags."""
    notes: list[str]
    """What a user should know."""


def read_description(fields: object) -> Description:
    """Return `fields` as a description, checked; "guards" and "notes" may be missing.

    Further keys stay, unread. Raises InputError naming what is malformed.
    """
    if not isinstance(fields, dict):
        raise InputError("'description' must be an object")
    for tensor in _tensors(fields, "inputs"):
        _check_tensor(tensor, "input")
    for tensor in _tensors(fields, "outputs"):
        _check_tensor(tensor, "output")
        _check_activation(tensor)
        _check_rounding(tensor)
    for key in ("fraction_bits", "output_fraction_bits"):
        bits = fields.get(key)
        if type(bits) is not int or abs(bits) > MAX_FRACTION_BITS:
            raise InputError(
                f"the description's '{key}' must be a whole number of at most {MAX_FRACTION_BITS}"
            )
    _check_range(fields.get("input_range"))
    guards, notes = (_texts(fields, key) for key in ("guards", "notes"))
    try:  # Python's JSON reader takes NaN and infinity, which no other one has to
        json.dumps(fields, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise InputError("the description holds NaN, infinity or what is no JSON") from None
    return cast(Description, {**fields, "guards": guards, "notes": notes})


def _tensors(fields: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = fields.get(key)
    if not isinstance(found, list) or not 1 <= len(found) <= MAX_TENSORS:
        raise InputError(f"the description's '{key}' must be a list of tensors")
    for tensor in found:
        if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
            raise InputError(f"the description has a tensor without a name among its '{key}'")
    if len({tensor["name"] for tensor in found}) != len(found):
        raise InputError(f"the description uses a name twice among its '{key}'")
    return found


def _check_tensor(tensor: dict[str, Any], kind: str) -> None:
    shape = tensor.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) >= MAX_AXES  # a batch axis comes first
        or not all(type(d) is int and 1 <= d <= MAX_ELEMENTS for d in shape)
        or math.prod(shape) > MAX_ELEMENTS
    ):
        raise InputError(f"the description's {kind} {tensor['name']!r} has no valid shape")


def _check_activation(output: dict[str, Any]) -> None:
    activation = output.get("activation", {})
    if activation is None:
        return
    what = f"the description's output {output['name']!r}"
    op = activation.get("op") if isinstance(activation, dict) else None
    if op not in APPLIED:
        raise InputError(f"{what} has no activation that a client knows")
    if op in NORMALISING:
        axis, axes = activation.get("axis"), 1 + len(output["shape"])
        if type(axis) is not int or not -axes <= axis < axes:
            raise InputError(f"{what} has no axis for its activation")
        if not axis % axes:
            raise InputError(
                f"{what} is normalised along the batch axis, over whatever rows are asked "
                "together; give the model an output for each row"
            )


def _check_rounding(output: dict[str, Any]) -> None:
    bits = output.get("rounded_bits")
    if type(bits) is not int or not 0 <= bits < RING_BITS:
        raise InputError(
            f"the description's output {output['name']!r} needs 'rounded_bits', a whole number "
            f"from 0 to {RING_BITS - 1}; install one version of privserve everywhere and share "
            "the model again"
        )


def _check_range(input_range: object) -> None:
    if (
        not isinstance(input_range, list)
        or len(input_range) != 2
        or not all(isinstance(end, int | float) for end in input_range)
        or not -float_info.max <= input_range[0] < input_range[1] <= float_info.max
    ):
        raise InputError(
            "the description's 'input_range' must be two finite numbers, the lower one first"
        )


def _texts(fields: dict[str, Any], key: str) -> list[str]:
    texts = fields.get(key, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"the description's '{key}' must be a list of texts")
    return texts
