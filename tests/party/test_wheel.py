"""Sessions of several models at one party: who drives its poller, and that nothing gets lost."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import echo_engine
import numpy as np
import pytest
from serving import wait_until
from sessions import Sessions, answer, numbers

from privserve import sharing
from privserve.config import Timeouts
from privserve.errors import StaleSession
from privserve.party.pending import Pending
from privserve.party.poller import Poller
from privserve.party.session import ARRIVALS
from privserve.party.wheel import Wheel

PATIENT = Timeouts(connect=5, peer=20, share=10)


class Idler:
    """A driver that never drives: it only counts."""

    def __init__(self) -> None:
        self.moves = 0

    def move(self) -> None:
        self.moves += 1


@pytest.fixture
def poller():
    made = Poller()
    yield made
    made.close()


@pytest.fixture
def shared(sessions: Sessions) -> Sessions:
    """Sessions at parties that have one poller each."""
    sessions.share_pollers()
    return sessions


def test_the_only_driver_may_drive_and_of_several_none(poller: Poller) -> None:
    wheel, one, other = Wheel(poller), Idler(), Idler()
    assert wheel.drivers == 1
    wheel.join(one)
    assert wheel.may_drive(one)
    assert not wheel.may_drive(other)
    wheel.join(other)
    assert not wheel.may_drive(one)
    assert not wheel.may_drive(other)
    assert poller.is_shared
    assert wheel.drivers == 2
    wheel.leave(one)
    wheel.leave(one)
    assert wheel.may_drive(other)
    assert not poller.is_shared
    assert (one.moves, other.moves) == (2, 2), "each is told of every change but its own leave"


def test_while_it_is_shared_the_stand_in_hears_calls_at_once_though_batches_run(
    poller: Poller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one model a call may wait for a tenth of a second; no other model's client may."""
    monkeypatch.setattr("privserve.party.poller.STAND_IN_SECONDS", 20)
    poller.share(True)
    with poller.attached():
        for _ in range(5):
            with poller.away():
                for _ in range(3):
                    came = threading.Event()
                    poller.call(came.set)
                    assert came.wait(5), "it waits for the stand-in's next look"


