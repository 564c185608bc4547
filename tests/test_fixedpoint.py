from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privserve.errors import InputError, RangeError
from privserve.fixedpoint import decode, encode


@given(st.floats(-(2.0**40), 2.0**40), st.integers(1, 20))
def test_decoding_gives_the_encoded_value_back_within_half_a_unit(value: float, bits: int) -> None:
    assert abs(float(decode(encode(value, bits), bits)) - value) <= 2.0 ** -(bits + 1)


def test_encoding_rounds_halves_to_even() -> None:
    halves = np.array([0.5, 1.5, 2.5, -0.5, -1.5])
    assert encode(halves, 0).tolist() == [0, 2, 2, 0, -2]


def test_encoding_keeps_the_shape_and_gives_int64() -> None:
    encoded = encode(np.ones((2, 3, 4), np.float32), 14)
    assert encoded.shape == (2, 3, 4)
    assert encoded.dtype == np.int64
    assert (encoded == 1 << 14).all()


def test_an_empty_array_can_be_encoded() -> None:
    assert encode(np.empty((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(RangeError, match="NaN or infinity"):
        encode([0.0, bad])


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_magnitude_that_fits_is_just_below_the_limit(sign: int) -> None:
    limit = 2.0 ** (62 - 14)
    with pytest.raises(RangeError, match=r"\+-2\^48"):
        encode(sign * limit, 14)
    inside = np.nextafter(sign * limit, 0)
    assert abs(float(decode(encode(inside, 14), 14)) - inside) <= 2.0**-15


def test_a_range_error_is_an_input_error_and_a_value_error() -> None:
    assert issubclass(RangeError, InputError)
    assert issubclass(RangeError, ValueError)
