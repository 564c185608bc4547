"""Which session drives a party's poller: the only one that serves, or, of several, none.

A poller is driven by one thread. With one session that is the session's own (see `poller`). As soon
as there are two each waits at a poller of its own, for its leader's orders or its followers' notes,
and the party's poller is left to its stand-in, which hands queries over: so that no model's client
waits for another one's batch. When one is left again it takes the wheel.
"""

from __future__ import annotations

import threading
from typing import Protocol

from privserve.party.poller import Poller


class Driver(Protocol):
    """What may take a wheel."""

    def move(self) -> None:
        """Ask `Wheel.may_drive` again soon; for any thread, and quick."""


class Wheel:
    """Who drives one party's poller. Thread-safe."""

    def __init__(self, poller: Poller) -> None:
        self.poller = poller
        self._lock = threading.Lock()
        self._drivers: list[Driver] = []

    @property
    def drivers(self) -> int:
        """How many sessions are at the wheel, or would be if they were alone; 1 where none is."""
        return max(1, len(self._drivers))

    def join(self, driver: Driver) -> None:
        """Count a session from now on; called once, before it asks whether it may drive."""
        with self._lock:
            self._drivers.append(driver)
            self._changed()

    def leave(self, driver: Driver) -> None:
        """Count a session no more. Its own thread says so, when it does not drive any more."""
        with self._lock:
            if driver in self._drivers:
                self._drivers.remove(driver)
                self._changed()

    def may_drive(self, driver: Driver) -> bool:
        """Whether this session is to drive the party's poller now."""
        with self._lock:
            return self._drivers == [driver]

    def _changed(self) -> None:
        self.poller.share(len(self._drivers) > 1)
        for driver in self._drivers:
            driver.move()
