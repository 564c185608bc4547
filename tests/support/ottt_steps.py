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


def relu(
    values: list[np.ndarray], shift: int, comparison_bits: int, bits: int
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Shares of ReLU(values >> shift) mod 2^bits, and what was opened on the way."""
    plan, parties = plan_comparison(comparison_bits), len(values)
    batch, count = values[0].shape
    pools, own = deal_relu_pools(plan, batch, count, bits, parties)
    masked = [np.empty((batch, count), np.int64) for _ in values]
    words = packing.packed_words(count, comparison_bits)
    packed = [np.zeros((batch, words), np.int64) for _ in values]
    for i in range(parties):
        bias = rounding(parties, shift) if i == 0 else 0
        mask_shifted(
            pools[i],
            0,
            2 * count,
            1 << (comparison_bits - 1) if i == 0 else 0,
            values[i],
            shift,
            comparison_bits,
            bias,
            masked[i],
            packed[i],
        )
    sums = [open_sum(packed, masked[i], i, comparison_bits) for i in range(parties)]
    fields = relu_op.field_words(bits, comparison_bits)
    wide = int(is_wide(bits, comparison_bits))
    matrix = [np.empty((batch, count), np.int64) for _ in values]
    words = packing.packed_words(count, plan.opened_bits)
    packed = [np.zeros((batch, words), np.int64) for _ in values]
    for i in range(parties):
        look_up(
            pools[i],
            0,
            fields * count,
            sums[i],
            plan.spec(),
            plan.chunks,
            plan.opened_bits,
            comparison_bits,
            matrix[i],
            packed[i],
        )
    outs, opened, dhat = [], [], []
    for i in range(parties):
        total = matrix[i].copy()
        for peer in range(parties):
            if peer != i:
                packing.unpack_xor(packed[peer], count, plan.opened_bits, total)
        opened.append(total & packing.mask(plan.opened_bits))
        out = np.empty((batch, count), np.int64)
        relu_op.finish_relu(
            pool=pools[i],
            first=0,
            fields=0,
            opened=sums[i],
            matrix=total,
            chunks=plan.chunks,
            output_bits=bits,
            comparison_bits=comparison_bits,
            wide=wide,
            lead=int(i == 0),
            out=out,
        )
        outs.append(out)
        dhat.append(total)
    return outs, {
        "opened": sums[0],
        "matrix": opened[0],
        "own": own,
        "pools": np.array(pools),
        "dhat": dhat[0],
    }


def truncate(
    values: list[np.ndarray], shift: int, comparison_bits: int, bits: int
) -> list[np.ndarray]:
    """Shares of values >> shift mod 2^bits."""
    parties = len(values)
    batch, count = values[0].shape
    prg = Prg()
    wide = int(is_wide(bits, comparison_bits))
    words = truncate_op.truncate_words(bits, comparison_bits) * count
    others = prg.int64((parties - 1, batch, words))
    first = np.zeros((batch, words), np.int64)
    own = prg.int64((batch, count))
    truncate_op.deal_truncate(own, others, 0, 0, count, bits, comparison_bits, wide, first)
    pools = [first, *others]
    masked = [np.empty((batch, count), np.int64) for _ in values]
    size = packing.packed_words(count, comparison_bits)
    packed = [np.zeros((batch, size), np.int64) for _ in values]
    for i in range(parties):
        bias = rounding(parties, shift) if i == 0 else 0
        mask_shifted(
            pools[i],
            0,
            0,
            1 << (comparison_bits - 2) if i == 0 else 0,
            values[i],
            shift,
            comparison_bits,
            bias,
            masked[i],
            packed[i],
        )
    outs = []
    for i in range(parties):
        opened = open_sum(packed, masked[i], i, comparison_bits)
        out = np.empty((batch, count), np.int64)
        truncate_op.finish_truncate(
            pools[i], 0, 0, opened, bits, comparison_bits, wide, int(i == 0), out
        )
        outs.append(out)
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
