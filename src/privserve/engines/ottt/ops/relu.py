"""ReLU in two exchanges: an opening, a comparison, and a product with public coefficients.

For a shared y, u = y >> s with |u| < 2^(K-1), and t = u + 2^(K-1). Party i knows the K-bit r_i
with r = sum r_i mod 2^K, and sum r_i = r + 2^K w as integers. m is the top bit of r, rho_0 = r
and rho_1 = r - 2^K m (r read as a signed number); mhat and `low` are the top bit and the K - 1
lower ones of what is opened. d = [u >= 0] is wanted, and d u.

1. *Deal*. A fresh bit b per element; shares of b, b rho_1, r_i, w, w + m and b m, and one-time
   tables of the comparison's matrix D with det D = [low < r_low] ^ b ^ m; see `comparison`.
2. *Precompute*. Nothing.
3. *Open* opened = t + r mod 2^K, then D as read from the tables at the chunks of `low`. So
   everyone knows dhat = det D ^ mhat = d ^ b.
4. *Finish*. d = b or 1 - b as dhat is 0 or 1, and d = 1 implies u = low + (1 - mhat) 2^(K-1) -
   rho_mhat, so that with public coefficients

       d u = d (low + (1 - mhat) 2^(K-1) - rho_mhat).

The shares are needed modulo the output's 2^M only, those that get multiplied by 2^K modulo
2^(M - K). Fields of the tuple, `count` words each:

    [b | w << M] [b rho_1 | (w + m) << M] [r_i | b m << K] [tables, see comparison]

and, where 2 M - K > 64, w and w + m in words of their own before the tables: the tuple is `wide`.
"""

from __future__ import annotations

import numpy as np

from privserve.engines.ottt.jit import Planes, Rows, Words, inlined, kernel
from privserve.engines.ottt.ops.check import flag_relu
from privserve.engines.ottt.ops.comparison import (
    deal_tables,
    is_wide,
    look_up,
    open_sign,
    plan_comparison,
)
from privserve.engines.ottt.ops.opening import (
    DealerStep,
    Opening,
    Place,
    Site,
    Step,
    TupleOp,
    open_shifted,
)
from privserve.fixedpoint import RingArray
from privserve.program import Op, Program


def field_words(output_bits: int, comparison_bits: int) -> int:
    """Return the words per element of a tuple's fields before its tables."""
    return 5 if is_wide(output_bits, comparison_bits) else 3


@kernel
def finish_relu(
    pool: Rows,
    first: int,
    fields: int,
    opened: Rows,
    matrix: Rows,
    chunks: int,
    output_bits: int,
    comparison_bits: int,
    wide: int,
    lead: int,
    out: Rows,
) -> None:
    """Set out to this party's share of ReLU(u), from what was opened; dhat is left in `matrix`.

    fields: the word of a pack where the tuple's fields begin.
    """
    slots = pool.shape[0]
    batch, count = opened.shape
    top = comparison_bits - 1
    half = np.int64(1) << top
    keep = (np.int64(1) << comparison_bits) - np.int64(1)
    w_at = fields + 3 * count if wide else fields
    w_shift = 0 if wide else output_bits
    paths = np.empty(count, np.int64)
    for sample in range(batch):
        row = pool[(first + sample) % slots]
        b = row[fields : fields + count]
        b_rho1 = row[fields + count : fields + 2 * count]
        r = row[fields + 2 * count : fields + 3 * count]
        w = row[w_at : w_at + count]
        w_m = row[w_at + count : w_at + 2 * count]
        x = opened[sample]
        dhat = matrix[sample]
        y = out[sample]
        open_sign(x, dhat, chunks, top, paths)
        for e in range(count):
            not_mhat = 1 - (x[e] >> top)
            public = (x[e] & (half - 1)) + (not_mhat << top)
            low_w = w[e] >> w_shift
            high_w = w_m[e] >> w_shift
            wrap = high_w + not_mhat * (low_w - high_w)
            rho = (r[e] & keep) - (wrap << comparison_bits)
            b_rho = b_rho1[e] + ((not_mhat * (r[e] >> comparison_bits)) << comparison_bits)
            b_u = b[e] * public - b_rho
            y[e] = b_u + dhat[e] * (lead * public - rho - 2 * b_u)


