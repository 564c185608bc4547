"""Query lanes at real parties: what is answered, what is refused, who is closed and counted."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable

import numpy as np
import pytest
from raw_lane import RawLane, query_frames, query_payloads, raw_lanes
from serving import Digits, wait_until

import privserve as ps
from privserve import sharing
from privserve.calls import tls_context
from privserve.query_frames import ANSWER_HEAD, HEADER, Kind, frame, json_frame, read_json

FRAMES = int(os.environ.get("PRIVSERVE_FUZZ_FRAMES", "1500"))


def lanes_of(digits: Digits, rank: int = 0) -> dict:
    return digits.model.status()[rank]["lanes"]


def answered_rightly(digits: Digits) -> bool:
    with ps.Client(digits.cluster, timeout=30) as client:
        return bool(client.query_model(digits.images[:1]).argmax() == digits.labels[0])


def test_a_query_is_answered_and_the_shares_sum_to_the_logits(digits: Digits) -> None:
    with digits.serving(), raw_lanes(digits) as lanes:
        for lane, data in zip(lanes, query_frames(digits, 7, rows=2), strict=True):
            lane.send(data)
        shares = []
        for lane in lanes:
            kind, number, payload = lane.next()
            assert (kind, number) == (Kind.ANSWER, 7)
            assert ANSWER_HEAD.unpack_from(payload) == (2,)
            shares.append(np.frombuffer(payload[ANSWER_HEAD.size :], np.int64).reshape(2, 10))
    logits = sharing.join(shares)
    assert (logits.argmax(1) == digits.labels[:2]).all()


def test_the_welcome_tells_what_http_tells(digits: Digits) -> None:
    config = digits.cluster.config
    with raw_lanes(digits) as lanes:
        lanes[0].send(frame(Kind.ABOUT, 3))
        kind, number, payload = lanes[0].next()
    assert (kind, number) == (Kind.WELCOME, 3)
    facts = read_json(memoryview(payload))
    model = facts.pop("model")
    assert (
        facts.pop("revoked")
        == digits.cluster.call(config.parties[0], "GET", "/privserve/revoked").text
    )
    assert facts == digits.cluster.call(config.parties[0], "GET", "/v2").json()
    path = f"/v2/models/{model['name']}"
    assert model == digits.cluster.call(config.parties[0], "GET", path).json()


def test_a_ping_is_answered_while_a_query_waits(digits: Digits) -> None:
    with digits.serving(), raw_lanes(digits) as lanes:
        lanes[0].send(query_frames(digits, 1)[0])  # bob gets none
        lanes[0].send(frame(Kind.PING, 99))
        assert lanes[0].next() == (Kind.PONG, 99, b"")


def test_a_query_that_its_client_cancels_is_let_go_at_both_parties(digits: Digits) -> None:
    with digits.serving(), raw_lanes(digits) as lanes:
        half = query_frames(digits, 1)[0]
        lanes[0].send(half)
        lanes[0].send(frame(Kind.CANCEL, 1))
        number, fields = lanes[0].error()
        assert number == 1
        assert "client left" in fields["error"]
        assert digits.model.status()[0]["waiting"] == 0


def test_a_lane_that_breaks_takes_its_queries_along(digits: Digits) -> None:
    with digits.serving(), raw_lanes(digits) as lanes:
        lanes[0].send(query_frames(digits, 1)[0])
        lanes[0].send(frame(Kind.PING, 2))
        lanes[0].next()
        assert digits.model.status()[0]["waiting"] == 1
        lanes[0].close()
        wait_until(lambda: digits.model.status()[0]["waiting"] == 0, "the half query is gone")


def test_an_answer_that_comes_too_late_is_not_computed(digits: Digits) -> None:
    with digits.serving(), raw_lanes(digits) as lanes:
        payloads = query_payloads(digits)
        # At the leader the query is of use for a millisecond; bob's share comes after that.
        hurried = payloads[0][:36] + struct.pack("<I", 1) + payloads[0][40:]
        lanes[0].send(frame(Kind.QUERY, 1, hurried))
        for number in range(20):  # some milliseconds of round trips
            lanes[0].send(frame(Kind.PING, number))
            lanes[0].next()
        lanes[1].send(frame(Kind.QUERY, 1, payloads[1]))
        for lane in lanes:
            number, fields = lane.error()
            assert (number, fields["code"], fields["status"]) == (1, "deadline_passed", 504)
        answered = digits.model.status()[0]["answered"]
    assert answered == 0


REFUSED: dict[str, tuple[Callable[[bytes], bytes], str, str]] = {
    "another session": (lambda p: p[:16] + bytes(16) + p[32:], "stale_session", "shared anew"),
    "no rows": (lambda p: p[:32] + struct.pack("<I", 0) + p[36:], "bad_input", "1 to 1024 rows"),
    "too many rows": (lambda p: p[:32] + struct.pack("<I", 5000) + p[36:], "bad_input", "1 to"),
    "more rows than shares": (
        lambda p: p[:32] + struct.pack("<I", 2) + p[36:],
        "bad_input",
        "2 rows has 12544 bytes",
    ),
    "a byte less": (lambda p: p[:-1], "bad_input", "1 rows has 6272 bytes"),
    "a byte more": (lambda p: p + b"x", "bad_input", "1 rows has 6272 bytes"),
    "half a head": (lambda p: p[:20], "bad_input", "too short"),
    "nothing": (lambda p: b"", "bad_input", "too short"),
    "masks": (lambda p: p[:40] + struct.pack("<Q", 1) + p[48:], "bad_input", "no masks ahead"),
}


@pytest.mark.parametrize(("change", "code", "why"), REFUSED.values(), ids=REFUSED)
def test_a_query_that_does_not_fit_is_refused_and_the_lane_stays(
    digits: Digits, change: Callable[[bytes], bytes], code: str, why: str
) -> None:
    with digits.serving(), raw_lanes(digits) as lanes:
        lanes[0].send(frame(Kind.QUERY, 5, change(query_payloads(digits)[0])))
        number, fields = lanes[0].error()
        assert (number, fields["code"]) == (5, code)
        assert why in fields["error"]
        for lane, data in zip(lanes, query_frames(digits, 6), strict=True):
            lane.send(data)
        assert [lane.next()[:2] for lane in lanes] == [(Kind.ANSWER, 6)] * 2


CLOSED: dict[str, tuple[bytes, str]] = {
    "a giant length": (HEADER.pack(2**32 - 1, Kind.QUERY, 1), "bytes was announced"),
    "an unknown kind": (frame(99, 1), "no frame of the kind 99"),  # type: ignore[arg-type]
    "a party's frame": (frame(Kind.ANSWER, 1, b"x"), "no frame of the kind 5"),
    "a second hello": (json_frame(Kind.HELLO, 0, {}), "no frame of the kind 1"),
}


@pytest.mark.parametrize(("data", "why"), CLOSED.values(), ids=CLOSED)
def test_what_is_no_frame_of_a_client_ends_the_lane_and_is_counted(
    digits: Digits, data: bytes, why: str
) -> None:
    before = lanes_of(digits)
    with raw_lanes(digits) as lanes:
        lanes[0].send(data)
        number, fields = lanes[0].error()
        assert number == 0
        assert why in fields["error"]
        assert lanes[0].is_closed()
    after = lanes_of(digits)
    assert after["dropped"]["bad_input"] == before["dropped"].get("bad_input", 0) + 1


def test_a_number_in_use_ends_the_lane(digits: Digits) -> None:
    with digits.serving(), raw_lanes(digits) as lanes:
        half = query_frames(digits, 1)[0]
        lanes[0].send(half + half)
        kinds = {lanes[0].next()[0] for _ in range(1)}
        assert kinds == {Kind.ERROR}
        assert lanes[0].is_closed()
        wait_until(lambda: digits.model.status()[0]["waiting"] == 0, "its half query is gone")


NO_HELLO: dict[str, bytes] = {
    "a query": frame(Kind.QUERY, 1, bytes(100)),
    "garbage": b"GET / HTTP/1.1\r\nHost: alice\r\n\r\n",
    "a hello that is no JSON": frame(Kind.HELLO, 0, b"\xff"),
    "a long hello": json_frame(Kind.HELLO, 0, {"authorization": "x" * 5000}),
}


@pytest.mark.parametrize("data", NO_HELLO.values(), ids=NO_HELLO)
def test_a_lane_that_does_not_begin_with_a_hello_is_closed(digits: Digits, data: bytes) -> None:
    lane = RawLane(digits)
    lane.send(data)
    assert lane.is_closed()
    lane.close()
    assert answered_rightly_while_serving(digits)


def answered_rightly_while_serving(digits: Digits) -> bool:
    with digits.serving():
        return answered_rightly(digits)


@pytest.mark.parametrize("shown", ["", "PrivserveClient default.AAAA", "Bearer x", "é" * 300])
def test_who_is_no_client_is_told_so_and_has_no_lane(digits: Digits, shown: str) -> None:
    lane = RawLane(digits)
    lane.send(json_frame(Kind.HELLO, 0, {"authorization": shown}))
    number, fields = lane.error()
    assert (number, fields["code"], fields["status"]) == (0, "unknown_client", 401)
    assert lane.is_closed()
    lane.close()


def test_alices_credential_is_no_use_at_bob(digits: Digits) -> None:
    alice, bob = RawLane(digits, 0), RawLane(digits, 1)
    bob.send(json_frame(Kind.HELLO, 0, {"authorization": alice._authorization}))
    assert bob.error()[1]["code"] == "unknown_client"
    alice.close()
    bob.close()


def test_the_dealer_answers_what_it_is_and_no_query(digits: Digits) -> None:
    with raw_lanes(digits, (0, 2)) as (alice, carol):
        carol.send(frame(Kind.QUERY, 1, query_payloads(digits)[0][:100]))
        number, fields = carol.error()
        assert number == 1
        assert "dealer" in fields["error"]
        alice.send(frame(Kind.PING, 1))
        assert alice.next()[0] == Kind.PONG


def ask_for_ever(lane: RawLane) -> None:
    """Ask and never read: the answers pile up at the party."""
    while True:
        lane.send(frame(Kind.ABOUT, 1) * 2000)


@pytest.mark.slow
def test_a_reader_that_takes_no_answers_is_dropped_and_others_are_not_held_up(
    digits: Digits,
) -> None:
    before = lanes_of(digits)["dropped"]
    with digits.serving(), raw_lanes(digits) as lanes:
        lanes[0].sock.settimeout(60)
        with pytest.raises(OSError, match=r"reset|EOF|closed|broken|Broken|timed out"):
            ask_for_ever(lanes[0])
        assert answered_rightly(digits)
    after = lanes_of(digits)["dropped"]
    why = "does not take its answers"
    assert after.get(why, 0) == before.get(why, 0) + 1


def mutated(data: bytes, draw: random.Random) -> bytes:
    """`data` with some of it changed, cut, doubled or put elsewhere."""
    out = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(out) + 1)
        match draw.randrange(5):
            case 0 if at < len(out):
                out[at] = draw.randrange(256)
            case 1:
                del out[at : at + draw.randint(1, 64)]
            case 2:
                out[at:at] = draw.randbytes(draw.randint(1, 64))
            case 3 if at < len(out):
                out[at] ^= 1 << draw.randrange(8)
            case _:
                out[at : at + 8] = struct.pack("<Q", draw.choice([0, 1, 2**31, 2**32, 2**64 - 1]))
    return bytes(out)


def fuzz(digits: Digits, count: int, seed: int) -> None:
    """Send mutated frames of all kinds, over as many lanes as that takes."""
    draw = random.Random(seed)
    lane, sent = None, 0
    while sent < count:
        if lane is None:
            lane = RawLane(digits, draw.randrange(2))
            if draw.random() < 0.9:
                lane.hello()
        kind = draw.choice(list(Kind))
        payload = query_payloads(digits)[0] if kind == Kind.QUERY else draw.randbytes(20)
        data = frame(kind, draw.choice([0, 1, 2, 2**64 - 1]), payload)
        try:
            lane.send(mutated(data, draw) if draw.random() < 0.7 else data)
        except OSError:
            lane.close()
            lane = None
        sent += 1
    if lane is not None:
        lane.close()


def test_mutated_frames_harm_nobody(digits: Digits) -> None:
    with digits.serving():
        for seed in range(4):
            fuzz(digits, FRAMES // 4, seed)
            assert answered_rightly(digits), f"after seed {seed}"
        wait_until(lambda: digits.model.status()[0]["waiting"] == 0, "their queries are gone")
    for status in digits.model.status():
        assert status["state"] == "loaded"
        assert "internal error" not in status["lanes"]["dropped"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_mutated_frames_harm_nobody(digits: Digits) -> None:
    with digits.serving():
        for seed in range(100, 120):
            fuzz(digits, 5000, seed)
            assert answered_rightly(digits), f"after seed {seed}"
    for status in digits.model.status():
        assert "internal error" not in status["lanes"]["dropped"]


def test_idle_lanes_take_little_memory(digits: Digits) -> None:
    def held(rank: int) -> int:
        pid = digits.cluster.process_ids[digits.cluster.config.parties[rank].name]
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    count = 400
    before = held(0)
    lanes = []
    try:
        for _ in range(count):
            lanes.append(RawLane(digits))
            lanes[-1].hello()
        each = (held(0) - before) / count
        assert lanes_of(digits)["open"] >= count
        assert each <= 20_000, f"{each:.0f} bytes per lane"
        with digits.serving():
            assert answered_rightly(digits)
    finally:
        for lane in lanes:
            lane.close()
    wait_until(lambda: lanes_of(digits)["open"] < 50, "they are gone")


def test_http_clients_still_speak_http(digits: Digits) -> None:
    party = digits.cluster.config.parties[0]
    assert tls_context(digits.cluster.config.ca)
    assert digits.cluster.call(party, "GET", "/v2/health/live").json() == {"live": True}


def test_a_query_of_a_model_that_waits_for_a_party_is_read_and_told_so(digits: Digits) -> None:
    """A lane that was opened meanwhile took the query for one of a size that no client sends."""
    leader, pid = digits.cluster.config.parties[0], digits.cluster.process_ids["carol"]

    def state() -> str:
        path = "/privserve/status"
        found: str = digits.cluster.call(leader, "GET", path).json()["models"][0]["state"]
        return found

    with digits.serving(), ps.Client(digits.cluster, timeout=30) as client:
        client.query_model(digits.images[:1])
        data = query_frames(digits, 7, rows=8)[0]
        os.kill(pid, 19)  # SIGSTOP: it is given up
        try:
            wait_until(lambda: state() == "waiting", "alice waits for carol")
            with raw_lanes(digits) as lanes:
                lanes[0].send(data)
                kind, number, payload = lanes[0].next()
                assert (kind, number) == (Kind.ERROR, 7)
                assert "carol" in read_json(memoryview(payload))["error"]
            client._cells[0].way.reconnect()  # type: ignore[union-attr]
            with pytest.raises(ps.NotServing, match=r"carol.*comes back by itself"):
                client.query_model(digits.images[:1])
        finally:
            os.kill(pid, 18)
        wait_until(lambda: state() == "loaded", "carol is back", 30)
        assert client.query_model(digits.images[:1]).argmax() == digits.labels[0]


def test_what_comes_right_behind_the_hello_is_read(digits: Digits) -> None:
    lane = RawLane(digits)
    hello = json_frame(Kind.HELLO, 0, {"authorization": lane._authorization})
    lane.send(hello)
    for number in range(50):  # records of their own, which come along with it or soon after
        lane.send(frame(Kind.PING, number))
    kinds = [lane.next()[:2] for _ in range(51)]
    assert kinds == [(Kind.WELCOME, 0), *((Kind.PONG, number) for number in range(50))]
    lane.close()
