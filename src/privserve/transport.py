"""Party-to-party channels: framed, mutually authenticated TLS 1.3 over TCP.

A frame is an 8-byte little-endian length and that many bytes. Two parties hold one
connection per lane (a purpose such as "online" or "deal"); each connection begins with a
hello frame that names the session, the lane and the sender, and the sender's certificate
must carry that name. A channel belongs to one thread at a time.

Nothing here looks into a frame, and no frame is unpickled anywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from privserve.config import ClusterConfig, PartyConfig
from privserve.engines import Payload
from privserve.errors import ClusterError, PeerLost

HEADER = struct.Struct("<Q")
MAX_FRAME = 1 << 34
HANDSHAKE_SECONDS = 10.0
# A frame of this size always fits the socket buffers, so that a plain send never waits for
# a peer who is itself sending; larger ones go through the full-duplex loop.
DIRECT_BYTES = 64 * 1024
# Frames up to this size are joined with their header and go out in one piece.
JOINED_BYTES = 64 * 1024
# In an exchange the peer's frame is usually a few microseconds away: asking for it for a
# while costs less than being put to sleep and woken up.
SPIN_SECONDS = 100e-6

Tap = Callable[[str, str, bytes], None]


def server_context(config: ClusterConfig, me: PartyConfig) -> ssl.SSLContext:
    """TLS 1.3 for the listening side of party channels; the peer must show a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(config.ca)
    context.load_cert_chain(me.cert, me.key)
    return context


def client_context(config: ClusterConfig, me: PartyConfig) -> ssl.SSLContext:
    """TLS 1.3 for the dialling side of party channels, with this party's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(config.ca)
    context.load_cert_chain(me.cert, me.key)
    return context


class Channel:
    """One authenticated connection to one peer."""

    def __init__(self, sock: ssl.SSLSocket, peer: str, lane: str, tap: Tap | None = None) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setblocking(False)
        self.peer = peer
        self.lane = lane
        self.bytes_sent = 0
        self.bytes_received = 0
        self.frames_sent = 0
        self._sock = sock
        self._timeout: float | None = None
        self._tap = tap
        self._buffer = bytearray(1 << 16)
        self._closed = False

    def fileno(self) -> int:
        """The socket's descriptor, for `select`."""
        return self._sock.fileno()

    def set_timeout(self, seconds: float | None) -> None:
        """Bound every later wait for the peer; None waits for ever."""
        self._timeout = seconds

    def _lost(self, why: str) -> PeerLost:
        return PeerLost(f"the connection to {self.peer} ({self.lane}) broke: {why}")

    def send(self, *buffers: Payload) -> None:
        """Send one frame made of `buffers`."""
        parts = _frame(buffers)
        for part in parts:
            self._send_all(memoryview(part))
        self._count_sent(parts)

    def _send_all(self, left: memoryview) -> None:
        while left:
            try:
                left = left[self._sock.send(left) :]
            except ssl.SSLWantWriteError:
                self._await(select.POLLOUT, "it does not take what is sent to it")
            except ssl.SSLWantReadError:
                self._await(select.POLLIN, "it does not take what is sent to it")
            except (OSError, ValueError) as error:
                raise self._lost(_reason(error)) from None

    def recv(self, spin: float = 0.0) -> memoryview:
        """The next frame; the view is valid until the next `recv` on this channel.

        spin: seconds to keep asking before the thread sleeps until something comes.
        """
        size = self._parse_header(self._fill(memoryview(self._buffer)[: HEADER.size], spin))
        if size > len(self._buffer):
            self._buffer = bytearray(size)
        view = memoryview(self._buffer)[:size]
        self._fill(view, spin)
        self._count_received(view)
        return view

    def close(self) -> None:
        """Break the connection; a thread that waits in `recv` or `send` gets PeerLost."""
        if self._closed:
            return
        self._closed = True
        # SSLSocket.shutdown would drop TLS and leave a plaintext socket behind. An error
        # only says that the peer was faster.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def release(self) -> None:
        """Free the descriptor; only once no thread uses the channel."""
        self.close()
        self._sock.close()

    def _parse_header(self, header: memoryview) -> int:
        size: int = HEADER.unpack(header)[0]
        if size > MAX_FRAME:
            raise self._lost(f"a frame of {size} bytes is announced, more than {MAX_FRAME}")
        return size

    def _fill(self, view: memoryview, spin: float) -> memoryview:
        done, size = 0, len(view)
        spin_until = 0.0
        while done < size:
            try:
                got = self._sock.recv_into(view[done:])
            except ssl.SSLWantReadError:
                if spin:
                    now = time.perf_counter()
                    spin_until = spin_until or now + spin
                    if now < spin_until:
                        # The peer may be waiting for this very core.
                        os.sched_yield()
                        continue
                self._await(select.POLLIN, "no answer in time; is it overloaded or stopped?")
                continue
            except ssl.SSLWantWriteError:
                self._await(select.POLLOUT, "it does not take what is sent to it")
                continue
            except (OSError, ValueError) as error:
                raise self._lost(_reason(error)) from None
            if got == 0:
                raise self._lost("it closed the connection")
            done += got
        return view

    def _await(self, event: int, complaint: str) -> None:
        """Sleep until the socket can be read or written; PeerLost after the timeout."""
        _wait({self: event}, self._timeout, complaint)

    def _count_sent(self, parts: Sequence[Payload]) -> None:
        self.bytes_sent += sum(len(part) for part in parts)
        self.frames_sent += 1
        if self._tap:
            self._tap("sent", self.peer, b"".join(parts)[HEADER.size :])

    def _count_received(self, view: memoryview) -> None:
        self.bytes_received += HEADER.size + len(view)
        if self._tap:
            self._tap("received", self.peer, bytes(view))


