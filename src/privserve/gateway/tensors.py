"""Tensors of the Open Inference Protocol to NumPy and back: every datatype that holds numbers.

A tensor comes as raw little-endian bytes, as JSON (flat, or nested as its shape says) or in the
typed lists of gRPC. What does not fit its datatype and shape is refused, never bent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privserve.errors import InputError

Numbers = NDArray[Any]

BFLOAT16 = "BF16"
BOOL = "BOOL"
DTYPES: dict[str, np.dtype[Any]] = {
    BOOL: np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    BFLOAT16: np.dtype("<u2"),
}
"""What an element's bytes are. A BF16 is the upper half of an FP32, and is read as one."""
ANSWERED = "FP32"
"""The datatype of all outputs."""
MAX_AXES = 16
MAX_AXIS = 1 << 31


def dtype_of(name: str, datatype: Any) -> np.dtype[Any]:
    """Return what the elements of a tensor are; raises InputError for those that are no numbers."""
    dtype = DTYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise InputError(
            f"input '{name}' has the datatype {datatype!r}; a private model takes numbers: "
            + ", ".join(DTYPES)
        )
    return dtype


def checked_shape(name: str, shape: Any) -> tuple[int, ...]:
    """Return a tensor's shape; raises InputError for what is none."""
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_AXES
        or not all(type(axis) is int and 0 <= axis < MAX_AXIS for axis in shape)
        # NumPy cannot hold some shapes even if there is nothing in them.
        or math.prod(max(axis, 1) for axis in shape) >= 1 << 59
    ):
        raise InputError(f"input '{name}' has no valid shape")
    return tuple(shape)


def from_bytes(name: str, datatype: Any, shape: tuple[int, ...], data: Any) -> Numbers:
    """Read a tensor's raw bytes, row-major and little-endian; a view of them where that is safe.

    Raises InputError where they are not as many as datatype and shape say.
    """
    dtype = dtype_of(name, datatype)
    size = math.prod(shape) * dtype.itemsize
    if len(data) != size:
        raise InputError(
            f"input '{name}' of datatype {datatype} and shape {list(shape)} needs {size} bytes of "
            f"data, not {len(data)}"
        )
    if datatype == BOOL:
        values = np.frombuffer(data, np.uint8)
        if (values > 1).any():
            raise InputError(f"input '{name}' is BOOL, whose bytes are 0 or 1")
        return values.view(np.bool_).reshape(shape)
    values = np.frombuffer(data, dtype)
    if datatype == BFLOAT16:
        values = (values.astype("<u4") << 16).view("<f4")
    return values.reshape(shape)


def from_json(name: str, datatype: Any, shape: tuple[int, ...], data: Any) -> Numbers:
    """Read a tensor's JSON data: one flat list, or lists nested as `shape` says."""
    if not isinstance(data, list):
        raise InputError(f"input '{name}' needs its numbers in 'data', as a list")
    flat, axes, kinds = data, [len(data)], set(map(type, data))
    while kinds == {list}:
        lengths = set(map(len, flat))
        flat = list(chain.from_iterable(flat))
        axes.append(lengths.pop() if len(lengths) == 1 else -1)
        kinds = set(map(type, flat))
    nested = tuple(axes)
    if len(axes) > 1 and nested != (shape if flat else shape[: len(axes)]):
        raise InputError(
            f"the data of input '{name}' is not nested as its shape {list(shape)} says; nest it "
            "so, or give one flat list"
        )
    return from_list(name, datatype, shape, flat)


def from_list(name: str, datatype: Any, shape: tuple[int, ...], flat: Sequence[Any]) -> Numbers:
    """Read a tensor from its elements in row-major order.

    Raises InputError unless there are as many as `shape` says, each of which `datatype` can hold.
    """
    dtype = dtype_of(name, datatype)
    if len(flat) != math.prod(shape):
        raise InputError(
            f"input '{name}' of shape {list(shape)} needs {math.prod(shape)} numbers, "
            f"not {len(flat)}"
        )
    is_float = datatype == BFLOAT16 or dtype.kind == "f"
    allowed = {bool} if datatype == BOOL else {int, float} if is_float else {int}
    if not set(map(type, flat)) <= allowed:
        what = {BOOL: "true or false"}.get(datatype, "a number" if is_float else "a whole number")
        raise InputError(f"every element of input '{name}' has to be {what}: it is {datatype}")
    if is_float:
        return _rounded(name, datatype, flat).reshape(shape)
    try:
        return np.array(flat, dtype).reshape(shape)
    except OverflowError:
        raise InputError(f"input '{name}' holds a number that is no {datatype}") from None


def _rounded(name: str, datatype: str, flat: Sequence[float]) -> Numbers:
    """The numbers as `datatype` can hold them, float; BF16 as FP32."""
    try:
        exact = np.array(flat, np.float64)
        with np.errstate(over="ignore"):
            values: Numbers = exact.astype("<f4" if datatype == BFLOAT16 else DTYPES[datatype])
    except OverflowError:
        raise InputError(f"input '{name}' holds a number that is no {datatype}") from None
    if datatype == BFLOAT16:
        values = _nearest_bfloat16(values)
    if np.isinf(values).any() and not np.isinf(exact[np.isinf(values)]).all():
        raise InputError(f"input '{name}' holds a number that is no {datatype}")
    return values


def _nearest_bfloat16(values: Numbers) -> Numbers:
    """float32 rounded to what a BF16 holds, ties to even; NaN stays NaN."""
    bits = values.view("<u4")
    up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = ((bits + up) & np.uint32(0xFFFF0000)).view("<f4")
    return np.where(np.isnan(values), values, rounded)
