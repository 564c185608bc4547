"""A smooth function of a shared value in one exchange: quadratics from one-time tables.

For a shared y, t = (y >> shift) - low in [0, 2^K - 2^s) is opened as that = t + r mod 2^K. The
top K - s bits h of `that` are public and the dealer knows r, so for every h the dealer knows
in which interval t lies: [a, a + 2^s) with a = h 2^s - r mod 2^K, one segment's width, however
r falls. It shares, for every h, the quadratic that fits the function there, in

    z = (that mod 2^s) - 2^(s-1) = t - a - 2^(s-1),

and a party evaluates its shares of c_0 + c_1 z + c_2 z^2 for the public z. A one-time truth
table (Ishai et al., TCC 2013) with polynomials for entries; unlike a table of segments that
are fixed, it needs no comparison of the low bits. Its error is that of the spline, plus the
rounding of t and of the coefficients.

An op's tuple: K-bit masks r_i, which everyone draws, and of `count` elements the 3 * 2^(K-s)
words [c_0 c_1 c_2] by h.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from privserve.engines.ottt.jit import INT64, NOTHING, PLANES, RECEIVED_ROWS, ROWS, kernel
from privserve.fixedpoint import RingArray
from privserve.splines import ENTRIES


def table_words(attributes: Mapping[str, Any]) -> int:
    """Words per element of a lookup's tables."""
    return ENTRIES << int(attributes["comparison_bits"] - attributes["segment_bits"])


@kernel("void(int64[:,::1], int64, int64, int64[:,::1], int64, int64, int64[:,::1])")
def finish_lookup(
    pool: RingArray,
    first: int,
    tables: int,
    that: RingArray,
    bits: int,
    segment_bits: int,
    out: RingArray,
) -> None:
    """out = this party's share of the function, from the opened `that` (reduced here).

    tables: the word of a pack where the tables begin; that, out: int64[B, count].
    """
    segments = np.int64(1) << (bits - segment_bits)
    low_mask = (np.int64(1) << segment_bits) - np.int64(1)
    half = np.int64(1) << (segment_bits - 1)
    for sample in range(that.shape[0]):
        row = pool[(first + sample) % pool.shape[0]]
        x = that[sample]
        y = out[sample]
        for e in range(x.shape[0]):
            h = (x[e] >> segment_bits) & (segments - 1)
            z = (x[e] & low_mask) - half
            at = tables + 3 * (e * segments + h)
            y[e] = row[at] + z * (row[at + 1] + z * row[at + 2])


@kernel(NOTHING(ROWS, PLANES, *(INT64,) * 6, RECEIVED_ROWS, ROWS))
def deal_lookup(
    first_stream: RingArray,
    shares: RingArray,
    mask: int,
    base: int,
    target: int,
    count: int,
    bits: int,
    segment_bits: int,
    table: RingArray,
    out: RingArray,
) -> None:
    """Party 0's tables: the quadratics that belong to r, minus the other parties' shares.

    first_stream: int64[B, mask words] of party 0; shares: int64[n - 1, B, words] of the
    others, masks at word `mask`, tables at `base`; table: see `quadratics`; out[:, target:]
    is written.
    """
    segments = np.int64(1) << (bits - segment_bits)
    keep = (np.int64(1) << bits) - np.int64(1)
    wrapped = (np.int64(1) << bits) - (np.int64(1) << segment_bits)
    width = np.int64(1) << segment_bits
    for sample in range(out.shape[0]):
        row = out[sample]
        for e in range(count):
            r = first_stream[sample, mask + e]
            for i in range(shares.shape[0]):
                r += shares[i, sample, mask + e]
            at = target + 3 * e * segments
            for h in range(segments):
                a = ((h << segment_bits) - r) & keep
                if a >= wrapped:
                    a -= keep + 1
                entry = table[a + width]
                row[at + 3 * h] = entry[0]
                row[at + 3 * h + 1] = entry[1]
                row[at + 3 * h + 2] = entry[2]
        words = 3 * count * segments
        for i in range(shares.shape[0]):
            theirs = shares[i, sample, base : base + words]
            mine = row[target : target + words]
            for word in range(words):
                mine[word] -= theirs[word]
