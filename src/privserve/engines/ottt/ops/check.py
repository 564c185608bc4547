"""Whether a value left a range that was only guessed: computed on shares, told to the client.

A comparison of K bits gives a wrong result where u leaves its range, and with it u_K, which is
u mod 2^K read as a signed number. Shares of u_K follow from the comparison's own tuple:

    u_K = opened - offset - rho_0 + 2^K W,    W = the carry out of t + r,
    ReLU:        W = d + m - d m where mhat = 0,  d m where mhat = 1,    d = dhat ^ b
    truncation:  W = m where mhat = 0,            0 where mhat = 1      (its own formula)

and the parties know shares of u itself modulo 2^(K + g), since the op's input was opened with
g bits more. So e = u - u_K = 2^K q, and the result is right exactly if q = 0 mod 2^g. A `check`
has e = x, which must be zero mod 2^bits. All e are shifted to the top of the ring: 2^(64-g) q.

1. *Deal*. Shares of zero, FLAGS words per row and op.
2. *Precompute*. All compute parties draw coefficients alike, fresh per batch, from a key that they
   have in common, and nobody else.
3. *Open*. Nothing, by a `check`; a guarded comparison opens what it opens.
4. *Finish*. Per row and op a party folds all e of the op into FLAGS words, zero if all e are:

   - random subset sums: coefficients, 40 bits per element, say which sums an element is added to.
     Some q is not zero: then every sum is not zero with probability 1/2 at least, so all vanish
     with 2^-40 at most;
   - a uniform FLAGS x FLAGS matrix from the same key, times the sums: the result is uniform among
     the vectors whose entries are all divisible by the power of two that divides all sums;
   - plus shares of zero from the dealer, so that the shares are uniform with the right sum.

These words go to the client with its answer. Parties see nothing more than without them, and
there is no exchange. A client learns, besides which op's range its row left, at most that power
of two; and nothing else, because it does not know the coefficients.

`coefficients`: int64[elements], of which the low 40 bits count.
"""

from __future__ import annotations

import numpy as np

from privserve.engines.ottt.jit import Planes, Rows, Words, inlined, kernel
from privserve.engines.ottt.ops.opening import DealerStep, Site, Step, TupleOp
from privserve.engines.ottt.strings import take, take_two
from privserve.fixedpoint import RingArray

FLAGS = 40
"""Words per row and guarded op."""


@inlined
def _drop(value: int, coefficient: int, buckets: Words) -> None:
    """Put a value into its bucket of every table."""
    for table in range(5):
        buckets[table * 256 + ((coefficient >> (8 * table)) & 255)] += value


@inlined
def _fold(buckets: Words, matrix: Rows, zeros: Words, out: Words) -> None:
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


@kernel
def guard_relu(
    pool: Rows,
    first: int,
    masks: int,
    fields: int,
    full: int,
    ready: int,
    opened: Rows,
    dhat: Rows,
    values: Rows,
    shift: int,
    bias: int,
    comparison_bits: int,
    guard: int,
    lead: int,
    coefficients: Words,
    matrix: Rows,
    zeros: int,
    flags: Rows,
    output_bits: int,
) -> None:
    """Set flags to this party's share of a ReLU's FLAGS words per row, int64[B, FLAGS].

    masks, fields, full, ready, output_bits: of the tuple, see `relu`; values: the op's input;
    shift, bias: as in `opening.mask_shifted`; opened, dhat: by the op; zeros: the word of a pack
    where the shares of zero begin.
    """
    slots = pool.shape[0]
    batch, count = opened.shape
    top = comparison_bits - 1
    half = np.int64(1) << top
    keep = (np.int64(1) << comparison_bits) - np.int64(1)
    up, high = 64 - comparison_bits - guard, output_bits - comparison_bits
    buckets = np.zeros(5 * 256, np.int64)
    sign, w = np.empty(count, np.int64), np.empty(count, np.int64)
    w_m, sign_m = np.empty(count, np.int64), np.empty(count, np.int64)
    for sample in range(batch):
        row = pool[(first + sample) % slots]
        r = row[masks : masks + count]
        words, rest = row[fields : fields + full * count], row[ready : ready + count]
        take_two(words, rest, 0, output_bits, sign, high, w)
        take(words, rest, 2 * output_bits + high, high, w_m)
        take(words, rest, 2 * (output_bits + high), high, sign_m)
        x = opened[sample]
        source = values[sample]
        for e in range(count):
            public = dhat[sample, e]
            m = w_m[e] - w[e]
            d_m = public * m + (1 - 2 * public) * sign_m[e]
            d = lead * public + (1 - 2 * public) * sign[e]
            carry = d_m if x[e] >> top else d + m - d_m
            u_k = lead * (x[e] - half) - (r[e] & keep) + ((w[e] + carry) << comparison_bits)
            u = (source[e] + bias) >> shift
            _drop((u - u_k) << up, coefficients[e], buckets)
        _fold(buckets, matrix, row[zeros : zeros + 40], flags[sample])


