"""Sessions of three parties in one process: real channels, an engine that doubles."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import echo_engine
import numpy as np
import pytest
from serving import make_config, wait_until

from privserve import engines, sharing
from privserve.config import read_config
from privserve.errors import LimitReached, NotServing, QueryError, TooManyRows
from privserve.party.lanes import Listener
from privserve.party.queries import Pending
from privserve.party.session import (
    LeaderSession,
    Seat,
    Session,
    SessionSpec,
    Timeouts,
    open_session,
)

QUICK = Timeouts(connect=5, peer=1.5, share=0.3)


class Sessions:
    """One session at every party of a cluster, the leader first and the dealer last."""

    def __init__(self, home: Path, parties: int = 3) -> None:
        socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(parties)]
        config = make_config(home, [f"127.0.0.1:{s.getsockname()[1]}" for s in socks])
        self.configs = [read_config(home / p.name / "cluster.toml") for p in config.parties]
        self.listeners = [
            Listener(own, own.parties[rank], sock)
            for rank, (own, sock) in enumerate(zip(self.configs, socks, strict=True))
        ]
        self.all: list[Session] = []

    def start(self, who: list[int] | None = None, timeouts: Timeouts = QUICK, **options) -> None:
        name = uuid4().hex
        for rank in range(len(self.listeners)) if who is None else who:
            spec = SessionSpec(name, "m", "echo", echo_engine.DESCRIPTION, {}, options)
            config = self.configs[rank]
            party = config.parties[rank]
            seat = Seat(config, party, self.listeners[rank], timeouts)
            self.all.append(open_session(seat, spec))
            self.all[-1].start()
        for session in self.all:
            assert session.ready.wait(10)

    @property
    def leader(self) -> LeaderSession:
        assert isinstance(self.all[0], LeaderSession)
        return self.all[0]

    def ask(self, x: np.ndarray, name: str | None = None) -> list[Pending]:
        """Submit one share of x to every compute party."""
        return self.ask_raw(sharing.split(x, len(self.all) - 1), name)

    def ask_raw(self, shares: list[np.ndarray], name: str | None = None) -> list[Pending]:
        name = name or uuid4().hex
        asked = [Pending(name, [share], len(share)) for share in shares]
        for session, query in zip(self.all, asked, strict=False):
            session.submit(query)  # type: ignore[attr-defined]
        return asked

    def close(self) -> None:
        for session in self.all:
            session.end("the test is over")
        for listener in self.listeners:
            listener.close()


@pytest.fixture(autouse=True)
def echo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(engines.ENGINES, "echo", "echo_engine")
    echo_engine.batches.clear()
    echo_engine.released.clear()
    yield
    echo_engine.hold.set()
    echo_engine.released.set()


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[Sessions]:
    three = Sessions(tmp_path)
    yield three
    echo_engine.hold.set()
    echo_engine.released.set()
    three.close()


def answer(asked: list[Pending]) -> np.ndarray:
    return sharing.join([query.future.result(10)[0] for query in asked])


def refusals(asked: list[Pending], seconds: float = 10) -> list[QueryError]:
    errors = [query.future.exception(seconds) for query in asked]
    assert all(isinstance(error, QueryError) for error in errors), errors
    return errors  # type: ignore[return-value]


def states(sessions: Sessions) -> list[str]:
    return [session.state for session in sessions.all]


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int64).reshape(-1, 2)


def test_a_query_is_answered_with_shares_of_its_answer(sessions: Sessions) -> None:
    sessions.start()
    sessions.leader.queue.serve(1)
    asked = sessions.ask(numbers(3, 4, 5, 6))
    np.testing.assert_array_equal(answer(asked), numbers(6, 8, 10, 12))
    assert not np.array_equal(asked[0].future.result()[0], answer(asked))


def test_five_parties_answer_as_three_do(tmp_path: Path) -> None:
    five = Sessions(tmp_path, 5)
    try:
        five.start()
        five.leader.queue.serve(None)
        np.testing.assert_array_equal(answer(five.ask(numbers(3, 4))), numbers(6, 8))
    finally:
        five.close()


def test_queries_that_pile_up_run_as_one_batch_and_get_their_own_rows(sessions: Sessions) -> None:
    sessions.start()
    sessions.leader.queue.serve(None)
    echo_engine.hold.clear()
    first = sessions.ask(numbers(0, 0))
    wait_until(lambda: len(sessions.leader.queue.pending) == 0, "the first one runs")
    others = [sessions.ask(numbers(*[i] * (2 * i))) for i in range(1, 5)]
    wait_until(lambda: len(sessions.leader.queue._ready) == 4, "the others are complete")
    echo_engine.hold.set()
    np.testing.assert_array_equal(answer(first), numbers(0, 0))
    for i, asked in enumerate(others, 1):
        np.testing.assert_array_equal(answer(asked), numbers(*[2 * i] * (2 * i)))
    assert sorted(echo_engine.batches) == [[0, 1], [0, 10], [1, 1], [1, 10]]


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


def test_ending_one_side_ends_all_with_its_reason(sessions: Sessions) -> None:
    sessions.start()
    sessions.all[1].end("bob was shut down")
    wait_until(lambda: states(sessions) == ["ended"] * 3, "all sessions ended")
    assert {session.reason for session in sessions.all} == {"bob was shut down"}


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_party_that_vanishes_is_named_to_all_clients(sessions: Sessions, gone: int) -> None:
    sessions.start()
    sessions.leader.queue.serve(None)
    echo_engine.hold.clear()
    running = sessions.ask(numbers(1, 1))
    wait_until(lambda: len(sessions.leader.queue.pending) == 0, "the query runs")
    waiting = sessions.ask(numbers(2, 2))
    vanish(sessions.all[gone])
    echo_engine.hold.set()
    name = sessions.configs[0].parties[gone].name
    others = [s for rank, s in enumerate(sessions.all) if rank != gone]
    wait_until(lambda: all(s.state == "failed" for s in others), "the others noticed", 5)
    for rank in {0, 1} - {gone}:
        assert f"{name} is gone" in str(refusals([waiting[rank]], 5)[0])
        running[rank].future.exception(5)  # answered or refused, but not left hanging
    with pytest.raises(NotServing, match=f"{name} is gone.*share the model again"):
        others[0].submit(Pending("q", [numbers(1, 1)], 1))  # type: ignore[attr-defined]


def wait_for_failure(sessions: Sessions) -> None:
    """All parties' sessions fail within seconds; says which do not, and why."""
    try:
        wait_until(lambda: states(sessions) == ["failed"] * 3, "all sessions failed")
    except AssertionError as error:
        raise AssertionError([session.status() for session in sessions.all]) from error


