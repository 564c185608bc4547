"""What a client sees of an answer: held against a slow twin, and against what may be seen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any
from unittest import mock

import echo_engine
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sessions import Sessions, answer, numbers

from privserve import sharing
from privserve.description import OutputDescription
from privserve.party import answers
from privserve.party.answers import AnswerCoins
from privserve.prg import Prg

RING = 2**64
AHEAD = 64
"""Words that are drawn ahead where they are compared one by one."""
COUNT = 40_000
SOFTMAX = {"op": "Softmax", "axis": -1}


def output(shape: Sequence[int], bits: int, activation: Any = None) -> OutputDescription:
    return {
        "name": "y",
        "shape": list(shape),
        "activation": activation,
        "rounded_bits": bits,
    }


def unlikely(counts: Counter, expected: dict[int, float]) -> bool:
    """Whether chi-square says that `counts` are not of these probabilities, at one in 10^9.

    Laurent and Massart: beyond d + 2 sqrt(d x) + 2 x with probability exp(-x) at most.
    """
    total, x = sum(counts.values()), 9 * math.log(10)
    if any(value not in expected for value in counts):
        return True
    terms = [(counts[v] - total * p) ** 2 / (total * p) for v, p in expected.items()]
    d = len(terms) - 1
    return sum(terms) > d + 2 * math.sqrt(d * x) + 2 * x


def seen(values: np.ndarray) -> Counter:
    return Counter(values.ravel().tolist())


def bytes_are_uniform(values: np.ndarray) -> bool:
    counts = Counter(np.ascontiguousarray(values).view(np.uint8).ravel().tolist())
    return not unlikely(counts, dict.fromkeys(range(256), 1 / 256))


def told(share: np.ndarray, bits: int, activation: Any = None) -> np.ndarray:
    """The share as a party of its own tells it: half of it in batches, half of it at once."""
    coins = AnswerCoins([output(share.shape[1:], bits, activation)], Prg())
    half, size = len(share) // 2, 500
    batches = [share[at : min(at + size, half)] for at in range(0, half, size)]
    batches = [batch for batch in (*batches, share[half:]) if len(batch)]
    parts = []
    for batch in batches:
        parts += coins.told([batch])
        coins.draw_ahead()
    return np.concatenate(parts)


# -- the twin -------------------------------------------------------------------------------


def slow_addends(described: OutputDescription, rows: int, prg: Prg) -> np.ndarray:
    """What shares are moved by, one Python integer at a time."""
    unit, shape = 2 ** described["rounded_bits"], (rows, *described["shape"])
    out = np.zeros(shape, dtype=object)
    if unit > 1:
        words = prg.int64(shape)
        for at in np.ndindex(shape):
            out[at] = int(words[at]) % unit
    axis = axis_of(described)
    if axis is not None:
        constants: dict[tuple[int, ...], int] = {}
        for at in np.ndindex(shape):
            group = at[:axis] + at[axis + 1 :]
            if group not in constants:
                constants[group] = 0
        for group in sorted(constants):
            constants[group] = int(prg.int64(1)[0])
        for at in np.ndindex(shape):
            out[at] += unit * constants[at[:axis] + at[axis + 1 :]]
    return out


def axis_of(described: OutputDescription) -> int | None:
    activation = described["activation"]
    if activation is None or activation["op"] not in ("Softmax", "LogSoftmax"):
        return None
    return activation["axis"] % (1 + len(described["shape"]))


def slow(share: np.ndarray, described: OutputDescription, addends: np.ndarray) -> np.ndarray:
    """The share as it is told."""
    unit = 2 ** described["rounded_bits"]
    moved = share.astype(object) + addends
    out = np.empty(share.shape, dtype=object)
    for at in np.ndindex(share.shape):
        out[at] = moved[at] - moved[at] % unit
    signed = [(int(v) + RING // 2) % RING - RING // 2 for v in out.ravel()]
    return np.array(signed, np.int64).reshape(share.shape)


@given(st.data())
def test_what_is_told_is_what_the_twin_tells(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 9))
    shape = data.draw(st.lists(st.integers(1, 4), max_size=2))
    activations: list[Any] = [None, {"op": "Sigmoid"}]
    activations += [
        {"op": op, "axis": axis}
        for op in ("Softmax", "LogSoftmax")
        for axis in range(-len(shape), 1 + len(shape))
        if axis
    ]
    key = data.draw(st.binary(min_size=32, max_size=32))
    described = [
        output(shape, data.draw(st.integers(0, 63)), data.draw(st.sampled_from(activations)))
        for _ in range(2)
    ]
    shares = [Prg().int64((rows, *shape)) for _ in described]
    before, twin = [share.copy() for share in shares], Prg(key)
    guards = Prg().int64((rows, 2, 40))
    with mock.patch.object(answers, "AHEAD_WORDS", AHEAD):
        got = AnswerCoins(described, Prg(key)).told([*shares, guards])
    ahead = [slow_addends(one, AHEAD // math.prod(shape), twin) for one in described]
    for share, one, drawn, mine in zip(shares, described, ahead, got, strict=False):
        if len(drawn) < len(share):  # none of them is used: the batch is larger
            drawn = slow_addends(one, len(share), twin)
        meant = slow(share, one, drawn[: len(share)])
        np.testing.assert_array_equal(mine, meant)
    assert got[2] is guards
    assert len(got) == 3
    np.testing.assert_array_equal(shares, before)  # an engine may still read its own


# -- what is seen ---------------------------------------------------------------------------


@pytest.mark.parametrize("below", range(8))
def test_a_share_is_rounded_up_as_often_as_it_lies_above(below: int) -> None:
    """One party's coins, whatever the others and the dealer know of its share."""
    share = np.full((COUNT, 1), 1000 * 8 + below)
    got = told(share, 3)
    chances = {8000: 1 - below / 8, 8008: below / 8}
    assert not unlikely(seen(got), {v: p for v, p in chances.items() if p})


