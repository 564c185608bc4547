"""Queries in a session: who orders, answers, refuses and counts them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import echo_engine
import numpy as np
import pytest
from serving import wait_until
from sessions import Sessions, answer, numbers, refusals, states

from privserve.config import Timeouts
from privserve.errors import LimitReached, TooManyRows
from privserve.party.pending import Pending


def test_a_query_is_answered_with_shares_of_its_answer(sessions: Sessions) -> None:
    sessions.start()
    sessions.leader.queue.serve(2)
    asked = sessions.ask(numbers(3, 4, 5, 6))
    np.testing.assert_array_equal(answer(asked), numbers(6, 8, 10, 12))
    assert not np.array_equal(asked[0].future.result()[0], answer(asked))


@pytest.mark.usefixtures("echo")
def test_five_parties_answer_as_three_do(tmp_path: Path) -> None:
    five = Sessions(tmp_path, 5)
    try:
        five.start()
        five.leader.queue.serve(None)
        np.testing.assert_array_equal(answer(five.ask(numbers(3, 4))), numbers(6, 8))
    finally:
        five.close()


def test_queries_that_pile_up_run_together_and_get_their_own_rows(sessions: Sessions) -> None:
    sessions.start()
    sessions.leader.queue.serve(None)
    echo_engine.hold.clear()
    first = sessions.ask(numbers(0, 0))
    wait_until(lambda: len(sessions.leader.queue.pending) == 0, "the first one runs")
    others = [sessions.ask(numbers(*[i] * (2 * i))) for i in range(1, 5)]
    wait_until(lambda: sessions.leader.queue._ready.rows == 10, "the others are complete")
    echo_engine.hold.set()
    np.testing.assert_array_equal(answer(first), numbers(0, 0))
    for i, asked in enumerate(others, 1):
        np.testing.assert_array_equal(answer(asked), numbers(*[2 * i] * (2 * i)))
    assert sorted(echo_engine.batches) == [[0, 1], [0, 2], [0, 8], [1, 1], [1, 2], [1, 8]]


def test_a_batch_is_no_larger_than_the_owner_allows(sessions: Sessions) -> None:
    sessions.start(max_batch=2)
    sessions.leader.queue.serve(None)
    echo_engine.hold.clear()
    asked = [sessions.ask(numbers(i, i)) for i in range(6)]
    echo_engine.hold.set()
    for i, one in enumerate(asked):
        np.testing.assert_array_equal(answer(one), numbers(2 * i, 2 * i))
    assert max(rows for _, rows in echo_engine.batches) <= 2


def test_the_limit_is_told_at_every_party(sessions: Sessions) -> None:
    sessions.start()
    sessions.leader.queue.serve(1)
    answer(sessions.ask(numbers(1, 1)))
    wait_until(lambda: not sessions.leader.queue.serving, "the limit is reached")
    late = [Pending("late", [numbers(1, 1)], 1) for _ in range(2)]
    sessions.all[1].submit(late[1])  # type: ignore[attr-defined]
    with pytest.raises(LimitReached):
        sessions.leader.submit(late[0])
    assert isinstance(late[1].future.exception(5), LimitReached)
    assert states(sessions) == ["loaded"] * 3


def test_a_session_that_failed_serves_nothing(sessions: Sessions) -> None:
    sessions.start()
    sessions.leader.queue.serve(None)
    assert sessions.leader.facts()["serving"] is True
    sessions.all[1].end("bob was stopped")
    wait_until(lambda: not sessions.leader.is_alive, "the leader knows")
    assert sessions.leader.facts()["serving"] is False


@pytest.mark.parametrize("receiver", [0, 1])
def test_a_share_that_reaches_one_party_times_out_while_others_are_answered(
    sessions: Sessions, receiver: int
) -> None:
    sessions.start()
    sessions.leader.queue.serve(None)
    alone = Pending("alone", [numbers(1, 1)], 1)
    sessions.all[receiver].submit(alone)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(answer(sessions.ask(numbers(3, 4))), numbers(6, 8))
    (error,) = refusals([alone], 3)
    assert error.status == 504
    assert "only 1 of 2 compute parties" in str(error)
    np.testing.assert_array_equal(answer(sessions.ask(numbers(5, 6))), numbers(10, 12))


def test_shares_of_different_sizes_are_refused_at_both_parties(sessions: Sessions) -> None:
    sessions.start()
    sessions.leader.queue.serve(None)
    errors = refusals(sessions.ask_raw([numbers(1, 1), numbers(1, 1, 2, 2)]))
    assert [error.status for error in errors] == [400, 400]
    assert states(sessions) == ["loaded"] * 3


def test_the_status_counts_and_shows_no_share(sessions: Sessions) -> None:
    sessions.start()
    sessions.leader.queue.serve(2)
    answer(sessions.ask(numbers(3, 4, 5, 6)))
    wait_until(lambda: sessions.leader.queue.answered == 2, "the answer is counted")
    status = sessions.leader.status()
    assert status["state"] == "loaded"
    assert (status["answered"], status["limit"], status["waiting"]) == (2, 2, 0)
    assert (status["cost"]["queries"], status["cost"]["rows"]) == (1, 2)
    assert status["cost"]["frames"] == 1
    assert sessions.all[2].status()["session"] == status["session"]
    assert "shares" not in repr(sessions.leader.spec)


def test_many_clients_at_once_get_exactly_the_limit_and_nobody_hangs(sessions: Sessions) -> None:
    sessions.start()
    sessions.leader.queue.serve(20)
    outcomes: list[str] = []

    def ask(seed: int) -> None:
        for i in range(6):
            x = numbers(seed, i)
            try:
                asked = sessions.ask(x)
                np.testing.assert_array_equal(answer(asked), 2 * x)
                outcomes.append("answered")
            except LimitReached:
                outcomes.append("refused")

    at_once([lambda seed=seed: ask(seed) for seed in range(8)])
    assert outcomes.count("answered") == 20
    assert outcomes.count("refused") == 28


def at_once(calls: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    for thread in threads:
        thread.join(deadline - time.monotonic())
        assert not thread.is_alive()


def test_status_may_be_asked_at_any_moment_while_batches_are_counted(sessions: Sessions) -> None:
    """Its counters belong to the session's thread; walking them unguarded ended whole clusters."""
    sessions.start(timeouts=Timeouts(connect=5, peer=60, share=20))
    leader = sessions.leader
    stop = threading.Event()
    failures: list[BaseException] = []

    def walk() -> None:
        try:
            while not stop.is_set():
                leader.status()
        except BaseException as failure:
            failures.append(failure)

    leader.queue.serve(None)
    answer(sessions.ask(numbers(1, 2)))
    leader.statistics._recent.extend([(1, 0.0)] * 1000)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    walkers = [threading.Thread(target=walk, daemon=True)]
    try:
        for thread in walkers:
            thread.start()
        for _ in range(60):
            answer(sessions.ask(numbers(1, 2)))
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        for thread in walkers:
            thread.join(10)
    assert not failures
    assert leader.status()["cost"]["queries"] == 61