@inlined
def _sum_masks(
    own: Words, others: Planes, sample: int, fields: int, comparison_bits: int, total: Words
) -> None:
    """Set total = sum r_i as integers; r_0 is in the dealer's `own`, the others at `fields`."""
    count = total.shape[0]
    keep = (np.int64(1) << comparison_bits) - np.int64(1)
    for e in range(count):
        total[e] = own[e] & keep
    for i in range(others.shape[0]):
        theirs = others[i, sample, fields : fields + count]
        for e in range(count):
            total[e] += theirs[e] & keep


@inlined
def _last_column(free: Words, chunks: int, constants: Words) -> None:
    """Add what the columns 2..c of R1 and R2 put into the last column of D to `constants`."""
    r2 = chunks * (chunks - 1) // 2
    for j in range(1, chunks):
        shift = j * (j - 1) // 2
        rows = (np.int64(1) << j) - np.int64(1)
        for e in range(constants.shape[0]):
            column = ((free[e] >> shift) & rows) | (np.int64(1) << j)
            constants[e] ^= column * ((free[e] >> (r2 + j - 1)) & 1)


@inlined
def _take_off(others: Planes, sample: int, fields: int, shift: int, target: Words) -> None:
    """Take the other parties' words from `fields` off `target`, all but their low `shift` bits."""
    count = target.shape[0]
    for i in range(others.shape[0]):
        theirs = others[i, sample, fields : fields + count]
        for e in range(count):
            target[e] -= (theirs[e] >> shift) << shift


@inlined
def _put_wraps(
    others: Planes,
    sample: int,
    fields: int,
    output_bits: int,
    wide: int,
    w: Words,
    w_m: Words,
    row: Words,
) -> None:
    """Put party 0's shares of w and w + m beside b and b rho_1, or behind the fields if wide.

    row: from the tuple's first corrected word on, of which b and b rho_1 are there.
    """
    count = w.shape[0]
    keep = np.int64(-1)
    if output_bits < 64:
        keep = (np.int64(1) << output_bits) - np.int64(1)
    low, high = row[:count], row[count : 2 * count]
    if wide:
        apart, apart_m = row[3 * count : 4 * count], row[4 * count : 5 * count]
        for e in range(count):
            low[e] &= keep
            high[e] &= keep
            apart[e] = w[e]
            apart_m[e] = w_m[e]
        _take_off(others, sample, fields + 3 * count, 0, apart)
        _take_off(others, sample, fields + 4 * count, 0, apart_m)
    else:
        for e in range(count):
            low[e] = (low[e] & keep) | (w[e] << output_bits)
            high[e] = (high[e] & keep) | (w_m[e] << output_bits)
        # The others' parts of the fields above `output_bits`; nothing borrows from below.
        _take_off(others, sample, fields, output_bits, low)
        _take_off(others, sample, fields + count, output_bits, high)


