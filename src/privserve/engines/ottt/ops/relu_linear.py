"""A small dense layer beside its input's ReLU: both in two exchanges, one less than one by one.

y = d u of a ReLU is public but for shares once dhat is known (see `relu`): y = y0 + dhat D, where
party i knows its shares of y0 (y where dhat is 0) and of D (what is added where it is 1) *before*
dhat is opened, from `opened` and its tuple. So what the dense layer opens goes beside the matrix:

1. *Deal*. A ReLU's tuple. Everyone draws A_i and A'_i of u's shape; party 0 is sent what makes
   sum C_i = L(A, B) and, for every input j and output o, sum C'_i[j, o] = A'[j] B[o, j] mod 2^M.
2. *Precompute*. Z_i = L(A_i, open_weight) + C_i, and for every j and o
   Z'_i[j, o] = A'_i[j] open_weight[o, j] + C'_i[j, o];
   so sum Z_i = L(A, W) and sum Z'_i[j, o] = A'[j] W[o, j].
3. *Open* as a ReLU does, and beside its matrix e0 = y0 - A and e1 = D - A' mod 2^M.
4. *Finish*. y = e0 + dhat e1 + A + dhat A', so

       sum over i of L(e0 + dhat e1, W_i) + Z_i + sum over j of dhat[j] Z'_i[j, .] + bias_i

   is L(y, W) + bias.

The ReLU's shares are needed modulo the output's 2^M, and modulo 2^(K + g) where it is guarded. What
is dealt has a word for every weight, so this is for small layers: the compiler says which
(`compiler.fusing`).
"""

from __future__ import annotations

import numpy as np

from privserve.engines.ottt.bits import dealt_words, pack, pack_dealt, unpack_dealt
from privserve.engines.ottt.jit import Planes, Rows, Words, kernel
from privserve.engines.ottt.ops.arrangement import arrange, arrangement
from privserve.engines.ottt.ops.check import flag_relu
from privserve.engines.ottt.ops.comparison import look_up, open_sign, plan_comparison
from privserve.engines.ottt.ops.linear import deal_linear, evaluate, precompute_linear
from privserve.engines.ottt.ops.opening import (
    AheadStep,
    BoundPart,
    DealerStep,
    Held,
    Opening,
    Place,
    Site,
    Step,
    TupleOp,
    open_shifted,
)
from privserve.engines.ottt.ops.relu import (
    bind_relu_ahead,
    bind_relu_dealer,
    both_ends,
    field_bits,
    relu_bits,
    string_bits,
)
from privserve.engines.ottt.strings import string_words, take
from privserve.fixedpoint import RingArray
from privserve.geometry import Geometry
from privserve.program import Op, Program


@kernel
def mask_ends(
    pool: Rows,
    first: int,
    masks: int,
    fields: int,
    full: int,
    ready: int,
    a: int,
    opened: Rows,
    string_bits: int,
    comparison_bits: int,
    bits: int,
    lead: int,
    zero: Rows,
    packed_zero: Rows,
    more: Rows,
    packed_more: Rows,
) -> None:
    """Set zero = y0 - A_i and more = D - A'_i and pack the low `bits` bits of both.

    masks, fields, full, ready: of the ReLU's tuple, as of `look_up`; string_bits: to which its
    shares are held; a: the word of a pack where A_i begins, which A'_i follows.
    """
    batch, count = opened.shape
    top, high = comparison_bits - 1, string_bits - comparison_bits
    room = np.empty((5, count), np.int64)
    b, w, b_rho1, w_m, b_m = room[0], room[1], room[2], room[3], room[4]
    for sample in range(batch):
        row = pool[(first + sample) % pool.shape[0]]
        words, rest = row[fields : fields + full * count], row[ready : ready + count]
        pair = string_bits + high
        take(words, rest, 0, string_bits, b)
        take(words, rest, string_bits, high, w)
        take(words, rest, pair, string_bits, b_rho1)
        take(words, rest, pair + string_bits, high, w_m)
        take(words, rest, 2 * pair, high, b_m)
        for e in range(count):
            y0, d = both_ends(
                opened[sample, e],
                row[masks + e],
                w[e],
                w_m[e],
                0,
                b[e],
                b_rho1[e],
                b_m[e],
                top,
                lead,
            )
            zero[sample, e] = y0 - row[a + e]
            more[sample, e] = d - row[a + count + e]
        pack(zero[sample], count, bits, packed_zero[sample])
        pack(more[sample], count, bits, packed_more[sample])


