"""A network between processes of this machine: what is sent arrives later, and at a line's rate.

Kernels can do this too where they are let, which takes privileges that a benchmark should not ask
for; so a process of its own carries everything. A link is a port that leads to an address: each two
ends have one, so that a line is shared by the connections between these alone. TCP's own growth of
its window, and loss, are not part of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import multiprocessing
import selectors
import signal
import socket
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection

from privserve.addresses import split_address
from privserve.errors import ClusterError

SPAWN = multiprocessing.get_context("spawn")
START_SECONDS = 60.0
LEAST_WINDOW = 1 << 20
"""Bytes under way before a sender has to wait; or twice what the line holds, if that is more."""
EPSILON = 1e-9
PR_SET_TIMERSLACK = 29
TRIALS = 50


@dataclass(frozen=True)
class Network:
    """What lies between any two hosts."""

    name: str
    round_trip: float
    """Seconds."""
    rate: float
    """Bytes a second, in each direction."""


@dataclass(frozen=True)
class Line:
    """A port, and the address that it leads to."""

    port: socket.socket
    target: str


class _End(asyncio.Protocol):
    """One end of a connection: what it receives, the other end sends when it is due."""

    def __init__(self, line: _Line, way: int) -> None:
        self._line, self._way = line, way
        self.transport: asyncio.Transport | None = None
        self.other: _End | None = None
        self._last = 0.0
        self._under_way = 0
        self._is_full = False
        self._waits = False
        """Whether reading is paused."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.other is None:
            transport.pause_reading()
            self._line.connect(self)

    def data_received(self, data: bytes) -> None:
        self._last = due = max(self._last + EPSILON, self._line.due(self._way, len(data)))
        self._under_way += len(data)
        self._line.loop.call_at(due, self._arrive, data)
        self._look()

    def _arrive(self, data: bytes) -> None:
        other = self.other
        if other is not None and other.transport is not None:
            other.transport.write(data)
        self._under_way -= len(data)
        self._look()

    def _look(self) -> None:
        """Read as long as the line takes more, and its other end too."""
        if self.transport is None or self.transport.is_closing():
            return
        assert self.other is not None
        waits = self._under_way > self._line.window or self.other._is_full
        if waits != self._waits:
            self._waits = waits
            (self.transport.pause_reading if waits else self.transport.resume_reading)()

    def pause_writing(self) -> None:
        self._is_full = True
        if self.other is not None:
            self.other._look()

    def resume_writing(self) -> None:
        self._is_full = False
        if self.other is not None:
            self.other._look()

    def eof_received(self) -> bool:
        self._line.loop.call_at(self._line.due(self._way, 0) + EPSILON, self._end)
        return True

    def _end(self) -> None:
        if self.other is not None and self.other.transport is not None:
            with contextlib.suppress(OSError):
                self.other.transport.write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.other is not None:
            self._line.loop.call_at(self._line.due(self._way, 0) + EPSILON, self.other.close)

    def close(self) -> None:
        """Close this end, once what was written to it is gone."""
        if self.transport is not None:
            self.transport.close()


class _Line:
    """A line in the process that carries."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, line: Line, delay: float, rate: float
    ) -> None:
        self.loop = loop
        self.port = line.port
        self._target = split_address(line.target)
        self._delay, self._rate = delay, rate
        self.window = max(LEAST_WINDOW, int(4 * delay * rate))
        self._free_at = [0.0, 0.0]
        self._tasks: set[asyncio.Task[None]] = set()

    def due(self, way: int, size: int) -> float:
        """When what is sent now arrives: lines carry one thing after the other."""
        begins = max(self.loop.time(), self._free_at[way])
        self._free_at[way] = begins + size / self._rate
        return self._free_at[way] + self._delay

    def connect(self, near: _End) -> None:
        """Find the other end of a connection that was made."""
        task = self.loop.create_task(self._connect(near))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, near: _End) -> None:
        far = _End(self, 1)
        far.other = near
        try:
            await self.loop.create_connection(lambda: far, *self._target)
        except OSError:
            near.close()
            return
        near.other = far
        if near.transport is None:  # it went meanwhile
            far.close()
        else:
            near.transport.resume_reading()


def _carry(lines: Sequence[Line], network: Network, pipe: Connection) -> None:
    """The process: carry until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    with contextlib.suppress(OSError, AttributeError):  # Linux sleeps 50 us longer than asked
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    # epoll knows whole milliseconds only.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    asyncio.set_event_loop(loop)

    async def serve() -> None:
        for line in lines:
            carried = _Line(loop, line, network.round_trip / 2, network.rate)
            await loop.create_server(partial(_End, carried, 0), sock=carried.port)
        pipe.send("ready")
        with contextlib.suppress(EOFError):
            await loop.run_in_executor(None, pipe.recv)

    loop.run_until_complete(serve())


class Links:
    """The process that carries between all ends of these lines. A context manager."""

    def __init__(self, lines: Sequence[Line], network: Network) -> None:
        """The lines' ports are bound; they are closed here."""
        self._pipe, theirs = SPAWN.Pipe()
        with theirs:
            self._process = SPAWN.Process(
                target=_carry, args=(list(lines), network, theirs), name="links", daemon=True
            )
            self._process.start()
        for line in lines:
            line.port.close()
        try:
            if not self._pipe.poll(START_SECONDS):
                raise ClusterError("the process that carries between the parties did not start")
            self._pipe.recv()
        except (EOFError, ClusterError):
            self.close()
            raise ClusterError("the process that carries between the parties ended") from None

    def __enter__(self) -> Links:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process; idempotent."""
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def bound() -> tuple[socket.socket, str]:
    """Return a port for a line, and its address."""
    port = socket.create_server(("127.0.0.1", 0), backlog=256)
    return port, f"127.0.0.1:{port.getsockname()[1]}"


def measured_round_trip(network: Network) -> float:
    """Return the median seconds that a byte takes through a link and back: what it really is."""
    port, address = bound()
    with socket.create_server(("127.0.0.1", 0)) as echo:

        def answer() -> None:
            with echo.accept()[0] as there:
                there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while data := there.recv(64):
                    there.sendall(data)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        target = f"127.0.0.1:{echo.getsockname()[1]}"
        with (
            Links([Line(port, target)], network),
            socket.create_connection(split_address(address)) as here,
        ):
            here.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            seconds = []
            for _ in range(TRIALS):
                began = time.perf_counter()
                here.sendall(b"x")
                here.recv(1)
                seconds.append(time.perf_counter() - began)
        thread.join(START_SECONDS)
    return statistics.median(seconds)
