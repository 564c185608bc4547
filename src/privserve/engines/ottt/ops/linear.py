"""Bilinear ops with a secret weight: convolutions (strided, dilated, grouped), dense layers.

L(x, W) is linear in both; a dense layer is a convolution whose kernel covers its input. Beaver's
multiplication (CRYPTO 1991), with the mask of the fixed operand opened once per session:

0. *Set up*, once per session. Everyone draws B_i of W's shape; open_weight = W - B is opened.
1. *Deal*. Everyone draws A_i of x's shape, and C_i; party 0's C_0 makes sum C_i = L(A, B) mod 2^M.
2. *Precompute*. Z_i = L(A_i, open_weight) + C_i, so sum Z_i = L(A, W - B) + L(A, B) = L(A, W).
3. *Open* xhat = x - A mod 2^M, M the bits to which the output is needed. Ops that read the same x
   and follow each other share A and xhat, opened to the most bits that one of them needs.
4. *Finish*. y_i = L(xhat, W_i) + Z_i + bias_i, and sum y_i = L(x - A, W) + L(A, W) + bias.

C_i is packed, M bits an element. The kernels read the weight with the output channels innermost,
where int64 products run at vector speed (or the positions, where there are many), and find their
inputs as `arrangement` says. Large layers have kernels of their own, in `blocked`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from privserve.engines.ottt.bits import dealt_words, pack_dealt, unpack_dealt
from privserve.engines.ottt.jit import Indices, Planes, Rows, Words, kernel
from privserve.engines.ottt.ops import blocked
from privserve.engines.ottt.ops.arrangement import HeldWeight, arrange, arrangement
from privserve.engines.ottt.ops.opening import (
    AheadStep,
    DealerStep,
    Held,
    Opening,
    Place,
    Site,
    Step,
    TupleOp,
    mask_input,
)
from privserve.fixedpoint import RingArray
from privserve.geometry import Geometry
from privserve.prg import Prg
from privserve.program import OP_KINDS, Op, Program


@kernel
def _add_by_position(
    x: Words, index: Indices, weight: Planes, each: int, group_size: int, out: Words
) -> None:
    """`_add_small` with positions innermost: what four taps read is gathered once."""
    groups, taps, _ = weight.shape
    positions = index.shape[0]
    read = np.zeros((4, 256), np.int64)
    r0, r1, r2, r3 = read[0], read[1], read[2], read[3]
    for g in range(groups):
        base = g * group_size
        # Blocks of positions, so that the outputs stay in the cache from tap to tap.
        for start in range(0, positions, 256):
            width = min(256, positions - start)
            for tap in range(0, taps, 4):
                many = min(4, taps - tap)
                for k in range(many):
                    row = read[k]
                    for p in range(width):
                        j = index[start + p, tap + k]
                        row[p] = x[base + j] if j >= 0 else np.int64(0)
                for o in range(each):
                    at = (g * each + o) * positions + start
                    y = out[at : at + width]
                    if many == 4:
                        w0 = weight[g, tap, o]
                        w1 = weight[g, tap + 1, o]
                        w2 = weight[g, tap + 2, o]
                        w3 = weight[g, tap + 3, o]
                        for p in range(width):
                            y[p] += w0 * r0[p] + w1 * r1[p] + w2 * r2[p] + w3 * r3[p]
                    else:
                        for k in range(many):
                            row = read[k]
                            factor = weight[g, tap + k, o]
                            for p in range(width):
                                y[p] += factor * row[p]


@kernel
def _add_small(
    x: Words, index: Indices, weight: Planes, each: int, group_size: int, out: Words
) -> None:
    """`convolve_add` by the index map."""
    groups, taps, padded = weight.shape
    positions = index.shape[0]
    if each < 4:
        for g in range(groups):
            for o in range(each):
                start = (g * each + o) * positions
                for tap in range(taps):
                    factor = weight[g, tap, o]
                    for p in range(positions):
                        j = index[p, tap]
                        if j >= 0:
                            out[start + p] += x[g * group_size + j] * factor
        return
    if positions >= 64:
        _add_by_position(x, index, weight, each, group_size, out)
        return
    total = np.empty(padded, np.int64)
    for g in range(groups):
        base = g * group_size
        for p in range(positions):
            for o in range(padded):
                total[o] = 0
            tap = 0
            while tap + 4 <= taps:
                j0 = index[p, tap]
                j1 = index[p, tap + 1]
                j2 = index[p, tap + 2]
                j3 = index[p, tap + 3]
                x0 = x[base + j0] if j0 >= 0 else np.int64(0)
                x1 = x[base + j1] if j1 >= 0 else np.int64(0)
                x2 = x[base + j2] if j2 >= 0 else np.int64(0)
                x3 = x[base + j3] if j3 >= 0 else np.int64(0)
                w0 = weight[g, tap]
                w1 = weight[g, tap + 1]
                w2 = weight[g, tap + 2]
                w3 = weight[g, tap + 3]
                for o in range(padded):
                    total[o] += x0 * w0[o] + x1 * w1[o] + x2 * w2[o] + x3 * w3[o]
                tap += 4
            while tap < taps:
                j = index[p, tap]
                if j >= 0:
                    factor = x[base + j]
                    row = weight[g, tap]
                    for o in range(padded):
                        total[o] += factor * row[o]
                tap += 1
            start = g * each * positions + p
            for o in range(each):
                out[start + o * positions] += total[o]


@kernel
def convolve_add(
    x: Words,
    index: Indices,
    window: Words,
    weight: Planes,
    each: int,
    group_size: int,
    out: Words,
) -> None:
    """Add weight * x to out[O * positions] for one sample; x: int64[C * H * W].

    index, window: as in `arrangement`; weight: as `arrange` gives it; each: outputs per group;
    group_size: input elements per group.
    """
    if window.shape[0]:
        blocked.convolve_add(x, window, weight, each, group_size, out)
    else:
        _add_small(x, index, weight, each, group_size, out)


@kernel
def evaluate(
    pool: Rows,
    first: int,
    z: int,
    xhat: Rows,
    index: Indices,
    window: Words,
    weight: Planes,
    each: int,
    group_size: int,
    bias: Words,
    out: Rows,
) -> None:
    """Set out = L(xhat, W_i) + Z_i + bias_i for a batch; Z_i lies in the packs from word `z`."""
    for sample in range(xhat.shape[0]):
        row = pool[(first + sample) % pool.shape[0]]
        y = out[sample]
        ready = row[z : z + y.shape[0]]
        for o in range(y.shape[0]):
            y[o] = ready[o] + bias[o]
        convolve_add(xhat[sample], index, window, weight, each, group_size, y)


@kernel
def precompute_linear(
    pool: Rows,
    first: int,
    count: int,
    masks: int,
    inputs: int,
    fields: int,
    bits: int,
    z: int,
    outputs: int,
    index: Indices,
    window: Words,
    open_weight: Planes,
    each: int,
    group_size: int,
) -> None:
    """Put Z_i = L(A_i, open_weight) + C_i at word `z`, for `count` packs from number `first`.

    fields: the word where C_i begins, packed to `bits` bits.
    """
    for k in range(count):
        row = pool[(first + k) % pool.shape[0]]
        mask, ready = row[masks : masks + inputs], row[z : z + outputs]
        unpack_dealt(row[fields:], outputs, bits, ready)
        convolve_add(mask, index, window, open_weight, each, group_size, ready)


@kernel
def deal_linear(
    first_stream: Rows,
    masks: int,
    others: Planes,
    inputs: int,
    fields: int,
    target: int,
    outputs: int,
    bits: int,
    index: Indices,
    window: Words,
    weight_mask: Planes,
    each: int,
    group_size: int,
    out: Rows,
) -> None:
    """Set party 0's C_0 = L(A, B) - sum of the other C_i, for a batch of packs.

    first_stream: int64[B, mask words], party 0's masks; others: int64[n - 1, B, words], the
    other parties' streams, with A_i at word `masks` and C_i at `fields`, packed to `bits` bits;
    weight_mask: B; out[:, target:] is written.
    """
    total, y, c = (
        np.empty(inputs, np.int64),
        np.empty(outputs, np.int64),
        np.empty(outputs, np.int64),
    )
    for sample in range(out.shape[0]):
        own = first_stream[sample, masks : masks + inputs]
        for e in range(inputs):
            total[e] = own[e]
        for i in range(others.shape[0]):
            theirs = others[i, sample, masks : masks + inputs]
            for e in range(inputs):
                total[e] += theirs[e]
        y[:] = 0
        for i in range(others.shape[0]):
            unpack_dealt(others[i, sample, fields:], outputs, bits, c)
            for o in range(outputs):
                y[o] -= c[o]
        convolve_add(total, index, window, weight_mask, each, group_size, y)
        pack_dealt(y, outputs, bits, out[sample, target:])


def geometries(program: Program) -> dict[int, Geometry]:
    """Return the convolution of every op with a secret weight, by the op's index."""
    return {
        index: Geometry.from_json(op.attributes["geometry"])
        for index, op in enumerate(program.ops)
        if OP_KINDS[op.kind].is_weighted
    }


