"""Fixed point in the ring Z_2^64: floats in and out of two's complement int64.

`encode(x, f) = round(x * 2^f)`; a product of an f-bit and a g-bit number carries f + g
fraction bits until it is truncated.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privserve.errors import RangeError

RING_BITS = 64
DEFAULT_FRACTION_BITS = 14

RingArray = NDArray[np.int64]


def encode(values: ArrayLike, fraction_bits: int = DEFAULT_FRACTION_BITS) -> RingArray:
    """Encode reals as ring elements.

    values: real numbers, any shape; returns int64 of the same shape, round-half-even of
    values * 2^fraction_bits. Raises RangeError for NaN, infinities and for magnitudes of
    2^(62 - fraction_bits) and above, which the ring cannot hold with a bit to spare.
    """
    scaled = np.asarray(values, dtype=np.float64) * float(2**fraction_bits)
    most = max(-float(scaled.min()), float(scaled.max())) if scaled.size else 0.0
    if not math.isfinite(most):  # a NaN is every minimum
        raise RangeError("the values contain NaN or infinity; clean the input before it is encoded")
    if most >= float(2**62):
        raise RangeError(
            f"a value is outside +-2^{62 - fraction_bits}, the range that {fraction_bits} "
            "fraction bits leave in 64 bits; scale the values down or use fewer fraction bits"
        )
    return np.rint(scaled).astype(np.int64)


def decode(elements: RingArray, fraction_bits: int = DEFAULT_FRACTION_BITS) -> NDArray[np.float64]:
    """Decode ring elements (int64, any shape) to the reals elements / 2^fraction_bits."""
    return np.asarray(elements, dtype=np.int64).astype(np.float64) / float(2**fraction_bits)
