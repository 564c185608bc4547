"""What becomes of one query: one thread says so, others wait for it or are called back.

A `concurrent.futures.Future` does this too, at several times the cost: each has a condition, and a
busy party makes thousands a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from privserve.fixedpoint import RingArray

Shares = list[RingArray]


class Outcome:
    """An answer's shares, or an error; what is set first counts."""

    __slots__ = ("_callbacks", "_error", "_event", "_is_done", "_lock", "_shares")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_done = False
        self._shares: Shares = []
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Outcome], object]] = []
        self._event: threading.Event | None = None

    def done(self) -> bool:
        """Whether it is set."""
        return self._is_done

    def set_result(self, shares: Shares) -> None:
        """Set the answer's shares, and call back."""
        self._set(shares, None)

    def set_exception(self, error: BaseException) -> None:
        """Set an error, and call back."""
        self._set([], error)

    def _set(self, shares: Shares, error: BaseException | None) -> None:
        with self._lock:
            if self._is_done:  # such as: the session ended while the answer was on its way
                return
            self._shares, self._error, self._is_done = shares, error, True
            event, callbacks = self._event, self._callbacks
        if event is not None:
            event.set()
        for callback in callbacks:
            callback(self)

    def add_done_callback(self, callback: Callable[[Outcome], object]) -> None:
        """Call back with this once it is set, in the thread that sets it; at once if it is."""
        with self._lock:
            if not self._is_done:
                self._callbacks.append(callback)
                return
        callback(self)

    def result(self, seconds: float | None = None) -> Shares:
        """Return the shares, or raise the error; TimeoutError after `seconds`."""
        error = self.exception(seconds)
        if error is not None:
            raise error
        return self._shares

    def exception(self, seconds: float | None = None) -> BaseException | None:
        """Return the error, None where there are shares; TimeoutError after `seconds`."""
        with self._lock:
            if self._event is None and not self._is_done:
                self._event = threading.Event()
        if not self._is_done and (self._event is None or not self._event.wait(seconds)):
            raise TimeoutError("nothing has become of the query yet")
        return self._error
