"""One authenticated connection between two parties: frames over TLS 1.3.

A frame is an 8-byte little-endian length and that many bytes. Python's `SSLSocket` writes
and reads one TLS record of 16 KB per system call, two for reading. Here OpenSSL works in
memory (`ssl.SSLObject`) and the socket moves whole frames: an exchange of a few kilobytes
is one system call each way, a megabyte a few.

A channel belongs to one thread at a time. Nothing here looks into a frame.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from privserve.errors import PeerLost
from privserve.mesh import Payload

HEADER = struct.Struct("<Q")
CONTROL_BYTES = 1 << 20
"""No frame is larger on a lane whose session does not say otherwise."""
# Frames up to this size are joined with their header and go out in one piece.
JOINED_BYTES = 64 * 1024
# So much is encrypted before it is sent, and read before it is decrypted: it stays cached.
CHUNK_BYTES = 256 * 1024
MAX_VIEWS = 256

Tap = Callable[[str, str, bytes], None]


class TlsStream:
    """TLS 1.3 over a socket that does not block: bytes in, bytes out."""

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
    ) -> None:
        self.sock = sock
        self._received, self._encrypted = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._received,
            self._encrypted,
            server_side=server_side,
            server_hostname=server_hostname,
        )
        self._arrived = memoryview(bytearray(CHUNK_BYTES))

    def handshake(self, seconds: float) -> None:
        """Raises OSError (ssl.SSLError among them) when the peer is not who it should be."""
        deadline = time.monotonic() + seconds
        while True:
            # A blocking socket here; nothing else happens on it.
            self.sock.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            finally:
                if self._encrypted.pending:  # an alert too: the peer should know why
                    self.sock.sendall(self._encrypted.read())
            if done:
                break
            if not (got := self.sock.recv_into(self._arrived)):
                raise ConnectionResetError("the connection is closed")
            self._received.write(self._arrived[:got])
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.sock.setblocking(False)

    def certified_names(self) -> set[str]:
        """The DNS names in the peer's verified certificate."""
        entries = (self._tls.getpeercert() or {}).get("subjectAltName", ())
        return {str(entry[1]) for entry in entries if entry[0] == "DNS"}

    def encrypt(self, plain: Payload) -> bytes:
        """What has to be sent for `plain`, which is at most a chunk."""
        done = self._tls.write(plain)
        while done < len(plain):  # OpenSSL may be told to stop after each record
            done += self._tls.write(memoryview(plain)[done:])
        return self._encrypted.read()

    def read(self, view: memoryview) -> int:
        """Decrypt into `view` what has arrived, asking the socket once; 0 if nothing has.

        Raises ConnectionResetError at the connection's end, OSError for what TLS rejects.
        """
        # Asked first: an exception for "nothing yet" costs as much as decrypting.
        if self._received.pending or self._tls.pending():
            try:
                return self._tls.read(len(view), view)  # type: ignore[return-value]
            except ssl.SSLWantReadError:  # a part of a record
                pass
        try:
            got = self.sock.recv_into(self._arrived)
        except BlockingIOError:
            return 0
        if not got:
            raise ConnectionResetError("it closed the connection")
        self._received.write(self._arrived[:got])
        try:
            return self._tls.read(len(view), view)  # type: ignore[return-value]
        except ssl.SSLWantReadError:
            return 0


