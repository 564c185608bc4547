"""What a compute party waits for while no query runs: sockets, and calls from other threads.

One thread at a time *drives* a poller, which is whoever holds its `turn`. While one session serves,
that is the session's thread: it reads queries, runs them and writes answers itself, since handing
a query from thread to thread costs more than reading it. While there is no session, or several (see
`wheel`), and while a batch runs for long, the poller's own thread stands in.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

STAND_IN_SECONDS = 0.1
"""A batch that runs longer is stood in for."""
READABLE = selectors.EVENT_READ
WRITABLE = selectors.EVENT_WRITE


class Poller:
    """Calls back when sockets are ready; `call` and `wake` are for any thread."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        """Held by whoever drives; all but `call` and `wake` are for the driving thread."""
        self.is_attached = False
        """Whether a session's thread drives, or will when its batch is done."""
        self.is_shared = False
        """Whether who is attached is about to leave; see `share`."""
        self._is_away = False
        self._left = threading.Event()
        """Set when the stand-in has to look now, and not only after STAND_IN_SECONDS."""
        self._selector = selectors.DefaultSelector()
        self._bell, self._ring = socket.socketpair()
        for end in (self._bell, self._ring):
            end.setblocking(False)
        self._selector.register(self._bell, READABLE, self._rung)
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._driver = 0
        self._asleep = self._woken = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._stand_in, name="poller", daemon=True)
        self._thread.start()

    def register(self, descriptor: int, callback: Callable[[int], None]) -> None:
        """Call back, with the events, whenever the descriptor can be read."""
        self._selector.register(descriptor, READABLE, callback)

    def want(self, descriptor: int, events: int) -> None:
        """Wait for these events of a registered descriptor from now on."""
        callback = self._selector.get_key(descriptor).data
        self._selector.modify(descriptor, events, callback)

    def unregister(self, descriptor: int) -> None:
        """Forget a descriptor, before it is closed; nothing happens where it is not known."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(descriptor)

    def call(self, callback: Callable[[], None]) -> None:
        """Have the driving thread call back before it waits again."""
        self._calls.append(callback)
        self.wake()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back after `seconds`, or somewhat later."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), callback))

    def wake(self) -> None:
        """End a poll that waits, or the next one; what is to be seen then is there already."""
        if threading.get_ident() != self._driver:
            self._interrupt()  # else: it does not wait, and looks before it does

    def _interrupt(self) -> None:
        self._woken = True
        if self._asleep:
            with contextlib.suppress(OSError):  # it rings already, or is closed
                self._ring.send(b"x")

    def poll(self, seconds: float | None = None) -> None:
        """Wait until something happens, `seconds` at most, and call back for all that did."""
        self._driver = threading.get_ident()
        self._make_calls()
        if self._timers:
            left = max(0.0, self._timers[0][0] - time.monotonic())
            seconds = left if seconds is None else min(seconds, left)
        self._asleep = True  # before `_woken` is looked at: no wake is slept over
        try:
            ready = self._selector.select(0 if self._woken else seconds)
        finally:
            self._asleep = self._woken = False
        for key, events in ready:
            key.data(events)
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()
        self._make_calls()

    def _rung(self, events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(64)

    def _make_calls(self) -> None:
        calls = self._calls
        while calls:
            calls.popleft()()

    def _stand_in(self) -> None:
        while not self._closed.is_set():
            if self._is_free:
                with self.turn:
                    if self._is_free and not self._closed.is_set():
                        self.poll()
            elif self._left.wait(STAND_IN_SECONDS):
                self._left.clear()
            elif self.turn.acquire(blocking=False):
                try:
                    self.poll(0)
                finally:
                    self.turn.release()

    @property
    def _is_free(self) -> bool:
        """Whether the stand-in may wait for as long as nothing happens."""
        return not self.is_attached or (self.is_shared and self._is_away)

    def share(self, is_shared: bool) -> None:
        """Say whether who is attached is about to leave, which it is told otherwise."""
        self.is_shared = is_shared
        self._left.set()

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Drive for as long as the block runs."""
        self.is_attached = True
        self._interrupt()  # whoever drove last, which may have been this thread
        try:
            with self.turn:
                yield
        finally:
            self.is_attached = False
            self._left.set()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Let the stand-in drive while the block runs, which takes long perhaps."""
        self._is_away = True
        self.turn.release()
        if self.is_shared:
            self._left.set()
        try:
            yield
        finally:
            self._is_away = False
            if not self.turn.acquire(blocking=False):
                self._interrupt()  # the stand-in may wait without end
                self.turn.acquire()

    def close(self) -> None:
        """End the stand-in and free the descriptors; only once no other thread drives."""
        self._closed.set()
        self._left.set()
        self._interrupt()
        self._thread.join()
        self._selector.close()
        self._bell.close()
        self._ring.close()
