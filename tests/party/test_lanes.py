"""How parties find each other, and whom they turn away."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import ssl
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from connected import LANES, Parties
from serving import make_config, wait_until

from privserve.config import read_config
from privserve.errors import ClusterError, PeerLost
from privserve.party.channel import Channel
from privserve.party.lanes import (
    HELLO_BYTES,
    REJOIN,
    Listener,
    client_context,
    server_context,
)
from privserve.party.messages import FAILED, WAITING, Hello, Over, hear, read_meeting, read_sign
from privserve.tls_stream import TlsStream


def test_a_first_frame_is_a_small_one(parties: Parties) -> None:
    """Whoever holds a certificate says who it is before anything large is taken from it."""
    config = parties.own_config(0)
    host, port = config.parties[2].endpoint
    raw = socket.create_connection((host, port), timeout=10)
    stream = TlsStream(
        raw, client_context(config, config.parties[0]), server_hostname=config.identity("carol")
    )
    stream.handshake(10)
    channel = Channel(stream, "carol", "hello")
    channel.set_timeout(5)
    channel._sock.sendall(channel.encrypt(struct.pack("<Q", HELLO_BYTES + 1)))
    with pytest.raises(PeerLost, match="closed"):
        channel.recv()
    channel.release()


def test_a_listener_that_runs_out_of_descriptors_goes_on_when_there_are_some(
    parties: Parties, caplog: pytest.LogCaptureFixture
) -> None:
    listener = parties.listeners[2]
    assert listener._sock is not None
    accept, refused, accepted = listener._sock.accept, [1, 1, 1], []

    def scarce() -> object:
        if refused:
            refused.pop()
            raise OSError(errno.EMFILE, "Too many open files")
        accepted.append(taken := accept())
        return taken

    wrapped = Wrapped(listener._sock, scarce)
    threading.Thread(target=listener._accept, args=(wrapped,), daemon=True).start()
    address = parties.config.parties[2].endpoint

    def is_taken() -> bool:
        socket.create_connection(address, timeout=5).close()  # the other thread takes some of them
        return bool(accepted)

    wait_until(is_taken, "the thread that ran out takes a connection")
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


def test_parties_that_never_connect_are_named(tmp_path: Path) -> None:
    three = Parties(tmp_path, 3)
    try:
        with pytest.raises(ClusterError, match="bob and carol did not connect to alice in time"):
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
    monkeypatch.setattr(Listener, "LEAST_UNCLAIMED", 1)
    for number in range(5):
        # Nobody else takes part in these, so nobody claims what the dealer dials.
        for mesh in parties.listeners[2].open_lanes(f"failed {number}", LANES, 5).values():
            mesh.release()
    parties.open("works", timeout=3)


def test_who_comes_back_to_a_session_that_was_given_up_is_told_that_it_is_over(
    parties: Parties,
) -> None:
    """Its first round has the session's name, and nobody told those why who came late to that."""
    alice, bob = parties.listeners[:2]
    with pytest.raises(ClusterError, match="did not connect"):
        alice.open_lanes("lost", LANES, 0.1)
    alice.meets = lambda hello: "its owner stopped it"
    channel = bob.dial(parties.config.parties[0], "lost", REJOIN)
    found = hear(channel, read_meeting, within=10)
    channel.release()
    assert found == Over("its owner stopped it", FAILED)


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
    raw = socket.create_connection(parties.config.parties[rank].endpoint, timeout=5)
    return context.wrap_socket(
        raw, server_hostname=parties.config.identity(parties.config.parties[rank].name)
    )


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
    other = make_config(tmp_path / "other", [p.address for p in parties.config.parties])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(parties.config.ca)
    home = other.path.parent / "bob"
    context.load_cert_chain(home / "bob.pem", home / "bob.key")
    assert is_turned_away(connect(parties, 0, context))


def test_a_listener_of_another_cluster_is_not_trusted(tmp_path: Path) -> None:
    ours, theirs = Parties(tmp_path / "ours", 3), Parties(tmp_path / "theirs", 3)
    config = make_config(tmp_path / "mixed", [p.address for p in theirs.config.parties])
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
    sock = socket.create_connection(parties.config.parties[0].endpoint, timeout=5)
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
    address = three.config.parties[0].endpoint
    three.close()
    with socket.create_server(address):
        pass


def test_who_comes_to_a_round_that_is_over_is_turned_away_and_told_why(parties: Parties) -> None:
    """What was dialled for a round that ended early was kept, a descriptor each."""
    alice, bob, _ = parties.listeners
    me = alice._me
    early = [bob.dial(me, "s", lane) for lane in ("watch", "online", REJOIN)]
    wait_until(lambda: len(alice._arrived) == 3, "they are there")
    alice.give_up("s", "watch", Over("carol is gone", WAITING))
    late = [bob.dial(me, "s", lane) for lane in ("watch", "online")]
    for channel in (early[0], late[0]):
        assert hear(channel, read_sign, within=5) == Over("carol is gone", WAITING)
    for channel in (early[1], late[1]):
        channel.set_timeout(5)
        with pytest.raises(PeerLost, match="closed"):
            channel.recv()
    assert alice.take(Hello("s", REJOIN, "bob")) is not None
    assert alice._arrived == {}
    for channel in (*early, *late):
        channel.release()
