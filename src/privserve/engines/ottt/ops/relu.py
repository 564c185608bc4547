"""ReLU in two exchanges: an opening, a comparison, and a product with public coefficients.

For a shared y, u = y >> s with |u| < 2^(K-1), and t = u + 2^(K-1). Party i knows the K-bit r_i
with r = sum r_i mod 2^K, and sum r_i = r + 2^K w as integers. m is the top bit of r, rho_0 = r
and rho_1 = r - 2^K m (r read as a signed number); mhat and `low` are the top bit and the K - 1
lower ones of what is opened. d = [u >= 0] is wanted, and d u.

1. *Deal*. Everyone draws r_i and an XOR share of D(0), D being the comparison's matrix with
   det D = [low < r_low] ^ b ^ m; so b is a fresh bit per element (see `comparison`). Party 0 is
   sent corrections for shares of b, b rho_1, w, w + m and b m, and for the tables of D.
2. *Precompute*. Strings are made ready to be read, see `strings`.
3. *Open* opened = t + r mod 2^K, then D as read from the tables at the chunks of `low`. So
   everyone knows dhat = det D ^ mhat = d ^ b.
4. *Finish*. d = b or 1 - b as dhat is 0 or 1, and d = 1 implies u = low + (1 - mhat) 2^(K-1) -
   rho_mhat, so that with public coefficients

       d u = d (low + (1 - mhat) 2^(K-1) - rho_mhat).

The shares are needed modulo the output's 2^M only, those that get multiplied by 2^K modulo
2^(M - K). Masks: [r_i | share of D(0) << K], or two words if that is more than 64 bits. The string
of an element, with the bits of each part:

    [b: M] [w: M - K] [b rho_1: M] [w + m: M - K] [b m: M - K] [tables]
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from privserve.engines.ottt.jit import Planes, Rows, Words, inlined, kernel
from privserve.engines.ottt.ops.check import flag_relu
from privserve.engines.ottt.ops.comparison import (
    ComparisonPlan,
    deal_tables,
    look_up,
    open_sign,
    plan_comparison,
    work_out,
)
from privserve.engines.ottt.ops.opening import (
    AheadStep,
    DealerStep,
    Held,
    Opening,
    Place,
    Site,
    Step,
    TupleOp,
    open_shifted,
)
from privserve.engines.ottt.strings import (
    begin,
    end,
    put_shares,
    string_words,
    take,
    unpack_ahead,
)
from privserve.fixedpoint import RingArray
from privserve.program import Op, Program


def field_bits(output_bits: int, comparison_bits: int) -> int:
    """Return the bits of an element's string before its tables."""
    return 5 * output_bits - 3 * comparison_bits


def string_bits(output_bits: int, plan: ComparisonPlan) -> int:
    """Return the bits of an element's string."""
    return field_bits(output_bits, plan.comparison_bits) + plan.table_bits


@inlined
def both_ends(
    x: int,
    r: int,
    low_w: int,
    high_w: int,
    w_shift: int,
    b: int,
    b_rho1: int,
    b_m: int,
    top: int,
    lead: int,
) -> tuple[np.int64, np.int64]:
    """Shares of d u where dhat is 0, and of what is added to it where dhat is 1."""
    unless = (x >> top) - 1  # all ones where mhat is 0
    half = np.int64(1) << top
    public = (x & (half - 1)) | (unless & half)
    wrap = (high_w ^ ((low_w ^ high_w) & unless)) >> w_shift
    rho = (r & (2 * half - 1)) - (wrap << (top + 1))
    b_u = b * public - b_rho1 - ((b_m & unless) << (top + 1))
    return b_u, (public & -lead) - rho - 2 * b_u


