"""Rounds: a session outlives the loss of a party, with all but the weights' shares made anew."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from uuid import uuid4

import echo_engine
import numpy as np
import pytest
from connected import Parties
from serving import wait_until
from sessions import QUICK, Sessions, answer, cut_off, numbers, refusals, states, vanish

from privserve.config import Timeouts
from privserve.errors import LimitReached, NotServing, PeerLost, QueryError
from privserve.party.agreement import Agreement
from privserve.party.lanes import REJOIN
from privserve.party.messages import WAITING, Over, hear, read_facts
from privserve.party.pending import Pending
from privserve.party.queries import LeaderQueue
from privserve.party.rounds import Round
from privserve.party.watching import Watch


def all_are(sessions: Sessions, state: str, seconds: float = 15) -> None:
    try:
        wait_until(lambda: states(sessions) == [state] * 3, f"all are {state}", seconds)
    except AssertionError as error:
        raise AssertionError([session.facts() for session in sessions.all]) from error


def next_round(sessions: Sessions, before: list[Round]) -> None:
    """Wait until all are in another round than before."""
    wait_until(
        lambda: all(s._round is not r for s, r in zip(sessions.all, before, strict=True)),
        "a new round",
        15,
    )
    all_are(sessions, "loaded")


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_cut_off_party_is_back_by_itself_and_serving_goes_on(
    sessions: Sessions, victim: int
) -> None:
    sessions.start(shares={"w": numbers(1, 2)})
    sessions.leader.queue.serve(5)
    answer(sessions.ask(numbers(3, 4)))
    for expected in (2, 3):
        before = [session._round for session in sessions.all]
        cut_off(sessions.all[victim])
        next_round(sessions, before)
        np.testing.assert_array_equal(answer(sessions.ask(numbers(3, 4))), numbers(6, 8))
        wait_until(lambda e=expected: sessions.leader.queue.answered == e, "it is counted once")
    names = {session._round.name for session in sessions.all}
    assert len(names) == 1
    assert names.pop().startswith(sessions.leader.spec.id + ".")
    assert sessions.leader.facts()["limit"] == 5
    for _ in range(2):
        answer(sessions.ask(numbers(1, 1)))
    wait_until(lambda: not sessions.leader.queue.serving, "the limit is reached")
    assert sessions.leader.queue.answered == 5
    with pytest.raises(LimitReached, match="limit of 5 rows"):
        sessions.ask(numbers(1, 1))


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_who_vanishes_is_waited_for_by_name_and_taken_back(sessions: Sessions, victim: int) -> None:
    sessions.start()
    sessions.leader.queue.serve(None)
    vanish(sessions.all[victim])
    name = sessions.configs[0].parties[victim].name
    others = [s for rank, s in enumerate(sessions.all) if rank != victim]
    wait_until(
        lambda: all(
            s.state == "waiting" and f"waiting for {name} since" in s.reason for s in others
        ),
        "the others say whom they wait for",
        15,
    )
    assert all(session.is_alive for session in others)
    for session in others:
        if hasattr(session, "submit"):
            with pytest.raises(NotServing, match=f"{name} is gone.*comes back by itself"):
                session.submit(Pending("q", [numbers(1, 1)], 1))
    sessions.come_back(victim)
    all_are(sessions, "loaded")
    sessions.leader.queue.stop()
    sessions.leader.queue.serve(None)
    np.testing.assert_array_equal(answer(sessions.ask(numbers(3, 4))), numbers(6, 8))


def test_what_is_read_of_a_round_that_is_over_ends_no_session(sessions: Sessions) -> None:
    """Whoever was stopped finds orders to run what it has refused by then."""
    sessions.start()
    sessions.leader.queue.serve(None)
    before, follower = [session._round for session in sessions.all], sessions.all[1]
    orders = follower._round.lanes["orders"].channels[0]
    follower._finish(WAITING, "bob was cut off")
    follower._fail_round(orders.bad("it orders a query that was never announced to it"))
    next_round(sessions, before)
    np.testing.assert_array_equal(answer(sessions.ask(numbers(3, 4))), numbers(6, 8))


def test_who_is_busy_for_longer_than_it_may_be_silent_is_not_given_up(sessions: Sessions) -> None:
    sessions.start(timeouts=Timeouts(connect=5, peer=0.6))
    sessions.leader.queue.serve(None)
    rounds = [session._round for session in sessions.all]
    echo_engine.hold.clear()
    asked = sessions.ask(numbers(3, 4))
    assert not sessions.leader._round.over.wait(2.0)
    echo_engine.hold.set()
    np.testing.assert_array_equal(answer(asked), numbers(6, 8))
    assert [session._round for session in sessions.all] == rounds


def test_all_queries_of_a_lost_round_are_answered_and_none_is_counted(sessions: Sessions) -> None:
    sessions.start()
    sessions.leader.queue.serve(10)
    echo_engine.hold.clear()
    running = sessions.ask(numbers(1, 1))
    wait_until(lambda: len(sessions.leader.queue.pending) == 0, "the query runs")
    waiting = sessions.ask(numbers(2, 2))
    half = Pending(uuid4().hex, [numbers(1, 1)], 1)
    sessions.all[1].submit(half)
    before = [session._round for session in sessions.all]
    cut_off(sessions.all[1])
    wait_until(lambda: sessions.leader._round.over.is_set(), "the leader knows")
    echo_engine.hold.set()
    errors = refusals([*running, *waiting, half])
    assert all(isinstance(error, NotServing) for error in errors), errors
    next_round(sessions, before)
    assert sessions.leader.queue.is_idle
    assert sessions.leader.queue.answered == 0
    # The leader's share of the half query comes only now: it is refused at once, and its client
    # not told that it sent its shares to some parties only.
    late = Pending(waiting[0].id, [numbers(1, 1)], 1)
    with pytest.raises(NotServing, match="comes back by itself"):
        sessions.leader.submit(late)
    answer(sessions.ask(numbers(1, 1)))
    assert sessions.leader.queue.answered == 1


def test_a_note_that_is_read_after_its_round_was_over_counts_in_no_other(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader ordered a query which the follower held no more: that ended the session."""
    sessions.start()
    queue = sessions.leader.queue
    queue.serve(None)
    lose, waiting = queue.lose, iter([None])

    def lose_and_hear(error: QueryError) -> None:
        lose(error)
        if threading.current_thread() is not sessions.leader._main_thread:
            for _ in waiting:
                queue.announced(1, "late", 1)

    monkeypatch.setattr(queue, "lose", lose_and_hear)
    before = [session._round for session in sessions.all]
    cut_off(sessions.all[2])
    next_round(sessions, before)
    assert not list(waiting), "the note was never read"
    late = Pending("late", [numbers(1, 1)], 1)
    with pytest.raises(NotServing, match="comes back by itself"):
        sessions.leader.submit(late)
    answer(sessions.ask(numbers(1, 1)))
    assert states(sessions) == ["loaded"] * 3