@kernel
def join_ends(
    opened: Rows, matrix: Rows, chunks: int, comparison_bits: int, zero: Rows, more: Rows
) -> None:
    """Leave dhat in `matrix`, and e0 + dhat e1 in `zero`."""
    paths = np.empty(opened.shape[1], np.int64)
    for sample in range(opened.shape[0]):
        dhat = matrix[sample]
        open_sign(opened[sample], dhat, chunks, comparison_bits - 1, paths)
        for e in range(opened.shape[1]):
            zero[sample, e] += more[sample, e] & -dhat[e]


@kernel
def add_products(pool: Rows, first: int, products: int, dhat: Rows, out: Rows) -> None:
    """Add dhat[j] Z'_i[j, o] to out[o]; products: the word where Z'_i begins, outputs innermost."""
    outputs = out.shape[1]
    for sample in range(out.shape[0]):
        row = pool[(first + sample) % pool.shape[0]]
        y = out[sample]
        for j in range(dhat.shape[1]):
            chosen = -dhat[sample, j]
            start = products + j * outputs
            for o in range(outputs):
                y[o] += row[start + o] & chosen


@kernel
def multiply_masks(mask: Words, weight: Planes, outputs: int, out: Words) -> None:
    """Add mask[j] weight[o, j] to out[j, o]; weight: as `arrange` gives that of a dense layer."""
    for j in range(mask.shape[0]):
        row = weight[0, j]
        for o in range(outputs):
            out[j * outputs + o] += mask[j] * row[o]


@kernel
def precompute_products(
    pool: Rows,
    first: int,
    count: int,
    masks: int,
    inputs: int,
    fields: int,
    bits: int,
    products: int,
    outputs: int,
    open_weight: Planes,
) -> None:
    """Put Z'_i at word `products`, for `count` packs from number `first`; masks: A'_i's word."""
    for k in range(count):
        row = pool[(first + k) % pool.shape[0]]
        ready = row[products : products + inputs * outputs]
        unpack_dealt(row[fields:], inputs * outputs, bits, ready)
        multiply_masks(row[masks : masks + inputs], open_weight, outputs, ready)


@kernel
def deal_products(
    first_stream: Rows,
    masks: int,
    others: Planes,
    inputs: int,
    fields: int,
    target: int,
    outputs: int,
    bits: int,
    weight_mask: Planes,
    out: Rows,
) -> None:
    """Set party 0's C'_0 = A' B - sum of the other C'_i; the arguments are as of `deal_linear`."""
    total, y = np.empty(inputs, np.int64), np.empty(inputs * outputs, np.int64)
    c = np.empty(inputs * outputs, np.int64)
    for sample in range(out.shape[0]):
        y[:] = 0
        for j in range(inputs):
            total[j] = first_stream[sample, masks + j]
        for i in range(others.shape[0]):
            unpack_dealt(others[i, sample, fields:], inputs * outputs, bits, c)
            for j in range(inputs):
                total[j] += others[i, sample, masks + j]
            for e in range(inputs * outputs):
                y[e] -= c[e]
        multiply_masks(total, weight_mask, outputs, y)
        pack_dealt(y, inputs * outputs, bits, out[sample, target:])


class _Shape:
    """The sizes of one op, and where the parts of its tuple lie behind its first word of a kind."""

    def __init__(self, program: Program, op: Op) -> None:
        self.plan = plan_comparison(op.attributes["comparison_bits"])
        self.inputs = program.values[op.inputs[0]].size
        self.outputs = program.values[op.output].size
        self.bits = program.values[op.output].bits
        self.string_bits = relu_bits(program, op)
        string = string_bits(self.string_bits, self.plan)
        self.full = string >> 6
        # Masks: the ReLU's, A, A'.
        self.a = self.inputs * self.plan.mask_words
        self.masks = self.a + 2 * self.inputs
        # Fields: the ReLU's strings, C, C'.
        self.c = string_words(self.inputs, string)
        self.c_products = self.c + dealt_words(self.outputs, self.bits)
        self.dealt = self.c_products + dealt_words(self.inputs * self.outputs, self.bits)
        # Ready: the strings' rest, Z, Z'.
        self.z = self.inputs
        self.z_products = self.z + self.outputs
        self.ready = self.z_products + self.inputs * self.outputs


def _openings(program: Program, op: Op) -> tuple[Opening, ...]:
    shape = _Shape(program, op)
    plan, ends = shape.plan, Opening(shape.inputs, shape.bits)
    return (
        Opening(shape.inputs, plan.comparison_bits),
        Opening(shape.inputs, plan.opened_bits, xor=True, beside=(ends, ends)),
    )


