"""Whether a value left a range that was only guessed: computed on shares, told to the client.

A comparison of K bits gives a wrong result where u leaves its range, and with it u_K, which is
u mod 2^K read as a signed number. Shares of u_K follow from the comparison's own tuple:

    u_K = that - offset - rho_0 + 2^K W,    W = the carry out of t + r,
    ReLU:        W = d + m - d m where mhat = 0,  d m where mhat = 1,    d = dhat ^ b
    truncation:  W = m where mhat = 0,            0 where mhat = 1      (its own formula)

and the parties know shares of u itself modulo 2^(K + g), since the op's input was opened with
g bits more. So e = u - u_K = 2^K q, and the result is right exactly if q = 0 mod 2^g. A `check`
has e = x, which must be zero mod 2^bits. All e are shifted to the top of the ring: 2^(64-g) q.

Per row and op the parties fold all e of the op into FLAGS words, which are zero if all e are:

1. random subset sums: coefficients (40 bits per element, fresh per batch, from a key that the
   compute parties have in common, and nobody else) say which sums an element is added to. Some q
   is not zero: then every sum is not zero with probability 1/2 at least, so all vanish with
   2^-40 at most;
2. a uniform FLAGS x FLAGS matrix from the same key, times the sums: the result is uniform among
   the vectors whose entries are all divisible by the power of two that divides all sums;
3. plus shares of zero from the dealer, so that the shares are uniform with the right sum.

These words go to the client with its answer. Parties see nothing more than without them, and
there is no exchange. A client learns, besides which op's range its row left, at most that power
of two; and nothing else, because it does not know the coefficients.

`coefficients`: int64[elements], of which the low 40 bits count.
"""

from __future__ import annotations

import numpy as np

from privserve.engines.ottt.jit import kernel
from privserve.fixedpoint import RingArray
from privserve.program import Op

FLAGS = 40
"""Words per row and guarded op."""
TABLES = FLAGS // 8
"""Eight sums share a table of 2^8 buckets, one per combination of sums."""


def flag_words(op: Op) -> int:
    """Words of the op's shares of zero; 0 for an op whose range is sound."""
    return FLAGS if op.kind == "check" or op.attributes.get("guard") else 0


@kernel()
def _drop(value: int, coefficient: int, buckets: RingArray) -> None:
    """Put a value into its bucket of every table."""
    for table in range(5):
        buckets[table * 256 + ((coefficient >> (8 * table)) & 255)] += value


@kernel()
def _fold(buckets: RingArray, matrix: RingArray, zeros: RingArray, out: RingArray) -> None:
    """out = matrix times the subset sums, plus the share of zero; empties the buckets."""
    sums = np.zeros(40, np.int64)
    for table in range(5):
        for combination in range(256):
            value = buckets[table * 256 + combination]
            buckets[table * 256 + combination] = 0
            for bit in range(8):
                sums[8 * table + bit] += value * ((combination >> bit) & 1)
    for i in range(40):
        total = zeros[i]
        for j in range(40):
            total += matrix[i, j] * sums[j]
        out[i] = total