def masks_of_weights(program: Program, prg: Prg) -> Iterator[tuple[int, RingArray]]:
    """Draw (index of a linear op, the share of its B) in turn from a party's set-up stream."""
    for index, geometry in geometries(program).items():
        yield index, prg.int64(geometry.weight_shape)


def hold(
    program: Program,
    op: Op,
    shares: Mapping[str, RingArray],
    open_weight: RingArray,
) -> HeldWeight:
    """Arrange this party's W_i and the opened W - B for the kernels.

    shares: of the program's parameters; open_weight: int64, flat.
    """
    geometry = Geometry.from_json(op.attributes["geometry"])
    bias = np.zeros(program.values[op.output].size, np.int64)
    if name := op.attributes["bias"]:
        positions = bias.size // geometry.outputs
        bias += np.repeat(np.asarray(shares[name], np.int64), positions)
    return HeldWeight(
        arrangement(geometry),
        share=arrange(geometry, shares[op.attributes["weight"]]),
        opened=arrange(geometry, open_weight),
        bias=bias,
    )


def _masks(program: Program, op: Op) -> int:
    return 0 if op.output in program.leaders else program.values[op.inputs[0]].size


def _dealt(program: Program, op: Op) -> int:
    value = program.values[op.output]
    return dealt_words(value.size, value.bits)


