"""Truncation in one exchange, by a comparison's opening without the comparison.

For a shared y, u = y >> s with |u| < 2^(K-2), and t = u + 2^(K-2), which has a zero top bit.
r_i, r, w, m and rho as in `relu`; mhat is the top bit of what is opened.

1. *Deal*. Shares of w and w + m, where sum r_i = r + 2^K w.
2. *Precompute*. Nothing.
3. *Open* opened = t + r mod 2^K.
4. *Finish*. t + r wraps exactly if mhat = 0 and m = 1, so

       u = opened - 2^(K-2) - rho_(1 - mhat).

Fields of the tuple, `count` words each: [r_i | w << K | (w + m) << M], modulo the output's 2^M, or
two words [r_i | w << K] [w + m] where it is `wide`, 2 M - K > 64.
"""

from __future__ import annotations

import numpy as np

from privserve.engines.ottt.jit import Planes, Rows, kernel
from privserve.engines.ottt.ops.check import flag_truncate
from privserve.engines.ottt.ops.comparison import is_wide
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


@kernel
def finish_truncate(
    pool: Rows,
    first: int,
    fields: int,
    opened: Rows,
    output_bits: int,
    comparison_bits: int,
    wide: int,
    lead: int,
    out: Rows,
) -> None:
    """Set out to this party's share of u, from what was opened (reduced here)."""
    slots = pool.shape[0]
    batch, count = opened.shape
    top = comparison_bits - 1
    keep = (np.int64(1) << comparison_bits) - np.int64(1)
    quarter = np.int64(1) << (comparison_bits - 2)
    w_m_at = fields + count if wide else fields
    w_m_shift = 0 if wide else output_bits
    for sample in range(batch):
        row = pool[(first + sample) % slots]
        r_w = row[fields : fields + count]
        w_m = row[w_m_at : w_m_at + count]
        x = opened[sample]
        y = out[sample]
        for e in range(count):
            value = x[e] & keep
            mhat = value >> top
            low_w = r_w[e] >> comparison_bits
            high_w = w_m[e] >> w_m_shift
            wrap = high_w + mhat * (low_w - high_w)
            rho = (r_w[e] & keep) - (wrap << comparison_bits)
            y[e] = lead * (value - quarter) - rho


@kernel
def deal_truncate(
    own: Rows,
    others: Planes,
    fields: int,
    target: int,
    count: int,
    output_bits: int,
    comparison_bits: int,
    wide: int,
    out: Rows,
) -> None:
    """Set the corrections for a batch of truncation tuples.

    own: int64[B, count], for r_0; others, fields, target, out: as in `relu.deal_relu`.
    """
    keep = (np.int64(1) << comparison_bits) - np.int64(1)
    high = output_bits - comparison_bits
    keep_high = (np.int64(1) << high) - np.int64(1)
    top = comparison_bits - 1
    for sample in range(out.shape[0]):
        row = out[sample]
        for e in range(count):
            r0 = own[sample, e] & keep
            total = r0
            for i in range(others.shape[0]):
                total += others[i, sample, fields + e] & keep
            wrap = total >> comparison_bits
            wrap_m = wrap + ((total >> top) & 1)
            for i in range(others.shape[0]):
                wrap -= others[i, sample, fields + e] >> comparison_bits
                if wide:
                    wrap_m -= others[i, sample, fields + count + e]
                else:
                    wrap_m -= others[i, sample, fields + e] >> output_bits
            if wide:
                row[target + e] = r0 | (wrap << comparison_bits)
                row[target + count + e] = wrap_m
            else:
                low = r0 | ((wrap & keep_high) << comparison_bits)
                row[target + e] = low | (wrap_m << output_bits)


def truncate_words(output_bits: int, comparison_bits: int) -> int:
    """Return the words per element of a truncation's tuple."""
    return 2 if is_wide(output_bits, comparison_bits) else 1


def _dealt(program: Program, op: Op) -> int:
    value = program.values[op.output]
    return value.size * truncate_words(value.bits, op.attributes["comparison_bits"])


def _fresh(program: Program, op: Op) -> int:
    return program.values[op.output].size


def _openings(program: Program, op: Op) -> tuple[Opening, ...]:
    return (Opening(program.values[op.output].size, op.attributes["comparison_bits"]),)


def _bind_dealer(program: Program, op: Op, place: Place, mask: RingArray | None) -> DealerStep:
    value, comparison_bits = program.values[op.output], op.attributes["comparison_bits"]
    wide = is_wide(value.bits, comparison_bits)

    def step(first: RingArray, others: RingArray, own: RingArray, out: RingArray) -> None:
        deal_truncate(
            own=own.reshape(len(out), value.size),
            others=others,
            fields=place.fields,
            target=place.target,
            count=value.size,
            output_bits=value.bits,
            comparison_bits=comparison_bits,
            wide=int(wide),
            out=out,
        )

    return step


def _bind(site: Site) -> Step:
    packs, fields, lead, bits, out = site.packs, site.fields, site.lead, site.output_bits, site.out
    k = site.op.attributes["comparison_bits"]
    wide, opened = int(is_wide(bits, k)), site.openings[0].total
    open_ = open_shifted(site, fields, 1 << (k - 2))

    def step(first: int) -> None:
        open_(first)
        finish_truncate(packs, first, fields, opened, bits, k, wide, lead, out)

    return step if site.guard is None else flag_truncate(site, step)


TRUNCATE = TupleOp(_bind, _openings, dealt=_dealt, fresh=_fresh, deal=_bind_dealer)