@kernel
def finish_relu(
    pool: Rows,
    first: int,
    masks: int,
    fields: int,
    full: int,
    ready: int,
    opened: Rows,
    matrix: Rows,
    chunks: int,
    output_bits: int,
    comparison_bits: int,
    lead: int,
    out: Rows,
) -> None:
    """Set out to this party's share of ReLU(u), from what was opened; dhat is left in `matrix`.

    masks, fields, full, ready: as of `look_up`.
    """
    slots = pool.shape[0]
    batch, count = opened.shape
    top, high = comparison_bits - 1, output_bits - comparison_bits
    # b and w are read together where they are not more than a word.
    pair = output_bits + high
    apart = pair > 64
    size, w_shift = (output_bits, 0) if apart else (pair, output_bits)
    room = np.empty((6, count), np.int64)
    paths, b, b_rho1, w, w_m, b_m = room[0], room[1], room[2], room[3], room[4], room[5]
    for sample in range(batch):
        row = pool[(first + sample) % slots]
        r = row[masks : masks + count]
        words, rest = row[fields : fields + full * count], row[ready : ready + count]
        take(words, rest, 0, size, b)
        take(words, rest, pair, size, b_rho1)
        take(words, rest, 2 * pair, high, b_m)
        low_w, high_w = b, b_rho1
        if apart:
            take(words, rest, output_bits, high, w)
            take(words, rest, pair + output_bits, high, w_m)
            low_w, high_w = w, w_m
        x = opened[sample]
        dhat = matrix[sample]
        y = out[sample]
        open_sign(x, dhat, chunks, top, paths)
        for e in range(count):
            zero, more = both_ends(
                x[e], r[e], low_w[e], high_w[e], w_shift, b[e], b_rho1[e], b_m[e], top, lead
            )
            y[e] = zero + (more & -dhat[e])


@kernel
def _sum_masks(
    first_stream: Rows,
    others: Planes,
    sample: int,
    masks: int,
    mask_words: int,
    comparison_bits: int,
    total: Words,
    start: Words,
) -> None:
    """Set total = sum r_i as integers, and start to D(0), from everybody's masks."""
    count = total.shape[0]
    keep = (np.int64(1) << comparison_bits) - np.int64(1)
    shift = comparison_bits if mask_words == 1 else 0
    total[:] = 0
    start[:] = 0
    for i in range(-1, others.shape[0]):
        drawn = others[i, sample, masks:] if i >= 0 else first_stream[sample, masks:]
        r, share = drawn[:count], drawn[(mask_words - 1) * count : mask_words * count]
        for e in range(count):
            total[e] += r[e] & keep
            start[e] ^= share[e] >> shift


@kernel
def deal_relu(
    first_stream: Rows,
    others: Planes,
    masks: int,
    mask_words: int,
    fields: int,
    target: int,
    count: int,
    output_bits: int,
    comparison_bits: int,
    bits: int,
    spec: Rows,
    cuts: Rows,
    out: Rows,
) -> None:
    """Set the corrections, party 0's strings of `bits` bits, for a batch of ReLU tuples.

    first_stream: int64[B, mask words], party 0's masks; others: int64[n - 1, B, words], the
    streams of parties 1..n-1, with masks at word `masks` and strings at `fields`; out:
    int64[B, words], strings at `target`.
    """
    keep = (np.int64(1) << comparison_bits) - np.int64(1)
    top, high = comparison_bits - 1, output_bits - comparison_bits
    full = bits >> 6
    rests = np.empty((others.shape[0], count), np.int64)
    room = np.empty((10, count), np.int64)
    rest, part, start, columns, factors = room[0], room[1], room[2], room[3], room[4]
    r, w, w_m, b, b_rho1 = room[5], room[6], room[7], room[8], room[9]
    for sample in range(out.shape[0]):
        words = out[sample, target : target + full * count]
        _sum_masks(first_stream, others, sample, masks, mask_words, comparison_bits, w, start)
        for e in range(count):
            r[e] = w[e] & keep
            w[e] >>= comparison_bits
            w_m[e] = w[e] + (r[e] >> top)
        work_out(r, start, cuts, columns, factors, b, part)
        begin(others, sample, fields, bits, 2 * output_bits + 3 * high, rests, words, rest)
        place = (others, sample, fields, bits, rests)
        for e in range(count):
            m = r[e] >> top
            b[e] ^= m
            b_rho1[e] = b[e] * (r[e] - (m << comparison_bits))
            start[e] = b[e] & m
        put_shares(*place, 0, output_bits, b, high, w, part, words, rest)
        at = output_bits + high
        put_shares(*place, at, output_bits, b_rho1, high, w_m, part, words, rest)
        put_shares(*place, 2 * at, high, start, 0, start, part, words, rest)
        deal_tables(r, columns, factors, spec, cuts.shape[0], part, words, rest)
        end(rest, bits, out[sample, target + full * count :])


