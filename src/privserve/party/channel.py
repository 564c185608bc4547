"""One authenticated connection between two parties: frames over a TLS stream.

A frame is an 8-byte little-endian length and that many bytes; a small one is one system call.
A channel belongs to one thread at a time. Nothing here looks into a frame.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from privserve.errors import BadFrame, HalfFrame, PeerLost
from privserve.mesh import Payload
from privserve.tls_stream import CHUNK_BYTES, TlsStream, reason_of

HEADER = struct.Struct("<Q")
CONTROL_BYTES = 1 << 20
"""No frame is larger on a lane whose session does not say otherwise."""
LAZY_BYTES = 1 << 20
"""What is larger is received into pages that take no memory before they are written."""
# Frames up to this size are joined with their header and go out in one piece.
JOINED_BYTES = 64 * 1024
MAX_VIEWS = 256
SILENT = "no answer in time; is it overloaded or stopped?"

Tap = Callable[[str, str, bytes], None]


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
        self.patience: float | None = None
        """Seconds for the next bytes of a frame that has begun; None waits for ever."""
        self._timeout: float | None = None
        self._tap = tap
        self._buffer = memoryview(bytearray(1 << 16))
        self._frames: dict[int, memoryview] = {}
        self._closed = False

    def fileno(self) -> int:
        """Return the socket's descriptor, for `select`."""
        return self._sock.fileno()

    @property
    def has_arrived(self) -> bool:
        """Whether more has come than was received, which the descriptor does not tell."""
        return self._stream.has_arrived

    def set_timeout(self, seconds: float | None) -> None:
        """Bound every later wait for the peer; None waits for ever."""
        self._timeout = seconds

    def lost(self, why: str) -> PeerLost:
        """Return the error for a connection that is of no use any more."""
        return PeerLost(f"the connection to {self.peer} ({self.lane}) broke: {why}")

    def bad(self, why: str) -> BadFrame:
        """Return the error for a frame that is none of the protocol; `why` quotes nothing of it."""
        return BadFrame(self._none_of(why))

    def half(self) -> HalfFrame:
        """Return the error for a frame whose rest does not come."""
        return HalfFrame(self._none_of("it began a frame and did not end it"))

    def _none_of(self, why: str) -> str:
        return f"{self.peer} sent what is none of the protocol on the lane '{self.lane}': {why}"

    def send(self, *buffers: Payload) -> None:
        """Send one frame made of `buffers`."""
        self.send_frame(frame_of(buffers))

    def send_frame(self, parts: Sequence[Payload]) -> None:
        """Send what `frame_of` made."""
        for chunk in parts if len(parts) == 1 else chunks_of(parts):
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

    def recv(self, spin: float = 0.0, within: float | None = None) -> memoryview:
        """Return the next frame; the view is valid until the next `recv` on this channel.

        Frames of one size come in one view again and again, for callers who keep what they
        made of it; a larger frame than ever before ends that.

        spin: seconds to keep asking before the thread sleeps until something comes. within:
        seconds for the whole frame, however slowly it trickles in.
        """
        buffer, read = self._buffer, self._stream.read
        until = None if within is None else time.monotonic() + within
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
                    raise self.bad("a frame and more in one record; that is not a frame")
                view = buffer[done:] if size < 0 else buffer[done:size]
                continue
            if spin:
                now = time.perf_counter()
                spin_until = spin_until or now + spin
                if now < spin_until:
                    # The peer may be waiting for this very core.
                    os.sched_yield()
                    continue
            if done:
                self.await_rest(until)
            else:
                self._await(select.POLLIN, SILENT, until)
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

    def await_rest(self, until: float | None = None) -> None:
        """Sleep until more of a frame comes that has begun; BadFrame where nothing does in time."""
        bounds = [b for b in (self._timeout, self.patience) if b is not None]
        if until is not None:
            bounds.append(max(0.0, until - time.monotonic()))
        if not wait_for({self: select.POLLIN}, min(bounds, default=None)):
            raise self.half()

    # The steps, for `duplex`.

    def encrypt(self, chunk: Payload) -> bytes:
        """Encrypt a chunk; returns what has to be sent for it."""
        try:
            return self._stream.encrypt(chunk)
        except (OSError, ValueError) as error:
            raise self.lost(reason_of(error)) from None

    def try_send(self, encrypted: Payload) -> int:
        """Send as much of it as the socket takes now; returns how much that is."""
        try:
            return self._sock.send(encrypted)
        except BlockingIOError:
            return 0
        except (OSError, ValueError) as error:
            raise self.lost(reason_of(error)) from None

    def try_read(self, view: memoryview) -> int:
        """Decrypt what has come into `view`, without waiting; returns how many bytes."""
        try:
            return self._stream.read(view)
        except (OSError, ValueError) as error:
            raise self.lost(reason_of(error)) from None

    def parse_header(self, header: memoryview) -> int:
        """Return the size that a frame's header announces."""
        size: int = HEADER.unpack_from(header)[0]
        if size > self.limit:
            raise self.bad(
                f"it announced a frame of {size} bytes, more than the {self.limit} that this lane "
                "can carry"
            )
        return size

    def enlarge(self, size: int, done: int) -> memoryview:
        """Return a receive buffer of `size` bytes that keeps the first `done` ones."""
        self._frames.clear()
        # What was announced may never come: its memory is taken as it comes.
        lazy = size > LAZY_BYTES
        larger = memoryview(mmap.mmap(-1, size)) if lazy else memoryview(bytearray(size))
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

    def _await(self, event: int, complaint: str, until: float | None = None) -> None:
        """Sleep until the socket can be read or written; PeerLost after the timeout, or `until`."""
        timeout = self._timeout
        if until is not None:
            left = max(0.0, until - time.monotonic())
            timeout = left if timeout is None else min(left, timeout)
        if not wait_for({self: event}, timeout):
            raise self.lost(complaint)


def frame_of(buffers: Sequence[Payload]) -> list[Payload]:
    """Return header and `buffers` as the pieces to send: joined where that is cheaper.

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


def chunks_of(parts: Sequence[Payload]) -> Iterable[Payload]:
    """Yield the parts of a frame in pieces that are encrypted at once."""
    for part in parts:
        if len(part) <= CHUNK_BYTES:
            if len(part):
                yield part
            continue
        view = memoryview(part)
        for start in range(0, len(view), CHUNK_BYTES):
            yield view[start : start + CHUNK_BYTES]


def wait_for(wanted: Mapping[Channel, int], timeout: float | None) -> bool:
    """Sleep until one of the channels is ready for what is wanted of it; whether one is."""
    poll = select.poll()
    try:
        for channel, events in wanted.items():
            poll.register(channel.fileno(), events)
        ready = poll.poll(None if timeout is None else timeout * 1000)
    except (OSError, ValueError) as error:  # released meanwhile
        raise next(iter(wanted)).lost(reason_of(error)) from None
    return bool(ready)
