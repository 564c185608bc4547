from __future__ import annotations

import numpy as np
import ottt_steps as steps
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privserve.engines.ottt import bits as packing
from privserve.engines.ottt import reference
from privserve.engines.ottt.ops.comparison import is_wide, plan_comparison
from privserve.engines.ottt.ops.relu import finish_relu
from privserve.prg import Prg
from privserve.program import MAX_COMPARISON_BITS, MIN_COMPARISON_BITS
from privserve.sharing import split


@pytest.mark.parametrize("bits", [7, 8, 13, 20, 25, 31, 43])
def test_the_opened_matrix_is_r1_l_r2_with_the_comparison_as_its_determinant(bits):
    plan = plan_comparison(bits)
    values = steps.bounded(200, 1 << (bits - 2))
    shares = split(values, 3)
    _, opened = steps.relu(shares, 0, bits, bits)
    fields = opened["pools"]
    keep = 2**bits - 1
    r = fields[:, :, 400:600].astype(object) & keep  # third field: r_i in the low bits
    for e in range(200):
        total = int(r[:, 0, e].sum()) & keep
        r1, r2, b = reference.unpack_free_bits(plan, int(opened["own"][1, 0, e]))
        m = total >> (bits - 1)
        matrix = reference.comparison_matrix(
            plan, int(opened["opened"][0, e]), total, b ^ m, r1, r2
        )
        word = int(opened["matrix"][0, e])
        assert word == reference.pack_matrix(matrix)
        mhat = int(opened["opened"][0, e]) >> (bits - 1)
        nonnegative = reference.determinant(word, plan.chunks) ^ mhat ^ b
        unit = (int(opened["opened"][0, e]) - total - (1 << (bits - 1))) & keep
        unit -= (unit >> (bits - 1)) << bits
        assert nonnegative == (unit >= 0)
        assert abs(unit - int(values[0, e])) <= 3


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


def fields_of(row: np.ndarray, e: int, count: int, bits: int, k: int) -> dict[str, int]:
    """The named shares of element e of a ReLU's tuple, as `relu` lays them out."""
    words = [int(row[i * count + e]) & (2**64 - 1) for i in range(len(row) // count)]
    wide = is_wide(bits, k)
    return {
        "b": words[0] % 2**bits,
        "b_rho1": words[1] % 2**bits,
        "r": words[2] % 2**k,
        "b_m": words[2] >> k,
        "w": words[3] if wide else words[0] >> bits,
        "w_m": words[4] if wide else words[1] >> bits,
    }


@pytest.mark.parametrize(("k", "bits"), [(25, 39), (20, 42), (26, 64), (12, 44), (43, 57)])
@pytest.mark.parametrize("lead", [0, 1])
def test_the_last_step_of_a_relu_matches_the_reference_on_arbitrary_tuples(k, bits, lead):
    plan, count, prg = plan_comparison(k), 150, Prg()
    pool = prg.int64((1, steps.relu_words(plan, bits) * count))
    opened = prg.int64((1, count)) & packing.mask(k)
    matrix = prg.int64((1, count)) & packing.mask(plan.opened_bits)
    out = np.empty((1, count), np.int64)
    words = matrix[0].tolist()
    wide = int(is_wide(bits, k))
    finish_relu(pool, 0, 0, opened, matrix, plan.chunks, bits, k, wide, lead, out)
    for e in range(count):
        x = int(opened[0, e])
        dhat = reference.determinant(words[e], plan.chunks) ^ (x >> (k - 1))
        share = fields_of(pool[0], e, count, bits, k)
        expected = reference.finish_relu(x, dhat, bits, plan, lead, share)
        assert int(out[0, e]) % 2**bits == expected


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
