"""The ring buffer of packs at one compute party.

Packs are numbered from 0 for the life of a session. A number is handed out once, whatever
becomes of the query that took it; its slot is overwritten by a later number only.
"""

from __future__ import annotations

import threading

import numpy as np

from privserve.errors import ClusterError, PrivserveError
from privserve.fixedpoint import RingArray


class Pool:
    """`slots` packs of `words` 64-bit words; producers that take turns, one consumer thread."""

    def __init__(self, slots: int, words: int) -> None:
        self.packs: RingArray = np.zeros((slots, words), dtype=np.int64)
        self.slots = slots
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        """Takers wait for it."""
        self._wanted = threading.Condition(self._lock)
        """Producers do."""
        self._made = 0  # packs 0.._made - 1 were filled
        self._taken = 0  # packs 0.._taken - 1 were handed out
        self._freed = 0  # packs 0.._freed - 1 were used up, so their slots are free
        self._waiting = False
        self._failure: BaseException | None = None
        self._closed = False
        self._terms = (1, slots)  # of who makes packs ahead, see `room`
        self._refilling = False
        self._is_rushed = False

    def room(self, at_least: int, low_water: int) -> int:
        """Return how many packs may be made ahead now; 0 once the pool is closed.

        Blocks until there is room for `at_least` and no more than `low_water` packs are left, and
        then not before the pool is full: refilling comes in bursts instead of with every query. A
        taker that waits gets whatever there is room for.
        """
        with self._wanted:
            self._terms = (at_least, low_water)
            while not self._closed:
                if self._wants_packs() and not self._is_rushed:
                    self._refilling = True
                    return self._free
                self._refilling = False
                self._wanted.wait()
        return 0

    def shortage(self) -> int:
        """Return how many packs are needed soon; 0 once the pool is closed.

        Blocks until less than a quarter of them is left, or until a taker waits; they are as many
        as fill half of the pool. While the pool is rushed, it gives what `room` would.
        """
        with self._wanted:
            while not self._closed:
                if self._is_rushed and self._wants_packs():
                    return self._free
                if self._free and (self._waiting or self._is_short):
                    left = self._made - self._taken
                    return min(self._free, max(1, self.slots // 2 - left))
                self._wanted.wait()
        return 0

    def rush(self, is_rushed: bool) -> None:
        """Say whether nobody is to make packs in spare time, of which there is none."""
        with self._wanted:
            self._is_rushed = is_rushed
            self._wanted.notify_all()

    @property
    def _free(self) -> int:
        return self.slots - (self._made - self._freed)

    @property
    def _is_short(self) -> bool:
        return 4 * (self._made - self._taken) < self.slots

    def _wants_packs(self) -> bool:
        at_least, low_water = self._terms
        low = self._made - self._taken <= low_water
        is_time = self._refilling or self._waiting or (low and self._free >= at_least)
        return self._free > 0 and is_time

    @property
    def made(self) -> int:
        """The number of the next pack to be made."""
        return self._made

    @property
    def ready(self) -> int:
        """How many packs may be taken at once."""
        return self._made - self._taken

    @property
    def closed(self) -> bool:
        """Whether `close` or `fail` was called."""
        return self._closed

    def free(self) -> int:
        """Return how many slots neither hold a pack nor are in use."""
        with self._lock:
            return self._free

    def publish(self, count: int) -> None:
        """Hand the next `count` packs, already written to their slots, to the consumer."""
        with self._arrived:
            self._made += count
            self._arrived.notify_all()

    def take(self, count: int) -> tuple[int, bool]:
        """Return the number of the first of `count` consecutive packs, and whether it waited."""
        if count > self.slots:
            raise ValueError(f"a pool of {self.slots} packs cannot hold {count} at once")
        with self._arrived:
            waited = False
            while not self._closed and self._made - self._taken < count:
                waited = self._waiting = True
                self._wanted.notify_all()
                self._arrived.wait()
            self._waiting = False
            if self._failure is not None:
                if isinstance(self._failure, PrivserveError):
                    raise self._failure
                raise ClusterError("packs can no longer be made") from self._failure
            if self._closed:
                raise ClusterError("the session was closed")
            first = self._taken
            self._taken += count
            return first, waited

    def release(self, count: int) -> None:
        """Free the oldest `count` taken packs: they were used up, or their query was given up."""
        with self._wanted:
            self._freed += count
            # Waking a producer for nothing would take the next query's time.
            if self._is_short or (not self._refilling and self._wants_packs()):
                self._wanted.notify_all()

    def fail(self, failure: BaseException) -> None:
        """Stop everyone because of `failure`, after which no pack comes; `take` raises it."""
        with self._lock:
            self._failure = self._failure or failure
            self._closed = True
            self._arrived.notify_all()
            self._wanted.notify_all()

    def close(self) -> None:
        """Wake and stop everyone."""
        with self._lock:
            self._closed = True
            self._arrived.notify_all()
            self._wanted.notify_all()

    def wait_for(self, count: int) -> None:
        """Block until `count` packs are ready (or the pool is closed)."""
        with self._arrived:
            while not self._closed and self._made - self._taken < count:
                self._waiting = True
                self._wanted.notify_all()
                self._arrived.wait()
            self._waiting = False
            if self._failure is not None:
                raise self._failure
