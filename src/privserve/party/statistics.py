"""What a compute party's queries took since its session began, all of them together.

What clients are told has the shape of Triton's statistics extension. Nothing in it says which
client asked: whoever may ask queries may read it, so it has sums only. `Tally` has more, for those
who watch the party (see `metrics`): how queries ended, and how long each stage took, by buckets.
"""

from __future__ import annotations

import contextlib
import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from privserve.errors import PrivserveError, QueryError
from privserve.party.outcome import Outcome
from privserve.party.pending import Pending
from privserve.party.queries import CLIENT_LEFT
from privserve.party.turns import Piece

Report = Callable[[Pending, str, int], None]
"""Told of each query that ended: the query, its outcome, and the nanoseconds since it came."""


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
    packs: int = 0
    """Of the engine's time: spent waiting for dealt randomness."""
    exchanges: int = 0
    """Of the engine's time: spent in exchanges, where the engine counts that."""

    @property
    def computing(self) -> int:
        """What is no waiting for anybody."""
        waited = self.packs + self.exchanges
        return max(0, self.inputs + self.engine + self.outputs - waited)


Traced = Callable[[Sequence[Piece], RunTime], None]
"""Told of each batch that was evaluated, and what it took."""

PHASES = ("inputs", "engine", "outputs")
TRITONS = {"inputs": "compute_input", "engine": "compute_infer", "outputs": "compute_output"}
"""What Triton calls the phases of a batch."""
RECENT_RUNS = 1000

ANSWERED = "answered"
STAGES = ("queue", "packs", "exchanges", "compute")
"""A query waits for its turn; its batch for packs and the other parties, and is computed."""
WHOLE = "whole"
"""From a query's arrival to its answer."""
BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
"""Seconds: what a bucket of a histogram holds at most. What takes longer is in one more."""
BOUNDS_NS = tuple(round(bound * 1e9) for bound in BOUNDS)


@dataclass
class Histogram:
    """How often something took how long."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    """By bucket: of those that are in no earlier one."""
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS_NS, ns)] += 1
        self.ns += ns

    def merge(self, other: Histogram) -> None:
        """Count all that another one has."""
        self.counts = [mine + more for mine, more in zip(self.counts, other.counts, strict=True)]
        self.ns += other.ns


@dataclass
class Tally:
    """What was counted of queries, for those who watch a party."""

    outcomes: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    batches: int = 0
    stalls: int = 0
    """Batches that had to wait for packs."""
    took: dict[str, Histogram] = field(
        default_factory=lambda: {what: Histogram() for what in (*STAGES, WHOLE)}
    )

    def merge(self, other: Tally) -> None:
        """Count all that another one has."""
        self.outcomes.update(other.outcomes)
        self.rows += other.rows
        self.batches += other.batches
        self.stalls += other.stalls
        for what, histogram in other.took.items():
            self.took[what].merge(histogram)


def outcome_of(error: BaseException | None) -> str:
    """Return what a query's end is counted as: one of few words."""
    if error is None:
        return ANSWERED
    if not isinstance(error, PrivserveError):
        return "internal"
    if isinstance(error, QueryError) and error.code == QueryError.code:
        return {CLIENT_LEFT: "client_left", 413: "too_large", 504: "incomplete"}.get(
            error.status, error.code
        )
    return error.code


@dataclass(frozen=True)
class Runs:
    """What was evaluated."""

    queries: int
    rows: int
    recent: list[tuple[int, float]]
    """The rows of the last batches, and the seconds that these took."""


class Statistics:
    """The counts of one session at one party. Thread-safe."""

    def __init__(self, report: Report | None = None, traced: Traced | None = None) -> None:
        """report: told of each query that ends. traced: of each batch. They must not raise."""
        self._report = report
        self._traced = traced
        self._lock = threading.Lock()
        self._queries = self._rows = self._batches = self._last_ms = 0
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT_RUNS)
        self._success, self._fail, self._queue = _Duration(), _Duration(), _Duration()
        self._phases = {phase: _Duration() for phase in PHASES}
        self._by_size: dict[int, dict[str, _Duration]] = {}
        """By the rows of a batch, of which there are few: see `turns.batch_size`."""
        self._tally = Tally()
        self._took = tuple(self._tally.took[what] for what in (*STAGES, WHOLE))

    def follow(self, query: Pending) -> None:
        """Count what becomes of a query that was taken."""
        query.future.add_done_callback(lambda outcome: self._ended(query, outcome))

    def _ended(self, query: Pending, outcome: Outcome) -> None:
        ns, error = time.perf_counter_ns() - query.since_ns, outcome.exception()
        ended = outcome_of(error)
        with self._lock:
            self._tally.outcomes[ended] += 1
            if error is None:
                waited = query.begun_ns - query.since_ns
                self._success.add(ns)
                self._queue.add(waited)
                self._took[0].add(waited)
                self._took[4].add(ns)
            else:
                self._fail.add(ns)
        if self._report is not None:
            self._report(query, ended, ns)

    def refused(self, error: PrivserveError, query: Pending | None = None) -> None:
        """Count a query that was not taken. query: where it could be read."""
        ended = outcome_of(error)
        with self._lock:
            self._tally.outcomes[ended] += 1
        if query is not None and self._report is not None:
            self._report(query, ended, time.perf_counter_ns() - query.since_ns)

    @contextlib.contextmanager
    def refusals(self) -> Iterator[None]:
        """Count a query that the block refuses, which raises."""
        try:
            yield
        except PrivserveError as error:
            self.refused(error)
            raise

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
            self._tally.stalls += took.packs > 0
            self._took[1].add(took.packs)
            self._took[2].add(took.exchanges)
            self._took[3].add(took.computing)
            sizes = self._by_size.setdefault(rows, {phase: _Duration() for phase in PHASES})
            for phase in PHASES:
                ns = getattr(took, phase)
                self._phases[phase].add(len(batch) * ns, finished)
                sizes[phase].add(ns)
        if self._traced is not None:
            self._traced(batch, took)

    def runs(self) -> Runs:
        """Return what was evaluated so far."""
        with self._lock:
            return Runs(self._queries, self._rows, list(self._recent))

    def tally(self) -> Tally:
        """Return a copy of what those are told who watch the party."""
        copy = Tally()
        with self._lock:
            copy.merge(self._tally)
            copy.rows, copy.batches = self._rows, self._batches
        return copy

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
