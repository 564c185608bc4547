"""Bit packing of openings: N values of `bits` bits become about N * bits / 64 words.

The values are laid out as a matrix with L = ceil(N / 64) columns (value e sits in row e // L,
column e % L) and each column is packed from its top into words of its own. All columns
shift by the same amount at the same time, so packing and unpacking run at vector speed.
"""

from __future__ import annotations

import numpy as np

from privserve.engines.ottt.jit import ReceivedRows, Rows, Words, inlined, kernel


def mask(bits: int) -> int:
    """Return the int64 whose low `bits` bits are set; -1 for 64."""
    return -1 if bits >= 64 else (1 << bits) - 1


def packed_words(count: int, bits: int) -> int:
    """Return how many 64-bit words `count` values of `bits` bits are packed into."""
    lanes = -(-count // 64)
    rows = -(-count // lanes)
    return lanes * -(-rows * bits // 64)


@kernel
def pack(values: Words, count: int, bits: int, out: Words) -> None:
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


@inlined
def _unpack(packed: Words, count: int, bits: int, xor: int, total: Words) -> None:
    """Add, or XOR, the values in `packed` to total[:count]; `xor` is a constant at each call."""
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
                value = (source[lane] >> shift) & keep
                target[lane] = target[lane] ^ value if xor else target[lane] + value
        else:
            back = 64 - shift
            low = (np.int64(1) << back) - np.int64(1)
            further = packed[word + lanes : word + lanes + width]
            for lane in range(width):
                value = (source[lane] >> shift) & low
                value = (value | (further[lane] << back)) & keep
                target[lane] = target[lane] ^ value if xor else target[lane] + value


@kernel
def unpack_add(packed: ReceivedRows, count: int, bits: int, total: Rows) -> None:
    """Add the values in `packed` to `total`; the sums keep carries above `bits` bits.

    packed: int64[B, packed_words(count, bits)]; total: int64[B, count].
    """
    for sample in range(packed.shape[0]):
        _unpack(packed[sample], count, bits, 0, total[sample])


@kernel
def unpack_xor(packed: ReceivedRows, count: int, bits: int, total: Rows) -> None:
    """XOR the values in `packed` into `total`; the shapes are those of `unpack_add`."""
    for sample in range(packed.shape[0]):
        _unpack(packed[sample], count, bits, 1, total[sample])
