"""What a party with a valid certificate could do to the others: each was possible once."""

from __future__ import annotations

import json
import logging
import struct
import threading
import time
from pathlib import Path

import echo_engine
import numpy as np
import pytest
from connected import Parties, at_once
from ottt_session import MemoryMesh, Wire
from rogue import framed
from serving import wait_until
from sessions import Sessions, answer, numbers, refusals, states

from privserve.config import Timeouts
from privserve.engines.ottt.dealer import CREDIT, _credit, dealt_keys
from privserve.engines.ottt.ops.opening import received_words
from privserve.errors import BadFrame, NotServing, PeerLost
from privserve.party import lanes, pending, queries
from privserve.party.channel import Channel
from privserve.party.lanes import Listener
from privserve.party.pending import Pending
from privserve.party.queries import LeaderQueue
from privserve.party.reasons import MAX_REASON, printable
from privserve.party.refusals import MAX_REFUSALS
from privserve.party.roles import LeaderSession
from privserve.party.session import Session
from privserve.party.watching import tell

PATIENT = Timeouts(connect=5, peer=20, share=0.3)
"""So that nobody is given up for want of a heartbeat before what is looked for is found."""


def channel_of(session: Session, lane: str, peer: int) -> Channel:
    return session._round.lanes[lane].channels[peer]


def say(channel: Channel, raw: bytes) -> None:
    """Put bytes into a channel, whether they are a frame or not."""
    channel._sock.sendall(channel.encrypt(raw))


def say_once(session: Session, raw: bytes) -> None:
    """Have the session's watcher, whose lane it is, say this to party 0 in place of a sign."""
    watch = session._watch
    tell_all = watch._tell

    def instead(message: dict) -> str | None:
        watch._tell = tell_all  # type: ignore[method-assign]
        say(watch._channels[0], raw)
        return tell({peer: c for peer, c in watch._channels.items() if peer != 0}, message)

    watch._tell = instead  # type: ignore[method-assign]


NO_SIGNS = {
    "a list": b'["over"]',
    "a number": b"7",
    "null": b"null",
    "no state": b'{"over": "x"}',
    "another state": b'{"over": "x", "state": "loaded"}',
    "a reason that is none": b'{"over": [], "state": "ended"}',
    "no JSON": b"\xff",
    "a deep list": b"[" * 100_000,
    "a number without end": b"1" * 5000,
    "nothing": b"",
}


@pytest.mark.parametrize("words", NO_SIGNS.values(), ids=NO_SIGNS)
def test_what_is_no_sign_of_life_ends_the_session_and_names_the_peer(
    sessions: Sessions, words: bytes
) -> None:
    """It killed the watcher: the session went on and nobody noticed who left."""
    sessions.start(timeouts=PATIENT)
    say_once(sessions.all[1], framed(words))
    wait_until(lambda: states(sessions) == ["failed"] * 3, "all sessions failed")
    for session in sessions.all:
        assert "bob sent what is none of the protocol on the lane 'watch'" in session.reason


NOTES = [b"{}", b'[["q", "many", "c"]]', b'[["q", 1]]', b'[[["q"], 1, "c"]]', b'["q", 1, "c"]']


@pytest.mark.parametrize("words", NOTES)
def test_a_note_that_is_none_ends_the_session_and_names_the_peer(
    sessions: Sessions, words: bytes
) -> None:
    """It killed the thread that reads notes: every later query was refused, with a wrong reason."""
    sessions.start(timeouts=PATIENT)
    sessions.leader.queue.serve(None)
    say(channel_of(sessions.all[1], "arrivals", 0), framed(words))
    wait_until(lambda: states(sessions) == ["failed"] * 3, "all sessions failed")
    assert "bob sent what is none of the protocol on the lane 'arrivals'" in sessions.leader.reason