class Channel:
    """One connection to one peer: frames in both directions."""

    def __init__(
        self,
        stream: TlsStream,
        peer: str,
        lane: str,
        tap: Tap | None = None,
        limit: int = CONTROL_BYTES,
    ) -> None:
        self.limit = limit
        """What the lane can carry: a peer that announces a larger frame is cut off."""
        self.peer = peer
        self.lane = lane
        self.bytes_sent = 0
        self.bytes_received = 0
        self.frames_sent = 0
        self._stream = stream
        self._sock = stream.sock
        self._timeout: float | None = None
        self._tap = tap
        self._buffer = memoryview(bytearray(1 << 16))
        self._frames: dict[int, memoryview] = {}
        self._closed = False

    def fileno(self) -> int:
        """The socket's descriptor, for `select`."""
        return self._sock.fileno()

    def set_timeout(self, seconds: float | None) -> None:
        """Bound every later wait for the peer; None waits for ever."""
        self._timeout = seconds

    def lost(self, why: str) -> PeerLost:
        """The error for a connection that is of no use any more."""
        return PeerLost(f"the connection to {self.peer} ({self.lane}) broke: {why}")

    def send(self, *buffers: Payload) -> None:
        """Send one frame made of `buffers`."""
        self.send_frame(frame_of(buffers))

    def send_frame(self, parts: Sequence[Payload]) -> None:
        """Send what `frame_of` made."""
        for chunk in parts if len(parts) == 1 else _chunks(parts):
            try:
                encrypted = self._stream.encrypt(chunk)
                sent = self._sock.send(encrypted)
            except BlockingIOError:
                sent = 0
            except (OSError, ValueError) as error:
                raise self.lost(reason_of(error)) from None
            while sent < len(encrypted):
                if not (more := self.try_send(memoryview(encrypted)[sent:])):
                    self._await(select.POLLOUT, "it does not take what is sent to it")
                sent += more
        self.count_sent(parts)

    def recv(self, spin: float = 0.0) -> memoryview:
        """The next frame; the view is valid until the next `recv` on this channel.

        Frames of one size come in one view again and again, for callers who keep what they
        made of it; a larger frame than ever before ends that.

        spin: seconds to keep asking before the thread sleeps until something comes.
        """
        buffer, read = self._buffer, self._stream.read
        done, size, spin_until = 0, -1, 0.0
        view = buffer
        while done != size:
            # A frame begins a TLS record, and a read ends with one: the first read takes
            # a small frame whole and nothing of the next one.
            try:
                got = read(view)
            except (OSError, ValueError) as error:
                raise self.lost(reason_of(error)) from None
            if got:
                done += got
                if size < 0 and done >= HEADER.size:
                    size = HEADER.size + self.parse_header(buffer)
                    if size > len(buffer):
                        buffer = self.enlarge(size, done)
                if done > size >= 0:
                    raise self.lost("what it sends is not a frame")
                view = buffer[done:] if size < 0 else buffer[done:size]
                continue
            if spin:
                now = time.perf_counter()
                spin_until = spin_until or now + spin
                if now < spin_until:
                    # The peer may be waiting for this very core.
                    os.sched_yield()
                    continue
            self._await(select.POLLIN, "no answer in time; is it overloaded or stopped?")
        frame = self._frames.get(size)
        if frame is None:
            if len(self._frames) >= MAX_VIEWS:
                self._frames.clear()
            frame = self._frames[size] = buffer[HEADER.size : size]
        self.count_received(frame)
        return frame

    def close(self) -> None:
        """Break the connection; a thread that waits in `recv` or `send` gets PeerLost."""
        if self._closed:
            return
        self._closed = True
        # An error only says that the peer was faster.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Free the descriptor; only once no thread uses the channel."""
        self.close()
        self._sock.close()

    # The steps, for `exchange_duplex`.

    def encrypt(self, chunk: Payload) -> bytes:
        """What has to be sent for a chunk."""
        try:
            return self._stream.encrypt(chunk)
        except (OSError, ValueError) as error:
            raise self.lost(reason_of(error)) from None

    def try_send(self, encrypted: Payload) -> int:
        """How much of it the socket takes now."""
        try:
            return self._sock.send(encrypted)
        except BlockingIOError:
            return 0
        except (OSError, ValueError) as error:
            raise self.lost(reason_of(error)) from None

    def try_read(self, view: memoryview) -> int:
        """How many decrypted bytes were put into `view`, without waiting."""
        try:
            return self._stream.read(view)
        except (OSError, ValueError) as error:
            raise self.lost(reason_of(error)) from None

    def parse_header(self, header: memoryview) -> int:
        """The size that a frame's header announces."""
        size: int = HEADER.unpack_from(header)[0]
        if size > self.limit:
            raise self.lost(
                f"it announced a frame of {size} bytes, more than the {self.limit} that this lane "
                "can carry"
            )
        return size

    def enlarge(self, size: int, done: int) -> memoryview:
        """A receive buffer of `size` bytes that keeps the first `done` ones."""
        self._frames.clear()
        larger = memoryview(bytearray(size))
        larger[:done] = self._buffer[:done]
        self._buffer = larger
        return larger

    def count_sent(self, parts: Sequence[Payload]) -> None:
        """Note a frame that was sent."""
        for part in parts:
            self.bytes_sent += len(part)
        self.frames_sent += 1
        if self._tap:
            self._tap("sent", self.peer, b"".join(parts)[HEADER.size :])

    def count_received(self, view: memoryview) -> None:
        """Note a frame that was received."""
        self.bytes_received += HEADER.size + len(view)
        if self._tap:
            self._tap("received", self.peer, bytes(view))

    @property
    def timeout(self) -> float | None:
        """See `set_timeout`."""
        return self._timeout

    @property
    def buffer(self) -> memoryview:
        """Where frames are received."""
        return self._buffer

    def _await(self, event: int, complaint: str) -> None:
        """Sleep until the socket can be read or written; PeerLost after the timeout."""
        wait_for({self: event}, self._timeout, complaint)


