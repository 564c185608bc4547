"""Reads single arguments of operations, refusing what Keras could not have written."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.errors import ConversionError
from converters.graph import Symbol


def tensor(x: Any) -> Symbol:
    """Return an argument that must be a tensor of the network."""
    if not isinstance(x, Symbol):
        raise ConversionError("one of its arguments is a constant where a tensor is expected")
    return x


def constant(x: Any) -> NDArray[np.float64]:
    """Return an argument that must be a number or an array."""
    if isinstance(x, Symbol) or x is None or isinstance(x, str | slice):
        raise ConversionError("one of its arguments must be a number or an array")
    try:
        array = np.array(x, np.float64)
    except (TypeError, ValueError):
        raise ConversionError("one of its arguments is neither a tensor nor a number") from None
    if not np.isfinite(array).all():
        raise ConversionError("one of its arguments is not finite")
    return array


def scalar(x: Any) -> float:
    """Return an argument that must be one number."""
    array = constant(x)
    if array.size != 1:
        raise ConversionError(f"one of its arguments has shape {array.shape}, not one number")
    return float(array.item())


def whole(x: Any, what: str) -> int:
    """Return an argument that must be a whole number."""
    if isinstance(x, float) and x.is_integer():
        return int(x)
    if isinstance(x, np.ndarray) and x.size == 1:
        return int(x.item())
    if type(x) is not int:
        raise ConversionError(f"its {what} {x!r} is not a whole number")
    return int(x)


def whole_list(values: Any, what: str) -> list[int]:
    """Return an argument that must be a whole number or a list of them."""
    if isinstance(values, np.ndarray):
        values = values.ravel().tolist()
    return [whole(n, what) for n in (values if isinstance(values, list) else [values])]


def axis_of(axis: Any, rank: int) -> int:
    """Return an axis counted with the batch, as one counted without; rank: without the batch."""
    number = whole(axis, "axis")
    number = number + rank + 1 if number < 0 else number
    if number == 0:
        raise ConversionError("it works across the batch, and samples are served one by one")
    if not 0 < number <= rank:
        raise ConversionError(f"its axis {number} does not exist")
    return number - 1


def listed(xs: Any) -> list[Any]:
    """Return an argument that must be a list with something in it, or one tensor."""
    xs = [xs] if isinstance(xs, Symbol) else xs
    if not isinstance(xs, list) or not xs:
        raise ConversionError("it is called on something that is no list of tensors")
    return xs
