"""Products: the kernel against its slow reference."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from privserve.compiler.formats import repetition
from privserve.engines.ottt import reference
from privserve.engines.ottt.bits import dealt_words, unpack_dealt
from privserve.engines.ottt.ops import product
from privserve.prg import Prg


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([2, 3]), st.integers(1, 3), st.integers(1, 64), *[st.integers(1, 5)] * 3)
def test_a_product_is_its_reference(
    parties: int, batch: int, bits: int, outer: int, factors: int, inner: int
) -> None:
    count = outer * factors * inner
    x, y = Prg().int64((batch, count)), Prg().int64((batch, factors))
    masks = Prg().int64((batch, count + factors))
    words = dealt_words(count, bits)
    drawn = Prg().int64((parties, batch, count + factors + words))
    c = np.zeros((batch, words), np.int64)
    others, place = np.ascontiguousarray(drawn[1:]), (0, count + factors, 0)
    product.deal_product(masks, others, *place, count, factors, inner, bits, c)
    drawn[0] = np.concatenate([masks, c], axis=1)
    pools = []
    for pool in drawn:
        z = np.zeros((batch, count), np.int64)
        for b in range(batch):
            unpack_dealt(np.ascontiguousarray(pool[b, count + factors :]), count, bits, z[b])
        pools.append(np.concatenate([pool[:, : count + factors], z], axis=1))
    both = np.concatenate([x, y], axis=1)
    opened = both - sum(p[:, : count + factors] for p in pools)
    total = np.zeros((batch, count), np.int64)
    for rank, pool in enumerate(pools):
        out = np.empty((batch, count), np.int64)
        product.finish_product(
            np.ascontiguousarray(pool),
            0,
            0,
            count + factors,
            opened,
            factors,
            inner,
            int(rank == 0),
            out,
        )
        total += out
    for b in range(batch):
        meant = reference.product(x[b].tolist(), y[b].tolist(), inner)
        assert all((t - v) % 2**bits == 0 for t, v in zip(total[b].tolist(), meant, strict=True))


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=4))
def test_repetition_finds_the_element_that_broadcasting_takes(
    axes: list[tuple[int, bool]],
) -> None:
    shape = tuple(d for d, _ in axes)
    small = tuple(d if kept else 1 for d, kept in axes)
    inner = repetition(small, shape)
    numbers = np.arange(math.prod(small)).reshape(small)
    taken = np.broadcast_to(numbers, shape).ravel()
    if inner is not None:
        assert np.array_equal(np.arange(taken.size) // inner % numbers.size, taken)
