"""How far a job is, on standard error: a line that is redrawn on a terminal, or one now and then.

By hand rather than with tqdm or rich: it is a screen of code, and a client gets no dependency.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

TERMINAL_SECONDS, LINE_SECONDS = 0.2, 5.0
RECENT_SECONDS = 30.0
"""The rate is that of as long, so that the time that is left follows a cluster that got slower."""
BAR = 20


class Progress:
    """Shows rows, rows per second and the time that is left."""

    def __init__(
        self,
        done: int,
        rows: int,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """done: of `rows`, before anything was asked."""
        self._rows, self._clock = rows, clock
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = self._stream.isatty()
        self._seen = deque([(clock(), done)])
        self._shown = clock() if not self._is_terminal else float("-inf")
        self._is_drawn = False

    def update(self, done: int) -> None:
        """Note that this many rows are done; draws now and then."""
        now = self._clock()
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] < now - RECENT_SECONDS:
            self._seen.popleft()
        every = TERMINAL_SECONDS if self._is_terminal else LINE_SECONDS
        if now - self._shown >= every:
            self._draw(now)

    def end(self, done: int) -> None:
        """Draw how far it came."""
        self._seen.append((self._clock(), done))
        self._draw(self._clock())
        if self._is_terminal:
            self._stream.write("\n")
        self._stream.flush()
        self._is_drawn = False

    def say(self, line: str) -> None:
        """Print a line of its own."""
        if self._is_drawn:
            self._stream.write("\r\x1b[K")
            self._is_drawn = False
        print(line, file=self._stream, flush=True)

    def text(self) -> str:
        """Say how far it is."""
        (before, had), (now, done) = self._seen[0], self._seen[-1]
        rate = (done - had) / (now - before) if now > before else 0.0
        said = (
            f"{done:,} of {self._rows:,} rows ({100 * done // self._rows} %), {figure(rate)} rows/s"
        )
        return f"{said}, {duration((self._rows - done) / rate)} left" if rate > 0 else said

    def _draw(self, now: float) -> None:
        self._shown = now
        text = self.text()
        if self._is_terminal:
            filled = BAR * self._seen[-1][1] // self._rows
            self._stream.write(f"\r\x1b[K[{'#' * filled}{'.' * (BAR - filled)}] {text}")
            self._is_drawn = True
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()


def figure(rate: float) -> str:
    """Return a rate with as many digits as mean something."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"


def duration(seconds: float) -> str:
    """Return 3725 as "1 h 2 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
