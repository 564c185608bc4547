"""What the options of `privserve.bench` take: parsers of their texts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection


def numbers(text: str) -> list[int]:
    """Return [1, 8] from "1,8"."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers such as 1,8,32")
    return values


def row_sizes(text: str) -> list[str]:
    """Return ["1", "mix"] from "1,mix"."""
    return [part if part == "mix" else str(numbers(part)[0]) for part in text.split(",")]


def among(known: Collection[str]) -> Callable[[str], list[str]]:
    """Return a parser of lists such as "closed,open" whose parts are all `known`."""

    def parsed(text: str) -> list[str]:
        parts = text.split(",")
        for part in parts:
            if part not in known:
                raise argparse.ArgumentTypeError(f"'{part}' is none of {', '.join(known)}")
        return parts

    return parsed


def positive(text: str) -> float:
    """Return the positive number that `text` says."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return value
