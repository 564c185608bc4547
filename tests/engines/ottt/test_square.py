"""Squares: the kernels against their twin, then whole programs of one op and two."""

from __future__ import annotations

import numpy as np
import pytest
import reference_program
from hypothesis import given, settings
from hypothesis import strategies as st
from ottt_openings import bits_by_value, online_values
from ottt_session import Session, uniform

from privserve.compiler.simulate import simulate
from privserve.engines import Prepared, ottt
from privserve.engines.ottt import reference
from privserve.engines.ottt.bits import dealt_words, mask, unpack_dealt
from privserve.engines.ottt.costs import cost_of_op
from privserve.engines.ottt.ops.square import deal_square, finish_square
from privserve.prg import Prg
from privserve.program import Op, Port, Program, Value

COUNT = 64


def program_of(*, kind: str = "square", truncated: bool = False) -> Program:
    """y = x * x for x in [-8, 8]; truncated: back to 14 fraction bits."""
    inputs = (0,) if kind == "square" else (0, 0)
    attributes = {} if kind == "square" else {"inner": 1}
    values = [Value((COUNT,), 64, 2.0**-14, 8.0), Value((COUNT,), 64, 2.0**-28, 64.0)]
    ops = [Op(kind, "a square", inputs, 1, attributes)]
    if truncated:
        shift = {"shift": 14, "comparison_bits": 24, "guard": 0}
        values[1] = Value((COUNT,), 38, 2.0**-28, 64.0)
        values.append(Value((COUNT,), 64, 2.0**-14, 64.0))
        ops.append(Op("truncate", "a truncation", (1,), 2, shift))
    output_bits = 14 if truncated else 28
    ports = (Port("x", 0),), (Port("y", len(values) - 1),)
    return Program(*ports, tuple(values), tuple(ops), 14, output_bits, (-8.0, 8.0))


def session_of(
    program: Program, monkeypatch: pytest.MonkeyPatch, parties: int = 2, **options: int
) -> Session:
    prepared = Prepared("ottt", {"engine": "ottt", **program.to_json()}, {})
    monkeypatch.setattr(ottt, "prepare", lambda model, **_: prepared)
    return Session(None, parties, options=options)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 4), st.integers(1, 3), st.integers(1, 40), st.integers(1, 64))
def test_a_square_is_its_reference(parties: int, batch: int, count: int, bits: int) -> None:
    x, masks = Prg().int64((batch, count)), Prg().int64((batch, count))
    words = dealt_words(count, bits)
    drawn = Prg().int64((parties, batch, count + words))
    corrected = np.zeros((batch, words), np.int64)
    deal_square(masks, np.ascontiguousarray(drawn[1:]), 0, count, 0, count, bits, corrected)
    drawn[0] = np.concatenate([masks, corrected], axis=1)
    pools = []
    for pool in drawn:
        c = np.zeros((batch, count), np.int64)
        for b in range(batch):
            unpack_dealt(np.ascontiguousarray(pool[b, count:]), count, bits, c[b])
        pools.append(np.concatenate([pool[:, :count], c], axis=1))
    opened = x - sum(pool[:, :count] for pool in pools)
    total = np.zeros((batch, count), np.int64)
    for rank, pool in enumerate(pools):
        out, lead = np.empty((batch, count), np.int64), int(rank == 0)
        finish_square(np.ascontiguousarray(pool), 0, 0, count, opened, lead, out)
        for b, e in np.ndindex(batch, count):
            share = {"a": int(pool[b, e]), "c": int(pool[b, count + e])}
            assert int(out[b, e]) % 2**64 == reference.square(int(opened[b, e]), lead, share)
        total += out
    assert not ((total - x * x) & mask(bits)).any()


@pytest.mark.parametrize("parties", [2, 3, 4])
@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("piece_bytes", [1, 1 << 20])
def test_parties_square_as_the_program_means(
    parties: int, truncated: bool, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = program_of(truncated=truncated)
    x = uniform((5, COUNT), -8, 8)
    x[0, :4] = (0, 8, -8, 2.0**-14)
    with session_of(program, monkeypatch, parties, piece_bytes=piece_bytes) as session:
        (got,) = session.query(x)
    units = np.rint(x * 2.0**14).astype(np.int64)
    (plain,) = simulate(program, {}, [units]).outputs
    most = parties / 2 + 1 if truncated else 0
    assert np.abs(got * 2.0**program.output_fraction_bits - plain).max() <= most
    for row in range(len(x)):
        meant = reference_program.run(program, {}, [units[row]], parties=parties)
        assert np.abs(plain[row] - meant.units[0]).max() == 0
        assert (np.abs(got[row] - x[row] ** 2) <= meant.errors[0]).all()


@pytest.mark.parametrize("value", [0.0, 7.9])
def test_what_is_opened_and_every_share_of_it_is_made_of_fair_coins(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = program_of(truncated=True)
    with session_of(program, monkeypatch) as session:
        session.query(np.full((60, COUNT), value))
        sent = session.wires["online"].sent
    # There are no weights to open first.
    both = [[b"", *(f for a, _, f in sent if a == rank)] for rank in (0, 1)]
    shares = [[v for _, v in online_values(program, frames, [60])] for frames in both]
    for values, bits in ((shares[0][0], 38), (shares[1][0], 38), (shares[0][0] + shares[1][0], 38)):
        ones = bits_by_value(values, bits).mean(0)
        assert np.abs(ones - 0.5).max() < 0.5 * 5.5 / np.sqrt(values.size)


def test_a_square_costs_what_it_states_and_half_a_product_online(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent, dealt = {}, {}
    for kind in ("square", "multiply"):
        program = program_of(kind=kind)
        cost = cost_of_op(program, program.ops[0])
        with session_of(program, monkeypatch, 3) as session:
            session.query(np.zeros((4, COUNT)))
            online = [f for a, b, f in session.wires["online"].sent if (a, b) == (0, 1)]
        made = session.computes[0].pool.made
        packs = [f for a, b, f in session.wires["deal"].sent if (a, b) == (3, 0)][1:]
        assert len(online) == cost.exchanges == 1
        assert len(online[0]) == 4 * cost.bytes_online + 8  # the pack number
        assert sum(map(len, packs)) == cost.bytes_dealt * made
        sent[kind], dealt[kind] = cost.bytes_online, cost.bytes_dealt
    assert sent == {"square": 8 * COUNT, "multiply": 16 * COUNT}
    assert dealt == {"square": 8 * COUNT, "multiply": 8 * COUNT}


def test_two_queries_are_opened_under_masks_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with session_of(program_of(), monkeypatch) as session:
        for _ in range(2):
            session.query(np.ones((3, COUNT)))
        frames = [f for a, _, f in session.wires["online"].sent if a == 0]
    words = [np.frombuffer(f, np.int64)[1:] for f in frames]
    assert np.intersect1d(*words).size == 0
    assert len(np.unique(words[0])) == words[0].size