def _frame(buffers: Sequence[Payload]) -> list[Payload]:
    """The header and `buffers` as the pieces to send: joined where that is cheaper.

    A small frame is one TLS record. Joining a large one would touch a megabyte of fresh
    pages, which costs as much as encrypting it.
    """
    parts: list[Payload] = [memoryview(b).cast("B") for b in buffers]
    frame: list[Payload] = [HEADER.pack(sum(len(p) for p in parts)), *parts]
    return frame if sum(len(p) for p in frame) > JOINED_BYTES else [b"".join(frame)]


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "TLS error"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "the connection is closed"


def exchange_duplex(channels: Iterable[Channel], payload: Payload) -> list[memoryview]:
    """Send `payload` on every channel while reading one frame from each, in order.

    Reads and writes are interleaved as the sockets allow, so that two parties who send
    large frames to each other at the same time both get through.
    """
    frame = [memoryview(part) for part in _frame([payload])]
    jobs = [_Duplex(channel, frame) for channel in channels]
    waiting = list(jobs)
    while waiting:
        for job in waiting:
            job.advance()
        waiting = [job for job in waiting if not job.done]
        if waiting and not any(job.progressed for job in waiting):
            wanted = {job.channel: job.wants for job in waiting}
            timeout = waiting[0].channel._timeout
            _wait(wanted, timeout, "no answer in time; is it overloaded or stopped?")
    return [job.result() for job in jobs]


class _Duplex:
    """One channel's progress through a full-duplex exchange."""

    def __init__(self, channel: Channel, frame: list[memoryview]) -> None:
        self.channel = channel
        self.progressed = True
        self._out = frame[0]
        self._later = frame[1:]
        self._frame = frame
        self._header = memoryview(bytearray(HEADER.size))
        self._body: memoryview | None = None
        self._got = 0
        self.wants = 0

    @property
    def done(self) -> bool:
        return not self._out and self._body is not None and self._got == len(self._body)

    def advance(self) -> None:
        """Write and read as much as the socket takes and gives without waiting."""
        self.wants = 0
        before = (len(self._out), self._got, self._body is None)
        if self._out:
            sent = self._try(lambda: self.channel._sock.send(self._out[: 1 << 20]))
            if sent:
                self._out = self._out[sent:]
                if not self._out and self._later:
                    self._out = self._later.pop(0)
                elif not self._out:
                    self.channel._count_sent(self._frame)
        if self._body is None or self._got < len(self._body):
            view = self._header if self._body is None else self._body
            got = self._try(lambda: self.channel._sock.recv_into(view[self._got :]))
            if got == 0:
                raise self.channel._lost("it closed the connection")
            self._got += got or 0
            if self._body is None and self._got == HEADER.size:
                size = self.channel._parse_header(self._header)
                if size > len(self.channel._buffer):
                    self.channel._buffer = bytearray(size)
                self._body = memoryview(self.channel._buffer)[:size]
                self._got = 0
        self.progressed = before != (len(self._out), self._got, self._body is None)

    def _try(self, operation: Callable[[], int]) -> int | None:
        try:
            return operation()
        except ssl.SSLWantReadError:
            self.wants |= select.POLLIN
        except ssl.SSLWantWriteError:
            self.wants |= select.POLLOUT
        except (OSError, ValueError) as error:
            raise self.channel._lost(_reason(error)) from None
        return None

    def result(self) -> memoryview:
        assert self._body is not None
        self.channel._count_received(self._body)
        return self._body


