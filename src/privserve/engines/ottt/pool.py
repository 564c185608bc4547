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
    """`slots` packs of `words` 64-bit words; one producer thread, one consumer thread."""

    def __init__(self, slots: int, words: int) -> None:
        self.packs: RingArray = np.zeros((slots, words), dtype=np.int64)
        self.slots = slots
        self._changed = threading.Condition()
        self._made = 0  # packs 0.._made - 1 were filled
        self._taken = 0  # packs 0.._taken - 1 were handed out
        self._freed = 0  # packs 0.._freed - 1 were used up, so their slots are free
        self._waiting = False
        self._failure: BaseException | None = None
        self._closed = False
        self._refill = (1, slots)  # the producer's terms, see `room`

    def room(self, at_least: int, low_water: int) -> int:
        """Return how many packs the producer may make now; 0 once the pool is closed.

        Blocks until there is room for `at_least` and no more than `low_water` packs are
        left, so that refilling comes in bursts instead of competing with every query; a
        taker that waits gets whatever there is room for.
        """
        with self._changed:
            self._refill = (at_least, low_water)
            while not self._closed:
                if self._wants_packs():
                    return self.slots - (self._made - self._freed)
                self._changed.wait()
        return 0

    def _wants_packs(self) -> bool:
        at_least, low_water = self._refill
        free = self.slots - (self._made - self._freed)
        low = self._made - self._taken <= low_water
        return free > 0 and (self._waiting or (low and free >= at_least))

    @property
    def made(self) -> int:
        """The number of the next pack to be made."""
        return self._made

    @property
    def closed(self) -> bool:
        """Whether `close` or `fail` was called."""
        return self._closed

    def free(self) -> int:
        """Return how many slots neither hold a pack nor are in use."""
        with self._changed:
            return self.slots - (self._made - self._freed)

    def publish(self, count: int) -> None:
        """Hand the next `count` packs, already written to their slots, to the consumer."""
        with self._changed:
            self._made += count
            self._changed.notify_all()

    def take(self, count: int) -> tuple[int, bool]:
        """Return the number of the first of `count` consecutive packs, and whether it waited."""
        if count > self.slots:
            raise ValueError(f"a pool of {self.slots} packs cannot hold {count} at once")
        with self._changed:
            waited = False
            while not self._closed and self._made - self._taken < count:
                waited = self._waiting = True
                self._changed.notify_all()
                self._changed.wait()
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
        with self._changed:
            self._freed += count
            # Waking the producer for nothing would take the next query's time.
            if self._wants_packs():
                self._changed.notify_all()

    def fail(self, failure: BaseException) -> None:
        """Stop everyone because of `failure`, after which no pack comes; `take` raises it."""
        with self._changed:
            self._failure = self._failure or failure
            self._closed = True
            self._changed.notify_all()

    def close(self) -> None:
        """Wake and stop everyone."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        """Block until `count` packs are ready (or the pool is closed)."""
        with self._changed:
            while not self._closed and self._made - self._taken < count:
                self._waiting = True
                self._changed.notify_all()
                self._changed.wait()
            self._waiting = False
            if self._failure is not None:
                raise self._failure
