"""ReLU and truncation on shares: the fused kernels of the parties and of the dealer.

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

_LANES2 = 0x1111111111111111
_LANES3 = 0x0101010101010101
_LANES4 = 0x0001000100010001
_LANES5 = 0x0000000100000001


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
def _spread(planes: int, width: int) -> int:
    """A word whose lane j of 2^width bits is filled with bit j of `planes`."""
    if width == 2:
        x = planes & 0xFFFF
        x = (x | (x << 24)) & 0x000000FF000000FF
        x = (x | (x << 12)) & 0x000F000F000F000F
        x = (x | (x << 6)) & 0x0303030303030303
        x = (x | (x << 3)) & _LANES2
        return (x << 4) - x
    if width == 3:
        x = planes & 0xFF
        x = (x | (x << 28)) & 0x0000000F0000000F
        x = (x | (x << 14)) & 0x0003000300030003
        x = (x | (x << 7)) & _LANES3
        return (x << 8) - x
    if width == 4:
        x = planes & 0xF
        x = (x | (x << 30)) & 0x0000000300000003
        x = (x | (x << 15)) & _LANES4
        return (x << 16) - x
    if width == 5:
        x = planes & 3
        x = (x | (x << 31)) & _LANES5
        return (x << 32) - x
    return -(planes & 1)


@kernel()
def _gather(word: int, width: int) -> int:
    """The lowest bit of each lane of 2^width bits of `word`, side by side."""
    if width == 2:
        t = word & _LANES2
        t = (t | (t >> 3)) & 0x0303030303030303
        t = (t | (t >> 6)) & 0x000F000F000F000F
        t = (t | (t >> 12)) & 0x000000FF000000FF
        return (t | (t >> 24)) & 0xFFFF
    if width == 3:
        t = word & _LANES3
        t |= t >> 7
        t |= t >> 14
        return (t | (t >> 28)) & 0xFF
    if width == 4:
        t = word & _LANES4
        t |= t >> 15
        return (t | (t >> 30)) & 0xF
    if width == 5:
        t = word & _LANES5
        return (t | (t >> 31)) & 3
    return word & 1


@kernel()
def _lanes(width: int) -> int:
    """The word with the lowest bit of each lane of 2^width bits set."""
    if width == 2:
        return _LANES2
    if width == 3:
        return _LANES3
    if width == 4:
        return _LANES4
    if width == 5:
        return _LANES5
    return 1


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


@kernel()
def _make_tables(
    r: RingArray,
    free: RingArray,
    constants: RingArray,
    position: int,
    width: int,
    k: int,
    chunks: int,
    plane: int,
    table: RingArray,
) -> None:
    """table = one table word of chunk k in the clear; `width` is a constant at each call."""
    free1 = chunks * (chunks - 1) // 2
    values = (np.int64(1) << width) - np.int64(1)
    diagonal = np.int64(1) << (k - 1)
    rows = diagonal - np.int64(1)
    shift = (k - 1) * (k - 2) // 2
    lanes = _lanes(width)
    if k < chunks:
        rows_next = (np.int64(1) << k) - np.int64(1)
        shift_next = k * (k - 1) // 2
        r2 = free1 + k - 1
        for e in range(r.shape[0]):
            column = ((free[e] >> shift) & rows) | diagonal
            use_eq = _spread((column * (1 + (((free[e] >> r2) & 1) << k))) >> plane, width)
            use_lt = _spread((column << k) >> plane, width)
            flip = _spread(((free[e] >> shift_next) & rows_next) >> plane, width)
            equal = lanes << ((r[e] >> position) & values)
            table[e] = (equal & use_eq) ^ ((equal - lanes) & use_lt) ^ flip
    else:
        for e in range(r.shape[0]):
            column = ((free[e] >> shift) & rows) | diagonal
            use_lt = _spread(column >> plane, width)
            less = (lanes << ((r[e] >> position) & values)) - lanes
            table[e] = (less & use_lt) ^ _spread(constants[e] >> plane, width)


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
        for e in range(count):
            out[e] = (((source[e] + bias) >> shift) + offset + row[base + e]) & keep
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


@kernel(
    "void(int64[:,:,::1], int64[:,:,::1], int64, int64, int64, int64, int64,"
    " int64[:,::1], int64, int64[:,::1])"
)
def deal_relu(
    randomness: RingArray,
    shares: RingArray,
    base: int,
    target: int,
    count: int,
    bits: int,
    comparison_bits: int,
    spec: RingArray,
    chunks: int,
    out: RingArray,
) -> None:
    """The corrections, party 0's fields, for a batch of ReLU tuples.

    randomness: int64[2, B, count], the dealer's own uniform words (r_0; R1, R2 and b).
    shares: int64[n - 1, B, words], the streams of parties 1..n-1, fields at `base`;
    out: int64[B, words], fields at `target`.
    """
    others, batch, _ = shares.shape
    keep = (np.int64(1) << comparison_bits) - np.int64(1)
    keep_out = np.int64(-1)
    if bits < 64:
        keep_out = (np.int64(1) << bits) - np.int64(1)
    top = comparison_bits - 1
    wide = 2 * bits - comparison_bits > 64
    fields = 5 if wide else 3
    free1 = chunks * (chunks - 1) // 2
    mask_bit = free1 + chunks - 1
    r = np.empty(count, np.int64)
    low_w = np.empty(count, np.int64)
    constants = np.empty(count, np.int64)
    for sample in range(batch):
        row = out[sample]
        own = randomness[0, sample]
        free = randomness[1, sample]
        for e in range(count):
            low_w[e] = own[e] & keep
        for i in range(others):
            w3 = shares[i, sample, base + 2 * count : base + 3 * count]
            for e in range(count):
                low_w[e] += w3[e] & keep
        o1 = row[target : target + count]
        o2 = row[target + count : target + 2 * count]
        o3 = row[target + 2 * count : target + 3 * count]
        for e in range(count):
            r[e] = low_w[e] & keep
            wrap = low_w[e] >> comparison_bits
            m = r[e] >> top
            b = (free[e] >> mask_bit) & 1
            constants[e] = b ^ m
            o1[e] = b
            o2[e] = b * (r[e] - (m << comparison_bits))
            o3[e] = (own[e] & keep) | ((b * m) << comparison_bits)
            low_w[e] = wrap
        # Columns 2..c of R1, for the constants of the last column of M.
        for j in range(1, chunks):
            shift = j * (j - 1) // 2
            rows = (np.int64(1) << j) - np.int64(1)
            for e in range(count):
                column = ((free[e] >> shift) & rows) | (np.int64(1) << j)
                constants[e] ^= column * ((free[e] >> (free1 + j - 1)) & 1)
        for i in range(others):
            s = shares[i, sample]
            for e in range(count):
                o1[e] -= s[base + e]
                o2[e] -= s[base + count + e]
                o3[e] -= (s[base + 2 * count + e] >> comparison_bits) << comparison_bits
        if wide:
            o4 = row[target + 3 * count : target + 4 * count]
            o5 = row[target + 4 * count : target + 5 * count]
            for e in range(count):
                o1[e] &= keep_out
                o2[e] &= keep_out
                o4[e] = low_w[e]
                o5[e] = low_w[e] + (r[e] >> top)
            for i in range(others):
                s = shares[i, sample]
                for e in range(count):
                    o4[e] -= s[base + 3 * count + e]
                    o5[e] -= s[base + 4 * count + e]
        else:
            for e in range(count):
                first = low_w[e]
                second = low_w[e] + (r[e] >> top)
                for i in range(others):
                    first -= shares[i, sample, base + e] >> bits
                    second -= shares[i, sample, base + count + e] >> bits
                o1[e] = (o1[e] & keep_out) | (first << bits)
                o2[e] = (o2[e] & keep_out) | (second << bits)
        for word in range(spec.shape[0]):
            position, width, k, plane = spec[word]
            at = target + (fields + word) * count
            table = row[at : at + count]
            if width == 2:
                _make_tables(r, free, constants, position, 2, k, chunks, plane, table)
            elif width == 3:
                _make_tables(r, free, constants, position, 3, k, chunks, plane, table)
            elif width == 4:
                _make_tables(r, free, constants, position, 4, k, chunks, plane, table)
            elif width == 5:
                _make_tables(r, free, constants, position, 5, k, chunks, plane, table)
            else:
                _make_tables(r, free, constants, position, 6, k, chunks, plane, table)
            back = base + (fields + word) * count
            for i in range(others):
                s = shares[i, sample]
                for e in range(count):
                    table[e] ^= s[back + e]


@kernel("void(int64[:,::1], int64[:,:,::1], int64, int64, int64, int64, int64, int64[:,::1])")
def deal_truncate(
    own: RingArray,
    shares: RingArray,
    base: int,
    target: int,
    count: int,
    bits: int,
    comparison_bits: int,
    out: RingArray,
) -> None:
    """The corrections for a batch of truncation tuples; own: int64[B, count], for r_0."""
    others, batch, _ = shares.shape
    keep = (np.int64(1) << comparison_bits) - np.int64(1)
    high = bits - comparison_bits
    keep_high = (np.int64(1) << high) - np.int64(1)
    top = comparison_bits - 1
    wide = 2 * bits - comparison_bits > 64
    for sample in range(batch):
        row = out[sample]
        for e in range(count):
            r0 = own[sample, e] & keep
            total = r0
            for i in range(others):
                total += shares[i, sample, base + e] & keep
            wrap = total >> comparison_bits
            wrap_m = wrap + ((total >> top) & 1)
            for i in range(others):
                wrap -= shares[i, sample, base + e] >> comparison_bits
                if wide:
                    wrap_m -= shares[i, sample, base + count + e]
                else:
                    wrap_m -= shares[i, sample, base + e] >> bits
            if wide:
                row[target + e] = r0 | (wrap << comparison_bits)
                row[target + count + e] = wrap_m
            else:
                row[target + e] = r0 | ((wrap & keep_high) << comparison_bits) | (wrap_m << bits)
