"""Tables of functions by what they stand for: each name is taken once.

The converters look up by name what a Keras layer, an operation, an ONNX operator or its form in
an older opset means. Two entries of one name would hide each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def enter(table: dict[str, T], names: Iterable[str], entry: T) -> None:
    """Put `entry` into `table` under each of `names`.

    Raises: ValueError for a name that has an entry already.
    """
    for name in names:
        if name in table:
            raise ValueError(f"{name!r} has an entry already")
        table[name] = entry
