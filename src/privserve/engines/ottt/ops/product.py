"""The product of two shared values in one exchange (Beaver, CRYPTO 1991).

1. *Deal*. Everyone draws A_i and B_i, of x's shape and of y's, and C_i, packed to M bits; party 0's
   C_0 makes C = A B mod 2^M.
2. *Precompute*. C_i is unpacked.
3. *Open* x - A and y - B mod 2^M, M the bits to which the product is needed, side by side.
4. *Finish*. x y = (x - A)(y - B) + (x - A) B + A (y - B) + C.

y may be smaller than x: element e of the product uses element (e // inner) % len(y) of y, which
covers a factor per channel, per row or per sample without opening it more than once.
"""

from __future__ import annotations

import numpy as np

from privserve.engines.ottt.bits import dealt_words, pack_dealt, unpack_dealt
from privserve.engines.ottt.jit import Planes, Rows, kernel
from privserve.engines.ottt.ops.opening import (
    DealerStep,
    Opening,
    Place,
    Site,
    Step,
    TupleOp,
    mask_input,
    unpack_values,
)
from privserve.fixedpoint import RingArray
from privserve.program import Op, Program


@kernel
def finish_product(
    pool: Rows,
    first: int,
    masks: int,
    ready: int,
    opened: Rows,
    factors: int,
    inner: int,
    lead: int,
    out: Rows,
) -> None:
    """Set out to this party's share of x y from the opened (x - A, y - B).

    opened: int64[B, len(x) + len(y)]; masks: the word of a pack where A, then B begin; ready:
    where C begins, unpacked; factors: len(y).
    """
    count = out.shape[1]
    for sample in range(out.shape[0]):
        row = pool[(first + sample) % pool.shape[0]]
        xhat = opened[sample, :count]
        yhat = opened[sample, count : count + factors]
        a = row[masks : masks + count]
        b = row[masks + count : masks + count + factors]
        z = row[ready : ready + count]
        result = out[sample]
        e = 0
        while e < count:
            for f in range(factors):
                one, other = yhat[f], b[f] + lead * yhat[f]
                for k in range(e, e + inner):
                    result[k] = z[k] + a[k] * one + xhat[k] * other
                e += inner


@kernel
def deal_product(
    first_stream: Rows,
    others: Planes,
    masks: int,
    fields: int,
    target: int,
    count: int,
    factors: int,
    inner: int,
    bits: int,
    out: Rows,
) -> None:
    """Set party 0's share of C = A B, for a batch of packs; out[:, target:] is written.

    first_stream: int64[B, mask words] of party 0; others: int64[n - 1, B, words], with A, B from
    word `masks` and C at `fields`, packed to `bits` bits.
    """
    share, theirs = np.empty(count, np.int64), np.empty(count, np.int64)
    for sample in range(out.shape[0]):
        share[:] = 0
        for i in range(others.shape[0]):
            unpack_dealt(others[i, sample, fields:], count, bits, theirs)
            for k in range(count):
                share[k] -= theirs[k]
        e = 0
        while e < count:
            for f in range(factors):
                b = first_stream[sample, masks + count + f]
                for i in range(others.shape[0]):
                    b += others[i, sample, masks + count + f]
                for k in range(e, e + inner):
                    a = first_stream[sample, masks + k]
                    for i in range(others.shape[0]):
                        a += others[i, sample, masks + k]
                    share[k] += a * b
                e += inner
        pack_dealt(share, count, bits, out[sample, target:])


def _masks(program: Program, op: Op) -> int:
    return sum(program.values[number].size for number in op.inputs)


def _dealt(program: Program, op: Op) -> int:
    value = program.values[op.output]
    return dealt_words(value.size, value.bits)


def _ready(program: Program, op: Op) -> int:
    return program.values[op.output].size


def _openings(program: Program, op: Op) -> tuple[Opening, ...]:
    return (Opening(_masks(program, op), program.values[op.output].bits),)


def _bind_dealer(program: Program, op: Op, place: Place, mask: RingArray | None) -> DealerStep:
    count, factors = (program.values[number].size for number in op.inputs)

    def step(first: RingArray, others: RingArray, out: RingArray) -> None:
        deal_product(
            first_stream=first,
            others=others,
            masks=place.masks,
            fields=place.fields,
            target=place.target,
            count=count,
            factors=factors,
            inner=op.attributes["inner"],
            bits=program.values[op.output].bits,
            out=out,
        )

    return step


def _bind(site: Site) -> Step:
    packs, masks, ready, bits = site.packs, site.masks, site.ready, site.output_bits
    (x, y), (opening,), lead, out = site.inputs, site.openings, site.lead, site.out
    factors, inner = site.program.values[site.op.inputs[1]].size, site.op.attributes["inner"]
    total, packed, open_ = opening.total, opening.packed, opening.open

    def step(first: int) -> None:
        both = np.concatenate([x(), y()], axis=1)
        mask_input(packs, first, masks, both, bits, total, packed)
        open_()
        finish_product(packs, first, masks, ready, total, factors, inner, lead, out)

    return step


PRODUCT = TupleOp(
    _bind,
    _openings,
    masks=_masks,
    dealt=_dealt,
    ready=_ready,
    deal=_bind_dealer,
    ahead=unpack_values,
)