def _wait(wanted: Mapping[Channel, int], timeout: float | None, complaint: str) -> None:
    """Sleep until one of the channels is ready for what is wanted of it."""
    poll = select.poll()
    try:
        for channel, events in wanted.items():
            poll.register(channel.fileno(), events)
        ready = poll.poll(None if timeout is None else timeout * 1000)
    except (OSError, ValueError) as error:  # released meanwhile
        raise next(iter(wanted))._lost(_reason(error)) from None
    if not ready:
        raise next(iter(wanted))._lost(complaint)


class LaneMesh:
    """All channels of one party for one lane; satisfies `engines.Mesh`."""

    def __init__(self, rank: int, n: int, channels: dict[int, Channel]) -> None:
        self.rank = rank
        self.n = n
        self.channels = channels
        self._peers = [peer for peer in range(n) if peer != rank and peer in channels]

    def send(self, peer: int, *buffers: Payload) -> None:
        """Send one frame to party `peer`."""
        self.channels[peer].send(*buffers)

    def recv(self, peer: int) -> memoryview:
        """The next frame from party `peer`; valid until the next one is received."""
        return self.channels[peer].recv()

    def exchange(self, payload: Payload) -> list[memoryview | None]:
        """Everyone's payloads by rank (None at the own rank); see `engines.Mesh`."""
        received: list[memoryview | None] = [None] * self.n
        if memoryview(payload).nbytes <= DIRECT_BYTES:
            for peer in self._peers:
                self.channels[peer].send(payload)
            for peer in self._peers:
                received[peer] = self.channels[peer].recv(SPIN_SECONDS)
            return received
        frames = exchange_duplex((self.channels[p] for p in self._peers), payload)
        for peer, frame in zip(self._peers, frames, strict=True):
            received[peer] = frame
        return received

    def set_timeout(self, seconds: float | None) -> None:
        """Bound every later wait on this lane."""
        for channel in self.channels.values():
            channel.set_timeout(seconds)

    def close(self) -> None:
        """Break all connections of this lane."""
        for channel in self.channels.values():
            channel.close()

    def release(self) -> None:
        """Free the descriptors; only once no thread uses the lane."""
        for channel in self.channels.values():
            channel.release()


def _certified_names(sock: ssl.SSLSocket) -> set[str]:
    """The DNS names in the peer's verified certificate."""
    entries: Any = (sock.getpeercert() or {}).get("subjectAltName", ())
    return {value for kind, value in entries if kind == "DNS"}


@dataclass(frozen=True)
class _Hello:
    session: str
    lane: str
    sender: str


@dataclass(frozen=True)
class _Wait:
    """How long a party waits for another, and whether it still should."""

    deadline: float
    cancelled: threading.Event

    @property
    def over(self) -> bool:
        return self.cancelled.is_set() or time.monotonic() >= self.deadline

    def at_most(self, seconds: float) -> float:
        return max(0.01, min(seconds, self.deadline - time.monotonic()))


