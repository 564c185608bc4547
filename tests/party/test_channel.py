"""Frames between parties: whole, in order, bounded, and what ends a channel."""

from __future__ import annotations

import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from connected import LANES, LARGEST, Parties, at_once
from serving import wait_until

from privserve.errors import PeerLost
from privserve.party.channel import CONTROL_BYTES
from privserve.party.lane_mesh import DIRECT_BYTES


@pytest.mark.parametrize("size", [0, 1, 1 << 16, (1 << 16) + 1, 5_000_000])
def test_a_frame_arrives_whole(parties: Parties, size: int) -> None:
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)

    def send() -> None:
        parties.mesh(0).send(2, payload)

    _, received = at_once([send, lambda: bytes(parties.mesh(2).recv(0))])
    assert received == payload


def test_a_frame_is_the_concatenation_of_its_buffers(parties: Parties) -> None:
    parties.mesh(0).send(1, b"ab", bytearray(b"cd"), memoryview(b"ef"))
    assert bytes(parties.mesh(1).recv(0)) == b"abcdef"


def test_frames_keep_their_order_and_stay_on_their_lane(parties: Parties) -> None:
    for lane in LANES:
        for number in range(50):
            parties.mesh(1, lane).send(0, f"{lane}{number}".encode())
    for lane in reversed(LANES):
        received = [bytes(parties.mesh(0, lane).recv(1)) for _ in range(50)]
        assert received == [f"{lane}{number}".encode() for number in range(50)]


@pytest.mark.parametrize("size", [10, DIRECT_BYTES + 1, 8_000_000])
def test_all_compute_parties_exchange_at_once_whatever_the_size(tmp_path: Path, size: int) -> None:
    four = Parties(tmp_path, 4)
    try:
        four.open()
        payloads = [bytes([rank]) * size for rank in range(3)]
        frames = at_once(
            [
                lambda r=rank: [f and bytes(f) for f in four.mesh(r).exchange(payloads[r])]
                for rank in range(3)
            ]
        )
    finally:
        four.close()
    for rank in range(3):
        expected = [None if peer == rank else payloads[peer] for peer in range(3)]
        assert frames[rank] == expected


def test_payloads_of_an_exchange_may_differ_in_size(parties: Parties) -> None:
    payloads = [b"a" * 3_000_000, b"b"]
    small, large = at_once([lambda r=r: parties.mesh(r).exchange(payloads[r]) for r in (1, 0)])
    assert bytes(small[0] or b"") == payloads[0]
    assert bytes(large[1] or b"") == payloads[1]


def test_an_exchange_leaves_the_dealer_out(parties: Parties) -> None:
    at_once([lambda r=r: parties.mesh(r).exchange(b"x" * 100) for r in (0, 1)])
    assert not [event for event in parties.events if "carol" in event[2] or event[0] == 2]


@pytest.mark.parametrize("size", [10, 8_000_000])
def test_a_peer_that_leaves_during_an_exchange_is_named(parties: Parties, size: int) -> None:
    parties.mesh(1).close()
    with pytest.raises(PeerLost, match="the connection to bob"):
        parties.mesh(0).exchange(b"x" * size)


def test_receiving_from_a_peer_that_left_raises(parties: Parties) -> None:
    parties.mesh(2).close()
    with pytest.raises(PeerLost, match=r"connection to carol \(fast\) broke"):
        parties.mesh(0).recv(2)


def test_sending_to_a_peer_that_left_raises_before_long(parties: Parties) -> None:
    parties.mesh(1).close()

    def send_on() -> None:
        for _ in range(10_000):
            parties.mesh(0).send(1, b"x" * 1000)

    with pytest.raises(PeerLost, match="connection to bob"):
        send_on()


def test_closing_wakes_a_thread_that_waits_for_the_peer(parties: Parties) -> None:
    mesh = parties.mesh(0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(mesh.recv, 1)
        wait_until(lambda: waiting.running(), "the thread receives")
        mesh.close()
        assert isinstance(waiting.exception(5), PeerLost)


def test_lanes_can_be_closed_and_released_twice(parties: Parties) -> None:
    for _ in range(2):
        parties.mesh(0).close()
    for _ in range(2):
        parties.mesh(0).release()


@pytest.mark.parametrize("size", [10, 8_000_000])
def test_a_silent_peer_is_given_up_after_the_timeout(parties: Parties, size: int) -> None:
    mesh = parties.mesh(0)
    mesh.set_timeout(0.2)
    started = time.monotonic()
    with pytest.raises(PeerLost, match="no answer in time"):
        mesh.exchange(b"x" * size)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(("lane", "most"), [("fast", LARGEST), ("plain", CONTROL_BYTES)])
def test_a_frame_that_announces_more_than_its_lane_can_carry_costs_nothing(
    parties: Parties, lane: str, most: int
) -> None:
    if lane == "plain":
        at_once(
            [
                lambda x=x: parties.lanes[x[0]].update(x[1].open_lanes("p", [lane], 10))
                for x in enumerate(parties.listeners)
            ]
        )
    channel = parties.mesh(1, lane).channels[0]
    held = len(parties.mesh(0, lane).channels[1].buffer)
    parties.mesh(0, lane).set_timeout(5)
    channel._sock.sendall(channel.encrypt(struct.pack("<Q", most + 1)))
    with pytest.raises(PeerLost, match="can carry"):
        parties.mesh(0, lane).recv(1)
    assert len(parties.mesh(0, lane).channels[1].buffer) == held


def test_a_record_that_holds_more_than_its_frame_is_refused(parties: Parties) -> None:
    channel = parties.mesh(1).channels[0]
    parties.mesh(0).set_timeout(5)
    channel._sock.sendall(channel.encrypt(struct.pack("<Q", 3) + b"abcdef"))
    with pytest.raises(PeerLost, match="is not a frame"):
        parties.mesh(0).recv(1)


def test_frames_of_one_size_come_in_one_view_until_a_larger_one_comes(parties: Parties) -> None:
    views = []
    for payload in (b"one", b"two", bytes(1 << 20), b"six"):
        parties.mesh(1).send(0, payload)
        views.append(parties.mesh(0).recv(1))
        assert bytes(views[-1]) == payload
    assert views[1] is views[0]
    assert views[3] is not views[0]


def test_what_openssl_leaves_of_a_chunk_is_written_too(
    parties: Parties, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = parties.mesh(1).channels[0]._stream
    whole = stream._tls

    class OneRecordAtATime:
        def write(self, plain: bytes) -> int:
            return whole.write(memoryview(plain)[:1000])

    payload = bytes(range(256)) * 20
    monkeypatch.setattr(stream, "_tls", OneRecordAtATime())
    parties.mesh(0).set_timeout(5)
    parties.mesh(1).send(0, payload)
    assert bytes(parties.mesh(0).recv(1)) == payload


def test_channels_count_what_they_carry(parties: Parties) -> None:
    out, back = parties.mesh(0).channels[1], parties.mesh(1).channels[0]
    before = out.bytes_sent, out.frames_sent, back.bytes_received
    parties.mesh(0).send(1, bytes(92))
    parties.mesh(1).recv(0)
    after = out.bytes_sent, out.frames_sent, back.bytes_received
    assert [b - a for a, b in zip(before, after, strict=True)] == [100, 1, 100]


def test_a_tap_sees_every_payload_on_both_sides(parties: Parties) -> None:
    parties.mesh(0).send(1, b"hello")
    parties.mesh(1).recv(0)
    assert (0, "sent", "bob", b"hello") in parties.events
    assert (1, "received", "alice", b"hello") in parties.events
