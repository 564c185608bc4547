"""The square of a shared value in one exchange, half a product's bytes (Beaver, CRYPTO 1991).

1. *Deal*. Everyone draws A_i of x's shape, and C_i, packed to M bits; party 0's C_0 makes
   C = A A mod 2^M, element by element.
2. *Precompute*. C_i is unpacked.
3. *Open* e = x - A mod 2^M, M the bits to which the square is needed.
4. *Finish*. x^2 = e^2 + 2 e A + C.
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
def finish_square(
    pool: Rows, first: int, masks: int, ready: int, opened: Rows, lead: int, out: Rows
) -> None:
    """Set out to this party's share of x^2 from the opened x - A, int64[B, count].

    masks: the word of a pack where A begins; ready: where C begins, unpacked.
    """
    count = out.shape[1]
    for sample in range(out.shape[0]):
        row = pool[(first + sample) % pool.shape[0]]
        a = row[masks : masks + count]
        c = row[ready : ready + count]
        e = opened[sample]
        y = out[sample]
        for k in range(count):
            y[k] = e[k] * (lead * e[k] + 2 * a[k]) + c[k]


@kernel
def deal_square(
    first_stream: Rows,
    others: Planes,
    masks: int,
    fields: int,
    target: int,
    count: int,
    bits: int,
    out: Rows,
) -> None:
    """Set party 0's share of C = A A, for a batch of packs; out[:, target:] is written.

    first_stream: int64[B, mask words] of party 0; others: int64[n - 1, B, words], with A at word
    `masks` and C at `fields`, packed to `bits` bits.
    """
    share, theirs = np.empty(count, np.int64), np.empty(count, np.int64)
    for sample in range(out.shape[0]):
        for k in range(count):
            a = first_stream[sample, masks + k]
            for i in range(others.shape[0]):
                a += others[i, sample, masks + k]
            share[k] = a * a
        for i in range(others.shape[0]):
            unpack_dealt(others[i, sample, fields:], count, bits, theirs)
            for k in range(count):
                share[k] -= theirs[k]
        pack_dealt(share, count, bits, out[sample, target:])


def _words(program: Program, op: Op) -> int:
    return program.values[op.output].size


def _dealt(program: Program, op: Op) -> int:
    value = program.values[op.output]
    return dealt_words(value.size, value.bits)


def _openings(program: Program, op: Op) -> tuple[Opening, ...]:
    value = program.values[op.output]
    return (Opening(value.size, value.bits),)


def _bind_dealer(program: Program, op: Op, place: Place, mask: RingArray | None) -> DealerStep:
    value = program.values[op.output]

    def step(first: RingArray, others: RingArray, out: RingArray) -> None:
        deal_square(
            first_stream=first,
            others=others,
            masks=place.masks,
            fields=place.fields,
            target=place.target,
            count=value.size,
            bits=value.bits,
            out=out,
        )

    return step


def _bind(site: Site) -> Step:
    packs, masks, ready, bits = site.packs, site.masks, site.ready, site.output_bits
    (source,), (opening,), lead, out = site.inputs, site.openings, site.lead, site.out
    total, packed, open_ = opening.total, opening.packed, opening.open

    def step(first: int) -> None:
        mask_input(packs, first, masks, source(), bits, total, packed)
        open_()
        finish_square(packs, first, masks, ready, total, lead, out)

    return step


SQUARE = TupleOp(
    _bind,
    _openings,
    masks=_words,
    dealt=_dealt,
    ready=_words,
    deal=_bind_dealer,
    ahead=unpack_values,
)