def relu_bits(program: Program, op: Op) -> int:
    """Return to how many bits the shares of a ReLU's tuple are needed."""
    compared = op.attributes["comparison_bits"] + op.attributes["guard"]
    return max(program.values[op.output].bits, int(compared))


def _masks(program: Program, op: Op) -> int:
    plan = plan_comparison(op.attributes["comparison_bits"])
    return program.values[op.inputs[0]].size * plan.mask_words


def _bits(program: Program, op: Op) -> int:
    plan = plan_comparison(op.attributes["comparison_bits"])
    return string_bits(relu_bits(program, op), plan)


def _dealt(program: Program, op: Op) -> int:
    return string_words(program.values[op.inputs[0]].size, _bits(program, op))


def _ready(program: Program, op: Op) -> int:
    return program.values[op.inputs[0]].size


def _openings(program: Program, op: Op) -> tuple[Opening, ...]:
    count = program.values[op.inputs[0]].size
    plan = plan_comparison(op.attributes["comparison_bits"])
    return Opening(count, plan.comparison_bits), Opening(count, plan.opened_bits, xor=True)


def bind_relu_dealer(program: Program, op: Op, place: Place, mask: RingArray | None) -> DealerStep:
    """Return what makes the corrections of a ReLU's tuple at `place`."""
    count, modulus = program.values[op.inputs[0]].size, relu_bits(program, op)
    plan = plan_comparison(op.attributes["comparison_bits"])
    spec, cuts = plan.spec(field_bits(modulus, plan.comparison_bits)), plan.cuts()
    bits = string_bits(modulus, plan)

    def step(first: RingArray, others: RingArray, out: RingArray) -> None:
        deal_relu(
            first_stream=first,
            others=others,
            masks=place.masks,
            mask_words=plan.mask_words,
            fields=place.fields,
            target=place.target,
            count=count,
            output_bits=modulus,
            comparison_bits=plan.comparison_bits,
            bits=bits,
            spec=spec,
            cuts=cuts,
            out=out,
        )

    return step


def bind_relu_ahead(program: Program, op: Op, held: Held) -> AheadStep:
    """Return what makes the strings of a ReLU's tuple ready to be read."""
    count, bits = program.values[op.inputs[0]].size, _bits(program, op)

    def step(first: int, many: int) -> None:
        unpack_ahead(held.packs, first, many, held.fields, held.ready, count, bits)

    return step


def bind_comparison(site: Site, finish: Callable[..., None]) -> Step:
    """Return the step that compares, and has `finish`, such as `finish_relu`, make the result."""
    packs, masks, fields, ready = site.packs, site.masks, site.fields, site.ready
    lead, bits, out = site.lead, site.output_bits, site.out
    k = site.op.attributes["comparison_bits"]
    plan = plan_comparison(k)
    full = string_bits(bits, plan) >> 6
    spec, chunks, opened_bits = plan.spec(field_bits(bits, k)), plan.chunks, plan.opened_bits
    place = (masks, plan.mask_words, fields, full, ready)
    open_ = open_shifted(site, masks, 1 << (k - 1))
    opened, second = site.openings[0].total, site.openings[1]
    matrix, packed, open_matrix = second.total, second.packed, second.open

    def step(first: int) -> None:
        open_(first)
        look_up(packs, first, *place, opened, spec, chunks, opened_bits, k, matrix, packed)
        open_matrix()
        finish(packs, first, masks, fields, full, ready, opened, matrix, chunks, bits, k, lead, out)

    return step if site.guard is None else flag_relu(site, step, full, bits)


def _bind(site: Site) -> Step:
    return bind_comparison(site, finish_relu)


RELU = TupleOp(
    _bind,
    _openings,
    masks=_masks,
    dealt=_dealt,
    ready=_ready,
    deal=bind_relu_dealer,
    ahead=bind_relu_ahead,
)
