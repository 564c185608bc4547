"""The protocol's steps for n parties in one process: arrays in, arrays out, no channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from privserve.engines.ottt import bits as packing
from privserve.engines.ottt.ops import relu as relu_op
from privserve.engines.ottt.ops import truncate as truncate_op
from privserve.engines.ottt.ops.comparison import (
    ComparisonPlan,
    look_up,
    plan_comparison,
)
from privserve.engines.ottt.ops.opening import mask_shifted, rounding
from privserve.engines.ottt.strings import string_words, unpack_ahead
from privserve.prg import Prg


@dataclass(frozen=True)
class Pools:
    """One pool per party, as it is when queries come, and where an op's tuple lies in it."""

    packs: list[np.ndarray]
    masks: int
    fields: int
    full: int
    ready: int


@dataclass(frozen=True)
class ReluSeen:
    """What was opened on the way to a ReLU, and the tuples."""

    opened: np.ndarray
    matrix: np.ndarray
    dhat: np.ndarray
    pools: Pools


def deal_relu_pools(plan: ComparisonPlan, batch: int, count: int, bits: int, parties: int) -> Pools:
    """What everybody has for a ReLU on `count` elements."""
    string = relu_op.string_bits(bits, plan)
    fields = plan.mask_words * count
    words = string_words(count, string)
    drawn = [Prg().int64((batch, fields + words)) for _ in range(parties)]
    corrections = np.zeros((batch, words), np.int64)
    relu_op.deal_relu(
        first_stream=np.ascontiguousarray(drawn[0][:, :fields]),
        others=np.array(drawn[1:]),
        masks=0,
        mask_words=plan.mask_words,
        fields=fields,
        target=0,
        count=count,
        output_bits=bits,
        comparison_bits=plan.comparison_bits,
        bits=string,
        spec=plan.spec(relu_op.field_bits(bits, plan.comparison_bits)),
        cuts=plan.cuts(),
        out=corrections,
    )
    drawn[0][:, fields:] = corrections
    return made_ready(drawn, fields, count, string)


def made_ready(drawn: list[np.ndarray], fields: int, count: int, string: int) -> Pools:
    """Pools of what was drawn and dealt: masks before word `fields`, then strings."""
    ready = drawn[0].shape[1]
    packs = [np.concatenate([d, np.zeros((len(d), count), np.int64)], axis=1) for d in drawn]
    for pack in packs:
        unpack_ahead(pack, 0, len(pack), fields, ready, count, string)
    return Pools(packs, 0, fields, string >> 6, ready)


def parts_of(pools: Pools, sizes: Sequence[int], count: int) -> list[np.ndarray]:
    """The first parts of all parties' strings, of these sizes: object[parties, B, count] each."""
    found, at = [], 0
    for size in sizes:
        taken = np.zeros((len(pools.packs), len(pools.packs[0]), count), object)
        for i, b, e in np.ndindex(taken.shape):
            row = pools.packs[i][b]
            words = [row[pools.fields + q * count + e] for q in range(pools.full)]
            words.append(row[pools.ready + e])
            string = sum((int(word) & (2**64 - 1)) << (64 * q) for q, word in enumerate(words))
            taken[i, b, e] = string >> at & (2**size - 1)
        found.append(taken)
        at += size
    return found


def open_sum(packed: list[np.ndarray], own: np.ndarray, rank: int, bits: int) -> np.ndarray:
    total = own.copy()
    for peer, payload in enumerate(packed):
        if peer != rank:
            packing.unpack_add(payload, own.shape[1], bits, total)
    return total


def open_shifted(
    values: list[np.ndarray],
    pools: list[np.ndarray],
    masks: int,
    offset: int,
    shift: int,
    comparison_bits: int,
) -> list[np.ndarray]:
    """(values >> shift) + offset + r, opened; by party, since each has its own array of it."""
    parties, (batch, count) = len(values), values[0].shape
    masked = [np.empty((batch, count), np.int64) for _ in values]
    words = packing.packed_words(count, comparison_bits)
    packed = [np.zeros((batch, words), np.int64) for _ in values]
    for i in range(parties):
        mask_shifted(
            pool=pools[i],
            first=0,
            masks=masks,
            offset=offset if i == 0 else 0,
            values=values[i],
            shift=shift,
            comparison_bits=comparison_bits,
            bias=rounding(parties, shift) if i == 0 else 0,
            masked=masked[i],
            packed=packed[i],
        )
    return [open_sum(packed, masked[i], i, comparison_bits) for i in range(parties)]