def vanish(session: Session) -> None:
    """Break all channels of `session` without a word, as a killed process does."""
    for lane in session._lanes.values():
        lane.close()


def test_a_party_that_hangs_is_given_up_and_its_clients_are_told(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions.start()
    sessions.leader.queue.serve(None)
    echo_engine.hold.clear()
    asked = sessions.ask(numbers(1, 1))
    # As a stopped process: its channels stay open, and nothing more comes.
    monkeypatch.setattr(sessions.all[2], "_hear", _stopped)
    wait_until(lambda: states(sessions)[:2] == ["failed"] * 2, "the others gave carol up", 6)
    echo_engine.hold.set()
    assert "carol gave no sign of life for 1.5 s" in sessions.leader.reason
    assert "carol" in str(refusals([asked[1]])[0])


def _stopped(*_: object) -> tuple[str | None, str]:
    echo_engine.released.wait(20)
    return None, "failed"


def test_a_share_is_not_taken_for_another_model_once_the_session_is_over(
    sessions: Sessions,
) -> None:
    sessions.start()
    sessions.leader.end("the owner left")
    wait_until(lambda: states(sessions) == ["ended"] * 3, "all sessions ended")
    for rank in (0, 1):
        with pytest.raises(NotServing, match="the owner left"):
            sessions.all[rank].submit(Pending("q", [numbers(1, 1)], 1))  # type: ignore[attr-defined]


def test_an_engine_that_fails_names_its_party_and_logs_no_value(
    sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    sessions.start()
    sessions.leader.queue.serve(None)
    crash = np.full((1, 2), echo_engine.CRASH)
    with caplog.at_level(logging.DEBUG):
        errors = refusals(sessions.ask_raw([crash, numbers(1, 1)]))
        wait_until(lambda: "failed" in states(sessions), "the session failed")
        wait_until(lambda: states(sessions) == ["failed"] * 3, "the others noticed")
    assert all("alice hit an internal error (ValueError)" in s.reason for s in sessions.all)
    assert all("alice" in str(error) for error in errors)
    assert "echo_engine.py" in caplog.text
    assert echo_engine.SECRET not in caplog.text
    assert echo_engine.SECRET not in "".join(map(str, errors))


def test_an_engine_that_cannot_start_fails_the_session_everywhere(sessions: Sessions) -> None:
    sessions.start(fail=True)
    wait_for_failure(sessions)
    assert "internal error (ValueError)" in sessions.leader.reason
    assert echo_engine.SECRET not in sessions.leader.reason


def test_a_party_that_does_not_join_is_named(sessions: Sessions) -> None:
    sessions.start([0, 2], Timeouts(connect=0.5, peer=1, share=1))
    wait_until(lambda: states(sessions) == ["failed"] * 2, "both gave up")
    assert "bob" in sessions.leader.reason


def test_a_second_session_follows_a_failed_one(sessions: Sessions) -> None:
    sessions.start()
    vanish(sessions.all[1])
    wait_for_failure(sessions)
    for session in sessions.all:
        session.end("again")
    sessions.all.clear()
    sessions.start()
    sessions.leader.queue.serve(None)
    np.testing.assert_array_equal(answer(sessions.ask(numbers(3, 4))), numbers(6, 8))


def test_the_status_counts_and_shows_no_share(sessions: Sessions) -> None:
    sessions.start()
    sessions.leader.queue.serve(2)
    answer(sessions.ask(numbers(3, 4, 5, 6)))
    wait_until(lambda: sessions.leader.queue.answered == 1, "the answer is counted")
    status = sessions.leader.status()
    assert status["state"] == "loaded"
    assert (status["answered"], status["limit"], status["waiting"]) == (1, 2, 0)
    assert (status["cost"]["queries"], status["cost"]["rows"]) == (1, 2)
    assert status["cost"]["frames"] == 1
    assert sessions.all[2].status()["session"] == status["session"]
    assert "shares" not in repr(sessions.leader.spec)


def test_a_session_leaves_no_thread_and_no_socket(sessions: Sessions) -> None:
    before = threading.active_count(), open_sockets()
    for _ in range(2):
        sessions.start()
        sessions.leader.queue.serve(None)
        answer(sessions.ask(numbers(3, 4)))
        for session in sessions.all:
            session.end("done")
        sessions.all.clear()
    wait_until(lambda: threading.active_count() <= before[0], "the threads are gone", 5)
    wait_until(lambda: open_sockets() <= before[1], "the sockets are closed", 5)


def open_sockets() -> int:
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found += str(descriptor.readlink()).startswith("socket:")
        except OSError:
            continue
    return found


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
    leader._runs.extend([(1, 0.0)] * 1000)
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
    sessions.leader.queue.serve(2)
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