def test_the_statistic_sees_coins_that_are_not_fair() -> None:
    share = np.full((COUNT, 1), 3)
    always_nearest = (share + 4) & ~7
    assert unlikely(seen(always_nearest), {0: 5 / 8, 8: 3 / 8})
    got = told(share, 3)
    assert unlikely(seen(got), {0: 4.7 / 8, 8: 3.3 / 8})


def chances_by_definition(value: int, bits: int) -> dict[int, float]:
    """Of what two parties' shares of `value` are joined to: all shares and coins, counted."""
    unit, found = 2**bits, Counter()
    for first in range(unit):
        second = value - first
        for coins in range(unit * unit):
            one, other = divmod(coins, unit)
            found[((first + one) // unit + (second + other) // unit) * unit] += 1
    return {v: n / unit**3 for v, n in found.items()}


@pytest.mark.parametrize("value", [-24, -21, 0, 3, 5, 8, 1007])
def test_a_client_sees_multiples_with_the_chances_that_follow_from_the_value(value: int) -> None:
    """All multiples of 2^t; on average the value itself, and less than 2^t off by each party."""
    expected = chances_by_definition(value, 3)
    assert sum(v * p for v, p in expected.items()) == pytest.approx(value)
    assert all(abs(v - value) < 2 * 8 for v in expected)
    shares = sharing.split(np.full((COUNT, 1), value), 2)
    assert not unlikely(seen(sharing.join([told(share, 3) for share in shares])), expected)


@pytest.mark.parametrize("bits", [1, 15, 40])
def test_no_bit_below_is_told_though_another_party_rounds_nothing(bits: int) -> None:
    """A client that knows alice's share, rounded by nobody, sees bob's: multiples, by his coins.

    So it learns the value less alice's share, stochastically rounded, and nothing else.
    """
    unit = 1 << bits
    alice, bob = sharing.split(np.full((COUNT, 1), 12345), 2)
    his = told(bob, bits)
    assert not (his & (unit - 1)).any()
    off = his - bob
    assert (np.abs(off) < unit).all()
    assert abs(off.mean()) < 6 * unit / math.sqrt(6 * COUNT)  # a variance of 1/6 on average
    assert ((sharing.join([alice, his]) - 12345) == off).all()


@pytest.mark.parametrize("bits", [0, 16])
def test_one_told_share_alone_looks_uniform(bits: int) -> None:
    for activation in (None, SOFTMAX):
        shares = sharing.split(np.full((COUNT, 3), 7), 2)
        for share in shares:
            got = told(share, bits, activation)
            assert bytes_are_uniform(got.view(np.uint8).reshape(-1, 8)[:, bits // 8 :])


@pytest.mark.parametrize("bits", [0, 8])
@pytest.mark.parametrize("activation", [SOFTMAX, {"op": "LogSoftmax", "axis": 1}])
def test_of_a_softmaxs_input_differences_are_told_and_nothing_else(
    bits: int, activation: dict[str, Any]
) -> None:
    """Also where alice hides nothing: bob's constant alone is uniform, and fresh for every row."""
    value = np.tile(np.array([-70_000, 512, 3 << 40]), (COUNT, 1))
    alice, bob = sharing.split(value, 2)
    his = told(bob, bits, activation)
    joined = sharing.join([alice, his])
    for column in range(3):  # together they are not: their differences are told
        one = np.ascontiguousarray(joined[:, column])
        assert bytes_are_uniform(one.view(np.uint8).reshape(-1, 8)[:, bits // 8 :])
    off = joined - joined[:, :1] - (value - value[:, :1])
    assert (np.abs(off) < (2 << bits if bits else 1)).all()
    assert len(np.unique(joined[:, 0])) > 0.999 * COUNT


def test_without_a_softmax_no_constant_is_added() -> None:
    for activation in (None, {"op": "Sigmoid"}, {"op": "Exp"}):
        share = Prg().int64((50, 3))
        got = told(share, 4, activation)
        assert (np.abs(got - share) < 16).all()


def test_rows_and_positions_have_constants_of_their_own() -> None:
    zeros = np.zeros((6, 4, 5), np.int64)
    last = told(zeros, 0, SOFTMAX)
    assert (last == last[:, :, :1]).all()
    assert len(np.unique(last)) == 6 * 4
    middle = told(zeros, 0, {"op": "Softmax", "axis": 1})
    assert (middle == middle[:, :1]).all()
    assert len(np.unique(middle)) == 6 * 5


@given(st.lists(st.integers(1, 7), min_size=1, max_size=60), st.integers(1, 40), st.data())
def test_no_coin_is_used_twice_however_batches_come(
    rows: list[int], ahead: int, data: st.DataObject
) -> None:
    hidden = []
    with mock.patch.object(answers, "AHEAD_WORDS", ahead):
        coins = AnswerCoins([output([3], 0, SOFTMAX)], Prg())
        for count in rows:
            hidden += coins.told([np.zeros((count, 3), np.int64)])[0][:, 0].tolist()
            if data.draw(st.booleans()):
                coins.draw_ahead()
    assert len(set(hidden)) == sum(rows)


# -- in a session ---------------------------------------------------------------------------


def test_every_query_and_every_party_draws_anew(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same shares, asked again and again: each party tells others each time."""
    described = output([2], 16, SOFTMAX)
    monkeypatch.setattr(
        echo_engine, "DESCRIPTION", {**echo_engine.DESCRIPTION, "outputs": [described]}
    )
    sessions.start()
    sessions.leader.queue.serve(None)
    secret = numbers(1 << 20, 5 << 20)
    shares = sharing.split(secret, 2)
    hidden = []
    for _ in range(20):
        asked = sessions.ask_raw(shares)
        joined = answer(asked)
        assert not (joined & 0xFFFF).any()
        assert abs(int(joined[0, 1] - joined[0, 0]) - (8 << 20)) < 4 << 16
        for share, query in zip(shares, asked, strict=True):
            hidden.append(int((query.future.result()[0] - 2 * share)[0, 0]) >> 16)
    # Rounding moves a constant of 48 bits by one at most: no two of them come that close.
    assert min(np.diff(sorted(hidden))) > 1


def test_what_an_engine_answers_is_not_told_unrounded(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        echo_engine, "DESCRIPTION", {**echo_engine.DESCRIPTION, "outputs": [output([2], 8)]}
    )
    sessions.start()
    sessions.leader.queue.serve(None)
    echo_engine.hold.clear()
    batch = [sessions.ask(numbers(1000 * i, -77 * i)) for i in range(1, 9)]
    echo_engine.hold.set()
    for i, asked in enumerate(batch, 1):
        for query in asked:
            assert not (query.future.result(10)[0] & 0xFF).any()
        assert (np.abs(answer(asked) - numbers(2000 * i, -154 * i)) < 2 << 8).all()
