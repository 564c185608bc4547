"""Tensors in and out: what the protocol can carry comes back as it went in, the rest is refused."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privserve.errors import InputError
from privserve.gateway import tensors

FLOATS = ("FP16", "FP32", "FP64")
DATATYPES = [name for name in tensors.DTYPES if name != tensors.BFLOAT16]


@st.composite
def typed_arrays(draw: st.DrawFn, finite: bool = False) -> tuple[str, np.ndarray]:
    datatype = draw(st.sampled_from(DATATYPES))
    dtype = tensors.DTYPES[datatype]
    elements = (
        st.floats(width=8 * dtype.itemsize, allow_nan=not finite, allow_infinity=not finite)
        if dtype.kind == "f"
        else None
    )
    shape = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    return datatype, draw(hnp.arrays(dtype, shape, elements=elements))


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got, expected)


@given(typed_arrays())
def test_raw_bytes_are_read_as_they_were_written(typed: tuple[str, np.ndarray]) -> None:
    datatype, array = typed
    assert_same(tensors.from_bytes("x", datatype, array.shape, array.tobytes()), array)


@given(typed_arrays())
def test_json_is_read_as_it_was_written_flat_and_nested(typed: tuple[str, np.ndarray]) -> None:
    datatype, array = typed
    flat = json.loads(json.dumps(array.reshape(-1).tolist()))
    assert_same(tensors.from_json("x", datatype, array.shape, flat), array)
    if array.ndim:
        nested = json.loads(json.dumps(array.tolist()))
        assert_same(tensors.from_json("x", datatype, array.shape, nested), array)


@given(hnp.arrays(np.uint16, hnp.array_shapes(max_dims=3, max_side=4)))
def test_a_bfloat16_is_the_upper_half_of_a_float32(halves: np.ndarray) -> None:
    expected = np.empty(halves.shape, np.float32)
    for place in np.ndindex(halves.shape):  # slow and obviously right
        word = b"\0\0" + halves[place].tobytes()
        expected[place] = np.frombuffer(word, "<f4")[0]
    assert_same(tensors.from_bytes("x", "BF16", halves.shape, halves.tobytes()), expected)


@given(st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100))
def test_a_json_number_becomes_the_nearest_bfloat16(number: float) -> None:
    got = float(tensors.from_json("x", "BF16", (1,), [number])[0])
    bits = np.float32(number).view(np.uint32)
    below = np.uint32(bits & np.uint32(0xFFFF0000)).view(np.float32)
    above = np.uint32((bits & np.uint32(0xFFFF0000)) + np.uint32(0x10000)).view(np.float32)
    assert got in (below, above)
    assert abs(got - number) == min(abs(float(below) - number), abs(float(above) - number))


@given(
    st.sampled_from(DATATYPES), st.lists(st.floats() | st.integers() | st.booleans(), max_size=3)
)
def test_a_number_is_kept_rounded_or_refused_and_never_wrapped(
    datatype: str, numbers: list[Any]
) -> None:
    with contextlib.suppress(InputError):
        got = tensors.from_json("x", datatype, (len(numbers),), numbers)
        for value, number in zip(got.tolist(), numbers, strict=True):
            if datatype in FLOATS and math.isfinite(number):
                error = {"FP16": 1e-3, "FP32": 1e-7, "FP64": 1e-15}[datatype]
                assert value == pytest.approx(number, rel=error, abs=6e-8)
            elif datatype not in FLOATS:
                assert value == number


REFUSED: dict[str, tuple[str, tuple[int, ...], Any, str]] = {
    "texts": ("BYTES", (1,), ["a"], r"'BYTES'; a private model takes numbers: BOOL"),
    "no datatype": (None, (1,), [1], "the datatype None"),  # type: ignore[dict-item]
    "a list as datatype": ([], (1,), [1], "the datatype"),  # type: ignore[dict-item]
    "too few": ("FP32", (2,), [1.0], "needs 2 numbers, not 1"),
    "too many": ("FP32", (1,), [1.0, 2.0], "needs 1 numbers, not 2"),
    "nested otherwise": ("FP32", (2, 3), [[1, 2], [3, 4], [5, 6]], "not nested as its shape"),
    "nested by halves": ("FP32", (2, 1, 1), [[1], [2]], "not nested as its shape"),
    "ragged": ("FP32", (2, 2), [[1, 2, 3], [4]], "not nested as its shape"),
    "mixed": ("FP32", (2,), [[1], 2], "has to be a number"),
    "a number": ("FP32", (1,), 1.0, "as a list"),
    "nothing": ("FP32", (1,), None, "as a list"),
    "a text": ("FP32", (1,), ["1.5"], "has to be a number"),
    "null": ("FP32", (1,), [None], "has to be a number"),
    "true as a float": ("FP32", (1,), [True], "has to be a number"),
    "a fraction as a whole number": ("INT8", (1,), [1.5], "has to be a whole number"),
    "true as a whole number": ("INT8", (1,), [True], "has to be a whole number"),
    "one as a truth": ("BOOL", (1,), [1], "has to be true or false"),
    "beyond INT8": ("INT8", (1,), [128], "is no INT8"),
    "below UINT8": ("UINT8", (1,), [-1], "is no UINT8"),
    "beyond UINT64": ("UINT64", (1,), [2**64], "is no UINT64"),
    "beyond FP16": ("FP16", (1,), [1e5], "is no FP16"),
    "beyond FP32": ("FP32", (1,), [1e39], "is no FP32"),
    "beyond BF16": ("BF16", (1,), [3.4e38], "is no BF16"),
    "beyond FP64": ("FP64", (1,), [10**400], "is no FP64"),
}


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "complaint"), REFUSED.values(), ids=REFUSED.keys()
)
def test_data_that_do_not_fit_are_refused_with_the_cause(
    datatype: str, shape: tuple[int, ...], data: Any, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        tensors.from_json("x", datatype, shape, data)


def test_raw_bytes_that_do_not_fit_are_refused_with_the_cause() -> None:
    with pytest.raises(InputError, match=r"shape \[2\] needs 8 bytes of data, not 7"):
        tensors.from_bytes("x", "FP32", (2,), bytes(7))
    with pytest.raises(InputError, match="bytes are 0 or 1"):
        tensors.from_bytes("x", "BOOL", (2,), b"\1\2")
    with pytest.raises(InputError, match="takes numbers"):
        tensors.from_bytes("x", "BYTES", (1,), b"\1\0\0\0a")


@pytest.mark.parametrize(
    "shape", [None, "3", [-1], [1.0], [True], [2**31], [1] * 17, [2**30, 2**30, 2**30]]
)
def test_what_is_no_shape_is_refused(shape: Any) -> None:
    with pytest.raises(InputError, match="no valid shape"):
        tensors.checked_shape("x", shape)
