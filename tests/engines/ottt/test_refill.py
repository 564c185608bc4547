"""Who makes packs, and when: in spare time, or at once where queries wait for them."""

from __future__ import annotations

import os
import threading
from collections import Counter

import numpy as np
import pytest
from ottt_session import Session, uniform
from serving import wait_until
from test_ottt_session import small_net

from privserve.engines.ottt import refill
from privserve.engines.ottt.pool import Pool
from privserve.engines.ottt.spare_time import step_back
from privserve.prg import Prg


def given(pool: Pool, ask: str) -> tuple[threading.Thread, list[int]]:
    """Ask in a thread of its own; what it is told."""
    told: list[int] = []
    terms = (4, 8) if ask == "room" else ()
    thread = threading.Thread(target=lambda: told.append(getattr(pool, ask)(*terms)), daemon=True)
    thread.start()
    return thread, told


def filled(slots: int, taken: int) -> Pool:
    pool = Pool(slots, 1)
    pool.publish(slots)
    pool.take(taken)
    pool.release(taken)
    return pool


@pytest.mark.parametrize(("taken", "count"), [(13, 5), (14, 6), (16, 8)])
def test_packs_are_short_below_a_quarter_and_made_up_to_half(taken: int, count: int) -> None:
    assert filled(16, taken).shortage() == count


@pytest.mark.parametrize("ask", ["room", "shortage"])
def test_nobody_makes_packs_while_there_are_enough(ask: str) -> None:
    pool = filled(16, 7)  # 9 left
    thread, told = given(pool, ask)
    thread.join(0.05)
    assert not told
    pool.take(1 if ask == "room" else 6)
    pool.release(1 if ask == "room" else 6)
    thread.join(5)
    assert told == [8 if ask == "room" else 5]


def test_a_taker_that_waits_is_a_shortage_however_many_there_are() -> None:
    pool = filled(16, 2)
    thread, told = given(pool, "shortage")
    taker = threading.Thread(target=pool.take, args=(16,), daemon=True)
    taker.start()
    thread.join(5)
    assert told == [1]  # more than half is there, and not enough
    pool.publish(2)
    taker.join(5)
    assert not taker.is_alive()


def test_a_pool_that_is_rushed_is_filled_by_who_makes_packs_at_once() -> None:
    pool = filled(16, 9)
    pool.rush(True)
    spare, room = given(pool, "room")
    spare.join(0.05)
    assert not room
    pool._terms = (4, 8)
    assert pool.shortage() == 9
    pool.rush(False)
    spare.join(5)
    assert room == [9]


@pytest.mark.parametrize("ask", ["room", "shortage"])
def test_a_pool_that_is_closed_lets_everybody_go(ask: str) -> None:
    pool = filled(16, 0)
    thread, told = given(pool, ask)
    pool.close()
    thread.join(5)
    assert told == [0]


@pytest.fixture
def makers(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many fillings each kind of thread made."""
    made: Counter[str] = Counter()
    fill = Prg.fill

    def counted(self: Prg, out: memoryview) -> None:
        made[threading.current_thread().name.split("_")[0]] += 1
        fill(self, out)

    monkeypatch.setattr(Prg, "fill", counted)
    return made


def ask_right(session: Session, rows: int) -> None:
    x = uniform((rows, 6), -1, 1)
    (answer,) = session.query(x)
    expected = 0.125 * np.maximum(x, 0).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answer, np.repeat(expected, 3, axis=1), atol=1e-3)


def test_both_kinds_make_packs_in_one_order_so_that_answers_are_right(
    makers: Counter[str],
) -> None:
    with Session(small_net(), options={"pool_queries": 16}) as session:
        for rows in (1, 2, 9, 16, 1, 40, 3, 16, 5, 1) * 3:
            ask_right(session, rows)
    assert makers["packs"]
    assert makers["packs-now"]
    assert makers["spare"]  # of the dealer


def test_who_finds_no_spare_time_leaves_it_to_the_other(
    makers: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refill, "STARVED_SECONDS", -1.0)
    with Session(small_net(), options={"pool_queries": 64}) as session:
        wait_until(lambda: makers["packs"], "there was spare time at first")
        for _ in range(5):
            ask_right(session, 20)
        pools = [compute.pool for compute in session.computes]
        wait_until(lambda: all(pool._is_rushed for pool in pools), "both parties hurry")
        before = makers["packs"]
        for _ in range(20):
            ask_right(session, 20)
        assert makers["packs"] == before
    assert makers["packs-now"] > 20


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="Linux has it")
def test_a_thread_steps_back_alone() -> None:
    found: list[int] = []

    def work() -> None:
        step_back()
        found.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [os.SCHED_IDLE]
    assert os.sched_getscheduler(0) != os.SCHED_IDLE