def test_costs_are_those_of_all_rounds(sessions: Sessions) -> None:
    sessions.start()
    sessions.leader.queue.serve(None)
    costs = []
    for _ in range(2):
        answer(sessions.ask(numbers(1, 1)))
        wait_until(lambda: "cost" in sessions.leader.status(), "it is counted")
        costs.append(sessions.leader.status()["cost"])
        before = [session._round for session in sessions.all]
        cut_off(sessions.all[2])
        next_round(sessions, before)
    costs.append(sessions.leader.status()["cost"])
    assert [cost["exchanges"] for cost in costs] == [1, 2, 2]
    assert costs[0]["bytes_online"] * 2 == costs[1]["bytes_online"] == costs[2]["bytes_online"]


@pytest.mark.parametrize("who", [0, 1, 2])
def test_who_ends_the_session_while_it_waits_ends_it_for_all(sessions: Sessions, who: int) -> None:
    sessions.start()
    victim = 2 if who != 2 else 1
    vanish(sessions.all[victim])
    others = [s for rank, s in enumerate(sessions.all) if rank != victim]
    name = sessions.configs[0].parties[victim].name
    wait_until(lambda: all(f"for {name} since" in s.reason for s in others), "they have met", 15)
    sessions.all[who].end("the model owner stopped the model")
    wait_until(lambda: all(s.state == "ended" for s in others), "all know", 5)
    assert {s.reason for s in others} == {"the model owner stopped the model"}
    assert not any(s.spec.shares for s in others)


def test_who_leaves_is_waited_for_and_not_said_to_be_gone(sessions: Sessions) -> None:
    sessions.start()
    sessions.all[1].leave("bob was shut down")
    others = [sessions.all[0], sessions.all[2]]
    wait_until(lambda: all(s.state == "waiting" for s in others), "they wait")
    assert all(s.reason.startswith("bob was shut down") for s in others)
    sessions.come_back(1)
    all_are(sessions, "loaded")


