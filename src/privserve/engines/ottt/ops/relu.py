"""ReLU and truncation on shares: the fused kernels of the parties; `tuples` has the dealer's.

For a shared y, t = (y >> s) + 2^(K-1) (ReLU) or + 2^(K-2) (truncation) is opened as
that = t + r mod 2^K; mhat and m are the top bits of that and r. Party i knows the K-bit
r_i with r = sum r_i mod 2^K, and sum r_i = r + 2^K w as integers. With rho_0 = r and
rho_1 = r - 2^K m (r read as a signed number),

    ReLU:        d u = d (low + (1 - mhat) 2^(K-1) - rho_mhat),   d = [u >= 0] = dhat ^ b
    truncation:  u   = that - 2^(K-2) - rho_(1-mhat),             for |u| < 2^(K-2)

Every other factor is public, so shares of b, b rho_1, w, w + m and b m are enough. They
are needed modulo the output's 2^bits only, those that get multiplied by 2^K modulo
2^(bits - K). Fields of a ReLU's tuple, `count` words each:

    [b | w << bits] [b rho_1 | (w + m) << bits] [r_i | b m << K] [tables, see comparison]

and, where 2 bits - K > 64, w and w + m in words of their own before the tables. Those of a
truncation: [r_i | w << K | (w + m) << bits], or two words [r_i | w << K] [w + m].

In the arguments: pool int64[slots, pack words]; first the slot of the batch's first pack
(slots wrap around); base the word where the op's fields begin; values int64[B, count].
"""

from __future__ import annotations

import numpy as np

from privserve.engines.ottt.bits import pack
from privserve.engines.ottt.comparison import ComparisonPlan
from privserve.engines.ottt.jit import kernel
from privserve.fixedpoint import RingArray

# The lowest bit of every lane of 2^2, 2^3, 2^4, 2^5 bits.
LANES2 = 0x1111111111111111
LANES3 = 0x0101010101010101
LANES4 = 0x0001000100010001
LANES5 = 0x0000000100000001


def relu_is_wide(bits: int, comparison_bits: int) -> bool:
    """Whether w and w + m of a ReLU take words of their own."""
    return 2 * bits - comparison_bits > 64


def relu_words(plan: ComparisonPlan, bits: int) -> int:
    """Words per element of a ReLU's tuple whose output is needed mod 2^bits."""
    return plan.words + (5 if relu_is_wide(bits, plan.bits) else 3)


def truncate_words(bits: int, comparison_bits: int) -> int:
    """Words per element of a truncation's tuple."""
    return 2 if 2 * bits - comparison_bits > 64 else 1


@kernel()
def _gather(word: int, width: int) -> int:
    """The lowest bit of each lane of 2^width bits of `word`, side by side."""
    if width == 2:
        t = word & LANES2
        t = (t | (t >> 3)) & 0x0303030303030303
        t = (t | (t >> 6)) & 0x000F000F000F000F
        t = (t | (t >> 12)) & 0x000000FF000000FF
        return (t | (t >> 24)) & 0xFFFF
    if width == 3:
        t = word & LANES3
        t |= t >> 7
        t |= t >> 14
        return (t | (t >> 28)) & 0xFF
    if width == 4:
        t = word & LANES4
        t |= t >> 15
        return (t | (t >> 30)) & 0xF
    if width == 5:
        t = word & LANES5
        return (t | (t >> 31)) & 3
    return word & 1


@kernel()
def _read_tables(
    table: RingArray,
    x: RingArray,
    position: int,
    width: int,
    k: int,
    chunks: int,
    plane: int,
    out: RingArray,
) -> None:
    """out ^= what one table word of chunk k adds to M; `width` is a constant at each call."""
    column = k * (k - 1) // 2
    last = chunks * (chunks - 1) // 2
    has_column = 1 if k < chunks else 0
    rows = has_column * ((1 << k) - 1)
    past = has_column * k
    values = (np.int64(1) << width) - np.int64(1)
    for e in range(x.shape[0]):
        t = _gather(table[e] >> ((x[e] >> position) & values), width) << plane
        out[e] ^= ((t & rows) << column) ^ ((t >> past) << last)


