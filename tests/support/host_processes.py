"""Processes of the tests of faults, and what they said: when it was said counts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from serving import wait_until

QUERY_SECONDS = 6.0
"""That a client waits for an answer."""


class Process:
    """A process of a host, and what it said so far, with times."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], **options: Any):
        self.lines: list[tuple[float, str]] = []
        self.running = subprocess.Popen(
            [*command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            **options,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.running.stdout is not None
        for line in self.running.stdout:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    def say(self, line: str) -> None:
        """Give it a line, if it is there to take it."""
        assert self.running.stdin is not None
        with contextlib.suppress(OSError):
            self.running.stdin.write(line + "\n")
            self.running.stdin.flush()

    def since(self, at: float) -> list[str]:
        """What it said after a time."""
        return [line for when, line in list(self.lines) if when >= at]

    def wait_for(self, words: str, since: float = 0.0, seconds: float = 40.0) -> str:
        """Wait until it says something with these words, and return the line."""

        def found() -> list[str]:
            return [line for line in self.since(since) if re.search(words, line)]

        wait_until(
            lambda: found() or not self.is_alive,
            f"'{words}' is said; but {self.since(since)[-12:]}",
            seconds,
        )
        assert found(), f"it ended without '{words}'; it said {self.since(since)[-12:]}"
        return found()[0]

    @property
    def is_alive(self) -> bool:
        return self.running.poll() is None

    def signal(self, number: int) -> None:
        if self.is_alive:
            self.running.send_signal(number)

    def end(self, number: int, seconds: float = 20.0) -> int:
        """Send a signal and wait for the end; its exit code."""
        self.signal(number)
        try:
            code = self.running.wait(seconds)
        except subprocess.TimeoutExpired:
            self.close()
            raise AssertionError(
                f"it goes on after signal {number}; it said {self.since(0)[-12:]}"
            ) from None
        self.close()
        return code

    def close(self) -> None:
        """End it whatever it does."""
        if self.is_alive:
            self.running.kill()
        self.running.wait()
        self._reader.join(5)
        for pipe in (self.running.stdin, self.running.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


class Asking(Process):
    """A client's process."""

    @property
    def results(self) -> list[dict[str, Any]]:
        """What became of its queries."""
        told = [json.loads(line) for _, line in list(self.lines) if line.startswith("{")]
        return [one for one in told if "began" in one]

    def ended_since(self, at: float) -> list[dict[str, Any]]:
        """The queries that ended after a time."""
        return [one for one in self.results if one["ended"] >= at]

    def right_since(self, at: float) -> int:
        """How many queries that began after a time were answered."""
        return sum(one["began"] >= at and "right" in one for one in self.results)

    def ask(self) -> None:
        self.say("ask")

    def hold(self, seconds: float = 2 * QUERY_SECONDS) -> None:
        """Have it ask no more, and wait until the last query has ended."""
        if not self.is_alive:
            return
        at = time.monotonic()
        self.say("hold")
        self.wait_for('"held"', at, seconds)
        held = time.monotonic()
        # It may say that it is idle at once, or once the query has ended that runs.
        last = next((line for _, line in reversed(self.lines) if '"held"' not in line), "")
        if '"idle"' not in last:
            self.wait_for('"idle"', at, seconds)
        assert held - at < seconds
