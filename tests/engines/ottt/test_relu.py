from __future__ import annotations

import numpy as np
import ottt_steps as steps
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privserve.engines.ottt import bits as packing
from privserve.engines.ottt import reference
from privserve.engines.ottt.ops.comparison import (
    ComparisonPlan,
    deal_tables,
    look_up,
    plan_comparison,
    work_out,
)
from privserve.engines.ottt.ops.relu import deal_relu, field_bits, finish_relu, string_bits
from privserve.engines.ottt.strings import string_words
from privserve.prg import Prg
from privserve.program import MAX_COMPARISON_BITS, MIN_COMPARISON_BITS
from privserve.sharing import split


@pytest.mark.parametrize("bits", [6, 8, 13, 20, 25, 31, 44])
def test_the_opened_matrix_is_r1_l_r2_with_the_comparison_as_its_determinant(bits):
    plan, parties, count = plan_comparison(bits), 3, 200
    values = steps.bounded(count, 1 << (bits - 2))
    _, seen = steps.relu(split(values, parties), 0, bits, bits)
    masks = [pack[0, : plan.mask_words * count].astype(object) for pack in seen.pools.packs]
    for e in range(count):
        r = sum(int(m[e]) for m in masks) % 2**bits
        start = 0
        for m in masks:
            start ^= int(m[e]) >> bits if plan.mask_words == 1 else int(m[count + e])
        start = reference.unpack_matrix(start, plan.chunks)
        r1, r2, corner = reference.work_out(plan, r, start)
        assert np.array_equal(
            reference.comparison_matrix(plan, 0, r, corner, r1, r2)
            - np.eye(plan.chunks, k=-1, dtype=np.int64),
            start,
        )
        opened = int(seen.opened[0, e])
        matrix = reference.comparison_matrix(plan, opened, r, corner, r1, r2)
        word = int(seen.matrix[0, e])
        assert word == reference.pack_matrix(matrix)
        m, mhat = r >> (bits - 1), opened >> (bits - 1)
        nonnegative = reference.determinant(word, plan.chunks) ^ mhat ^ corner ^ m
        unit = (opened - r - (1 << (bits - 1))) % 2**bits
        unit -= (unit >> (bits - 1)) << bits
        assert nonnegative == (unit >= 0)
        assert abs(unit - int(values[0, e])) <= 3


