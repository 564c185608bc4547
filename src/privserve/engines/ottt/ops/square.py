"""The square of a shared value in one exchange, half a product's bytes (Beaver, CRYPTO 1991).

1. *Deal*. Everyone draws A_i of x's shape; party 0's C_0 makes C = A A, element by element.
2. *Precompute*. Nothing.
3. *Open* e = x - A mod 2^M, M the bits to which the square is needed.
4. *Finish*. x^2 = e^2 + 2 e A + C.
"""

from __future__ import annotations

from privserve.engines.ottt.jit import Planes, Rows, kernel
from privserve.engines.ottt.ops.opening import (
    DealerStep,
    Opening,
    Place,
    Site,
    Step,
    TupleOp,
    mask_input,
)
from privserve.fixedpoint import RingArray
from privserve.program import Op, Program


@kernel
def finish_square(
    pool: Rows, first: int, masks: int, fields: int, opened: Rows, lead: int, out: Rows
) -> None:
    """Set out to this party's share of x^2 from the opened x - A, int64[B, count].

    masks: the word of a pack where A begins; fields: where C begins.
    """
    count = out.shape[1]
    for sample in range(out.shape[0]):
        row = pool[(first + sample) % pool.shape[0]]
        a = row[masks : masks + count]
        c = row[fields : fields + count]
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
    out: Rows,
) -> None:
    """Set party 0's share of C = A A, for a batch of packs; out[:, target:] is written.

    first_stream: int64[B, mask words] of party 0; others: int64[n - 1, B, words], with A at word
    `masks` and C at `fields`.
    """
    for sample in range(out.shape[0]):
        for k in range(count):
            a = first_stream[sample, masks + k]
            for i in range(others.shape[0]):
                a += others[i, sample, masks + k]
            c = a * a
            for i in range(others.shape[0]):
                c -= others[i, sample, fields + k]
            out[sample, target + k] = c


def _words(program: Program, op: Op) -> int:
    return program.values[op.output].size


def _openings(program: Program, op: Op) -> tuple[Opening, ...]:
    value = program.values[op.output]
    return (Opening(value.size, value.bits),)


def _bind_dealer(program: Program, op: Op, place: Place, mask: RingArray | None) -> DealerStep:
    count = program.values[op.output].size

    def step(first: RingArray, others: RingArray, own: RingArray, out: RingArray) -> None:
        deal_square(
            first_stream=first,
            others=others,
            masks=place.masks,
            fields=place.fields,
            target=place.target,
            count=count,
            out=out,
        )

    return step


def _bind(site: Site) -> Step:
    packs, masks, fields, bits = site.packs, site.masks, site.fields, site.output_bits
    (source,), (opening,), lead, out = site.inputs, site.openings, site.lead, site.out
    total, packed, open_ = opening.total, opening.packed, opening.open

    def step(first: int) -> None:
        mask_input(packs, first, masks, source(), bits, total, packed)
        open_()
        finish_square(packs, first, masks, fields, total, lead, out)

    return step


SQUARE = TupleOp(_bind, _openings, masks=_words, dealt=_words, deal=_bind_dealer)
