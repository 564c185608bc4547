"""Reads single settings of a layer, refusing what Keras could not have written."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.errors import ConversionError
from converters.network import Config

MAX_SETTING = 1 << 20  # no size, stride or factor of a servable network comes near


def integer(config: Config, key: str, default: int | None = None, least: int = 1) -> int:
    """Return a whole number, at least `least`."""
    value = config.get(key, default)
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if type(value) is not int or not least <= value <= MAX_SETTING:
        raise ConversionError(f"its setting {key}={value!r} is not a whole number from {least} up")
    return value


def integers(
    config: Config, key: str, count: int, default: int | None = None, least: int = 1
) -> tuple[int, ...]:
    """Return `count` whole numbers; a single one stands for all."""
    value = _plain(config.get(key, default))
    values = [value] * count if type(value) is int else value
    if not isinstance(values, list | tuple) or len(values) != count:
        raise ConversionError(f"its setting {key}={value!r} is not {count} whole numbers")
    if not all(type(n) is int and least <= n <= MAX_SETTING for n in values):
        raise ConversionError(
            f"its setting {key}={value!r} is not made of whole numbers from {least} up"
        )
    return tuple(values)


def pairs(config: Config, key: str, count: int, default: int = 1) -> tuple[tuple[int, int], ...]:
    """Return (before, after) for each of `count` axes, as padding and cropping write it.

    One axis may be written as n or (n, m); two as n, (n, m) or ((a, b), (c, d)).
    """
    value = _plain(config.get(key, default))
    if type(value) is int:
        value = [[value, value]] * count
    elif count == 1 and isinstance(value, list | tuple) and all(type(n) is int for n in value):
        value = [value]
    if isinstance(value, list | tuple) and len(value) == count:
        value = [[n, n] if type(n) is int else _plain(n) for n in value]
        if all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value) and all(
            type(n) is int and 0 <= n <= MAX_SETTING for pair in value for n in pair
        ):
            return tuple((pair[0], pair[1]) for pair in value)
    raise ConversionError(f"its setting {key}={config.get(key)!r} is malformed")


def number(config: Config, key: str, default: float | None = None) -> float:
    """Return a finite number; Keras 2 wrote some as 0-d arrays, {"type": "ndarray", "value": x}."""
    value = config.get(key, default)
    if isinstance(value, dict):
        value = value.get("value", (value.get("config") or {}).get("value"))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConversionError(f"its setting {key}={value!r} is not a number")
    return float(value)


def array(config: Config, key: str, default: float | None = None) -> NDArray[np.float64]:
    """Return a number or nested lists of numbers, also as Keras writes numpy arrays down."""
    value = config.get(key, default)
    for _ in range(2):
        if isinstance(value, dict):
            inner = value.get("config")
            value = inner if isinstance(inner, dict) else value.get("value")
    try:
        numbers = np.array(value, np.float64)
    except (TypeError, ValueError):
        numbers = np.array(np.nan)
    if not np.isfinite(numbers).all():
        raise ConversionError(f"its setting {key} is not made of numbers")
    return numbers


def choice(config: Config, key: str, default: str, *allowed: str) -> str:
    """Return one of the words `allowed`."""
    value = config.get(key)
    value = default if value is None else str(value).lower()
    if value not in allowed:
        raise ConversionError(f"{key}={value!r} is not supported; use {' or '.join(allowed)}")
    return value


def data_format(config: Config) -> str:
    """Return channels_last or channels_first."""
    return choice(config, "data_format", "channels_last", "channels_last", "channels_first")


def axis(config: Config, key: str, rank: int, default: int = -1) -> int:
    """Return the axis that `key` names, counted without the batch; rank: axes without the batch."""
    value = _plain(config.get(key, default))
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if type(value) is not int or not -rank <= value <= rank or value == 0:
        raise ConversionError(f"its setting {key}={value!r} names no single axis of its input")
    return value + rank if value < 0 else value - 1


def _plain(value: Any) -> Any:
    """A tuple that was written as {"class_name": "__tuple__", "items": [...]}."""
    return value.get("items") if isinstance(value, dict) else value