@given(st.lists(st.integers(1, 5), min_size=1, max_size=9), st.integers(2, 3))
@settings(max_examples=60, deadline=None)
def test_tables_of_any_cut_say_what_the_comparison_adds_to_the_matrix(widths, parties):
    """Also for chunks of r that are zero, which are rare in long ones."""
    plan, count = ComparisonPlan(sum(widths) + 1, tuple(widths)), 24
    bits = plan.table_bits
    prg = Prg()
    r = prg.int64(count) & packing.mask(plan.comparison_bits - 1)
    r[::3] &= prg.int64(len(r[::3]))
    r[::6] &= prg.int64(len(r[::6])) & prg.int64(len(r[::6]))
    start = prg.int64(count) & packing.mask(plan.opened_bits)
    columns, factors, corner, spare = (np.zeros(count, np.int64) for _ in range(4))
    work_out(r, start.copy(), plan.cuts(), columns, factors, corner, spare)
    words, rest = np.zeros(bits // 64 * count, np.int64), np.zeros(count, np.int64)
    deal_tables(r, columns, factors, plan.spec(0), plan.chunks, spare, words, rest)
    pool = np.concatenate([start << plan.comparison_bits, start, words, rest])[None]
    where = (0, plan.mask_words, 2 * count, bits // 64, 2 * count + words.size)
    if plan.mask_words == 1:
        pool[0, count : 2 * count] = 0
    x = prg.int64((1, count)) & packing.mask(plan.comparison_bits)
    x[0, ::4] = r[::4]
    x[0, 1::4] &= prg.int64(len(x[0, 1::4]))
    matrix = np.zeros((1, count), np.int64)
    packed = np.zeros((1, packing.packed_words(count, plan.opened_bits)), np.int64)
    shape = (plan.spec(0), plan.chunks, plan.opened_bits, plan.comparison_bits)
    look_up(pool, 0, *where, x, *shape, matrix, packed)
    for e in range(count):
        known = reference.unpack_matrix(int(start[e]), plan.chunks)
        r1, r2, bit = reference.work_out(plan, int(r[e]), known)
        meant = reference.comparison_matrix(plan, int(x[0, e]), int(r[e]), bit, r1, r2)
        word = int(matrix[0, e]) & packing.mask(plan.opened_bits)
        assert (word, int(corner[e])) == (reference.pack_matrix(meant), bit)


@pytest.mark.parametrize("widths", [(1,), (2, 1), (1, 2, 1), (2, 2, 1)])
def test_whatever_parties_draw_for_the_matrix_the_dealers_bits_are_uniform(widths):
    """For each r, the matrices at x = 0 and the dealer's R1, R2 and corner belong one to one."""
    plan = ComparisonPlan(sum(widths) + 1, widths)
    starts = np.arange(1 << plan.opened_bits)
    for r in range(1 << (plan.comparison_bits - 1)):
        columns, factors, corner, spare = (np.zeros(starts.size, np.int64) for _ in range(4))
        all_r = np.full(starts.size, r)
        work_out(all_r, starts.copy(), plan.cuts(), columns, factors, corner, spare)
        assert len(set(zip(columns, factors, corner, strict=True))) == starts.size
        assert factors.max(initial=0) < 1 << (plan.chunks - 1)


@pytest.mark.parametrize("parties", [2, 3, 4])
@pytest.mark.parametrize(
    ("comparison_bits", "shift", "bits"),
    [
        (25, 14, 39),
        (20, 14, 34),
        (25, 14, 64),
        (37, 14, 51),
        (43, 14, 64),
        (44, 20, 58),
        (9, 0, 30),
    ],
)
def test_relu_is_within_a_unit_per_party_at_every_border(parties, comparison_bits, shift, bits):
    values = steps.borders(comparison_bits, shift)
    outs, _ = steps.relu(split(values, parties), shift, comparison_bits, bits)
    exact = np.maximum(values >> shift, 0)
    assert np.abs(steps.signed(outs, bits) - exact).max() <= parties


@pytest.mark.parametrize("bits", range(MIN_COMPARISON_BITS, MAX_COMPARISON_BITS + 1))
def test_every_comparison_length_gives_exact_signs_without_a_shift(bits):
    values = steps.bounded(512, 1 << (bits - 1))
    values = np.clip(values, -(1 << (bits - 1)) + 4, (1 << (bits - 1)) - 4)
    outs, _ = steps.relu(split(values, 2), 0, bits, max(bits, 50))
    assert np.array_equal(steps.signed(outs, max(bits, 50)), np.maximum(values, 0))


def test_a_million_random_relus_are_exact_to_a_unit_per_party():
    for parties in (2, 3, 4):
        values = steps.bounded(350_000, 1 << 38)
        values = np.clip(values, -(1 << 38) + (4 << 14), (1 << 38) - (4 << 14))
        outs, _ = steps.relu(split(values, parties), 14, 25, 39)
        exact = np.maximum(values, 0) / 2**14
        assert np.abs(steps.signed(outs, 39) - exact).max() <= parties


@pytest.mark.slow
@pytest.mark.parametrize("parties", [2, 3])
def test_ten_million_random_relus_and_truncations_are_exact_to_a_unit_per_party(parties):
    top = (1 << 38) - (4 << 14)
    for _ in range(20):
        values = np.clip(steps.bounded(500_000, 1 << 38), -top, top)
        outs, _ = steps.relu(split(values, parties), 14, 25, 39)
        error = steps.signed(outs, 39) - np.maximum(values, 0) / 2**14
        assert np.abs(error).max() <= parties / 2 + 0.5
        values >>= 1
        outs = steps.truncate(split(values, parties), 14, 25, 39)
        assert np.abs(steps.signed(outs, 39) - values / 2**14).max() <= parties / 2 + 0.5


@pytest.mark.parametrize(("k", "bits"), [(25, 39), (20, 42), (26, 64), (12, 44), (43, 57)])
@pytest.mark.parametrize("lead", [0, 1])
def test_the_last_step_of_a_relu_matches_the_reference_on_arbitrary_tuples(k, bits, lead):
    plan, count, prg = plan_comparison(k), 150, Prg()
    high, string = bits - k, string_bits(bits, plan)
    words = string_words(count, string)
    drawn = prg.int64((1, count * plan.mask_words + words))
    pools = steps.made_ready([drawn], count * plan.mask_words, count, string)
    (pool,) = pools.packs
    opened = prg.int64((1, count)) & packing.mask(k)
    matrix = prg.int64((1, count)) & packing.mask(plan.opened_bits)
    out = np.empty((1, count), np.int64)
    seen = matrix[0].tolist()
    where = (0, pools.fields, pools.full, pools.ready)
    finish_relu(pool, 0, *where, opened, matrix, plan.chunks, bits, k, lead, out)
    names = ("b", "w", "b_rho1", "w_m", "b_m")
    parts = steps.parts_of(pools, (bits, high, bits, high, high), count)
    for e in range(count):
        x = int(opened[0, e])
        dhat = reference.determinant(seen[e], plan.chunks) ^ (x >> (k - 1))
        share = {name: part[0, 0, e] for name, part in zip(names, parts, strict=True)}
        share["r"] = int(pool[0, e]) % 2**k
        expected = reference.finish_relu(x, dhat, bits, plan, lead, share)
        assert int(out[0, e]) % 2**bits == expected


@pytest.mark.parametrize(("k", "bits"), [(18, 38), (21, 43), (25, 64), (9, 9), (44, 64)])
@pytest.mark.parametrize("parties", [2, 3])
def test_shares_of_a_tuple_sum_to_what_the_protocol_says(k, bits, parties):
    plan, count = plan_comparison(k), 40
    pools = steps.deal_relu_pools(plan, 2, count, bits, parties)
    sizes = (bits, bits - k, bits, bits - k, bits - k)
    b, w, b_rho1, w_m, b_m = steps.parts_of(pools, sizes, count)
    keep = 2**k - 1
    r = sum(p[:, :count].astype(object) & keep for p in pools.packs)
    sign = b.sum(0) % 2**bits
    m = (r & keep) >> (k - 1)
    assert set(sign.ravel()) <= {0, 1}
    assert np.array_equal(b_rho1.sum(0) % 2**bits, sign * ((r & keep) - m * 2**k) % 2**bits)
    above = 2 ** (bits - k)
    assert np.array_equal(w.sum(0) % above, (r >> k) % above)
    assert np.array_equal(w_m.sum(0) % above, ((r >> k) + m) % above)
    assert np.array_equal(b_m.sum(0) % above, sign * m % above)


def bits_of(words: np.ndarray) -> np.ndarray:
    """The share of ones of each bit of int64[samples, words]."""
    planes = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    return planes.mean(0)


@pytest.mark.parametrize(("k", "bits"), [(18, 38), (25, 64)])
def test_what_party_0_is_sent_is_made_of_fair_coins_whatever_it_drew_itself(k, bits):
    """And no two of its bits go together, which XORs of neighbours would show."""
    plan, count, samples = plan_comparison(k), 4, 20_000
    string = string_bits(bits, plan)
    words = string_words(count, string)
    masks = np.repeat(Prg().int64((1, plan.mask_words * count)), samples, axis=0)
    others = Prg().int64((1, samples, plan.mask_words * count + words))
    out = np.zeros((samples, words), np.int64)
    spec = plan.spec(field_bits(bits, k))
    place = (0, plan.mask_words, plan.mask_words * count, 0, count)
    deal_relu(masks, others, *place, bits, k, string, spec, plan.cuts(), out)
    used = np.array(reference.lay_strings([2**string - 1] * count, string), np.uint64)
    used = np.unpackbits(used.view(np.uint8), bitorder="little").astype(bool)
    bound = 0.5 * 5.5 / np.sqrt(samples)
    ones = bits_of(out)
    assert np.abs(ones[used] - 0.5).max() < bound
    assert not ones[~used].any()
    for distance in (1, count):
        together = bits_of(out[:, distance:] ^ out[:, :-distance])
        both = used[64 * distance :] & used[: -64 * distance]
        assert np.abs(together[both] - 0.5).max() < bound


@settings(max_examples=300, deadline=None)
@given(
    st.integers(2, 3),
    st.integers(MIN_COMPARISON_BITS, MAX_COMPARISON_BITS),
    st.integers(0, 58),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8),
)
def test_without_a_shift_the_result_follows_from_the_low_bits_of_every_ring_element(
    parties, k, more, words
):
    """What strict inputs rely on: also for |u| far beyond 2^(K-1), and for shares of any form."""
    bits, half = min(k + more, 64), 1 << (k - 1)
    edges = [0, -1, half - 1, half, -half, -half - 1, 2 * half, 2**63 - 1, -(2**63)]
    values = np.array([[*words, *edges]], dtype=np.int64)
    low = [(int(v) + half) % (2 * half) - half for v in values[0]]
    for shares in (split(values, parties), [values, *[np.zeros_like(values)] * (parties - 1)]):
        outs, _ = steps.relu(shares, 0, k, bits)
        total = [sum(int(out[0, e]) for out in outs) % 2**bits for e in range(len(low))]
        assert total == [max(v, 0) for v in low]
