"""Bit packing: N values of `bits` bits become about N * bits / 64 words.

The values are laid out as a matrix with L = ceil(N / 64) columns (value e sits in row e // L,
column e % L) and each column is packed from its top into words of its own. All columns
shift by the same amount at the same time, so packing and unpacking run at vector speed.

Openings are packed so. What is dealt has L = ceil(N / 16) columns: rows that are longer take less
time, and cost up to 15/16 of a word per column.
"""

from __future__ import annotations

import numpy as np

from privserve.engines.ottt.jit import ReceivedRows, Rows, Words, inlined, kernel


def mask(bits: int) -> int:
    """Return the int64 whose low `bits` bits are set; -1 for 64."""
    return -1 if bits >= 64 else (1 << bits) - 1


def packed_words(count: int, bits: int) -> int:
    """Return how many 64-bit words `count` values of `bits` bits are packed into by `pack`."""
    return _words(count, bits, -(-count // 64))


def dealt_words(count: int, bits: int) -> int:
    """Return the same for `pack_dealt`."""
    return _words(count, bits, -(-count // 16))


def _words(count: int, bits: int, lanes: int) -> int:
    rows = -(-count // lanes)
    return lanes * -(-rows * bits // 64)


@inlined
def _pack(values: Words, count: int, bits: int, lanes: int, out: Words) -> None:
    """Pack the low `bits` bits of values[:count] into `lanes` columns in `out`."""
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


@kernel
def pack(values: Words, count: int, bits: int, out: Words) -> None:
    """Pack the low `bits` bits of values[:count] into out[:packed_words(count, bits)]."""
    _pack(values, count, bits, (count + 63) // 64, out)


@kernel
def pack_dealt(values: Words, count: int, bits: int, out: Words) -> None:
    """Pack the low `bits` bits of values[:count] into out[:dealt_words(count, bits)]."""
    _pack(values, count, bits, (count + 15) // 16, out)


@inlined
def _unpack(packed: Words, count: int, bits: int, lanes: int, xor: int, total: Words) -> None:
    """Add, or XOR, the values in `packed` to total[:count]; `xor` is a constant at each call."""
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
def unpack_dealt(packed: Words, count: int, bits: int, out: Words) -> None:
    """Set out[:count] to the values in packed[:dealt_words(count, bits)]; to 0 if bits is 0."""
    out[:count] = 0
    if bits:
        _unpack(packed, count, bits, (count + 15) // 16, 1, out)


@kernel
def unpack_add(packed: ReceivedRows, count: int, bits: int, total: Rows) -> None:
    """Add the values in `packed` to `total`; the sums keep carries above `bits` bits.

    packed: int64[B, packed_words(count, bits)]; total: int64[B, count].
    """
    lanes = (count + 63) // 64
    for sample in range(packed.shape[0]):
        _unpack(packed[sample], count, bits, lanes, 0, total[sample])


@kernel
def unpack_xor(packed: ReceivedRows, count: int, bits: int, total: Rows) -> None:
    """XOR the values in `packed` into `total`; the shapes are those of `unpack_add`."""
    lanes = (count + 63) // 64
    for sample in range(packed.shape[0]):
        _unpack(packed[sample], count, bits, lanes, 1, total[sample])
