"""Bit strings of a tuple: as many bits for every element of an op, without gaps between parts.

The string of an element is cut into words of 64 bits, its lowest bits first. Word q of all
elements, `count` words side by side, is followed by word q + 1 of all; what is left over, the
`bits % 64` highest bits of every string, is packed (see `bits`). So a part of a
string lies at the same shift for all elements, and is read and written at vector speed.

In the kernels a string comes as `words`, int64[full * count], and `rest`, int64[count], where the
packed bits were unpacked to; a *part* is `size` <= 64 bits from bit `at` on.
"""

from __future__ import annotations

import numpy as np

from privserve.engines.ottt.bits import dealt_words, pack_dealt, unpack_dealt
from privserve.engines.ottt.jit import Planes, Rows, Words, kernel


def string_words(count: int, bits: int) -> int:
    """Return the 64-bit words of `count` strings of `bits` bits."""
    return bits // 64 * count + rest_words(count, bits)


def rest_words(count: int, bits: int) -> int:
    """Return how many of them are the packed ones."""
    return dealt_words(count, bits % 64) if bits % 64 else 0


@kernel
def take(words: Words, rest: Words, at: int, size: int, out: Words) -> None:
    """Set out[:count] to a part of every string; what lies above its `size` bits is left there."""
    count = rest.shape[0]
    full = words.shape[0] // count
    q, shift = at >> 6, at & 63
    low = words[q * count : (q + 1) * count] if q < full else rest
    if shift + size <= 64:
        for e in range(count):
            out[e] = low[e] >> shift
    else:
        back = 64 - shift
        keep = (np.int64(1) << back) - np.int64(1)
        high = words[(q + 1) * count : (q + 2) * count] if q + 1 < full else rest
        for e in range(count):
            out[e] = ((low[e] >> shift) & keep) | (high[e] << back)


@kernel
def take_two(
    words: Words, rest: Words, at: int, size: int, out: Words, further_size: int, further: Words
) -> None:
    """Set out and further to two parts that follow each other, as `take` does."""
    if size + further_size > 64:
        take(words, rest, at, size, out)
        take(words, rest, at + size, further_size, further)
    else:
        take(words, rest, at, size + further_size, out)
        for e in range(rest.shape[0]):
            further[e] = out[e] >> size


@kernel
def put(words: Words, rest: Words, at: int, size: int, values: Words) -> None:
    """XOR the low `size` bits of values[:count] into a part of every string."""
    count = rest.shape[0]
    full = words.shape[0] // count
    q, shift = at >> 6, at & 63
    keep = np.int64(-1) if size == 64 else (np.int64(1) << size) - np.int64(1)
    low = words[q * count : (q + 1) * count] if q < full else rest
    for e in range(count):
        low[e] ^= (values[e] & keep) << shift
    if shift + size > 64:
        back = 64 - shift
        keep_high = (np.int64(1) << (size - back)) - np.int64(1)
        high = words[(q + 1) * count : (q + 2) * count] if q + 1 < full else rest
        for e in range(count):
            high[e] ^= (values[e] >> back) & keep_high


@kernel
def begin(
    others: Planes,
    sample: int,
    fields: int,
    bits: int,
    shared: int,
    rests: Rows,
    words: Words,
    rest: Words,
) -> None:
    """Begin party 0's strings: the XOR of the others' from bit `shared` on, and zeros below.

    others: int64[n - 1, B, words], their strings of `bits` bits from word `fields`; rests:
    int64[n - 1, count], set to what they packed.
    """
    count = rest.shape[0]
    full = bits >> 6
    first = shared >> 6
    words[: min(first, full) * count] = 0
    for i in range(others.shape[0]):
        unpack_dealt(others[i, sample, fields + full * count :], count, bits & 63, rests[i])
        theirs = others[i, sample, fields : fields + full * count]
        for q in range(first, full + 1):
            keep = np.int64(-1) << (shared & 63) if q == first else np.int64(-1)
            source = theirs[q * count : (q + 1) * count] if q < full else rests[i]
            target = words[q * count : (q + 1) * count] if q < full else rest
            if i:
                for e in range(count):
                    target[e] ^= source[e] & keep
            else:
                for e in range(count):
                    target[e] = source[e] & keep


@kernel
def put_shares(
    others: Planes,
    sample: int,
    fields: int,
    bits: int,
    rests: Rows,
    at: int,
    size: int,
    values: Words,
    further_size: int,
    further: Words,
    part: Words,
    words: Words,
    rest: Words,
) -> None:
    """Put values minus the other parties' parts, modulo 2^size, into parts of zeros.

    And `further`, in the same way, into the parts behind; nothing where further_size is 0.
    others, sample, fields, bits, rests: as of `begin`; values, further, part: int64[count], written
    to.
    """
    count = rest.shape[0]
    full = bits >> 6
    is_one = 0 < further_size <= 64 - size
    for i in range(others.shape[0]):
        theirs = others[i, sample, fields : fields + full * count]
        take(theirs, rests[i], at, size + further_size if is_one else size, part)
        for e in range(count):
            values[e] -= part[e]
        if is_one:
            for e in range(count):
                further[e] -= part[e] >> size
        elif further_size:
            take(theirs, rests[i], at + size, further_size, part)
            for e in range(count):
                further[e] -= part[e]
    if is_one:
        keep = (np.int64(1) << size) - np.int64(1)
        for e in range(count):
            part[e] = (values[e] & keep) | (further[e] << size)
        put(words, rest, at, size + further_size, part)
    else:
        put(words, rest, at, size, values)
        if further_size:
            put(words, rest, at + size, further_size, further)


@kernel
def end(rest: Words, bits: int, packed: Words) -> None:
    """Pack `rest` of strings of `bits` bits into the words behind the full ones."""
    if bits & 63:
        pack_dealt(rest, rest.shape[0], bits & 63, packed)


@kernel
def unpack_ahead(
    pool: Rows, first: int, many: int, fields: int, ready: int, count: int, bits: int
) -> None:
    """Unpack what strings of `bits` bits packed, for `many` packs from number `first`.

    pool: int64[slots, pack words]; fields, ready: the words of a pack where the strings begin and
    where their `rest` goes.
    """
    at = fields + (bits >> 6) * count
    for k in range(many):
        row = pool[(first + k) % pool.shape[0]]
        unpack_dealt(row[at:], count, bits & 63, row[ready : ready + count])