def test_a_poller_that_becomes_shared_while_a_batch_runs_is_driven_at_once(
    poller: Poller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privserve.party.poller.STAND_IN_SECONDS", 20)
    with poller.attached(), poller.away():
        poller.share(True)
        came = threading.Event()
        poller.call(came.set)
        assert came.wait(5)


def test_who_drove_last_gets_the_turn_back_from_a_stand_in_that_is_about_to_wait(
    poller: Poller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poller does not ring for the thread that drove last, which is just this one."""
    poll, entered, goes_on = poller.poll, threading.Event(), threading.Event()

    def paused(seconds: float | None = None) -> None:
        if threading.current_thread().name == "poller" and not entered.is_set():
            entered.set()
            goes_on.wait(10)
        poll(seconds)

    with poller.attached():
        poll(0)
        monkeypatch.setattr(poller, "poll", paused)
    assert entered.wait(10), "the stand-in has the turn"
    late: list[str] = []

    def watch() -> None:
        wait_until(lambda: poller.is_attached, "this thread wants the turn")
        goes_on.set()
        if not got.wait(5):
            late.append("the stand-in slept")
            poller._interrupt()

    got, watcher = threading.Event(), threading.Thread(target=watch)
    watcher.start()
    with poller.attached():
        got.set()
    watcher.join()
    assert not late


def test_who_comes_back_from_a_batch_gets_the_turn_though_the_stand_in_waits(
    poller: Poller,
) -> None:
    poller.share(True)
    with poller.attached():
        for _ in range(200):
            with poller.away():
                pass
        with poller.away():
            came = threading.Event()
            poller.call(came.set)
            assert came.wait(10)
        assert poller.turn.locked()
    came = threading.Event()
    poller.call(came.set)
    assert came.wait(10), "nobody drives after the block"


def test_a_session_that_moves_back_and_forth_under_load_loses_no_query(shared: Sessions) -> None:
    shared.start(timeouts=PATIENT)
    shared.leader.queue.serve(None)
    assert shared.wheels is not None
    over = threading.Event()
    turns = [0]

    def turn(wheel: Wheel, seed: int) -> None:
        dice = random.Random(seed)
        while not over.is_set():
            other = Idler()
            wheel.join(other)
            time.sleep(dice.choice((0, 0, 0.0005)))
            wheel.leave(other)
            time.sleep(dice.choice((0, 0, 0.0005)))
            turns[0] += 1

    wrong: list[object] = []

    def ask(seed: int) -> None:
        for i in range(150):
            x = numbers(seed, i)
            try:
                np.testing.assert_array_equal(answer(shared.ask(x)), 2 * x)
            except BaseException as error:
                wrong.append(error)
                return

    movers = [
        threading.Thread(target=turn, args=(wheel, rank), daemon=True)
        for rank, wheel in enumerate(shared.wheels[:2])
    ]
    askers = [threading.Thread(target=ask, args=(seed,), daemon=True) for seed in range(4)]
    for thread in (*movers, *askers):
        thread.start()
    for thread in askers:
        thread.join(60)
        assert not thread.is_alive(), "a query waits for ever"
    over.set()
    for thread in movers:
        thread.join(10)
    assert not wrong, wrong
    assert turns[0] > 50
    wait_until(lambda: shared.leader.is_idle, "nothing is left")


def test_what_comes_just_before_a_move_is_seen_after_it(shared: Sessions) -> None:
    """Whoever brings a query wakes the poller that the session is about to leave."""
    shared.start(timeouts=PATIENT)
    leader = shared.leader
    leader.queue.serve(None)
    assert shared.wheels is not None
    shares = sharing.split(numbers(3, 4), 2)
    asked = [Pending("last", [share], 1) for share in shares]
    shared.all[1].submit(asked[1])  # type: ignore[attr-defined]
    wait_until(lambda: leader.queue._arrivals, "the leader knows of the other share")
    choose = leader._choose_poller

    def choosing() -> None:
        if not leader.queue.pending:
            leader.submit(asked[0])
        choose()

    leader._choose_poller = choosing  # type: ignore[method-assign]
    other = Idler()
    shared.wheels[0].join(other)
    np.testing.assert_array_equal(answer(asked), numbers(6, 8))
    shared.wheels[0].leave(other)


def two_models(shared: Sessions, tmp_path: Path) -> tuple[Sessions, Sessions]:
    """Two models of one cluster, both served."""
    other = Sessions.__new__(Sessions)
    other.configs, other.listeners, other.wheels = shared.configs, shared.listeners, shared.wheels
    other.all = []
    for one in (shared, other):
        one.start(timeouts=PATIENT)
        one.leader.queue.serve(None)
    return shared, other


def test_two_models_answer_at_once_and_the_one_that_is_left_takes_the_wheel(
    shared: Sessions, tmp_path: Path
) -> None:
    first, second = two_models(shared, tmp_path)
    for i in range(20):
        asked = first.ask(numbers(i, 1)), second.ask(numbers(i, 2))
        np.testing.assert_array_equal(answer(asked[0]), numbers(2 * i, 2))
        np.testing.assert_array_equal(answer(asked[1]), numbers(2 * i, 4))
    assert first.leader.parts == second.leader.parts == 2
    assert first.leader._poller is first.leader._own
    second.leader.end("it is stopped")
    party = shared.wheels[0].poller
    wait_until(lambda: first.leader._poller is party and party.is_attached, "it drives alone")
    np.testing.assert_array_equal(answer(first.ask(numbers(5, 6))), numbers(10, 12))
    for session in second.all:
        session.end("it is stopped")


def test_a_model_that_fails_does_not_take_the_other_with_it(
    shared: Sessions, tmp_path: Path
) -> None:
    first, second = two_models(shared, tmp_path)
    follower = second.all[1]
    follower._round.lanes[ARRIVALS].channels[0].send(b'{"no": "note"}')
    wait_until(lambda: second.leader.state == "failed", "the bad frame ends its session")
    assert "bob" in second.leader.reason
    for i in range(5):
        np.testing.assert_array_equal(answer(first.ask(numbers(i, i))), numbers(2 * i, 2 * i))
    assert {session.state for session in first.all} == {"loaded"}
    wait_until(lambda: all(s.state == "failed" for s in second.all), "all know")
    for session in second.all:
        session.end("")


def test_a_batch_that_runs_for_long_keeps_no_other_model_waiting(
    shared: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_models(shared, tmp_path)
    slow, run = threading.Event(), echo_engine.Compute.run

    def some_slow(self: echo_engine.Compute, inputs: list[np.ndarray]) -> list[np.ndarray]:
        if (inputs[0] == 77).any():
            slow.wait(30)
        return run(self, inputs)

    monkeypatch.setattr(echo_engine.Compute, "run", some_slow)
    held = first.ask_raw([numbers(77, 77), numbers(77, 77)])
    wait_until(lambda: not first.leader.queue.pending, "the slow one runs")
    for i in range(10):
        np.testing.assert_array_equal(answer(second.ask(numbers(i, i))), numbers(2 * i, 2 * i))
    assert not held[0].future.done()
    slow.set()
    np.testing.assert_array_equal(answer(held), numbers(308, 308))
    for session in second.all:
        session.end("it is stopped")


def test_what_drains_answers_what_it_has_and_sends_the_rest_elsewhere(shared: Sessions) -> None:
    shared.start(timeouts=PATIENT)
    shared.leader.queue.serve(None)
    echo_engine.hold.clear()
    running = shared.ask(numbers(1, 2))
    wait_until(lambda: not shared.leader.queue.pending, "it runs")
    waiting = shared.ask(numbers(3, 4))
    wait_until(lambda: len(shared.leader.queue._ready._lines) == 1, "the other one is complete")
    for session in shared.all:
        session.drain()
    with pytest.raises(StaleSession):
        shared.ask(numbers(5, 6))
    assert not shared.leader.is_idle
    echo_engine.hold.set()
    np.testing.assert_array_equal(answer(running), numbers(2, 4))
    np.testing.assert_array_equal(answer(waiting), numbers(6, 8))
    wait_until(lambda: all(s.is_idle for s in shared.all[:2]), "nothing is left")  # type: ignore[attr-defined]
    assert shared.leader.queue.answered == 2
    late = Pending("late", [numbers(1, 1)], 1)
    shared.all[1].submit(late)  # type: ignore[attr-defined]
    assert isinstance(late.future.exception(5), StaleSession), "the leader says so"
    for session in shared.all:
        session.end("another one has its name")
    with pytest.raises(StaleSession):
        shared.all[1].submit(Pending("later", [numbers(1, 1)], 1))  # type: ignore[attr-defined]


def test_what_drains_answers_a_query_of_which_half_has_come(shared: Sessions) -> None:
    shared.start(timeouts=PATIENT)
    shared.leader.queue.serve(None)
    asked = [Pending("half", [share], 1) for share in sharing.split(numbers(3, 4), 2)]
    shared.leader.submit(asked[0])
    shared.leader.drain()
    assert not shared.leader.is_idle
    shared.all[1].submit(asked[1])  # type: ignore[attr-defined]
    np.testing.assert_array_equal(answer(asked), numbers(6, 8))


def test_what_drains_sends_on_whom_its_limit_leaves_out(shared: Sessions) -> None:
    shared.start(timeouts=PATIENT)
    shared.leader.queue.serve(1)
    echo_engine.hold.clear()
    running = shared.ask(numbers(1, 2))
    wait_until(lambda: not shared.leader.queue.pending, "it runs")
    waiting = shared.ask(numbers(3, 4))
    wait_until(lambda: len(shared.leader.queue._ready._lines) == 1, "the other one is complete")
    shared.leader.drain()
    echo_engine.hold.set()
    np.testing.assert_array_equal(answer(running), numbers(2, 4))
    assert isinstance(waiting[0].future.exception(5), StaleSession)