class Listener:
    """Accepts party channels and hands each to the session that waits for it."""

    MAX_UNCLAIMED = 256

    def __init__(
        self, config: ClusterConfig, me: PartyConfig, sock: socket.socket, tap: Tap | None = None
    ) -> None:
        """sock: bound to this party's peer address; the listener owns it from now on."""
        self._config = config
        self._me = me
        self._sock = sock
        self._tap = tap
        self._server = server_context(config, me)
        self._client = client_context(config, me)
        self._arrived: dict[_Hello, Channel] = {}
        self._changed = threading.Condition()
        self._closed = False
        sock.listen(64)
        threading.Thread(target=self._accept, name="peer-accept", daemon=True).start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                raw, _ = self._sock.accept()
            except OSError:
                return
            threading.Thread(target=self._welcome, args=(raw,), daemon=True).start()

    def _welcome(self, raw: socket.socket) -> None:
        try:
            raw.settimeout(HANDSHAKE_SECONDS)
            tls = self._server.wrap_socket(raw, server_side=True)
            names = _certified_names(tls)
            channel = Channel(tls, "an unknown peer", "hello")
            channel.set_timeout(HANDSHAKE_SECONDS)
            fields = json.loads(bytes(channel.recv()))
            hello = _Hello(str(fields["session"]), str(fields["lane"]), str(fields["from"]))
            if hello.sender not in names:
                channel.release()
                return
        except (OSError, PeerLost, ValueError, KeyError, TypeError):
            raw.close()  # not one of our parties, or gone: it learns nothing by asking
            return
        channel = Channel(tls, hello.sender, hello.lane, self._tap)
        with self._changed:
            if self._closed:
                channel.release()
                return
            # Sessions that failed on this side leave theirs behind; the oldest go.
            while len(self._arrived) >= self.MAX_UNCLAIMED:
                self._arrived.pop(next(iter(self._arrived))).release()
            self._arrived[hello] = channel
            self._changed.notify_all()

    def _claim(self, hello: _Hello, wait: _Wait) -> Channel:
        with self._changed:
            while hello not in self._arrived:
                if wait.over or self._closed:
                    raise ClusterError(
                        f"{hello.sender} did not connect to {self._me.name} in time; check that it "
                        f"runs and reaches {self._me.peer}"
                    )
                self._changed.wait(0.1)
            return self._arrived.pop(hello)

    def _dial(self, peer: PartyConfig, session: str, lane: str, wait: _Wait) -> Channel:
        host, port = peer.peer_address
        reason = "no answer"
        while True:
            if wait.over or self._closed:
                raise ClusterError(
                    f"{self._me.name} cannot reach {peer.name} at {peer.peer}: {reason}; check "
                    "that it runs and that the address in cluster.toml is right"
                )
            try:
                raw = socket.create_connection(
                    (host, port), timeout=wait.at_most(HANDSHAKE_SECONDS)
                )
                tls = self._client.wrap_socket(raw, server_hostname=peer.name)
                hello = {"session": session, "lane": lane, "from": self._me.name}
                Channel(tls, peer.name, lane).send(json.dumps(hello).encode())
                return Channel(tls, peer.name, lane, self._tap)
            except ssl.SSLCertVerificationError as error:
                raise ClusterError(
                    f"{peer.name} at {peer.peer} shows a certificate that this cluster's "
                    f"authority did not sign for it ({error.verify_message}); use the files of "
                    "one and the same cluster on all hosts"
                ) from None
            except OSError as error:
                reason = _reason(error)
                with self._changed:
                    self._changed.wait(0.05)

    def open_lanes(
        self,
        session: str,
        lanes: Sequence[str],
        timeout: float,
        cancelled: threading.Event | None = None,
    ) -> dict[str, LaneMesh]:
        """Connect this party with all others on every lane of one session.

        Collective: every party calls it with the same arguments. Of two parties the later
        one in cluster.toml dials. Raises ClusterError naming who is missing after
        `timeout` seconds, or when `cancelled` is set meanwhile.
        """
        wait = _Wait(time.monotonic() + timeout, cancelled or threading.Event())
        parties = self._config.parties
        rank = self._config.rank(self._me.name)
        opened: dict[str, dict[int, Channel]] = {lane: {} for lane in lanes}
        try:
            for index in range(rank):
                for lane in lanes:
                    opened[lane][index] = self._dial(parties[index], session, lane, wait)
            for index in range(rank + 1, len(parties)):
                for lane in lanes:
                    hello = _Hello(session, lane, parties[index].name)
                    opened[lane][index] = self._claim(hello, wait)
        except Exception:
            for channels in opened.values():
                for channel in channels.values():
                    channel.release()
            raise
        return {lane: LaneMesh(rank, len(parties) - 1, opened[lane]) for lane in lanes}

    def close(self) -> None:
        """Stop accepting and free the port."""
        with self._changed:
            self._closed = True
            for channel in self._arrived.values():
                channel.release()
            self._arrived.clear()
            self._changed.notify_all()
        # Wakes the accepting thread; Linux calls it an error on a listening socket.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