def test_a_follower_that_closes_its_arrivals_lane_begins_another_round(
    sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    sessions.start(timeouts=PATIENT)
    with caplog.at_level(logging.INFO):
        channel_of(sessions.all[1], "arrivals", 0).close()
        wait_until(lambda: not sessions.leader._round.is_first, "the round is over")
        wait_until(lambda: states(sessions) == ["loaded"] * 3, "the next one has begun")
    assert "alice: waits for another round: the connection to bob (arrivals) broke" in caplog.text


ORDERS = {
    "a status that is none": {"run": [], "refuse": [["q", "refused", 200, "no"]]},
    "half a refusal": {"run": [], "refuse": [["q"]]},
    "ids that are none": {"run": [[1, 0, 1]], "refuse": []},
    "ids alone": {"run": ["q"], "refuse": []},
    "rows that are none": {"run": [["q", 0, "all"]], "refuse": []},
    "a query twice": {"run": [["q", 0, 1], ["q", 1, 2]], "refuse": []},
    "no list": {"run": None, "refuse": []},
    "nothing": {},
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_an_order_that_is_none_ends_the_session_and_names_the_leader(
    sessions: Sessions, order: object
) -> None:
    sessions.start(timeouts=PATIENT)
    say(channel_of(sessions.leader, "orders", 1), framed(json.dumps(order).encode()))
    wait_until(lambda: states(sessions) == ["failed"] * 3, "all sessions failed")
    assert "alice sent what is none of the protocol on the lane" in sessions.all[1].reason


def test_a_query_is_answered_although_it_was_ordered_with_one_that_nobody_holds(
    sessions: Sessions,
) -> None:
    """It had been taken out of what waits, and its client waited for ever."""
    sessions.start(timeouts=PATIENT)
    sessions.leader.queue.serve(None)
    (query,) = (Pending("held", [numbers(1, 1)], 1),)
    sessions.all[1].submit(query)  # type: ignore[attr-defined]
    order = {"run": [["held", 0, 1], ["not held", 0, 1]], "refuse": []}
    say(channel_of(sessions.leader, "orders", 1), framed(json.dumps(order).encode()))
    assert isinstance(query.future.exception(10), NotServing)
    assert "a query that was never announced to it" in sessions.all[1].reason


@pytest.mark.parametrize("rows", [(0, 3), (1, 2), (1, 1), (2, 1)])
def test_rows_that_a_query_does_not_have_are_not_run(
    sessions: Sessions, rows: tuple[int, int]
) -> None:
    sessions.start(timeouts=PATIENT)
    sessions.leader.queue.serve(None)
    query = Pending("held", [numbers(1, 1, 2, 2)], 2)
    sessions.all[1].submit(query)  # type: ignore[attr-defined]
    order = {"run": [["held", *rows]], "refuse": []}
    say(channel_of(sessions.leader, "orders", 1), framed(json.dumps(order).encode()))
    assert isinstance(query.future.exception(10), NotServing)
    assert "orders rows that a query does not have" in sessions.all[1].reason


def test_half_a_sign_of_life_does_not_keep_the_watcher_from_the_others(sessions: Sessions) -> None:
    """The others gave up the party that waited for the rest of it."""
    sessions.start(timeouts=Timeouts(connect=5, peer=3))
    say_once(sessions.all[1], struct.pack("<Q", 15) + b'{"ali')
    wait_until(lambda: states(sessions) == ["failed"] * 3, "all sessions failed")
    assert "bob sent" in sessions.all[2].reason, sessions.all[2].reason


def test_a_frame_that_trickles_in_is_given_up(parties: Parties) -> None:
    """Each byte renewed the time that a peer was given."""
    channel, mesh = parties.mesh(1).channels[0], parties.mesh(0)
    say(channel, struct.pack("<Q", 1000))
    began, done = time.monotonic(), False

    def trickle() -> None:
        while not done:
            say(channel, b"x")
            time.sleep(0.02)

    def hear() -> None:
        nonlocal done
        try:
            with pytest.raises(BadFrame, match="began a frame and did not end it"):
                mesh.channels[1].recv(within=0.3)
        finally:
            done = True

    at_once([trickle, hear])
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_a_frame_that_does_not_end_is_given_up_on_any_lane(parties: Parties, size: int) -> None:
    """A party whose signs of life went on could stop in the middle of an opening, for ever."""
    say(parties.mesh(1).channels[0], struct.pack("<Q", size) + b"half")
    parties.mesh(0).set_patience(0.2)
    with pytest.raises(BadFrame, match=r"bob sent .* began a frame and did not end it"):
        parties.mesh(0).exchange(bytes(size))


def test_a_frame_that_is_only_announced_takes_no_memory(parties: Parties) -> None:
    """A lane that may carry 2 GB had them allocated, and written, when they were announced."""
    channel = parties.mesh(0).channels[1]
    channel.limit = 1 << 31

    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) >> 10

    before = resident()
    say(parties.mesh(1).channels[0], struct.pack("<Q", 1 << 31) + bytes(100))
    with pytest.raises(BadFrame, match="did not end it"):
        channel.recv(within=0.5)
    assert len(channel.buffer) > 1 << 31
    assert resident() < before + 100


def test_a_leader_that_does_not_listen_does_not_stop_a_followers_front(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower's front wrote its notes to the leader for as long as that took."""

    def deaf(session: LeaderSession) -> None:
        session._set_up()
        session._round.over.wait(60)

    monkeypatch.setattr("privserve.party.roles.NOTE_SECONDS", 0.3)
    monkeypatch.setattr(LeaderSession, "_serve", deaf)
    monkeypatch.setattr(pending, "MAX_PENDING", 1 << 20)
    monkeypatch.setattr(pending, "MAX_PENDING_PER_CLIENT", 1 << 20)
    sessions.start(timeouts=PATIENT)
    sessions.leader.queue.serve(None)
    follower = sessions.all[1]
    channel_of(follower, "arrivals", 0)._sock.setsockopt(1, 7, 4096)
    channel_of(sessions.leader, "arrivals", 1)._sock.setsockopt(1, 8, 4096)
    began = time.monotonic()
    for number in range(20_000):  # 3 MB of notes, which nobody takes
        try:
            follower.submit(Pending(f"{number:0>128}", [numbers(1, 1)], 1))  # type: ignore[attr-defined]
        except NotServing:
            break
    assert time.monotonic() - began < 60
    wait_until(lambda: not follower._is_open, "the follower gives the leader up")
    with pytest.raises(NotServing):
        follower.submit(Pending("late", [numbers(1, 1)], 1))  # type: ignore[attr-defined]


def test_a_follower_may_not_announce_more_than_a_party_holds(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MAX_PENDING", 20)
    sessions.start(timeouts=Timeouts(connect=5, peer=20, share=20))
    sessions.leader.queue.serve(None)
    channel = channel_of(sessions.all[1], "arrivals", 0)
    notes = [framed(json.dumps([[f"q{number}", 1, "c"]]).encode()) for number in range(30)]
    # At once: the leader may break the connection at any note after the last that it takes.
    channel._sock.sendall(b"".join(channel.encrypt(note) for note in notes))
    wait_until(lambda: states(sessions) == ["failed"] * 3, "all sessions failed")
    assert "bob sent" in sessions.leader.reason
    assert "more queries than a party may hold" in sessions.leader.reason


def test_refusals_of_long_ids_fit_into_orders(sessions: Sessions) -> None:
    """Some clients with long ids made an order that the follower took for an attack."""
    sessions.start(timeouts=PATIENT)
    sessions.leader.queue.serve(None)
    ids = [f"{number:0>4}" + "\U0001f600" * 124 for number in range(1000)]
    halves = [Pending(name, [numbers(1, 1)], 1, f"c{n % 5}") for n, name in enumerate(ids)]
    for half in halves:
        sessions.leader.submit(half)
    assert sum(len(half.id.encode()) for half in halves) > 400_000
    sessions.leader.queue.stop()
    assert all("stopped serving" in str(error) for error in refusals(halves))
    sessions.leader.queue.serve(None)
    np.testing.assert_array_equal(answer(sessions.ask(numbers(1, 1), "after")), numbers(2, 2))
    assert states(sessions) == ["loaded"] * 3


def test_an_order_tells_of_a_bounded_number_of_refusals() -> None:
    queue = LeaderQueue(2, 10, 10)
    for number in range(MAX_REFUSALS + 5):
        queue.announced(1, f"q{number}", 1)
    assert len(queue.take_refusals()) == MAX_REFUSALS
    assert len(queue.take_refusals()) == 5
    assert queue.take_refusals() == []


@pytest.fixture
def mesh() -> MemoryMesh:
    """Party 0's of two; the other writes what it likes."""
    return MemoryMesh(Wire(2), 0)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 15, 17, 24, 1000])
def test_a_frame_of_another_size_is_not_an_opening(mesh: MemoryMesh, size: int) -> None:
    """One word was added to each of a matrix of weights, in silence."""
    with pytest.raises(BadFrame, match=f"{size} bytes in place of 16"):
        received_words(mesh, 1, memoryview(bytes(size)), 2)
    assert list(received_words(mesh, 1, memoryview(bytes(16)), 2)) == [0, 0]


def test_what_are_no_keys_are_not_taken_for_keys(mesh: MemoryMesh) -> None:
    mesh.wire.queues[2, 0].put(b"x" * 63)
    with pytest.raises(BadFrame, match="no keys"):
        dealt_keys(mesh)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "frame", [b"", b"1234567", CREDIT.pack(-1, False), CREDIT.pack(1 << 62, True)]
)
def test_what_is_no_number_of_packs_ends_the_dealing(frame: bytes) -> None:
    wire = Wire(2)
    wire.queues[0, 2].put(frame)
    with pytest.raises(BadFrame, match="no number of packs"):
        _credit(MemoryMesh(wire, 2))  # type: ignore[arg-type]


