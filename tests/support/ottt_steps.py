"""The protocol's steps for n parties in one process: arrays in, arrays out, no channels."""

from __future__ import annotations

import numpy as np

from privserve.engines.ottt import bits as packing
from privserve.engines.ottt.ops import relu as relu_op
from privserve.engines.ottt.ops import truncate as truncate_op
from privserve.engines.ottt.ops.comparison import (
    ComparisonPlan,
    is_wide,
    look_up,
    plan_comparison,
)
from privserve.engines.ottt.ops.opening import mask_shifted, rounding
from privserve.prg import Prg


def deal_relu_pools(
    plan: ComparisonPlan, batch: int, count: int, bits: int, parties: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """One pool per party (fields at word 0) and the dealer's own randomness."""
    prg = Prg()
    wide = is_wide(bits, plan.comparison_bits)
    words = relu_words(plan, bits) * count
    others = prg.int64((parties - 1, batch, words))
    own = prg.int64((2, batch, count))
    first = np.zeros((batch, words), np.int64)
    relu_op.deal_relu(
        randomness=own,
        others=others,
        fields=0,
        target=0,
        count=count,
        output_bits=bits,
        comparison_bits=plan.comparison_bits,
        wide=int(wide),
        spec=plan.spec(),
        chunks=plan.chunks,
        out=first,
    )
    return [first, *others], own


def relu_words(plan: ComparisonPlan, bits: int) -> int:
    """Words per element of a ReLU's tuple whose output is needed mod 2^bits."""
    return relu_op.field_words(bits, plan.comparison_bits) + plan.words


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
    plan: ComparisonPlan, pools: list[np.ndarray], tables: int, opened: list[np.ndarray]
) -> list[np.ndarray]:
    """What all parties' tables say at `opened`, XORed; by party."""
    batch, count = opened[0].shape
    matrix = [np.empty((batch, count), np.int64) for _ in pools]
    words = packing.packed_words(count, plan.opened_bits)
    packed = [np.zeros((batch, words), np.int64) for _ in pools]
    for i, pool in enumerate(pools):
        look_up(
            pool,
            0,
            tables,
            opened[i],
            plan.spec(),
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
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Shares of ReLU(values >> shift) mod 2^bits, and what was opened on the way."""
    plan, (batch, count) = plan_comparison(comparison_bits), values[0].shape
    pools, own = deal_relu_pools(plan, batch, count, bits, len(values))
    half = 1 << (comparison_bits - 1)
    opened = open_shifted(values, pools, 2 * count, half, shift, comparison_bits)
    fields = relu_op.field_words(bits, comparison_bits)
    totals = open_matrix(plan, pools, fields * count, opened)
    matrix = totals[0] & packing.mask(plan.opened_bits)
    outs = [np.empty((batch, count), np.int64) for _ in values]
    for i, out in enumerate(outs):
        relu_op.finish_relu(
            pool=pools[i],
            first=0,
            fields=0,
            opened=opened[i],
            matrix=totals[i],
            chunks=plan.chunks,
            output_bits=bits,
            comparison_bits=comparison_bits,
            wide=int(is_wide(bits, comparison_bits)),
            lead=int(i == 0),
            out=out,
        )
    seen = {"opened": opened[0], "matrix": matrix, "own": own, "pools": np.array(pools)}
    return outs, {**seen, "dhat": totals[0]}


def truncate(
    values: list[np.ndarray], shift: int, comparison_bits: int, bits: int
) -> list[np.ndarray]:
    """Shares of values >> shift mod 2^bits."""
    parties, (batch, count) = len(values), values[0].shape
    prg, wide = Prg(), int(is_wide(bits, comparison_bits))
    words = truncate_op.truncate_words(bits, comparison_bits) * count
    others = prg.int64((parties - 1, batch, words))
    first = np.zeros((batch, words), np.int64)
    own = prg.int64((batch, count))
    truncate_op.deal_truncate(own, others, 0, 0, count, bits, comparison_bits, wide, first)
    pools = [first, *others]
    quarter = 1 << (comparison_bits - 2)
    opened = open_shifted(values, pools, 0, quarter, shift, comparison_bits)
    outs = [np.empty((batch, count), np.int64) for _ in values]
    for i, out in enumerate(outs):
        truncate_op.finish_truncate(
            pools[i], 0, 0, opened[i], bits, comparison_bits, wide, int(i == 0), out
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
