"""The life of a session: how it begins, who ends it, and what the others are told."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import echo_engine
import numpy as np
import pytest
from serving import wait_until
from sessions import Sessions, answer, numbers, refusals, states, vanish

from privserve.config import PartyConfig, Timeouts
from privserve.errors import ClusterError, NotServing
from privserve.party.channel import Channel
from privserve.party.pending import Pending
from privserve.party.session_spec import SessionSpec


def test_ending_one_side_ends_all_with_its_reason(sessions: Sessions) -> None:
    sessions.start()
    sessions.all[1].end("bob was shut down")
    wait_until(lambda: states(sessions) == ["ended"] * 3, "all sessions ended")
    assert {session.reason for session in sessions.all} == {"bob was shut down"}


def test_the_cause_is_told_before_the_channels_break_however_slow_the_watcher_is(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine the others used to be told that alice is gone instead."""
    sessions.start()
    watch, main = sessions.leader._watch, sessions.leader._main_thread
    tell = watch._tell

    def slow(message: dict) -> str | None:
        if "over" in message:  # as long as the session's own thread would take to end
            main.join(1)
        return tell(message)

    monkeypatch.setattr(watch, "_tell", slow)
    sessions.leader.end("the owner left")
    wait_until(lambda: states(sessions) == ["ended"] * 3, "all sessions ended", 5)
    told = "alice says: the owner left"
    assert [session.reason for session in sessions.all] == ["the owner left", told, told]


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_party_that_vanishes_is_named_to_all_clients(sessions: Sessions, gone: int) -> None:
    sessions.start()
    sessions.leader.queue.serve(None)
    echo_engine.hold.clear()
    running = sessions.ask(numbers(1, 1))
    wait_until(lambda: len(sessions.leader.queue.pending) == 0, "the query runs")
    waiting = sessions.ask(numbers(2, 2))
    vanish(sessions.all[gone])
    name = sessions.configs[0].parties[gone].name
    others = [s for rank, s in enumerate(sessions.all) if rank != gone]
    wait_until(lambda: all(s.state == "waiting" for s in others), "the others noticed", 5)
    echo_engine.hold.set()
    for rank in {0, 1} - {gone}:
        assert f"{name} is gone" in str(refusals([waiting[rank]], 5)[0])
        running[rank].future.exception(5)  # answered or refused, but not left hanging
    with pytest.raises(NotServing, match=f"{name} is gone.*comes back by itself"):
        others[0].submit(Pending("q", [numbers(1, 1)], 1))  # type: ignore[attr-defined]


def test_who_cannot_open_its_lanes_tells_the_others_why(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They used to blame whom they were waiting for, when they had waited long enough."""

    def refused(*_: object) -> None:
        raise ClusterError("bob cannot reach alice: the cable is cut")

    monkeypatch.setattr(sessions.listeners[1], "_dial", refused)
    sessions.start(timeouts=Timeouts(connect=2, peer=20))
    words = "bob cannot reach alice: the cable is cut"
    assert sessions.all[0].reason == f"carol says: {words}"
    assert sessions.all[2].reason == words


@pytest.mark.parametrize("rank", [0, 1])
def test_who_keeps_one_party_waiting_is_blamed_and_not_the_one_that_waits(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """The other one heard nothing from the party that was kept, and named that one."""
    dial = sessions.listeners[2]._dial

    def reluctant(peer: PartyConfig, session: str, lane: str, wait: Any) -> Channel:
        if peer.name == sessions.configs[0].parties[rank].name:
            while not wait.over:
                wait.stop.wait(0.05)
        return dial(peer, session, lane, wait)

    monkeypatch.setattr(sessions.listeners[2], "_dial", reluctant)
    sessions.start([0, 1], Timeouts(connect=2.5, peer=0.6))
    spec = SessionSpec("s", "m", "echo", echo_engine.DESCRIPTION, {}, {})
    # The dealer waits longer than the others do.
    sessions.all = [
        sessions.begin(n, spec, Timeouts(connect=(2, 2, 20)[n], peer=0.6)) for n in range(3)
    ]
    assert all(session.ready.wait(10) for session in sessions.all)
    for session in sessions.all[:2]:
        assert "carol did not connect" in session.reason, session.reason


def test_what_another_party_says_is_told_as_its_words(sessions: Sessions) -> None:
    """A party that lied of another one was believed: the others said so in their own name."""
    sessions.start()
    sessions.all[1].end("carol sent what is none of the protocol")
    wait_until(lambda: states(sessions) == ["ended"] * 3, "all sessions ended")
    for rank in (0, 2):
        lie = "bob says: carol sent what is none of the protocol"
        assert sessions.all[rank].reason == lie


def wait_for_failure(sessions: Sessions) -> None:
    """All parties' sessions fail within seconds; says which do not, and why."""
    try:
        wait_until(lambda: states(sessions) == ["failed"] * 3, "all sessions failed")
    except AssertionError as error:
        raise AssertionError([session.status() for session in sessions.all]) from error


def test_a_party_that_hangs_is_given_up_and_its_clients_are_told(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions.start()
    sessions.leader.queue.serve(None)
    echo_engine.hold.clear()
    asked = sessions.ask(numbers(1, 1))
    # As a stopped process: its channels stay open, and nothing more comes.
    monkeypatch.setattr(sessions.all[2]._watch, "_hear", _stopped)
    wait_until(lambda: states(sessions)[:2] == ["waiting"] * 2, "the others gave carol up", 6)
    echo_engine.hold.set()
    assert "carol gave no sign of life for 1.5 s" in sessions.leader.reason
    assert "carol" in str(refusals([asked[1]])[0])


def _stopped(*_: object) -> None:
    echo_engine.released.wait(20)


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


def test_a_session_that_fails_in_set_up_keeps_no_share_of_the_weights(sessions: Sessions) -> None:
    sessions.start(shares={"w": numbers(1, 2)}, fail=True)
    wait_for_failure(sessions)
    wait_until(lambda: not any(s.spec.shares for s in sessions.all), "the shares are forgotten")


def test_a_party_that_does_not_join_is_named(sessions: Sessions) -> None:
    sessions.start([0, 2], Timeouts(connect=0.5, peer=1, share=1))
    wait_until(lambda: states(sessions) == ["failed"] * 2, "both gave up")
    assert "bob" in sessions.leader.reason


def test_a_second_session_follows_a_failed_one(sessions: Sessions) -> None:
    sessions.start()
    vanish(sessions.all[1])
    wait_until(lambda: states(sessions) == ["waiting", "ended", "waiting"], "the others noticed")
    for session in sessions.all:
        session.end("again")
    sessions.all.clear()
    sessions.start()
    sessions.leader.queue.serve(None)
    np.testing.assert_array_equal(answer(sessions.ask(numbers(3, 4))), numbers(6, 8))


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
