"""How many rows a query has, and how many queries are under way."""

from __future__ import annotations

import time
from collections.abc import Callable

SIZES = (1, 8, 32, 128, 256, 512, 1024)
"""Rows of a query that are tried, in this order."""
DEPTH = 4
"""Queries under way: one computed, one on its way here, one on its way there, one to spare."""
WINDOW_SECONDS, WINDOW_QUERIES = 0.3, 6
"""For this long a size is measured, at least."""
GAIN = 1.05
"""A larger size has to be this many times as fast, or it is not worth what a failed query costs."""
FIRST_REST = 100
"""Queries after which a larger size is tried again; twice as many each time. Sizes are compared by
the rates of a moment, and a job of hours is not to suffer from a bad one."""
SHARE_OF_TIMEOUT = 0.25
"""Rows that are under way are answered within this share of the time that a query may take."""
MOST_BYTES = 64 << 20
"""Of one party's shares that are under way: it holds 256 MiB for all its clients."""


class Pace:
    """Finds the size of queries by asking: ever larger ones, while that is faster."""

    def __init__(
        self,
        max_rows: int,
        row_bytes: int,
        timeout: float,
        *,
        rows: int | None = None,
        in_flight: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """max_rows: of a query; row_bytes: of one row's share; timeout: of a query, seconds.

        rows, in_flight: these and no others.
        """
        most = max(1, min(max_rows, MOST_BYTES // (DEPTH * max(1, row_bytes))))
        sizes = [size for size in SIZES if size < most] + [most]
        self._sizes = sizes if rows is None else [rows]
        self._in_flight, self._seconds, self._clock = in_flight, SHARE_OF_TIMEOUT * timeout, clock
        self.rows = self._sizes[0]
        """Of the next query."""
        self._rate: float | None = None
        """Rows per second when it was measured last."""
        self._before: float | None = None
        """That of the size before, where this one is on trial."""
        self._is_doubted = False
        """Whether the size on trial was no gain when it was measured."""
        self._is_settled = len(self._sizes) == 1
        self._rest, self._next_rest = 0, FIRST_REST
        self._begun = clock()
        self._restart()

    def _restart(self) -> None:
        self._since: float | None = None
        self._answered = self._queries = 0

    @property
    def in_flight(self) -> int:
        """How many queries may be under way; one, until it is known how long it takes."""
        if self._in_flight is not None:
            return self._in_flight
        if self._rate is None:
            return 1
        return max(1, min(DEPTH, int(self._seconds * self._rate / self.rows)))

    def answered(self, rows: int) -> None:
        """Note that a query with this many rows was answered, in its turn."""
        now = self._clock()
        if self._rate is None:
            self._rate = rows / max(1e-6, now - self._begun)
        if self._is_settled or rows != self.rows:
            return
        if self._rest:
            self._rest -= 1
            return
        if self._since is None:  # the queries before this one had another size
            self._since = now
            return
        self._answered += rows
        self._queries += 1
        if self._queries >= WINDOW_QUERIES and now - self._since >= WINDOW_SECONDS:
            self._judge(self._answered / (now - self._since))

    def _judge(self, rate: float) -> None:
        """Go on to the next size, or back to the one before; rate: of this one."""
        self._restart()
        number = self._sizes.index(self.rows)
        if self._before is not None and rate < GAIN * self._before:
            if self._is_doubted:
                self.rows = self._sizes[number - 1]
                self._have_rest()
            else:
                self._is_doubted = True
            return
        self._rate, self._is_doubted = rate, False
        if number + 1 == len(self._sizes):
            self._is_settled = True
        elif self._sizes[number + 1] <= self._seconds * rate:
            self.rows, self._before = self._sizes[number + 1], rate
        else:
            self._have_rest()

    def _have_rest(self) -> None:
        """Keep to this size for a while."""
        self._before, self._is_doubted = None, False
        self._rest, self._next_rest = self._next_rest, 2 * self._next_rest

    def ask_fewer(self, rows: int) -> None:
        """Have queries of this many rows at most from now on."""
        if rows < self.rows:
            self.rows, self._is_settled = max(1, rows), True
