"""Channels between parties, all in this process, over real sockets and real TLS."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import make_config, wait_until

from privserve.config import ClusterConfig, read_config
from privserve.errors import ClusterError, PeerLost
from privserve.party import lanes as transport
from privserve.party.channel import CONTROL_BYTES, Channel, Tap, TlsStream
from privserve.party.lanes import (
    HELLO_BYTES,
    LaneMesh,
    Listener,
    client_context,
    server_context,
)

LANES = ("fast", "bulk")
LARGEST = 64 << 20


class Parties:
    """A listener per party of one cluster, and the lanes that they open together."""

    def __init__(self, home: Path, count: int) -> None:
        self.socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        addresses = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in self.socks]
        self.config = make_config(home, addresses)
        self.events: list[tuple[int, str, str, bytes]] = []
        self.listeners = [
            Listener(
                self.own_config(rank), self.own_config(rank).parties[rank], sock, self.tap(rank)
            )
            for rank, sock in enumerate(self.socks)
        ]
        self.lanes: list[dict[str, LaneMesh]] = []

    def own_config(self, rank: int) -> ClusterConfig:
        name = self.config.parties[rank].name
        return read_config(self.config.path.parent / name / "cluster.toml")

    def tap(self, rank: int) -> Tap:
        return lambda way, peer, payload: self.events.append((rank, way, peer, payload))

    def open(self, session: str = "s", timeout: float = 10.0) -> None:
        def one(listener: Listener) -> dict[str, LaneMesh]:
            return listener.open_lanes(
                session, LANES, timeout, limits={"fast": LARGEST, "bulk": LARGEST}
            )

        self.lanes = at_once([lambda x=x: one(x) for x in self.listeners])

    def mesh(self, rank: int, lane: str = "fast") -> LaneMesh:
        return self.lanes[rank][lane]

    def close(self) -> None:
        for lanes in self.lanes:
            for mesh in lanes.values():
                mesh.release()
        for listener in self.listeners:
            listener.close()


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """The results of all calls, each in its own thread, as parties are on their own."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(30) for future in [pool.submit(call) for call in calls]]


@pytest.fixture
def parties(tmp_path: Path) -> Iterator[Parties]:
    """Two compute parties and the dealer, connected on two lanes."""
    three = Parties(tmp_path, 3)
    three.open()
    yield three
    three.close()


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


@pytest.mark.parametrize("size", [10, transport.DIRECT_BYTES + 1, 8_000_000])
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


def test_a_first_frame_is_a_small_one(parties: Parties) -> None:
    """Whoever holds a certificate says who it is before anything large is taken from it."""
    config = parties.own_config(0)
    host, port = config.parties[2].peer_address
    raw = socket.create_connection((host, port), timeout=10)
    stream = TlsStream(raw, client_context(config, config.parties[0]), server_hostname="carol")
    stream.handshake(10)
    channel = Channel(stream, "carol", "hello")
    channel.set_timeout(5)
    channel._sock.sendall(channel.encrypt(struct.pack("<Q", HELLO_BYTES + 1)))
    with pytest.raises(PeerLost, match="closed"):
        channel.recv()
    channel.release()


def test_a_listener_that_runs_out_of_descriptors_goes_on_when_there_are_some(
    parties: Parties, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    listener = parties.listeners[2]
    accept, refused = listener._sock.accept, iter(range(3))

    def scarce() -> object:
        if next(refused, None) is not None:
            raise OSError(errno.EMFILE, "Too many open files")
        return accept()

    monkeypatch.setattr(listener, "_sock", Wrapped(listener._sock, scarce))
    # The thread waits in the old accept; one connection gets it out of there.
    host, port = parties.config.parties[2].peer_address
    socket.create_connection((host, port), timeout=5).close()
    parties.open("after")
    assert "Too many open files" in caplog.text
    parties.mesh(0).send(2, b"still here")
    assert bytes(parties.mesh(2).recv(0)) == b"still here"


class Wrapped:
    """A listening socket with another `accept`."""

    def __init__(self, sock: socket.socket, accept: object) -> None:
        self._sock, self.accept = sock, accept

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)


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


def test_two_sessions_do_not_mix(tmp_path: Path) -> None:
    three = Parties(tmp_path, 3)
    try:
        three.open("one")
        first = three.lanes
        three.open("two")
        three.mesh(0).send(1, b"of two")
        first[0]["fast"].send(1, b"of one")
        assert bytes(first[1]["fast"].recv(0)) == b"of one"
        assert bytes(three.mesh(1).recv(0)) == b"of two"
        for mesh in (mesh for lanes in first for mesh in lanes.values()):
            mesh.release()
    finally:
        three.close()


def test_a_party_that_never_connects_is_named(tmp_path: Path) -> None:
    three = Parties(tmp_path, 3)
    try:
        with pytest.raises(ClusterError, match="bob did not connect to alice in time"):
            three.listeners[0].open_lanes("s", LANES, 0.2)
    finally:
        three.close()


