"""Truncation in one exchange, by a comparison's opening without the comparison.

For a shared y, u = y >> s with |u| < 2^(K-2), and t = u + 2^(K-2), which has a zero top bit.
r_i, r, w, m and rho as in `relu`; mhat is the top bit of what is opened.

1. *Deal*. Everyone draws r_i; shares of w and w + m, where sum r_i = r + 2^K w.
2. *Precompute*. Strings are made ready to be read, see `strings`.
3. *Open* opened = t + r mod 2^K.
4. *Finish*. t + r wraps exactly if mhat = 0 and m = 1, so

       u = opened - 2^(K-2) - rho_(1 - mhat).

Masks: r_i in the low K bits of a word. The string of an element, of which the output's 2^M matters:
[w: M - K bits] [w + m: M - K bits].
"""

from __future__ import annotations

import numpy as np

from privserve.engines.ottt.jit import Planes, Rows, kernel
from privserve.engines.ottt.ops.check import flag_truncate
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
    take_two,
    unpack_ahead,
)
from privserve.fixedpoint import RingArray
from privserve.program import Op, Program


@kernel
def finish_truncate(
    pool: Rows,
    first: int,
    masks: int,
    fields: int,
    ready: int,
    opened: Rows,
    output_bits: int,
    comparison_bits: int,
    lead: int,
    out: Rows,
) -> None:
    """Set out to this party's share of u, from what was opened (reduced here).

    masks, fields, ready: the words of a pack where the masks, the strings and their rest begin.
    """
    slots = pool.shape[0]
    batch, count = opened.shape
    top, high = comparison_bits - 1, output_bits - comparison_bits
    full = (2 * high) >> 6
    keep = (np.int64(1) << comparison_bits) - np.int64(1)
    quarter = np.int64(1) << (comparison_bits - 2)
    w, w_m = np.empty(count, np.int64), np.empty(count, np.int64)
    for sample in range(batch):
        row = pool[(first + sample) % slots]
        r = row[masks : masks + count]
        words, rest = row[fields : fields + full * count], row[ready : ready + count]
        take_two(words, rest, 0, high, w, high, w_m)
        x = opened[sample]
        y = out[sample]
        for e in range(count):
            value = x[e] & keep
            mhat = value >> top
            wrap = w_m[e] + mhat * (w[e] - w_m[e])
            rho = (r[e] & keep) - (wrap << comparison_bits)
            y[e] = lead * (value - quarter) - rho


@kernel
def deal_truncate(
    first_stream: Rows,
    others: Planes,
    masks: int,
    fields: int,
    target: int,
    count: int,
    output_bits: int,
    comparison_bits: int,
    out: Rows,
) -> None:
    """Set the corrections for a batch of truncation tuples; arguments as of `relu.deal_relu`."""
    keep = (np.int64(1) << comparison_bits) - np.int64(1)
    top, high = comparison_bits - 1, output_bits - comparison_bits
    bits = 2 * high
    full = bits >> 6
    rests = np.empty((others.shape[0], count), np.int64)
    rest, part = np.empty(count, np.int64), np.empty(count, np.int64)
    wrap, wrap_m = np.empty(count, np.int64), np.empty(count, np.int64)
    for sample in range(out.shape[0]):
        words = out[sample, target : target + full * count]
        begin(others, sample, fields, bits, bits, rests, words, rest)
        for e in range(count):
            wrap[e] = first_stream[sample, masks + e] & keep
        for i in range(others.shape[0]):
            for e in range(count):
                wrap[e] += others[i, sample, masks + e] & keep
        for e in range(count):
            wrap_m[e] = (wrap[e] >> comparison_bits) + ((wrap[e] >> top) & 1)
            wrap[e] >>= comparison_bits
        place = (others, sample, fields, bits, rests)
        put_shares(*place, 0, high, wrap, high, wrap_m, part, words, rest)
        end(rest, bits, out[sample, target + full * count :])


def string_bits(output_bits: int, comparison_bits: int) -> int:
    """Return the bits of an element's string."""
    return 2 * (output_bits - comparison_bits)


def _size(program: Program, op: Op) -> int:
    return program.values[op.output].size


def _bits(program: Program, op: Op) -> int:
    return string_bits(program.values[op.output].bits, op.attributes["comparison_bits"])


def _dealt(program: Program, op: Op) -> int:
    return string_words(_size(program, op), _bits(program, op))


def _openings(program: Program, op: Op) -> tuple[Opening, ...]:
    return (Opening(_size(program, op), op.attributes["comparison_bits"]),)


def _bind_dealer(program: Program, op: Op, place: Place, mask: RingArray | None) -> DealerStep:
    value = program.values[op.output]

    def step(first: RingArray, others: RingArray, out: RingArray) -> None:
        deal_truncate(
            first_stream=first,
            others=others,
            masks=place.masks,
            fields=place.fields,
            target=place.target,
            count=value.size,
            output_bits=value.bits,
            comparison_bits=op.attributes["comparison_bits"],
            out=out,
        )

    return step


def _bind_ahead(program: Program, op: Op, held: Held) -> AheadStep:
    count, bits = _size(program, op), _bits(program, op)

    def step(first: int, many: int) -> None:
        unpack_ahead(held.packs, first, many, held.fields, held.ready, count, bits)

    return step


def _bind(site: Site) -> Step:
    packs, masks, fields, ready = site.packs, site.masks, site.fields, site.ready
    lead, bits, out, opened = site.lead, site.output_bits, site.out, site.openings[0].total
    k = site.op.attributes["comparison_bits"]
    open_ = open_shifted(site, masks, 1 << (k - 2))

    def step(first: int) -> None:
        open_(first)
        finish_truncate(packs, first, masks, fields, ready, opened, bits, k, lead, out)

    return step if site.guard is None else flag_truncate(site, step)


TRUNCATE = TupleOp(
    _bind,
    _openings,
    masks=_size,
    dealt=_dealt,
    ready=_size,
    deal=_bind_dealer,
    ahead=_bind_ahead,
)
