"""A round: what a session has between two losses, and never again.

A session is a model's life on the cluster. Whenever a party is lost its round is over: lanes,
threads, the engine's keys and packs are thrown away, and the next round has fresh ones.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from privserve.errors import PeerLost
from privserve.party.channel import Channel
from privserve.party.lane_mesh import LaneMesh
from privserve.party.messages import Over

GOODBYE_SECONDS = 2.0
JOIN_SECONDS = 5.0
WATCHER = "watch"
"""The name of the thread that tells the others why a round is over."""


class Round:
    """The lanes and the threads of one round at one party. Thread-safe."""

    def __init__(self, name: str, is_first: bool) -> None:
        """name: what its lanes are opened under, alike at all parties."""
        self.name = name
        self.is_first = is_first
        self.lanes: dict[str, LaneMesh] = {}
        self.over = threading.Event()
        self.told: Over | None = None
        """What the others are told of its end; set before `over` is."""
        self.channels: dict[int, Channel] = {}
        """On which parties give signs of life: those that have been met, and the watcher's own."""
        self.lost: PeerLost | None = None
        """Why a peer is heard no more, which whoever drives the poller found."""
        self.wake, self._woken = socket.socketpair()
        """Can be read once the round is over, or its watcher is called to."""
        self._threads: list[threading.Thread] = []
        self._owned: list[Channel] = []

    def spawn(self, target: Callable[[], None], name: str) -> None:
        """Run `target`, which raises nothing, in a thread of its own."""
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    @property
    def watcher(self) -> threading.Thread | None:
        """The thread that knows who left first and why, once there is one."""
        return next((t for t in self._threads if t.name == WATCHER), None)

    def own(self, channel: Channel) -> None:
        """Break and free a channel with the round, though it may be none of a lane."""
        self._owned.append(channel)

    def finish(self, told: Over) -> None:
        """Note that the round is over; the first time counts."""
        if self.over.is_set():
            return
        self.told = told
        self.over.set()
        self.rouse()

    def rouse(self) -> None:
        """Have the watcher look."""
        with contextlib.suppress(OSError):
            self._woken.send(b"x")

    def calm(self) -> None:
        """Note at the watcher that it looks."""
        if not self.over.is_set():
            with contextlib.suppress(OSError):
                self.wake.recv(64)

    def part(self) -> None:
        """Let the watcher tell the others why, and break the channels."""
        watcher = self.watcher
        if watcher is not None and watcher is not threading.current_thread():
            watcher.join(GOODBYE_SECONDS)
        # Others may be opened right now, whose threads break them themselves then.
        for lane in list(self.lanes.values()):
            lane.close()
        for channel in list(self._owned):
            channel.close()

    def release(self) -> None:
        """Free the sockets, once no thread uses them any more."""
        for thread in self._threads:
            thread.join(JOIN_SECONDS)
        for lane in list(self.lanes.values()):
            lane.release()
        for channel in list(self._owned):
            channel.release()
        self.wake.close()
        self._woken.close()