def rounding(parties: int, shift: int) -> int:
    """What party 0 adds before a shift, so that the dropped carries average to zero.

    A share-wise shift loses 0 to n - 1 units, and the real quotient's fraction; with n/2
    units added the result lies within n/2 of the quotient, without a bias.
    """
    return parties << (shift - 1) if shift else 0


@kernel(
    "void(int64[:,::1], int64, int64, int64, int64[:,::1], int64, int64, int64,"
    " int64[:,::1], int64[:,::1])"
)
def mask_shifted(
    pool: RingArray,
    first: int,
    base: int,
    offset: int,
    values: RingArray,
    shift: int,
    bits: int,
    bias: int,
    masked: RingArray,
    packed: RingArray,
) -> None:
    """masked = ((values + bias) >> shift) + offset + r_i mod 2^bits, and packed.

    base: the word of the fields that carry r_i in their low `bits` bits.
    """
    slots = pool.shape[0]
    batch, count = values.shape
    keep = (np.int64(1) << bits) - np.int64(1)
    for sample in range(batch):
        row = pool[(first + sample) % slots]
        source = values[sample]
        out = masked[sample]
        mask = row[base : base + count]
        for e in range(count):
            out[e] = (((source[e] + bias) >> shift) + offset + mask[e]) & keep
        pack(out, count, bits, packed[sample])


@kernel(
    "void(int64[:,::1], int64, int64, int64[:,::1], int64[:,::1], int64, int64, int64,"
    " int64[:,::1], int64[:,::1])"
)
def look_up(
    pool: RingArray,
    first: int,
    tables: int,
    that: RingArray,
    spec: RingArray,
    chunks: int,
    opened_bits: int,
    bits: int,
    matrix: RingArray,
    packed: RingArray,
) -> None:
    """matrix = this party's share of M, read from its tables at the chunks of `that`.

    that: int64[B, count], reduced to its low `bits` bits in place; spec: see
    ComparisonPlan.spec; tables: the word where the tables begin.
    """
    slots = pool.shape[0]
    batch, count = that.shape
    keep = (np.int64(1) << bits) - np.int64(1)
    for sample in range(batch):
        row = pool[(first + sample) % slots]
        x = that[sample]
        out = matrix[sample]
        for e in range(count):
            x[e] &= keep
            out[e] = 0
        for word in range(spec.shape[0]):
            position, width, k, plane = spec[word]
            table = row[tables + word * count : tables + (word + 1) * count]
            if width == 2:
                _read_tables(table, x, position, 2, k, chunks, plane, out)
            elif width == 3:
                _read_tables(table, x, position, 3, k, chunks, plane, out)
            elif width == 4:
                _read_tables(table, x, position, 4, k, chunks, plane, out)
            elif width == 5:
                _read_tables(table, x, position, 5, k, chunks, plane, out)
            else:
                _read_tables(table, x, position, 6, k, chunks, plane, out)
        pack(out, count, opened_bits, packed[sample])


