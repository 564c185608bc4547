"""A smooth function of a shared value in one exchange: quadratics from one-time tables.

For a shared y, t = (y >> shift) - low in [0, 2^K - 2^s), of which the top K - s bits h of what is
opened are public.

1. *Deal*. The dealer knows r, so for every h it knows in which interval t lies: [a, a + 2^s) with
   a = h 2^s - r mod 2^K, one segment's width, however r falls. It shares, for every h, the
   coefficients of the quadratic that fits the function there, in

       z = (opened mod 2^s) - 2^(s-1) = t - a - 2^(s-1).

2. *Precompute*. Nothing.
3. *Open* opened = t + r mod 2^K.
4. *Finish*. A party evaluates its shares of c_0 + c_1 z + c_2 z^2, row h, at the public z.

A one-time truth table (Ishai et al., TCC 2013) with polynomials for entries; unlike a table of
segments that are fixed, it needs no comparison of the low bits. Its error is that of the spline,
plus the rounding of t and of the coefficients.

An op's tuple: K-bit masks r_i, which everyone draws, and of `count` elements the 3 * 2^(K-s)
words [c_0 c_1 c_2] by h.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from privserve.engines.ottt.jit import Planes, ReceivedRows, Rows, kernel
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
from privserve.splines import ENTRIES, quadratics


def table_words(attributes: Mapping[str, Any]) -> int:
    """Return the words per element of a lookup's tables."""
    return ENTRIES << int(attributes["comparison_bits"] - attributes["segment_bits"])


@kernel
def finish_lookup(
    pool: Rows,
    first: int,
    tables: int,
    opened: Rows,
    comparison_bits: int,
    segment_bits: int,
    out: Rows,
) -> None:
    """Set out to this party's share of the function, from what was opened (reduced here).

    tables: the word of a pack where the tables begin.
    """
    segments = np.int64(1) << (comparison_bits - segment_bits)
    low_mask = (np.int64(1) << segment_bits) - np.int64(1)
    half = np.int64(1) << (segment_bits - 1)
    for sample in range(opened.shape[0]):
        row = pool[(first + sample) % pool.shape[0]]
        x = opened[sample]
        y = out[sample]
        for e in range(x.shape[0]):
            h = (x[e] >> segment_bits) & (segments - 1)
            z = (x[e] & low_mask) - half
            at = tables + 3 * (e * segments + h)
            y[e] = row[at] + z * (row[at + 1] + z * row[at + 2])


@kernel
def deal_lookup(
    first_stream: Rows,
    others: Planes,
    masks: int,
    fields: int,
    target: int,
    count: int,
    comparison_bits: int,
    segment_bits: int,
    table: ReceivedRows,
    out: Rows,
) -> None:
    """Set party 0's tables: the quadratics that belong to r, minus the other parties' shares.

    first_stream: int64[B, mask words] of party 0; others: int64[n - 1, B, words], masks at word
    `masks`, tables at `fields`; table: see `quadratics`; out[:, target:] is written.
    """
    segments = np.int64(1) << (comparison_bits - segment_bits)
    keep = (np.int64(1) << comparison_bits) - np.int64(1)
    wrapped = (np.int64(1) << comparison_bits) - (np.int64(1) << segment_bits)
    width = np.int64(1) << segment_bits
    for sample in range(out.shape[0]):
        row = out[sample]
        for e in range(count):
            r = first_stream[sample, masks + e]
            for i in range(others.shape[0]):
                r += others[i, sample, masks + e]
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
        for i in range(others.shape[0]):
            theirs = others[i, sample, fields : fields + words]
            mine = row[target : target + words]
            for word in range(words):
                mine[word] -= theirs[word]


def _masks(program: Program, op: Op) -> int:
    return program.values[op.inputs[0]].size


def _dealt(program: Program, op: Op) -> int:
    return program.values[op.output].size * table_words(op.attributes)


def _openings(program: Program, op: Op) -> tuple[Opening, ...]:
    return (Opening(program.values[op.output].size, op.attributes["comparison_bits"]),)


def _bind_dealer(program: Program, op: Op, place: Place, mask: RingArray | None) -> DealerStep:
    a, count, table = op.attributes, program.values[op.output].size, quadratics(op.attributes)

    def step(first: RingArray, others: RingArray, out: RingArray) -> None:
        deal_lookup(
            first_stream=first,
            others=others,
            masks=place.masks,
            fields=place.fields,
            target=place.target,
            count=count,
            comparison_bits=a["comparison_bits"],
            segment_bits=a["segment_bits"],
            table=table,
            out=out,
        )

    return step


def _dealer_table(program: Program, op: Op) -> int:
    return ENTRIES << int(op.attributes["comparison_bits"])


def _bind(site: Site) -> Step:
    packs, tables, out, opened = site.packs, site.fields, site.out, site.openings[0].total
    k, segment_bits = site.op.attributes["comparison_bits"], site.op.attributes["segment_bits"]
    open_ = open_shifted(site, site.masks, -site.op.attributes["low"])

    def step(first: int) -> None:
        open_(first)
        finish_lookup(packs, first, tables, opened, k, segment_bits, out)

    return step


LOOKUP = TupleOp(
    _bind,
    _openings,
    masks=_masks,
    dealt=_dealt,
    deal=_bind_dealer,
    dealer_table=_dealer_table,
)
