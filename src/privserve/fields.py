"""Typed reading of JSON that came over the network, field by field.

Everything here returns what it was asked for or raises ModelError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from sys import float_info
from typing import Any

from privserve.errors import ModelError

Fields = Mapping[str, Any]

MAX_NAME = 4096


def malformed(why: str) -> ModelError:
    """Return the error for a description that is not valid, to be raised."""
    return ModelError(f"the model's description is not valid: {why}; share the model again")


def items(fields: Fields, key: str, most: int) -> Sequence[Any]:
    """Return the list fields[key], of at most `most` entries."""
    found = fields.get(key)
    if not isinstance(found, list) or len(found) > most:
        raise malformed(f"'{key}' is no list of at most {most}")
    return found


def whole(fields: Fields, key: str, low: int, high: int) -> int:
    """Return the whole number fields[key], from low to high."""
    found = fields.get(key)
    if type(found) is not int or not low <= found <= high:
        raise malformed(f"'{key}' is no whole number from {low} to {high}")
    return found


def real(value: object, what: str) -> float:
    """Return the finite number `value`; `what` names it in the error."""
    # Not `isfinite`: a whole number of 400 digits is no float.
    if type(value) not in (int, float) or not abs(value) <= float_info.max:  # type: ignore[arg-type]
        raise malformed(f"{what} is no finite number")
    return float(value)  # type: ignore[arg-type]


def text(value: object, what: str) -> str:
    """Return the text `value`, of a length that a name may have."""
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise malformed(f"{what} is no text of at most {MAX_NAME} characters")
    return value


def record(value: object, what: str) -> Fields:
    """Return the JSON object `value`."""
    if not isinstance(value, dict):
        raise malformed(f"{what} is no object")
    return value


def wholes(value: object, what: str, low: int, high: int, count: int | None = None) -> list[int]:
    """Return the list of whole numbers `value`, each from low to high; count: of how many."""
    if (
        not isinstance(value, list)
        or (count is not None and len(value) != count)
        or not all(type(one) is int and low <= one <= high for one in value)
    ):
        raise malformed(f"{what} is no list of whole numbers from {low} to {high}")
    return value