def frame_of(buffers: Sequence[Payload]) -> list[Payload]:
    """The header and `buffers` as the pieces to send: joined where that is cheaper.

    A small frame is one TLS record or a few. Joining a large one would touch a megabyte of
    fresh pages, which costs as much as encrypting it.
    """
    if len(buffers) == 1:
        size = memoryview(buffers[0]).nbytes
        if size <= JOINED_BYTES:
            return [HEADER.pack(size) + buffers[0]]
    parts: list[Payload] = [memoryview(b).cast("B") for b in buffers]
    frame: list[Payload] = [HEADER.pack(sum(len(p) for p in parts)), *parts]
    return frame if sum(len(p) for p in frame) > JOINED_BYTES else [b"".join(frame)]


def _chunks(parts: Sequence[Payload]) -> Iterable[Payload]:
    for part in parts:
        if len(part) <= CHUNK_BYTES:
            if len(part):
                yield part
            continue
        view = memoryview(part)
        for start in range(0, len(view), CHUNK_BYTES):
            yield view[start : start + CHUNK_BYTES]


def reason_of(error: Exception) -> str:
    """Why a connection broke, in a few words."""
    if isinstance(error, ssl.SSLError):
        return error.reason or "TLS error"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, ConnectionResetError):
        return str(error)
    return "the connection is closed"


def exchange_duplex(channels: Iterable[Channel], payload: Payload) -> list[memoryview]:
    """Send `payload` on every channel while reading one frame from each, in order.

    Reads and writes are interleaved as the sockets allow, so that two parties who send
    large frames to each other at the same time both get through.
    """
    frame = frame_of([payload])
    jobs = [_Duplex(channel, frame) for channel in channels]
    waiting = list(jobs)
    while waiting:
        for job in waiting:
            job.advance()
        waiting = [job for job in waiting if not job.done]
        if waiting and not any(job.progressed for job in waiting):
            wanted = {job.channel: job.wants for job in waiting}
            timeout = waiting[0].channel.timeout
            wait_for(wanted, timeout, "no answer in time; is it overloaded or stopped?")
    return [job.result() for job in jobs]


class _Duplex:
    """One channel's progress through a full-duplex exchange."""

    def __init__(self, channel: Channel, frame: Sequence[Payload]) -> None:
        self.channel = channel
        self.progressed = True
        self.wants = 0
        self._frame = frame
        self._later = iter(_chunks(frame))
        self._out = memoryview(b"")
        self._sent = False
        self._got = 0
        self._size = -1

    @property
    def done(self) -> bool:
        return self._sent and self._got == self._size

    def advance(self) -> None:
        """Write and read as much as the socket takes and gives without waiting."""
        self.wants, self.progressed = 0, False
        if not self._sent:
            self._write()
        if self._got != self._size:
            self._read()

    def _write(self) -> None:
        if not self._out:
            chunk = next(self._later, None)
            if chunk is None:
                self.channel.count_sent(self._frame)
                self._sent = self.progressed = True
                return
            self._out = memoryview(self.channel.encrypt(chunk))
        sent = self.channel.try_send(self._out)
        self._out = self._out[sent:]
        self.progressed |= sent > 0
        if not sent:
            self.wants |= select.POLLOUT

    def _read(self) -> None:
        buffer = self.channel.buffer
        end = HEADER.size if self._size < 0 else self._size
        if not (got := self.channel.try_read(buffer[self._got : end])):
            self.wants |= select.POLLIN
            return
        self.progressed = True
        self._got += got
        if self._size < 0 and self._got == HEADER.size:
            self._size = HEADER.size + self.channel.parse_header(buffer)
            if self._size > len(buffer):
                self.channel.enlarge(self._size, self._got)

    def result(self) -> memoryview:
        view = self.channel.buffer[HEADER.size : self._size]
        self.channel.count_received(view)
        return view


def wait_for(wanted: Mapping[Channel, int], timeout: float | None, complaint: str) -> None:
    """Sleep until one of the channels is ready for what is wanted of it."""
    poll = select.poll()
    try:
        for channel, events in wanted.items():
            poll.register(channel.fileno(), events)
        ready = poll.poll(None if timeout is None else timeout * 1000)
    except (OSError, ValueError) as error:  # released meanwhile
        raise next(iter(wanted)).lost(reason_of(error)) from None
    if not ready:
        raise next(iter(wanted)).lost(complaint)