def test_a_batch_that_a_party_has_no_memory_for_is_refused_and_the_next_is_answered(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions.start()
    sessions.leader.queue.serve(4)
    run = echo_engine.Compute.run

    def scarce(self: echo_engine.Compute, inputs: list[np.ndarray]) -> list[np.ndarray]:
        if len(inputs[0]) > 2:
            raise TooManyRows("a party has no memory for 3 rows at a time")
        return run(self, inputs)

    monkeypatch.setattr(echo_engine.Compute, "run", scarce)
    told = refusals(sessions.ask(numbers(1, 2, 3, 4, 5, 6)))
    assert {error.status for error in told} == {413}
    assert sessions.leader.queue.answered == 0
    for _ in range(2):
        assert answer(sessions.ask(numbers(1, 2))).tolist() == [[2, 4]]
    assert states(sessions) == ["loaded"] * 3
    assert sessions.leader.queue.answered == 2


def test_a_batch_waits_for_more_queries_where_the_owner_wants_that(sessions: Sessions) -> None:
    sessions.start(max_batch=3, max_delay_ms=5000)
    sessions.leader.queue.serve(None)
    started = time.monotonic()
    asked = [sessions.ask(numbers(i, i)) for i in range(3)]  # full: it waits no longer
    for i, one in enumerate(asked):
        np.testing.assert_array_equal(answer(one), numbers(2 * i, 2 * i))
    assert time.monotonic() - started < 4
    assert sorted(echo_engine.batches) == [[0, 3], [1, 3]]