# -- a listener -----------------------------------------------------------------------------


def test_a_party_cannot_push_out_what_others_sent(
    parties: Parties, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest went, whoever had sent them."""
    monkeypatch.setattr(Listener, "MAX_UNCLAIMED", 8)
    monkeypatch.setattr(Listener, "LEAST_UNCLAIMED", 1)
    alice, bob, carol = parties.listeners
    wait = lanes._Wait(time.monotonic() + 10, threading.Event())
    me = alice._me
    kept = [carol._dial(me, "one", "fast", wait)]
    wait_until(lambda: len(alice._arrived) == 1, "carol is there")
    kept += [bob._dial(me, f"flood {n}", "fast", wait) for n in range(20)]
    wait_until(lambda: len(alice._arrived) == 5, "bob has as many as he may")
    kept += [bob._dial(me, "last", "fast", wait)]
    wait_until(lambda: any(h.session == "last" for h in alice._arrived), "the last one counts")
    assert {h.sender for h in alice._arrived} == {"bob", "carol"}
    for channel in kept:
        channel.release()


def test_a_connection_that_comes_twice_replaces_the_first(parties: Parties) -> None:
    alice, bob, _ = parties.listeners
    wait = lanes._Wait(time.monotonic() + 10, threading.Event())
    first = bob._dial(alice._me, "s2", "fast", wait)
    wait_until(lambda: len(alice._arrived) == 1, "it is there")
    second = bob._dial(alice._me, "s2", "fast", wait)
    first.set_timeout(10)
    with pytest.raises(PeerLost, match="closed"):
        first.recv()
    wait_until(lambda: len(alice._arrived) == 1, "the second one is there")
    first.release()
    second.release()


def test_a_reason_is_one_line_of_a_bounded_length(sessions: Sessions) -> None:
    assert printable("a\nb\ud800\x1b[0m") == "a\\nb\\ud800\\x1b[0m"
    sessions.start(timeouts=PATIENT)
    words = json.dumps({"over": "x\n" * 100_000, "state": "ended"}).encode()
    say_once(sessions.all[1], framed(words))
    wait_until(lambda: sessions.leader.state == "ended", "the session is over")
    assert len(sessions.leader.reason) == MAX_REASON
    assert "\n" not in sessions.leader.reason


def test_sessions_go_on_after_all_of_that(sessions: Sessions) -> None:
    sessions.start(timeouts=PATIENT)
    sessions.leader.queue.serve(None)
    np.testing.assert_array_equal(answer(sessions.ask(numbers(1, 2))), numbers(2, 4))
    assert echo_engine.batches