def _ready(program: Program, op: Op) -> int:
    return program.values[op.output].size


def _openings(program: Program, op: Op) -> tuple[Opening, ...]:
    if op.output in program.leaders:
        return ()
    bits = max(program.values[sharer.output].bits for sharer in program.sharers[op.output])
    return (Opening(program.values[op.inputs[0]].size, bits),)


def _bind_dealer(program: Program, op: Op, place: Place, mask: RingArray | None) -> DealerStep:
    assert mask is not None  # B, of every linear op
    geometry = Geometry.from_json(op.attributes["geometry"])
    a, weight_mask = arrangement(geometry), arrange(geometry, mask)
    value = program.values[op.output]

    def step(first: RingArray, others: RingArray, out: RingArray) -> None:
        deal_linear(
            first_stream=first,
            masks=place.masks,
            others=others,
            inputs=a.inputs,
            fields=place.fields,
            target=place.target,
            outputs=value.size,
            bits=value.bits,
            index=a.index,
            window=a.window,
            weight_mask=weight_mask,
            each=a.each,
            group_size=a.group_size,
            out=out,
        )

    return step


def _bind_ahead(program: Program, op: Op, held: Held) -> AheadStep:
    value, weight = program.values[op.output], held.weight
    assert weight is not None  # of every linear op
    a, opened = weight.arrangement, weight.opened

    def step(first: int, many: int) -> None:
        precompute_linear(
            pool=held.packs,
            first=first,
            count=many,
            masks=held.masks,
            inputs=a.inputs,
            fields=held.fields,
            bits=value.bits,
            z=held.ready,
            outputs=value.size,
            index=a.index,
            window=a.window,
            open_weight=opened,
            each=a.each,
            group_size=a.group_size,
        )

    return step


def _bind(site: Site) -> Step:
    weight = site.weight
    assert weight is not None  # of every linear op
    (source,), (opening,) = site.inputs, site.openings
    packs, masks, z, out = site.packs, site.masks, site.ready, site.out
    total, packed, open_ = opening.total, opening.packed, opening.open
    a, share, bias = weight.arrangement, weight.share, weight.bias
    index, window, each, group_size = a.index, a.window, a.each, a.group_size

    def finish(first: int) -> None:
        evaluate(packs, first, z, total, index, window, share, each, group_size, bias, out)

    if site.op.output in site.program.leaders:
        return finish
    (own,) = _openings(site.program, site.op)
    bits = own.bits

    def step(first: int) -> None:
        mask_input(packs, first, masks, source(), bits, total, packed)
        open_()
        finish(first)

    return step


LINEAR = TupleOp(
    _bind,
    _openings,
    masks=_masks,
    dealt=_dealt,
    ready=_ready,
    deal=_bind_dealer,
    ahead=_bind_ahead,
)