@kernel(
    "void(int64[:,::1], int64, int64, int64[:,::1], int64[:,::1], int64, int64, int64,"
    " int64, int64[:,::1])"
)
def finish_relu(
    pool: RingArray,
    first: int,
    base: int,
    that: RingArray,
    matrix: RingArray,
    chunks: int,
    bits: int,
    comparison_bits: int,
    lead: int,
    out: RingArray,
) -> None:
    """out = this party's share of ReLU(u), from the opened `that` and M.

    bits: of the output's ring; lead: 1 at party 0, which adds the public terms, else 0.
    Consumes `matrix`.
    """
    slots = pool.shape[0]
    batch, count = that.shape
    top = comparison_bits - 1
    half = np.int64(1) << top
    keep = (np.int64(1) << comparison_bits) - np.int64(1)
    wide = 2 * bits - comparison_bits > 64
    paths = np.empty(count, np.int64)
    for sample in range(batch):
        row = pool[(first + sample) % slots]
        w1 = row[base : base + count]
        w2 = row[base + count : base + 2 * count]
        w3 = row[base + 2 * count : base + 3 * count]
        x = that[sample]
        m = matrix[sample]
        y = out[sample]
        # det M: bit j of `paths` is the parity of the paths from node 1 to node j + 1.
        for e in range(count):
            paths[e] = 1
        for j in range(1, chunks + 1):
            column = j * (j - 1) // 2
            for e in range(count):
                p = (m[e] >> column) & paths[e]
                p ^= p >> 4
                p ^= p >> 2
                p ^= p >> 1
                paths[e] |= (p & 1) << j
        for e in range(count):
            m[e] = ((paths[e] >> chunks) ^ (x[e] >> top)) & 1
        if not wide:
            for e in range(count):
                dhat = m[e]
                not_mhat = 1 - (x[e] >> top)
                public = (x[e] & (half - 1)) + (not_mhat << top)
                low_w = w1[e] >> bits
                high_w = w2[e] >> bits
                wrap = high_w + not_mhat * (low_w - high_w)
                rho = (w3[e] & keep) - (wrap << comparison_bits)
                b_rho = w2[e] + ((not_mhat * (w3[e] >> comparison_bits)) << comparison_bits)
                b_u = w1[e] * public - b_rho
                y[e] = b_u + dhat * (lead * public - rho - 2 * b_u)
        else:
            w4 = row[base + 3 * count : base + 4 * count]
            w5 = row[base + 4 * count : base + 5 * count]
            for e in range(count):
                dhat = m[e]
                not_mhat = 1 - (x[e] >> top)
                public = (x[e] & (half - 1)) + (not_mhat << top)
                wrap = w5[e] + not_mhat * (w4[e] - w5[e])
                rho = (w3[e] & keep) - (wrap << comparison_bits)
                b_rho = w2[e] + ((not_mhat * (w3[e] >> comparison_bits)) << comparison_bits)
                b_u = w1[e] * public - b_rho
                y[e] = b_u + dhat * (lead * public - rho - 2 * b_u)


@kernel("void(int64[:,::1], int64, int64, int64[:,::1], int64, int64, int64, int64[:,::1])")
def finish_truncate(
    pool: RingArray,
    first: int,
    base: int,
    that: RingArray,
    bits: int,
    comparison_bits: int,
    lead: int,
    out: RingArray,
) -> None:
    """out = this party's share of u, from the opened `that` (reduced here)."""
    slots = pool.shape[0]
    batch, count = that.shape
    top = comparison_bits - 1
    keep = (np.int64(1) << comparison_bits) - np.int64(1)
    quarter = np.int64(1) << (comparison_bits - 2)
    wide = 2 * bits - comparison_bits > 64
    for sample in range(batch):
        row = pool[(first + sample) % slots]
        w1 = row[base : base + count]
        x = that[sample]
        y = out[sample]
        if not wide:
            for e in range(count):
                value = x[e] & keep
                mhat = value >> top
                low_w = w1[e] >> comparison_bits
                high_w = w1[e] >> bits
                wrap = high_w + mhat * (low_w - high_w)
                rho = (w1[e] & keep) - (wrap << comparison_bits)
                y[e] = lead * (value - quarter) - rho
        else:
            w2 = row[base + count : base + 2 * count]
            for e in range(count):
                value = x[e] & keep
                mhat = value >> top
                wrap = w2[e] + mhat * ((w1[e] >> comparison_bits) - w2[e])
                rho = (w1[e] & keep) - (wrap << comparison_bits)
                y[e] = lead * (value - quarter) - rho
