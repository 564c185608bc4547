"""ReLU and truncation tuples: the dealer's fused kernels. See `nonlinear` for their fields."""

from __future__ import annotations

import numpy as np

from privserve.engines.ottt.jit import kernel
from privserve.engines.ottt.nonlinear import LANES2, LANES3, LANES4, LANES5
from privserve.fixedpoint import RingArray


@kernel()
def _spread(planes: int, width: int) -> int:
    """A word whose lane j of 2^width bits is filled with bit j of `planes`."""
    if width == 2:
        x = planes & 0xFFFF
        x = (x | (x << 24)) & 0x000000FF000000FF
        x = (x | (x << 12)) & 0x000F000F000F000F
        x = (x | (x << 6)) & 0x0303030303030303
        x = (x | (x << 3)) & LANES2
        return (x << 4) - x
    if width == 3:
        x = planes & 0xFF
        x = (x | (x << 28)) & 0x0000000F0000000F
        x = (x | (x << 14)) & 0x0003000300030003
        x = (x | (x << 7)) & LANES3
        return (x << 8) - x
    if width == 4:
        x = planes & 0xF
        x = (x | (x << 30)) & 0x0000000300000003
        x = (x | (x << 15)) & LANES4
        return (x << 16) - x
    if width == 5:
        x = planes & 3
        x = (x | (x << 31)) & LANES5
        return (x << 32) - x
    return -(planes & 1)


@kernel()
def _lanes(width: int) -> int:
    """The word with the lowest bit of each lane of 2^width bits set."""
    if width == 2:
        return LANES2
    if width == 3:
        return LANES3
    if width == 4:
        return LANES4
    if width == 5:
        return LANES5
    return 1


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
            s = shares[i, sample, base : base + fields * count]
            s1 = s[:count]
            s2 = s[count : 2 * count]
            s3 = s[2 * count : 3 * count]
            for e in range(count):
                o1[e] -= s1[e]
                o2[e] -= s2[e]
                o3[e] -= (s3[e] >> comparison_bits) << comparison_bits
        if wide:
            o4 = row[target + 3 * count : target + 4 * count]
            o5 = row[target + 4 * count : target + 5 * count]
            for e in range(count):
                o1[e] &= keep_out
                o2[e] &= keep_out
                o4[e] = low_w[e]
                o5[e] = low_w[e] + (r[e] >> top)
            for i in range(others):
                s = shares[i, sample, base : base + fields * count]
                s4 = s[3 * count : 4 * count]
                s5 = s[4 * count : 5 * count]
                for e in range(count):
                    o4[e] -= s4[e]
                    o5[e] -= s5[e]
        else:
            for e in range(count):
                o1[e] = (o1[e] & keep_out) | (low_w[e] << bits)
                o2[e] = (o2[e] & keep_out) | ((low_w[e] + (r[e] >> top)) << bits)
            # The others' parts of the fields above `bits`; nothing borrows from below.
            for i in range(others):
                s = shares[i, sample, base : base + fields * count]
                s1 = s[:count]
                s2 = s[count : 2 * count]
                for e in range(count):
                    o1[e] -= (s1[e] >> bits) << bits
                    o2[e] -= (s2[e] >> bits) << bits
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
                s = shares[i, sample, back : back + count]
                for e in range(count):
                    table[e] ^= s[e]


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