@kernel
def deal_relu(
    randomness: Planes,
    others: Planes,
    fields: int,
    target: int,
    count: int,
    output_bits: int,
    comparison_bits: int,
    wide: int,
    spec: Rows,
    chunks: int,
    out: Rows,
) -> None:
    """Set the corrections, party 0's fields, for a batch of ReLU tuples.

    randomness: int64[2, B, count], the dealer's own uniform words (r_0; R1, R2 and b).
    others: int64[n - 1, B, words], the streams of parties 1..n-1, fields at `fields`;
    out: int64[B, words], fields at `target`.
    """
    keep = (np.int64(1) << comparison_bits) - np.int64(1)
    top = comparison_bits - 1
    mask_bit = chunks * (chunks - 1) // 2 + chunks - 1
    r, constants = np.empty(count, np.int64), np.empty(count, np.int64)
    w, w_m = np.empty(count, np.int64), np.empty(count, np.int64)
    before_tables = (5 if wide else 3) * count
    for sample in range(out.shape[0]):
        row = out[sample, target:]
        own = randomness[0, sample]
        free = randomness[1, sample]
        o1, o2, o3 = row[:count], row[count : 2 * count], row[2 * count : 3 * count]
        _sum_masks(own, others, sample, fields + 2 * count, comparison_bits, w)
        for e in range(count):
            r[e] = w[e] & keep
            w[e] >>= comparison_bits
            m = r[e] >> top
            w_m[e] = w[e] + m
            b = (free[e] >> mask_bit) & 1
            constants[e] = b ^ m
            o1[e] = b
            o2[e] = b * (r[e] - (m << comparison_bits))
            o3[e] = (own[e] & keep) | ((b * m) << comparison_bits)
        _last_column(free, chunks, constants)
        _take_off(others, sample, fields, 0, o1)
        _take_off(others, sample, fields + count, 0, o2)
        _take_off(others, sample, fields + 2 * count, comparison_bits, o3)
        _put_wraps(others, sample, fields, output_bits, wide, w, w_m, row)
        tables, tables_at = row[before_tables:], fields + before_tables
        deal_tables(r, free, constants, spec, chunks, others, sample, tables_at, tables)


def _dealt(program: Program, op: Op) -> int:
    value, comparison_bits = program.values[op.output], op.attributes["comparison_bits"]
    words = field_words(value.bits, comparison_bits) + plan_comparison(comparison_bits).words
    return value.size * words


def _fresh(program: Program, op: Op) -> int:
    return 2 * program.values[op.output].size


def _openings(program: Program, op: Op) -> tuple[Opening, ...]:
    count, plan = program.values[op.output].size, plan_comparison(op.attributes["comparison_bits"])
    return Opening(count, plan.comparison_bits), Opening(count, plan.opened_bits, xor=True)


def _bind_dealer(program: Program, op: Op, place: Place, mask: RingArray | None) -> DealerStep:
    value, plan = program.values[op.output], plan_comparison(op.attributes["comparison_bits"])
    spec, wide = plan.spec(), is_wide(value.bits, plan.comparison_bits)

    def step(first: RingArray, others: RingArray, own: RingArray, out: RingArray) -> None:
        deal_relu(
            randomness=own.reshape(2, len(out), value.size),
            others=others,
            fields=place.fields,
            target=place.target,
            count=value.size,
            output_bits=value.bits,
            comparison_bits=plan.comparison_bits,
            wide=int(wide),
            spec=spec,
            chunks=plan.chunks,
            out=out,
        )

    return step


def _bind(site: Site) -> Step:
    packs, fields, lead, bits, out = site.packs, site.fields, site.lead, site.output_bits, site.out
    k = site.op.attributes["comparison_bits"]
    plan, wide, count = plan_comparison(k), int(is_wide(bits, k)), out.shape[1]
    spec, chunks, opened_bits = plan.spec(), plan.chunks, plan.opened_bits
    tables = fields + field_words(bits, k) * count
    open_ = open_shifted(site, fields + 2 * count, 1 << (k - 1))
    opened, second = site.openings[0].total, site.openings[1]
    matrix, packed, open_matrix = second.total, second.packed, second.open

    def step(first: int) -> None:
        open_(first)
        look_up(packs, first, tables, opened, spec, chunks, opened_bits, k, matrix, packed)
        open_matrix()
        finish_relu(packs, first, fields, opened, matrix, chunks, bits, k, wide, lead, out)

    return step if site.guard is None else flag_relu(site, step, wide)


RELU = TupleOp(_bind, _openings, dealt=_dealt, fresh=_fresh, deal=_bind_dealer)
