"""The protocol's steps for n parties in one process: arrays in, arrays out, no channels."""

from __future__ import annotations

import numpy as np

from privserve.engines.ottt import bits as packing
from privserve.engines.ottt import nonlinear, tuples
from privserve.engines.ottt.comparison import ComparisonPlan, plan_comparison
from privserve.prg import Prg


def deal_relu_pools(
    plan: ComparisonPlan, batch: int, count: int, bits: int, parties: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """One pool per party (fields at word 0) and the dealer's own randomness."""
    prg = Prg()
    words = nonlinear.relu_words(plan, bits) * count
    others = prg.int64((parties - 1, batch, words))
    own = prg.int64((2, batch, count))
    first = np.zeros((batch, words), np.int64)
    tuples.deal_relu(own, others, 0, 0, count, bits, plan.bits, plan.spec(), plan.chunks, first)
    return [first, *others], own


def open_sum(packed: list[np.ndarray], own: np.ndarray, rank: int, bits: int) -> np.ndarray:
    total = own.copy()
    for peer, payload in enumerate(packed):
        if peer != rank:
            for sample in range(len(own)):
                packing.unpack_add(payload[sample], own.shape[1], bits, total[sample])
    return total


def relu(
    values: list[np.ndarray], shift: int, comparison_bits: int, bits: int
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Shares of ReLU(values >> shift) mod 2^bits, and what was opened on the way."""
    plan, parties = plan_comparison(comparison_bits), len(values)
    batch, count = values[0].shape
    pools, own = deal_relu_pools(plan, batch, count, bits, parties)
    masked = [np.empty((batch, count), np.int64) for _ in values]
    words = packing.packed_words(count, plan.bits)
    packed = [np.zeros((batch, words), np.int64) for _ in values]
    for i in range(parties):
        bias = nonlinear.rounding(parties, shift) if i == 0 else 0
        nonlinear.mask_shifted(
            pools[i],
            0,
            2 * count,
            1 << (plan.bits - 1) if i == 0 else 0,
            values[i],
            shift,
            plan.bits,
            bias,
            masked[i],
            packed[i],
        )
    that = [open_sum(packed, masked[i], i, plan.bits) for i in range(parties)]
    fields = 5 if nonlinear.relu_is_wide(bits, plan.bits) else 3
    matrix = [np.empty((batch, count), np.int64) for _ in values]
    words = packing.packed_words(count, plan.opened_bits)
    packed = [np.zeros((batch, words), np.int64) for _ in values]
    for i in range(parties):
        nonlinear.look_up(
            pools[i],
            0,
            fields * count,
            that[i],
            plan.spec(),
            plan.chunks,
            plan.opened_bits,
            plan.bits,
            matrix[i],
            packed[i],
        )
    outs, opened, dhat = [], [], []
    for i in range(parties):
        total = matrix[i].copy()
        for peer in range(parties):
            if peer != i:
                for sample in range(batch):
                    packing.unpack_xor(packed[peer][sample], count, plan.opened_bits, total[sample])
        opened.append(total & packing.mask(plan.opened_bits))
        out = np.empty((batch, count), np.int64)
        nonlinear.finish_relu(
            pools[i], 0, 0, that[i], total, plan.chunks, bits, plan.bits, int(i == 0), out
        )
        outs.append(out)
        dhat.append(total)
    return outs, {
        "that": that[0],
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
    words = nonlinear.truncate_words(bits, comparison_bits) * count
    others = prg.int64((parties - 1, batch, words))
    first = np.zeros((batch, words), np.int64)
    own = prg.int64((batch, count))
    tuples.deal_truncate(own, others, 0, 0, count, bits, comparison_bits, first)
    pools = [first, *others]
    masked = [np.empty((batch, count), np.int64) for _ in values]
    size = packing.packed_words(count, comparison_bits)
    packed = [np.zeros((batch, size), np.int64) for _ in values]
    for i in range(parties):
        bias = nonlinear.rounding(parties, shift) if i == 0 else 0
        nonlinear.mask_shifted(
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
        that = open_sum(packed, masked[i], i, comparison_bits)
        out = np.empty((batch, count), np.int64)
        nonlinear.finish_truncate(pools[i], 0, 0, that, bits, comparison_bits, int(i == 0), out)
        outs.append(out)
    return outs


def signed(shares: list[np.ndarray], bits: int) -> np.ndarray:
    """The signed values that `shares` sum to mod 2^bits."""
    total = np.add.reduce(shares)
    return (total << (64 - bits)) >> (64 - bits)
