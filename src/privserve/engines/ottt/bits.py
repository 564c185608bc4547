"""Bit packing of openings: N values of `bits` bits become about N * bits / 64 words.

The values are laid out as a matrix with L = ceil(N / 64) columns (value e sits in row e // L,
column e % L) and each column is packed from its top into words of its own. All columns
shift by the same amount at the same time, so packing and unpacking run at vector speed.
"""

from __future__ import annotations

import numpy as np

from privserve.engines.ottt.jit import (
    INT64,
    NOTHING,
    RECEIVED_ROWS,
    RECEIVED_WORDS,
    ROWS,
    WORDS,
    kernel,
)
from privserve.fixedpoint import RingArray


def mask(bits: int) -> int:
    """The int64 whose low `bits` bits are set; -1 for 64."""
    return -1 if bits >= 64 else (1 << bits) - 1


def packed_words(count: int, bits: int) -> int:
    """How many 64-bit words `count` values of `bits` bits are packed into."""
    lanes = -(-count // 64)
    rows = -(-count // lanes)
    return lanes * -(-rows * bits // 64)


@kernel("void(int64[::1], int64, int64, int64[::1])")
def pack(values: RingArray, count: int, bits: int, out: RingArray) -> None:
    """Pack the low `bits` bits of values[:count] into out[:packed_words(count, bits)]."""
    lanes = (count + 63) // 64
    rows = (count + lanes - 1) // lanes
    keep = np.int64(-1) if bits >= 64 else (np.int64(1) << bits) - np.int64(1)
    out[: lanes * ((rows * bits + 63) // 64)] = 0
    for row in range(rows):
        start = row * lanes
        width = min(lanes, count - start)
        word = (row * bits) // 64 * lanes
        shift = (row * bits) % 64
        source = values[start : start + width]
        target = out[word : word + width]
        for lane in range(width):
            target[lane] |= (source[lane] & keep) << shift
        if shift + bits > 64:
            back = 64 - shift
            target = out[word + lanes : word + lanes + width]
            for lane in range(width):
                target[lane] = (source[lane] & keep) >> back


@kernel(NOTHING(RECEIVED_WORDS, INT64, INT64, WORDS))
def unpack_add(packed: RingArray, count: int, bits: int, total: RingArray) -> None:
    """total[:count] += the values in `packed`; the sums keep carries above `bits` bits."""
    lanes = (count + 63) // 64
    rows = (count + lanes - 1) // lanes
    keep = np.int64(-1) if bits >= 64 else (np.int64(1) << bits) - np.int64(1)
    for row in range(rows):
        start = row * lanes
        width = min(lanes, count - start)
        word = (row * bits) // 64 * lanes
        shift = (row * bits) % 64
        target = total[start : start + width]
        source = packed[word : word + width]
        if shift + bits <= 64:
            for lane in range(width):
                target[lane] += (source[lane] >> shift) & keep
        else:
            back = 64 - shift
            low = (np.int64(1) << back) - np.int64(1)
            further = packed[word + lanes : word + lanes + width]
            for lane in range(width):
                value = (source[lane] >> shift) & low
                target[lane] += (value | (further[lane] << back)) & keep


@kernel(NOTHING(RECEIVED_WORDS, INT64, INT64, WORDS))
def unpack_xor(packed: RingArray, count: int, bits: int, total: RingArray) -> None:
    """total[:count] ^= the values in `packed`."""
    lanes = (count + 63) // 64
    rows = (count + lanes - 1) // lanes
    keep = np.int64(-1) if bits >= 64 else (np.int64(1) << bits) - np.int64(1)
    for row in range(rows):
        start = row * lanes
        width = min(lanes, count - start)
        word = (row * bits) // 64 * lanes
        shift = (row * bits) % 64
        target = total[start : start + width]
        source = packed[word : word + width]
        if shift + bits <= 64:
            for lane in range(width):
                target[lane] ^= (source[lane] >> shift) & keep
        else:
            back = 64 - shift
            low = (np.int64(1) << back) - np.int64(1)
            further = packed[word + lanes : word + lanes + width]
            for lane in range(width):
                value = (source[lane] >> shift) & low
                target[lane] ^= (value | (further[lane] << back)) & keep


@kernel(NOTHING(RECEIVED_ROWS, INT64, INT64, ROWS))
def unpack_add_batch(packed: RingArray, count: int, bits: int, total: RingArray) -> None:
    """`unpack_add` row by row: packed int64[B, words], total int64[B, count]."""
    for sample in range(packed.shape[0]):
        unpack_add(packed[sample], count, bits, total[sample])


@kernel(NOTHING(RECEIVED_ROWS, INT64, INT64, ROWS))
def unpack_xor_batch(packed: RingArray, count: int, bits: int, total: RingArray) -> None:
    """`unpack_xor` row by row: packed int64[B, words], total int64[B, count]."""
    for sample in range(packed.shape[0]):
        unpack_xor(packed[sample], count, bits, total[sample])