@pytest.mark.parametrize("who", [0, 1])
def test_who_has_lost_its_share_says_so_and_nobody_waits_for_it(
    sessions: Sessions, who: int
) -> None:
    sessions.start()
    vanish(sessions.all[who])
    sessions.listeners[who].meets = lambda hello: "it was started again and has lost its share"
    others = [s for rank, s in enumerate(sessions.all) if rank != who]
    wait_until(lambda: all(s.state == "failed" for s in others), "they know", 15)
    assert {s.reason for s in others} == {"it was started again and has lost its share"}


def test_a_session_that_never_was_loaded_fails_with_its_first_round(sessions: Sessions) -> None:
    """Its owner is there still, and shares it again."""
    sessions.start([0, 2], Timeouts(connect=0.5, peer=1, share=1))
    wait_until(lambda: states(sessions) == ["failed"] * 2, "both gave up")


def test_a_party_that_dies_in_set_up_is_noticed_at_once(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others waited for its lanes, or for its part of the set-up, for a minute."""
    stuck = threading.Event()

    def compute(self: object, *_: object, **__: object) -> None:
        stuck.set()
        raise PeerLost("never mind")

    monkeypatch.setattr(echo_engine.Compute, "__init__", compute)
    sessions.start(timeouts=Timeouts(connect=60, peer=20))
    wait_until(lambda: states(sessions) == ["failed"] * 3, "all know", 12)
    assert stuck.is_set()


WORDS = {
    "no JSON": b"\xff",
    "a list": b"[]",
    "nothing": b"{}",
    "no name of a round": b'{"round": "../../etc"}',
    "a round that is a number": b'{"round": 7}',
    "two things": b'{"round": "0", "wait": "x"}',
    "a wait for nothing": b'{"wait": ""}',
    "a wait of many lines": b'{"wait": "a\\nb"}',
    "an endless wait": b'{"wait": "' + b"x" * 5000 + b'"}',
    "an end without a state": b'{"over": "x"}',
    "a state that is none": b'{"over": "x", "state": "loaded"}',
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("liar", [0, 1])
def test_what_is_none_of_the_meetings_words_ends_the_session_and_names_the_peer(
    sessions: Sessions, words: bytes, liar: int
) -> None:
    sessions.start()
    victim = sessions.all[1 - liar]
    name = sessions.configs[0].parties[liar].name
    if liar == 1:
        vanish(sessions.all[1])
        leader = sessions.configs[1].parties[0]
        wait_until(lambda: victim.state == "waiting", "alice waits")
        channel = sessions.listeners[1].dial(leader, victim.spec.id, REJOIN)
    else:
        vanish(sessions.all[0])
        hello = None
        wait_until(lambda: bool(_arrived(sessions, victim.spec.id)), "bob has come", 10)
        hello = _arrived(sessions, victim.spec.id)[0]
        channel = sessions.listeners[0].take(hello)
        assert channel is not None
    channel.send(words)
    wait_until(lambda: victim.state == "failed", "the session is over", 10)
    assert f"{name} sent what is none of the protocol on the lane 'rejoin'" in victim.reason
    channel.release()


def _arrived(sessions: Sessions, session: str) -> list:
    known = list(sessions.listeners[0]._arrived)
    return [h for h in known if h.lane == REJOIN and h.session == session and h.sender == "bob"]


def test_a_peer_that_floods_the_meeting_costs_nothing(sessions: Sessions) -> None:
    sessions.start()
    leader = sessions.configs[1].parties[0]
    kept: list[socket.socket] = []
    for _ in range(60):  # while all is well: nobody asked for them
        kept.append(sessions.listeners[1].dial(leader, sessions.leader.spec.id, REJOIN))  # type: ignore[arg-type]
    for number in range(60):
        kept.append(sessions.listeners[1].dial(leader, f"{number:032x}", REJOIN))  # type: ignore[arg-type]
    listener = sessions.listeners[0]
    wait_until(lambda: len(listener._arrived) <= listener.MAX_UNCLAIMED // 2, "they are bounded")
    assert states(sessions) == ["loaded"] * 3
    before = [session._round for session in sessions.all]
    cut_off(sessions.all[1])
    next_round(sessions, before)
    for channel in kept:
        channel.release()  # type: ignore[attr-defined]


def test_rounds_leave_no_thread_and_no_socket(sessions: Sessions) -> None:
    sessions.start()
    sessions.leader.queue.serve(None)
    answer(sessions.ask(numbers(1, 1)))
    before = threading.active_count(), open_sockets()
    for _ in range(4):
        rounds = [session._round for session in sessions.all]
        cut_off(sessions.all[1])
        next_round(sessions, rounds)
        answer(sessions.ask(numbers(1, 1)))
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


def test_who_slept_itself_blames_nobody(sessions: Sessions) -> None:
    sessions.start(timeouts=Timeouts(connect=5, peer=20))
    watch = Watch(sessions.leader._round, Agreement("alice", {}, ["bob", "carol"]), 1.0, 5.0)
    long_ago = {1: 0.0, 2: 0.0}
    watch._heard = dict(long_ago)
    watch._forgive(0.2)
    assert watch._heard == long_ago
    watch._forgive(7.0)
    assert set(watch._heard.values()) == {7.0}


def test_who_hears_nobody_says_that_it_may_be_cut_off_itself(sessions: Sessions) -> None:
    sessions.start(timeouts=Timeouts(connect=5, peer=20))
    watch = Watch(sessions.leader._round, Agreement("alice", {}, ["bob", "carol"]), 1.0, 5.0)
    now = time.monotonic()
    watch._heard = {1: now - 1.5, 2: now}
    assert watch._no_sign(1) == "bob gave no sign of life for 1 s"
    watch._heard[2] = now - 1.2
    why = "alice has heard nothing of bob and carol for 1 s: it may be cut off itself"
    assert watch._no_sign(1) == why


def test_a_query_that_lacks_a_share_of_a_silent_party_is_told_of_that(sessions: Sessions) -> None:
    sessions.start(timeouts=Timeouts(connect=5, peer=QUICK.peer, share=0.1))
    sessions.leader.queue.serve(None)
    sessions.leader._watch.silent = lambda: ["bob"]  # type: ignore[union-attr,method-assign]
    half = Pending("half", [numbers(1, 1)], 1)
    sessions.leader.submit(half)
    error = refusals([half])[0]
    assert isinstance(error, NotServing)
    assert "bob gives no sign of life" in str(error)
    assert "send one to each" not in str(error)


def test_a_batch_that_ends_just_when_its_round_is_lost_leaves_no_room_beyond_the_limit() -> None:
    """What had begun was subtracted twice, and as many rows too many would have been let in."""
    queue = LeaderQueue(1, 128, 10.0)
    queue.serve(4)
    queue.submit(Pending("a", [numbers(1, 1, 2, 2)], 2))
    batch = queue.next_batch()
    queue.lose(NotServing("bob is gone"))
    queue.finished(batch)
    assert queue.answered == 2
    assert queue._begun.total() == 0
    for name in "bcd":
        queue.submit(Pending(name, [numbers(1, 1)], 1))
    assert [piece.query.id for piece in queue.next_batch()] == ["b", "c"]


def test_lanes_that_are_opened_while_the_round_is_broken_end_nothing_else() -> None:
    """It was an internal error of the session, which ended it for all."""
    round_ = Round("one", is_first=True)

    class Opening:
        """A lane whose closing takes as long as it takes another thread to open one."""

        def close(self) -> None:
            round_.lanes[f"another {len(round_.lanes)}"] = Opening()  # type: ignore[assignment]

        release = close

    round_.lanes["one"] = Opening()  # type: ignore[assignment]
    round_.part()
    round_.release()
    assert len(round_.lanes) == 4


def test_who_is_met_just_when_the_round_is_over_is_told_why(tmp_path: Path) -> None:
    """It found a broken channel, and blamed the party that had met it."""
    parties = Parties(tmp_path, 3)
    try:
        parties.open()
        ours, theirs = parties.mesh(0).channels[1], parties.mesh(1).channels[0]
        round_ = Round("one", is_first=True)
        round_.finish(Over("bob cannot reach alice: the cable is cut", WAITING))
        watch = Watch(round_, Agreement("carol", {"wire": 1}, ["alice"]), 1.0, 5.0)
        watch.run(lambda over: None)
        watch.meet(1, ours)
        round_.part()
        found = hear(theirs, read_facts, within=5)
        assert isinstance(found, Over)
        assert found.reason == "bob cannot reach alice: the cable is cut"
        round_.release()
    finally:
        parties.close()
