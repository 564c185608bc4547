"""Queries that wait at one party, each with this party's shares of its inputs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from privserve.credentials import ANONYMOUS
from privserve.errors import NotServing, QueryError
from privserve.fixedpoint import RingArray
from privserve.party.outcome import Outcome

MAX_PENDING = 1024
MAX_PENDING_PER_CLIENT = 256
"""So that one client's queries, or halves of queries, leave room for the others'."""
MAX_PENDING_BYTES = 256 << 20
"""At a party, in equal parts for its models, so that none of them can crowd out another; but where
nothing waits for a model, a query of this size is taken."""


@dataclass(eq=False)
class Pending:
    """One query at one party: its shares, and the future of its answer's shares."""

    id: str
    inputs: list[RingArray] = field(repr=False)
    rows: int
    client: str = ANONYMOUS
    deadline: float | None = None
    """When its answer is of no use any more, by `time.monotonic`; None: never."""
    future: Outcome = field(default_factory=Outcome, repr=False)
    nbytes: int = field(init=False)
    """What its shares take."""
    since_ns: int = field(default_factory=time.perf_counter_ns, init=False)
    """When it came, by `time.perf_counter_ns`."""
    begun_ns: int = field(default=0, init=False)
    """When the first of its rows began to run."""

    taken: int = field(default=0, init=False)
    """How many of its rows are in a batch, or were."""
    _answers: list[list[RingArray]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self.nbytes = sum(share.nbytes for share in self.inputs)

    def answer(self, outputs: list[RingArray]) -> bool:
        """Take the outputs of its next rows; whether these were the last.

        Its future has the whole then.
        """
        if not self._answers and len(outputs[0]) == self.rows:
            self.future.set_result(outputs)
            return True
        self._answers.append(outputs)
        if sum(len(answer[0]) for answer in self._answers) < self.rows:
            return False
        parts = zip(*self._answers, strict=True)
        self.future.set_result([np.concatenate(part) for part in parts])
        return True


class PendingQueries:
    """Queries that wait at this party, by id."""

    def __init__(self, parts: Callable[[], int] = lambda: 1) -> None:
        """parts: for how many models the party has memory now."""
        self._parts = parts
        self._pending: dict[str, Pending] = {}
        self._of: Counter[str] = Counter()
        self._bytes = 0

    def add(self, query: Pending) -> None:
        """Hold `query`; raises QueryError for an id in use and for a full queue."""
        if query.id in self._pending:
            raise QueryError(f"a query with id '{query.id}' is already waiting", 409)
        if len(self._pending) >= MAX_PENDING or self._is_full(self._bytes + query.nbytes):
            raise NotServing(
                f"{len(self._pending)} queries are waiting already; try again later, or ask fewer "
                "rows at a time"
            )
        if self._of[query.client] >= MAX_PENDING_PER_CLIENT:
            raise NotServing(
                f"{MAX_PENDING_PER_CLIENT} queries of client '{query.client}' are waiting already; "
                "wait for some of the answers"
            )
        self._pending[query.id] = query
        self._of[query.client] += 1
        self._bytes += query.nbytes

    def _is_full(self, held: int) -> bool:
        part = MAX_PENDING_BYTES // self._parts() if self._pending else MAX_PENDING_BYTES
        return held > part

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, query_id: str) -> bool:
        return query_id in self._pending

    def get(self, query_id: str) -> Pending:
        """Return the query with this id, kept."""
        return self._pending[query_id]

    def take(self, query_id: str) -> Pending | None:
        """Return the query with this id, no longer held; None if there is none."""
        query = self._pending.pop(query_id, None)
        if query is not None:
            self._of[query.client] -= 1
            self._bytes -= query.nbytes
        return query

    def fail_all(self, error: QueryError) -> None:
        """Answer every waiting query with `error`."""
        for query in self._pending.values():
            query.future.set_exception(error)
        self._pending.clear()
        self._of.clear()
        self._bytes = 0