@kernel(
    "void(int64[:,::1], int64, int64, int64[:,::1], int64[:,::1], int64[:,::1], int64, int64,"
    " int64, int64, int64, int64[::1], int64[:,::1], int64, int64[:,::1], int64)"
)
def guard_relu(
    pool: RingArray,
    first: int,
    base: int,
    that: RingArray,
    dhat: RingArray,
    values: RingArray,
    shift: int,
    bias: int,
    comparison_bits: int,
    guard: int,
    lead: int,
    coefficients: RingArray,
    matrix: RingArray,
    zeros: int,
    flags: RingArray,
    bits: int,
) -> None:
    """flags = this party's share of a ReLU's FLAGS words per row, int64[B, FLAGS].

    values: the op's input; bias, shift: as in `nonlinear.mask_shifted`; that, dhat: opened by
    the op; zeros: the word of a pack where the shares of zero begin.
    """
    slots = pool.shape[0]
    batch, count = that.shape
    top = comparison_bits - 1
    half = np.int64(1) << top
    keep = (np.int64(1) << comparison_bits) - np.int64(1)
    up = 64 - comparison_bits - guard
    wide = 2 * bits - comparison_bits > 64
    buckets = np.zeros(5 * 256, np.int64)
    for sample in range(batch):
        row = pool[(first + sample) % slots]
        w1 = row[base : base + count]
        w2 = row[base + count : base + 2 * count]
        w3 = row[base + 2 * count : base + 3 * count]
        if wide:
            w4 = row[base + 3 * count : base + 4 * count]
            w5 = row[base + 4 * count : base + 5 * count]
        else:
            w4, w5 = w1, w2
        lift = 0 if wide else bits
        x = that[sample]
        source = values[sample]
        for e in range(count):
            mhat = x[e] >> top
            opened = dhat[sample, e]
            w = w4[e] >> lift
            m = (w5[e] >> lift) - w
            b = w1[e]
            b_m = w3[e] >> comparison_bits
            d_m = opened * m + (1 - 2 * opened) * b_m
            d = lead * opened + (1 - 2 * opened) * b
            carry = d_m if mhat else d + m - d_m
            u_k = lead * (x[e] - half) - (w3[e] & keep) + ((w + carry) << comparison_bits)
            u = (source[e] + bias) >> shift
            _drop((u - u_k) << up, coefficients[e], buckets)
        _fold(buckets, matrix, row[zeros : zeros + 40], flags[sample])


@kernel(
    "void(int64[:,::1], int64, int64[:,::1], int64[:,::1], int64, int64,"
    " int64, int64, int64, int64[::1], int64[:,::1], int64, int64[:,::1])"
)
def guard_truncate(
    pool: RingArray,
    first: int,
    result: RingArray,
    values: RingArray,
    shift: int,
    bias: int,
    comparison_bits: int,
    guard: int,
    lead: int,
    coefficients: RingArray,
    matrix: RingArray,
    zeros: int,
    flags: RingArray,
) -> None:
    """As `guard_relu`, for a truncation; its `result` is u_K itself, modulo 2^bits."""
    up = 64 - comparison_bits - guard
    buckets = np.zeros(5 * 256, np.int64)
    for sample in range(result.shape[0]):
        row = pool[(first + sample) % pool.shape[0]]
        source = values[sample]
        u_k = result[sample]
        for e in range(result.shape[1]):
            u = (source[e] + bias) >> shift
            _drop((u - u_k[e]) << up, coefficients[e], buckets)
        _fold(buckets, matrix, row[zeros : zeros + 40], flags[sample])


@kernel(
    "void(int64[:,::1], int64, int64[:,::1], int64, int64[::1], int64[:,::1], int64, int64[:,::1])"
)
def guard_zero(
    pool: RingArray,
    first: int,
    values: RingArray,
    bits: int,
    coefficients: RingArray,
    matrix: RingArray,
    zeros: int,
    flags: RingArray,
) -> None:
    """As `guard_relu`, for a `check`: values, int64[B, count], are zero mod 2^bits."""
    up = 64 - bits
    buckets = np.zeros(5 * 256, np.int64)
    for sample in range(values.shape[0]):
        row = pool[(first + sample) % pool.shape[0]]
        source = values[sample]
        for e in range(values.shape[1]):
            _drop(source[e] << up, coefficients[e], buckets)
        _fold(buckets, matrix, row[zeros : zeros + 40], flags[sample])


@kernel("void(int64[:,:,::1], int64, int64, int64[:,::1])")
def deal_zeros(shares: RingArray, base: int, target: int, out: RingArray) -> None:
    """Party 0's shares of zero: minus what the others draw, int64[n - 1, B, words] from `base`."""
    for sample in range(out.shape[0]):
        for word in range(40):
            total = np.int64(0)
            for i in range(shares.shape[0]):
                total -= shares[i, sample, base + word]
            out[sample, target + word] = total