def test_a_party_that_does_not_listen_is_named_with_its_address(tmp_path: Path) -> None:
    three = Parties(tmp_path, 3)
    three.listeners[0].close()
    try:
        with pytest.raises(ClusterError, match=r"carol cannot reach alice at 127\.0\.0\.1:\d+"):
            three.listeners[2].open_lanes("s", LANES, 0.3)
    finally:
        three.close()


def test_what_failed_sessions_leave_behind_does_not_keep_new_ones_out(
    parties: Parties, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Listener, "MAX_UNCLAIMED", 2 * len(LANES))
    for number in range(5):
        # Nobody else takes part in these, so nobody claims what the dealer dials.
        for mesh in parties.listeners[2].open_lanes(f"failed {number}", LANES, 5).values():
            mesh.release()
    parties.open("works", timeout=3)


def test_waiting_for_the_others_can_be_cancelled(tmp_path: Path) -> None:
    three = Parties(tmp_path, 3)
    cancelled = threading.Event()
    try:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(three.listeners[0].open_lanes, "s", LANES, 60, cancelled)
            cancelled.set()
            assert isinstance(waiting.exception(5), ClusterError)
    finally:
        three.close()


def connect(parties: Parties, rank: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    raw = socket.create_connection(parties.config.parties[rank].peer_address, timeout=5)
    return context.wrap_socket(raw, server_hostname=parties.config.parties[rank].name)


def hello(session: str, lane: str, sender: str) -> bytes:
    message = json.dumps({"session": session, "lane": lane, "from": sender}).encode()
    return struct.pack("<Q", len(message)) + message


def is_turned_away(sock: ssl.SSLSocket) -> bool:
    """Whether the other side closes the connection without a word."""
    try:
        return sock.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True
    finally:
        sock.close()


def test_a_party_cannot_speak_for_another(parties: Parties) -> None:
    config = parties.own_config(1)
    sock = connect(parties, 0, client_context(config, config.parties[1]))
    sock.sendall(hello("later", "fast", "carol"))
    assert is_turned_away(sock)
    assert not parties.listeners[0]._arrived


def test_a_party_may_speak_for_itself(parties: Parties) -> None:
    config = parties.own_config(1)
    with connect(parties, 0, client_context(config, config.parties[1])) as sock:
        sock.sendall(hello("later", "fast", "bob"))
        wait_until(lambda: parties.listeners[0]._arrived, "alice took the connection")


def test_who_shows_no_certificate_is_turned_away(parties: Parties) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(parties.config.ca)
    sock = connect(parties, 0, context)
    assert is_turned_away(sock)


def test_a_party_of_another_cluster_is_turned_away(parties: Parties, tmp_path: Path) -> None:
    other = make_config(tmp_path / "other", [p.peer for p in parties.config.parties])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(parties.config.ca)
    home = other.path.parent / "bob"
    context.load_cert_chain(home / "bob.pem", home / "bob.key")
    assert is_turned_away(connect(parties, 0, context))


def test_a_listener_of_another_cluster_is_not_trusted(tmp_path: Path) -> None:
    ours, theirs = Parties(tmp_path / "ours", 3), Parties(tmp_path / "theirs", 3)
    config = make_config(tmp_path / "mixed", [p.peer for p in theirs.config.parties])
    own = read_config(config.path.parent / "bob" / "cluster.toml")
    listener = Listener(own, own.parties[1], ours.socks[1])
    try:
        with pytest.raises(ClusterError, match=r"alice at .* shows a certificate"):
            listener.open_lanes("s", LANES, 5)
    finally:
        ours.close()
        theirs.close()


def test_tls_older_than_1_3_is_refused_on_both_sides(parties: Parties) -> None:
    config = parties.own_config(1)
    contexts = (
        client_context(config, config.parties[1]),
        server_context(config, config.parties[1]),
    )
    assert all(c.minimum_version == ssl.TLSVersion.TLSv1_3 for c in contexts)
    old = client_context(config, config.parties[1])
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connect(parties, 0, old)


@pytest.mark.parametrize("noise", [b"", b"GET / HTTP/1.1\r\n\r\n", bytes(1000)])
def test_noise_on_the_port_disturbs_nobody(parties: Parties, noise: bytes) -> None:
    sock = socket.create_connection(parties.config.parties[0].peer_address, timeout=5)
    # The listener may have hung up on the noise before all of it was sent.
    with sock, contextlib.suppress(OSError):
        sock.sendall(noise)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass
    parties.open("after the noise")


@pytest.mark.parametrize("words", [b"[]", b"{}", b"not json", b"\xff"])
def test_a_malformed_hello_is_turned_away(parties: Parties, words: bytes) -> None:
    config = parties.own_config(1)
    sock = connect(parties, 0, client_context(config, config.parties[1]))
    sock.sendall(struct.pack("<Q", len(words)) + words)
    assert is_turned_away(sock)


def test_closing_the_listener_frees_its_port(tmp_path: Path) -> None:
    three = Parties(tmp_path, 3)
    address = three.config.parties[0].peer_address
    three.close()
    with socket.create_server(address):
        pass
