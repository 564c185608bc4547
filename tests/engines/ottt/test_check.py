"""Guarded ranges: a row's flags rise exactly where a comparison's result is wrong."""

from __future__ import annotations

import numpy as np
import ottt_steps as steps
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from ottt_models import graph
from ottt_session import Session, uniform

from privserve.compiler import bounds
from privserve.compiler.compile import compile_model
from privserve.compiler.ranges import Range
from privserve.engines.ottt import reference
from privserve.engines.ottt.ops import check
from privserve.engines.ottt.ops.opening import rounding
from privserve.errors import ModelError
from privserve.prg import Prg
from privserve.program import MAX_COMPARISON_BITS
from privserve.sharing import join, split

FLAGS = check.FLAGS


def zeros(parties: int, batch: int) -> list[np.ndarray]:
    """Every party's shares of zero, int64[batch, FLAGS], as the dealer corrects them."""
    others = Prg().int64((parties - 1, batch, FLAGS))
    first = np.zeros((batch, FLAGS), np.int64)
    check.deal_zeros(others, 0, 0, first)
    return [first, *others]


def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
    return Prg().int64(count), Prg().int64((FLAGS, FLAGS))


def flags_of_relu(
    values: list[np.ndarray], shift: int, k: int, g: int, bits: int
) -> tuple[np.ndarray, list[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The ReLU's result, every party's share of its flags, and the coefficients and matrix."""
    parties, (batch, count) = len(values), values[0].shape
    outs, seen = steps.relu(values, shift, k, bits)
    pools = seen.pools
    coefficients, matrix = drawn(count)
    shares = []
    for i, zero in enumerate(zeros(parties, batch)):
        words = pools.packs[i].shape[1]
        pool = np.concatenate([pools.packs[i], zero], axis=1)
        bias = rounding(parties, shift) if i == 0 else 0
        shares.append(np.zeros((batch, FLAGS), np.int64))
        drawn_words = (coefficients, matrix, words, shares[-1])
        place = (pools.masks, pools.fields, pools.full, pools.ready)
        arguments = (shift, bias, k, g, int(i == 0), *drawn_words, bits)
        check.guard_relu(pool, 0, *place, seen.opened, seen.dhat, values[i], *arguments)
    return steps.signed(outs, bits), shares, (coefficients, matrix)


def flags_of_truncation(
    values: list[np.ndarray], shift: int, k: int, g: int, bits: int
) -> tuple[np.ndarray, list[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    parties, (batch, count) = len(values), values[0].shape
    outs = steps.truncate(values, shift, k, bits)
    coefficients, matrix = drawn(count)
    shares = []
    for i, zero in enumerate(zeros(parties, batch)):
        bias = rounding(parties, shift) if i == 0 else 0
        shares.append(np.zeros((batch, FLAGS), np.int64))
        arguments = (shift, bias, k, g, coefficients, matrix, 0, shares[-1])
        check.guard_truncate(zero, 0, outs[i], values[i], *arguments)
    return steps.signed(outs, bits), shares, (coefficients, matrix)


def shifted(values: list[np.ndarray], shift: int, bits: int) -> np.ndarray:
    """u as the parties' shifted shares sum to it, a signed number of `bits` bits."""
    parties = len(values)
    parts = [
        (v + (rounding(parties, shift) if i == 0 else 0)) >> shift for i, v in enumerate(values)
    ]
    return steps.signed(parts, bits)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(2, 4),
    st.integers(6, 30),
    st.integers(1, 12),
    st.integers(0, 18),
    st.integers(0, 20),
    st.data(),
)
def test_a_relus_flags_are_the_references_and_rise_exactly_where_its_result_is_wrong(
    parties, k, g, shift, more, data
):
    bits = min(k + g + more, 64 - shift, 60)
    reach = 1 << min(k + g - 1, bits - 1)
    units = data.draw(st.lists(st.integers(-reach + 8, reach - 8), min_size=1, max_size=6))
    edges = [(1 << (k - 1)) - 1, 1 << (k - 1), -(1 << (k - 1)), -(1 << (k - 1)) - 1, 0]
    rows = np.array([[u] * 3 for u in [*units, *edges]], dtype=np.int64) << shift
    rows[:, 1:] //= 64  # one element of a row may leave its range alone
    values = split(rows, parties)
    u = shifted(values, shift, k + g)
    result, shares, (coefficients, matrix) = flags_of_relu(values, shift, k, g, bits)
    flags = join(shares)
    for row in range(len(rows)):
        excesses = [reference.excess(int(x), k, g) for x in u[row]]
        expected = reference.flags(excesses, g, coefficients.tolist(), matrix)
        assert [f % 2**64 for f in flags[row].tolist()] == expected
        assert flags[row].any() == any(excesses)
        wrong = not np.array_equal(result[row], np.maximum(u[row], 0))
        assert flags[row].any() or not wrong


@settings(max_examples=80, deadline=None)
@given(
    st.integers(2, 4),
    st.integers(6, 30),
    st.integers(1, 12),
    st.integers(0, 18),
    st.integers(0, 20),
    st.data(),
)
def test_a_truncations_flags_rise_exactly_where_its_result_is_wrong(
    parties, k, g, shift, more, data
):
    bits = min(k + g + more, 64 - shift, 60)
    reach = 1 << min(k + g - 1, bits - 1)
    units = data.draw(st.lists(st.integers(-reach + 8, reach - 8), min_size=1, max_size=6))
    quarter = 1 << (k - 2)
    rows = np.array([[u] * 3 for u in [*units, quarter - 1, quarter, -quarter, 0]]) << shift
    rows[:, 1:] //= 64
    values = split(rows.astype(np.int64), parties)
    u = shifted(values, shift, k + g)
    result, shares, _ = flags_of_truncation(values, shift, k, g, bits)
    flags = join(shares)
    modulus = 1 << (k + g)
    for row in range(len(rows)):
        wrong = bool(np.any((result[row] - u[row]) % modulus))
        assert flags[row].any() == wrong
        if np.abs(u[row]).max() < quarter:
            assert not wrong


def test_a_single_element_among_many_is_always_found_whatever_power_of_two_it_is_off_by():
    """The hardest cases: 2^(g - 1) times 2^K, which half of all subset sums lose."""
    k, g, bits, count = 12, 6, 24, 3000
    for q in (1, 2, 16, 32, 63):
        rows = np.zeros((50, count), np.int64)
        rows[np.arange(50), np.arange(50) * 57] = q << k
        rows = np.where(rows >= 1 << (k + g - 1), rows - (1 << (k + g)), rows)
        _, shares, _ = flags_of_relu(split(rows, 2), 0, k, g, bits)
        assert join(shares).any(1).all(), q


def test_two_elements_that_are_off_by_opposite_amounts_do_not_hide_each_other():
    k, g, bits = 12, 5, 24
    rows = np.zeros((200, 10), np.int64)
    rows[:, 3], rows[:, 7] = 1 << k, -(1 << k)
    _, shares, _ = flags_of_relu(split(rows, 3), 0, k, g, bits)
    assert join(shares).any(1).all()


@pytest.mark.parametrize("off", [0, 1, 3, 4, 12])
def test_the_clients_view_is_zero_or_uniform_up_to_a_power_of_two(off):
    """Simulated from the flag and the power of two that divides what a row is off by: 3 looks
    like 1, and 12 like 4. Each share alone is uniform."""
    k, g, bits, rows = 10, 6, 20, 4000
    values = np.zeros((rows, 2), np.int64)
    values[:, 0] = off << k
    _, shares, _ = flags_of_relu(split(values, 2), 0, k, g, bits)
    # One batch has one set of coefficients, so words are compared across batches below.
    joined = join(shares)
    assert joined.any() == bool(off)
    for share in shares:
        top = (share[:, 5] >> 60) & 15
        assert np.bincount(top, minlength=16).min() > rows / 16 * 0.7
    if not off:
        return
    words = []
    for _ in range(40):
        _, shares, _ = flags_of_relu(split(values[:1], 2), 0, k, g, bits)
        words += ((join(shares)[0] >> (64 - g)) & (2**g - 1)).tolist()
    valuation = off & -off
    seen = np.bincount(words, minlength=2**g)
    assert not seen[[w for w in range(2**g) if w % valuation]].any()
    possible = seen[::valuation]
    expected = len(words) / len(possible)
    # A chi-square statistic: its mean is the degrees of freedom, its deviation their root.
    statistic = float(((possible - expected) ** 2 / expected).sum())
    freedom = len(possible) - 1
    assert abs(statistic - freedom) < 6 * np.sqrt(2 * freedom) + 3


def test_shares_of_zero_hide_what_a_partys_words_would_say():
    """Where a party has nothing to add, it sends its share of zero and no zeros."""
    zero = zeros(3, 2)
    assert not join(zero).any()
    for share in zero:
        flags = np.zeros((2, FLAGS), np.int64)
        check.guard_zero(share, 0, np.zeros((2, 9), np.int64), 20, *drawn(9), 0, flags)
        assert np.array_equal(flags, share)
        assert len(np.unique(flags)) > FLAGS


@settings(max_examples=200, deadline=None)
@given(
    st.floats(1e-3, 1e9), st.floats(1e-6, 1.0), st.integers(0, 30), st.booleans(), st.integers(1, 2)
)
def test_a_guessed_comparison_and_its_guard_hold_all_that_the_interval_allows(
    reach, part, shift, first, spare
):
    """Or else an excess that is a multiple of 2^g would pass for none."""
    policy = bounds.Bounds(14, guess=True, guessed=[] if first else ["earlier"])
    step = 2.0 ** -(14 + shift)
    limits = np.array([-reach, reach])
    try:
        chosen = policy.comparison(
            Range(limits[:1], limits[1:], part * limits[1:][None]), step, shift, "here", spare=spare
        )
    except ModelError:
        return
    units = reach / step / 2**shift
    assert chosen.bits <= MAX_COMPARISON_BITS
    assert shift + chosen.bits + chosen.guard <= 64
    if chosen.guard:
        assert policy.guessed[-1] == "here"
        assert units < 2.0 ** (chosen.bits + chosen.guard - 1)
        assert part * units <= 2.0 ** (chosen.bits - spare)
        assert chosen.range.magnitude >= min(reach, 2.0 ** (chosen.bits - 1) * step * 2**shift)
    else:
        assert units < 2.0 ** (chosen.bits - spare)
        assert chosen.range.magnitude == reach


def deep_net(layers: int = 30) -> object:
    generator = np.random.default_rng(3)
    nodes, constants, last = [], {}, "x"
    for i in range(layers):
        constants[f"w{i}"] = generator.normal(size=(16, 16)) * 0.35
        nodes += [
            helper.make_node("Gemm", [last, f"w{i}"], [f"g{i}"], name=f"dense {i}"),
            helper.make_node("Relu", [f"g{i}"], [f"r{i}"], name=f"relu {i}"),
        ]
        last = f"r{i}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    return graph(nodes, constants, (16,)), constants


def ideal(constants: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    for weight in constants.values():
        x = np.maximum(x @ weight.astype(np.float32).astype(np.float64), 0)
    return x


@pytest.mark.parametrize("parties", [2, 3])
def test_an_answer_of_a_deep_net_is_right_or_flagged(parties, monkeypatch):
    """With a margin far too small many inputs leave a guessed range: never in silence."""
    monkeypatch.setattr(bounds, "CALIBRATION_MARGIN", 0.2)
    model, constants = deep_net()
    x = np.concatenate([uniform((40, 16), -8, 8), uniform((40, 16), -0.2, 0.2)])
    with Session(model, parties) as session:
        got, flags = session.query(x)
    wrong = np.abs(got - ideal(constants, x)).max(1) > 1e-2
    flagged = flags.any((1, 2))
    assert wrong.sum() > 5
    assert not flagged.all()
    assert np.array_equal(wrong, flagged)
    assert flags.shape == (80, len(session.program.guards), FLAGS)


def test_a_guard_costs_its_bits_and_no_exchange(monkeypatch):
    model, _ = deep_net()
    with_guards, _ = compile_model(model)
    without, _ = compile_model(model, range_check=False)
    assert with_guards.guards
    assert not without.guards
    assert any("NOT CHECKED" in note for note in without.notes)
    for program in (with_guards, without):
        assert [op.kind for op in program.ops] == [op.kind for op in without.ops]
    for op, plain in zip(with_guards.ops, without.ops, strict=True):
        if "geometry" in op.attributes:
            behind = with_guards.ops[with_guards.ops.index(op) + 1 :]
            reader = next(o for o in behind if "guard" in o.attributes)
            more = reader.attributes["guard"]
            assert with_guards.values[op.output].bits - without.values[plain.output].bits == more


def test_a_model_with_sound_bounds_has_no_guards():
    model, _ = deep_net(8)
    program, _ = compile_model(model)
    assert not program.guards
    assert not program.notes


def test_samples_do_not_replace_a_bound_that_the_ring_affords():
    """An input far from the samples, but inside the declared range, is answered rightly."""
    model, constants = deep_net(8)
    with Session(model, calibration=np.full((4, 16), 0.01)) as session:
        x = uniform((20, 16), -8, 8)
        (got,) = session.query(x)
    assert np.abs(got - ideal(constants, x)).max() < 1e-2
