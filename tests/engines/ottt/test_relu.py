from __future__ import annotations

import numpy as np
import ottt_steps as steps
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privserve.engines.ottt import bits as packing
from privserve.engines.ottt import nonlinear, reference
from privserve.engines.ottt.comparison import plan_comparison
from privserve.prg import Prg
from privserve.program import MAX_COMPARISON_BITS, MIN_COMPARISON_BITS
from privserve.sharing import split


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


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 64))
def test_packing_matches_the_reference_and_unpacks_to_the_same_values(count, bits):
    values = Prg().int64(count)
    out = np.zeros(packing.packed_words(count, bits), np.int64)
    packing.pack(values, count, bits, out)
    expected = reference.pack(values.tolist(), bits)
    assert [w & (2**64 - 1) for w in out.tolist()] == expected
    total = np.zeros(count, np.int64)
    packing.unpack_add(out, count, bits, total)
    assert np.array_equal(total, values & packing.mask(bits))
    packing.unpack_xor(out, count, bits, total)
    assert not total.any()


@pytest.mark.parametrize("bits", [7, 8, 13, 20, 25, 31, 43])
def test_the_opened_matrix_is_r1_l_r2_with_the_comparison_as_its_determinant(bits):
    plan = plan_comparison(bits)
    values = bounded(200, 1 << (bits - 2))
    shares = split(values, 3)
    _, opened = steps.relu(shares, 0, bits, bits)
    fields = opened["pools"]
    keep = 2**bits - 1
    r = fields[:, :, 400:600].astype(object) & keep  # third field: r_i in the low bits
    for e in range(200):
        total = int(r[:, 0, e].sum()) & keep
        r1, r2, b = reference.unpack_free_bits(plan, int(opened["own"][1, 0, e]))
        m = total >> (bits - 1)
        matrix = reference.comparison_matrix(plan, int(opened["that"][0, e]), total, b ^ m, r1, r2)
        word = int(opened["matrix"][0, e])
        assert word == reference.pack_matrix(matrix)
        mhat = int(opened["that"][0, e]) >> (bits - 1)
        nonnegative = reference.determinant(word, plan.chunks) ^ mhat ^ b
        unit = (int(opened["that"][0, e]) - total - (1 << (bits - 1))) & keep
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
    values = borders(comparison_bits, shift)
    outs, _ = steps.relu(split(values, parties), shift, comparison_bits, bits)
    exact = np.maximum(values >> shift, 0)
    assert np.abs(steps.signed(outs, bits) - exact).max() <= parties


@pytest.mark.parametrize("parties", [2, 3, 4])
@pytest.mark.parametrize(
    ("comparison_bits", "shift", "bits"), [(25, 14, 39), (25, 14, 64), (43, 14, 57), (12, 0, 40)]
)
def test_truncation_is_within_a_unit_per_party_at_every_border(
    parties, comparison_bits, shift, bits
):
    values = borders(comparison_bits - 1, shift)
    outs = steps.truncate(split(values, parties), shift, comparison_bits, bits)
    assert np.abs(steps.signed(outs, bits) - (values >> shift)).max() <= parties


@pytest.mark.parametrize("bits", range(MIN_COMPARISON_BITS, MAX_COMPARISON_BITS + 1))
def test_every_comparison_length_gives_exact_signs_without_a_shift(bits):
    values = bounded(512, 1 << (bits - 1))
    values = np.clip(values, -(1 << (bits - 1)) + 4, (1 << (bits - 1)) - 4)
    outs, _ = steps.relu(split(values, 2), 0, bits, max(bits, 50))
    assert np.array_equal(steps.signed(outs, max(bits, 50)), np.maximum(values, 0))


def test_a_million_random_relus_are_exact_to_a_unit_per_party():
    for parties in (2, 3, 4):
        values = bounded(350_000, 1 << 38)
        values = np.clip(values, -(1 << 38) + (4 << 14), (1 << 38) - (4 << 14))
        outs, _ = steps.relu(split(values, parties), 14, 25, 39)
        exact = np.maximum(values, 0) / 2**14
        assert np.abs(steps.signed(outs, 39) - exact).max() <= parties


@pytest.mark.slow
@pytest.mark.parametrize("parties", [2, 3])
def test_ten_million_random_relus_and_truncations_are_exact_to_a_unit_per_party(parties):
    top = (1 << 38) - (4 << 14)
    for _ in range(20):
        values = np.clip(bounded(500_000, 1 << 38), -top, top)
        outs, _ = steps.relu(split(values, parties), 14, 25, 39)
        error = steps.signed(outs, 39) - np.maximum(values, 0) / 2**14
        assert np.abs(error).max() <= parties / 2 + 0.5
        values >>= 1
        outs = steps.truncate(split(values, parties), 14, 25, 39)
        assert np.abs(steps.signed(outs, 39) - values / 2**14).max() <= parties / 2 + 0.5


def fields_of(row: np.ndarray, e: int, count: int, bits: int, k: int) -> dict[str, int]:
    """The named shares of element e of a ReLU's tuple, as `nonlinear` lays them out."""
    words = [int(row[i * count + e]) & (2**64 - 1) for i in range(len(row) // count)]
    wide = nonlinear.relu_is_wide(bits, k)
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
    pool = prg.int64((1, nonlinear.relu_words(plan, bits) * count))
    that = prg.int64((1, count)) & packing.mask(k)
    matrix = prg.int64((1, count)) & packing.mask(plan.opened_bits)
    out = np.empty((1, count), np.int64)
    opened = matrix[0].tolist()
    nonlinear.finish_relu(pool, 0, 0, that, matrix, plan.chunks, bits, k, lead, out)
    for e in range(count):
        x = int(that[0, e])
        dhat = reference.determinant(opened[e], plan.chunks) ^ (x >> (k - 1))
        share = fields_of(pool[0], e, count, bits, k)
        expected = reference.finish_relu(x, dhat, bits, plan, lead, share)
        assert int(out[0, e]) % 2**bits == expected


@pytest.mark.parametrize(("k", "bits"), [(25, 39), (26, 64), (12, 30), (43, 57)])
@pytest.mark.parametrize("lead", [0, 1])
def test_the_last_step_of_a_truncation_matches_the_reference_on_arbitrary_tuples(k, bits, lead):
    count, prg = 150, Prg()
    words = nonlinear.truncate_words(bits, k)
    pool = prg.int64((1, words * count))
    that = prg.int64((1, count)) & packing.mask(k)
    out = np.empty((1, count), np.int64)
    nonlinear.finish_truncate(pool, 0, 0, that, bits, k, lead, out)
    for e in range(count):
        first = int(pool[0, e]) & (2**64 - 1)
        high = first >> bits if words == 1 else int(pool[0, count + e])
        share = {"r": first % 2**k, "w": first >> k, "w_m": high}
        expected = reference.finish_truncate(int(that[0, e]), bits, k, lead, share)
        assert int(out[0, e]) % 2**bits == expected
