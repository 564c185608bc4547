"""What a compute party's queries took since its session began, all of them together.

The shape is that of Triton's statistics extension. Nothing in it says which client asked: whoever
may ask queries may read it, so it has sums only.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from privserve.party.outcome import Outcome
from privserve.party.pending import Pending
from privserve.party.turns import Piece


@dataclass
class _Duration:
    """How often something was done, and for how long altogether."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        self.count += count
        self.ns += ns

    def facts(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


@dataclass(frozen=True)
class RunTime:
    """What one batch took at this party, in nanoseconds."""

    inputs: int
    """To put the queries' shares together."""
    engine: int
    """To evaluate them with the other parties, waiting for these included."""
    outputs: int
    """To make the answers' shares of what the engine returned."""


PHASES = ("inputs", "engine", "outputs")
TRITONS = {"inputs": "compute_input", "engine": "compute_infer", "outputs": "compute_output"}
"""What Triton calls the phases of a batch."""
RECENT_RUNS = 1000


@dataclass(frozen=True)
class Runs:
    """What was evaluated."""

    queries: int
    rows: int
    recent: list[tuple[int, float]]
    """The rows of the last batches, and the seconds that these took."""


class Statistics:
    """The counts of one session at one party. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queries = self._rows = self._batches = self._last_ms = 0
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT_RUNS)
        self._success, self._fail, self._queue = _Duration(), _Duration(), _Duration()
        self._phases = {phase: _Duration() for phase in PHASES}
        self._by_size: dict[int, dict[str, _Duration]] = {}
        """By the rows of a batch, of which there are few: see `turns.batch_size`."""

    def follow(self, query: Pending) -> None:
        """Count what becomes of a query that was taken."""
        query.future.add_done_callback(lambda outcome: self._ended(query, outcome))

    def _ended(self, query: Pending, outcome: Outcome) -> None:
        now, is_answered = time.perf_counter_ns(), outcome.exception() is None
        with self._lock:
            (self._success if is_answered else self._fail).add(now - query.since_ns)
            if is_answered:
                self._queue.add(query.begun_ns - query.since_ns)

    def ran(self, batch: Sequence[Piece], took: RunTime) -> None:
        """Count a batch that was evaluated; each of its queries waited for all of it."""
        rows = sum(piece.rows for piece in batch)
        finished = sum(piece.stop == piece.query.rows for piece in batch)
        with self._lock:
            self._recent.append((rows, (took.engine + took.outputs) / 1e9))
            self._queries += finished
            self._rows += rows
            self._batches += 1
            self._last_ms = time.time_ns() // 1_000_000
            sizes = self._by_size.setdefault(rows, {phase: _Duration() for phase in PHASES})
            for phase in PHASES:
                ns = getattr(took, phase)
                self._phases[phase].add(len(batch) * ns, finished)
                sizes[phase].add(ns)

    def runs(self) -> Runs:
        """Return what was evaluated so far."""
        with self._lock:
            return Runs(self._queries, self._rows, list(self._recent))

    def facts(self, model: str, version: str) -> dict[str, Any]:
        """Return Triton's `model_stats` entry of this model, JSON-able; counts are of queries.

        `inference_count` is rows, `execution_count` batches, `last_inference` milliseconds since
        1970, or 0.
        """
        with self._lock:
            return {
                "name": model,
                "version": version,
                "last_inference": self._last_ms,
                "inference_count": self._rows,
                "execution_count": self._batches,
                "inference_stats": {
                    "success": self._success.facts(),
                    "fail": self._fail.facts(),
                    "queue": self._queue.facts(),
                    **{TRITONS[phase]: took.facts() for phase, took in self._phases.items()},
                },
                "batch_stats": [
                    {
                        "batch_size": rows,
                        **{TRITONS[phase]: took.facts() for phase, took in sizes.items()},
                    }
                    for rows, sizes in sorted(self._by_size.items())
                ],
            }