@kernel
def guard_truncate(
    pool: Rows,
    first: int,
    result: Rows,
    values: Rows,
    shift: int,
    bias: int,
    comparison_bits: int,
    guard: int,
    coefficients: Words,
    matrix: Rows,
    zeros: int,
    flags: Rows,
) -> None:
    """Do as `guard_relu` for a truncation; its `result` is u_K itself, modulo 2^M."""
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


@kernel
def guard_zero(
    pool: Rows,
    first: int,
    values: Rows,
    bits: int,
    coefficients: Words,
    matrix: Rows,
    zeros: int,
    flags: Rows,
) -> None:
    """Do as `guard_relu` for a `check`: values, int64[B, count], are zero mod 2^bits."""
    up = 64 - bits
    buckets = np.zeros(5 * 256, np.int64)
    for sample in range(values.shape[0]):
        row = pool[(first + sample) % pool.shape[0]]
        source = values[sample]
        for e in range(values.shape[1]):
            _drop(source[e] << up, coefficients[e], buckets)
        _fold(buckets, matrix, row[zeros : zeros + 40], flags[sample])


@kernel
def deal_zeros(others: Planes, fields: int, target: int, out: Rows) -> None:
    """Set party 0's shares of zero: minus what the others draw, int64[n - 1, B, words]."""
    for sample in range(out.shape[0]):
        for word in range(40):
            total = np.int64(0)
            for i in range(others.shape[0]):
                total -= others[i, sample, fields + word]
            out[sample, target + word] = total


def bind_zeros(fields: int, target: int) -> DealerStep:
    """Return the dealer's step for a guarded op's shares of zero.

    fields: their first word in a piece; target: in the piece's corrections.
    """

    def step(first: RingArray, others: RingArray, out: RingArray) -> None:
        deal_zeros(others, fields, target, out)

    return step


def flag_relu(site: Site, step: Step, full: int, bits: int) -> Step:
    """Return a guarded ReLU's `step`, and then its flags; the step leaves dhat in its matrix.

    bits: to which the shares of its tuple are held.
    """
    packs, lead = site.packs, site.lead
    place = (site.masks, site.fields, full, site.ready)
    (source,), (opened, dhat) = site.inputs, (opening.total for opening in site.openings)
    numbers, drawn = _numbers(site), _drawn(site)

    def guarded(first: int) -> None:
        step(first)
        guard_relu(packs, first, *place, opened, dhat, source(), *numbers, lead, *drawn, bits)

    return guarded


def flag_truncate(site: Site, step: Step) -> Step:
    """Return a guarded truncation's `step`, and then its flags."""
    packs, out, (source,) = site.packs, site.out, site.inputs
    numbers, drawn = _numbers(site), _drawn(site)

    def guarded(first: int) -> None:
        step(first)
        guard_truncate(packs, first, out, source(), *numbers, *drawn)

    return guarded


def _numbers(site: Site) -> tuple[int, int, int, int]:
    """The shift, its bias, K and g of a guarded comparison."""
    attributes = site.op.attributes
    return attributes["shift"], site.bias, attributes["comparison_bits"], attributes["guard"]


def _drawn(site: Site) -> tuple[RingArray, RingArray, int, RingArray]:
    """What all parties drew, where the zeros are, and where the flags go."""
    guard = site.guard
    assert guard is not None  # of a guarded op
    return guard.coefficients, guard.matrix, guard.zeros, guard.flags


def _bind(site: Site) -> Step:
    packs, (source,), bits, drawn = (
        site.packs,
        site.inputs,
        site.op.attributes["bits"],
        _drawn(site),
    )

    def step(first: int) -> None:
        guard_zero(packs, first, source(), bits, *drawn)

    return step


CHECK = TupleOp(_bind)
