"""A network between processes of this machine that delays, loses, throttles and cuts.

Each link is a port that leads to one address, in one direction of dialling. TCP hides what gets
lost on the way: its users see a stall of a retransmission's time, which is what a link gives them.
A cut is a cable's: nothing is told to either end, and what was under way arrives after the mend.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any

from privserve.addresses import split_address

CHUNK_BYTES = 64 << 10
CHUNKS_AHEAD = 4
"""Under way in a direction of a connection, before its sender has to wait."""
PACKET_BYTES = 1448
RETRANSMISSION_SECONDS, MOST_SECONDS = 0.2, 1.6
"""Linux' least; doubled for each time that the same packet is lost again, up to the other."""
RESET = struct.pack("ii", 1, 0)
"""A linger that makes a close say so at once."""


class Wires:
    """The thread in which all links of a test live."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="wires", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def link(self, target: str, seed: int) -> FaultyLink:
        """A new link to this address, on a port of its own. seed: of what it loses."""
        return FaultyLink(self, target, seed)

    def call(self, work: Any, *given: Any) -> None:
        """Have something done in the thread."""
        self._loop.call_soon_threadsafe(work, *given)

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin something in the thread; ended when the wires are closed."""

        def begin() -> None:
            task = self._loop.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self.call(begin)

    def close(self) -> None:
        """Break all connections and free the ports."""

        async def end() -> None:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class FaultyLink:
    """A port that leads to `target`, well as long as nothing else is said."""

    def __init__(self, wires: Wires, target: str, seed: int) -> None:
        self._wires = wires
        self._target = split_address(target)
        self._draw = random.Random(seed)
        self._sock = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._sock.setblocking(False)
        self.address = f"127.0.0.1:{self._sock.getsockname()[1]}"
        self.delay = 0.0
        """Seconds for each way."""
        self.rate: float | None = None
        """Bytes a second, of all connections of a direction together; None: as fast as may be."""
        self.loss = 0.0
        """Which part of the packets does not arrive at once."""
        self.carried = 0
        """Bytes, in both directions together."""
        self.stalls = 0
        """How often something was lost."""
        self._free_at = {"there": 0.0, "back": 0.0}
        self._open = asyncio.Event()
        self._open.set()
        wires.begin(self._accept())

    def cut(self) -> None:
        """Nothing gets through any more; connections may be made, and lead nowhere."""
        self._wires.call(self._open.clear)

    def mend(self) -> None:
        """All is well again, and what was under way arrives."""
        self.delay, self.rate, self.loss = 0.0, None, 0.0
        self._wires.call(self._open.set)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        with self._sock:
            while True:
                near, _ = await loop.sock_accept(self._sock)
                self._wires.begin(self._connect(near))

    async def _connect(self, near: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        far = socket.socket()
        try:
            for sock in (near, far):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._open.wait()
            await loop.sock_connect(far, self._target)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(near, far, "there"))
                both.create_task(self._carry(far, near, "back"))
        except* OSError:  # refused, or reset: both ends are to see it
            for sock in (near, far):
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        finally:
            near.close()
            far.close()

    async def _carry(self, source: socket.socket, target: socket.socket, way: str) -> None:
        """Carry what comes from one end to the other, until the first is closed."""
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_AHEAD)

        async def take() -> None:
            due = 0.0
            while True:
                await self._open.wait()
                data = await loop.sock_recv(source, CHUNK_BYTES)
                due = max(due, self._due(loop.time(), way, len(data)))
                await under_way.put((due, data))
                if not data:
                    return

        async def give() -> None:
            while True:
                due, data = await under_way.get()
                if (early := due - loop.time()) > 0:
                    await asyncio.sleep(early)
                await self._open.wait()
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                await loop.sock_sendall(target, data)
                self.carried += len(data)

        async with asyncio.TaskGroup() as both:
            both.create_task(take())
            both.create_task(give())

    def _due(self, now: float, way: str, size: int) -> float:
        """When what is sent now arrives."""
        if self.rate is not None:
            self._free_at[way] = now = max(now, self._free_at[way]) + size / self.rate
        stall, again = 0.0, RETRANSMISSION_SECONDS
        for _ in range(-(-size // PACKET_BYTES)) if self.loss else ():
            while self._draw.random() < self.loss:
                self.stalls += 1
                stall, again = stall + again, min(2 * again, MOST_SECONDS)
        return now + self.delay + stall