def open_matrix(
    plan: ComparisonPlan, pools: Pools, tables: int, opened: list[np.ndarray]
) -> list[np.ndarray]:
    """What all parties' tables, from bit `tables` on, say at `opened`, XORed; by party."""
    batch, count = opened[0].shape
    matrix = [np.empty((batch, count), np.int64) for _ in pools.packs]
    words = packing.packed_words(count, plan.opened_bits)
    packed = [np.zeros((batch, words), np.int64) for _ in pools.packs]
    for i, pool in enumerate(pools.packs):
        look_up(
            pool,
            0,
            pools.masks,
            plan.mask_words,
            pools.fields,
            pools.full,
            pools.ready,
            opened[i],
            plan.spec(tables),
            plan.chunks,
            plan.opened_bits,
            plan.comparison_bits,
            matrix[i],
            packed[i],
        )
    for i, total in enumerate(matrix):
        for peer, payload in enumerate(packed):
            if peer != i:
                packing.unpack_xor(payload, count, plan.opened_bits, total)
    return matrix


def relu(
    values: list[np.ndarray], shift: int, comparison_bits: int, bits: int
) -> tuple[list[np.ndarray], ReluSeen]:
    """Shares of ReLU(values >> shift) mod 2^bits, and what was opened on the way."""
    plan, (batch, count) = plan_comparison(comparison_bits), values[0].shape
    pools = deal_relu_pools(plan, batch, count, bits, len(values))
    half = 1 << (comparison_bits - 1)
    opened = open_shifted(values, pools.packs, pools.masks, half, shift, comparison_bits)
    totals = open_matrix(plan, pools, relu_op.field_bits(bits, comparison_bits), opened)
    matrix = totals[0] & packing.mask(plan.opened_bits)
    outs = [np.empty((batch, count), np.int64) for _ in values]
    for i, out in enumerate(outs):
        relu_op.finish_relu(
            pool=pools.packs[i],
            first=0,
            masks=pools.masks,
            fields=pools.fields,
            full=pools.full,
            ready=pools.ready,
            opened=opened[i],
            matrix=totals[i],
            chunks=plan.chunks,
            output_bits=bits,
            comparison_bits=comparison_bits,
            lead=int(i == 0),
            out=out,
        )
    return outs, ReluSeen(opened[0], matrix, totals[0], pools)


def truncate(
    values: list[np.ndarray], shift: int, comparison_bits: int, bits: int
) -> list[np.ndarray]:
    """Shares of values >> shift mod 2^bits."""
    batch, count = values[0].shape
    string = truncate_op.string_bits(bits, comparison_bits)
    words = string_words(count, string)
    drawn = [Prg().int64((batch, count + words)) for _ in values]
    corrections = np.zeros((batch, words), np.int64)
    masks = np.ascontiguousarray(drawn[0][:, :count])
    arguments = (0, count, 0, count, bits, comparison_bits, corrections)
    truncate_op.deal_truncate(masks, np.array(drawn[1:]), *arguments)
    drawn[0][:, count:] = corrections
    pools = made_ready(drawn, count, count, string)
    quarter = 1 << (comparison_bits - 2)
    opened = open_shifted(values, pools.packs, 0, quarter, shift, comparison_bits)
    outs = [np.empty((batch, count), np.int64) for _ in values]
    for i, out in enumerate(outs):
        place = (0, pools.fields, pools.ready)
        truncate_op.finish_truncate(
            pools.packs[i], 0, *place, opened[i], bits, comparison_bits, int(i == 0), out
        )
    return outs


def signed(shares: list[np.ndarray], bits: int) -> np.ndarray:
    """The signed values that `shares` sum to mod 2^bits."""
    total = np.add.reduce(shares)
    return (total << (64 - bits)) >> (64 - bits)


def bounded(count: int, limit: int) -> np.ndarray:
    """Uniform int64 in [-limit, limit)."""
    return Prg().int64((1, count)) % (2 * limit) - limit


def borders(comparison_bits: int, shift: int) -> np.ndarray:
    """The values around zero, around every power of two and at both ends of the range."""
    top = 1 << (comparison_bits - 1)
    units = {0, 1, -1, 2, -2, top - 4, -top + 4}
    for bit in range(comparison_bits - 2):
        units |= {sign * (1 << bit) + step for sign in (1, -1) for step in (-1, 0, 1)}
    units = {u for u in units if -top + 4 <= u <= top - 4}
    return np.array([sorted(u << shift for u in units)], dtype=np.int64)