def _bind_dealer(program: Program, op: Op, place: Place, mask: RingArray | None) -> DealerStep:
    assert mask is not None  # B, of every op with a weight
    geometry, shape = Geometry.from_json(op.attributes["geometry"]), _Shape(program, op)
    at, weight_mask = arrangement(geometry), arrange(geometry, mask)
    deal_relu = bind_relu_dealer(program, op, place, mask)
    masks, c, c_products = place.masks + shape.a, shape.c, shape.c_products

    def step(first: RingArray, others: RingArray, out: RingArray) -> None:
        deal_relu(first, others, out)
        deal_linear(
            first_stream=first,
            masks=masks,
            others=others,
            inputs=shape.inputs,
            fields=place.fields + c,
            target=place.target + c,
            outputs=shape.outputs,
            bits=shape.bits,
            index=at.index,
            window=at.window,
            weight_mask=weight_mask,
            each=at.each,
            group_size=at.group_size,
            out=out,
        )
        deal_products(
            first_stream=first,
            masks=masks + shape.inputs,
            others=others,
            inputs=shape.inputs,
            fields=place.fields + c_products,
            target=place.target + c_products,
            outputs=shape.outputs,
            bits=shape.bits,
            weight_mask=weight_mask,
            out=out,
        )

    return step


def _bind_ahead(program: Program, op: Op, held: Held) -> AheadStep:
    shape, weight = _Shape(program, op), held.weight
    assert weight is not None  # of every op with a weight
    at, opened = weight.arrangement, weight.opened
    unpack = bind_relu_ahead(program, op, held)

    def step(first: int, many: int) -> None:
        unpack(first, many)
        precompute_linear(
            pool=held.packs,
            first=first,
            count=many,
            masks=held.masks + shape.a,
            inputs=shape.inputs,
            fields=held.fields + shape.c,
            bits=shape.bits,
            z=held.ready + shape.z,
            outputs=shape.outputs,
            index=at.index,
            window=at.window,
            open_weight=opened,
            each=at.each,
            group_size=at.group_size,
        )
        precompute_products(
            pool=held.packs,
            first=first,
            count=many,
            masks=held.masks + shape.a + shape.inputs,
            inputs=shape.inputs,
            fields=held.fields + shape.c_products,
            bits=shape.bits,
            products=held.ready + shape.z_products,
            outputs=shape.outputs,
            open_weight=opened,
        )

    return step


def _bind(site: Site) -> Step:
    shape, weight = _Shape(site.program, site.op), site.weight
    assert weight is not None  # of every op with a weight
    plan, bits, lead, out = shape.plan, shape.bits, site.lead, site.out
    packs, masks, k = site.packs, site.masks, plan.comparison_bits
    a, z, products = masks + shape.a, site.ready + shape.z, site.ready + shape.z_products
    tables = plan.spec(field_bits(shape.string_bits, k))
    look = (masks, plan.mask_words, site.fields, shape.full, site.ready)
    place = (masks, site.fields, shape.full, site.ready, a)
    open_first, opened, second = (
        open_shifted(site, masks, 1 << (k - 1)),
        site.openings[0].total,
        site.openings[1],
    )
    matrix, zero, more = second.parts
    at, share, bias = weight.arrangement, weight.share, weight.bias
    layer = (at.index, at.window, share, at.each, at.group_size, bias, out)

    def step(first: int) -> None:
        open_first(first)
        look_up(
            packs, first, *look, opened, tables, plan.chunks, plan.opened_bits, k, *_arrays(matrix)
        )
        mask_ends(
            packs, first, *place, opened, shape.string_bits, k, bits, lead, *_arrays(zero, more)
        )
        second.open()
        join_ends(opened, matrix.total, plan.chunks, k, zero.total, more.total)
        evaluate(packs, first, z, zero.total, *layer)
        add_products(packs, first, products, matrix.total, out)

    return step if site.guard is None else flag_relu(site, step, shape.full, shape.string_bits)


def _arrays(*parts: BoundPart) -> tuple[RingArray, ...]:
    """The values of each part, and where they are packed."""
    return tuple(array for part in parts for array in (part.total, part.packed))


RELU_LINEAR = TupleOp(
    _bind,
    _openings,
    masks=lambda program, op: _Shape(program, op).masks,
    dealt=lambda program, op: _Shape(program, op).dealt,
    ready=lambda program, op: _Shape(program, op).ready,
    deal=_bind_dealer,
    ahead=_bind_ahead,
)
