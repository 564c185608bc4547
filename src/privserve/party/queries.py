"""Which queries run next, and who refuses which: the bookkeeping of a party, no sockets.

A query reaches every compute party by itself, so each party first holds it as *pending*.
The leader (party 0) learns from the others' arrival notes which queries are complete, runs
those in order, and alone decides refusals and time-outs; followers never drop a query that
they announced, so the parties cannot disagree.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from privserve.credentials import ANONYMOUS
from privserve.errors import (
    BY_CODE,
    DeadlinePassed,
    LimitReached,
    NotServing,
    QueryError,
    StaleSession,
)
from privserve.party.accounts import Counted
from privserve.party.pending import MAX_PENDING, Pending, PendingQueries
from privserve.party.turns import Admission, Piece, Turns

MAX_REMEMBERED = 4096
MAX_ID = 128
"""Characters of a query's id."""
MAX_REFUSALS = 256
"""That one order tells of: it has to fit into a frame, however long the ids are."""
CLIENT_LEFT = 499
"""An HTTP status that nobody sees: whom it is for is gone."""
GONE = -1
"""In place of a query's rows: its client left."""


@dataclass(frozen=True)
class Refusal:
    """What the leader tells the followers of a query that will not run."""

    id: str
    code: str
    """Of the error's class."""
    status: int
    reason: str

    def error(self) -> QueryError:
        """Return the exception for the waiting client."""
        return BY_CODE.get(self.code, QueryError)(self.reason, self.status)


@dataclass
class _Arrival:
    """Who announced a query, and when the first of them did."""

    since: float
    said: dict[int, tuple[int, str]] = field(default_factory=dict)
    """By party: the rows of its share, and which client sent it."""


class LeaderQueue:
    """The leader's view of all queries. Thread-safe."""

    def __init__(
        self,
        compute_parties: int,
        max_rows: int,
        share_timeout: float,
        accounts: Counted | None = None,
        wake: Callable[[], None] = lambda: None,
        parts: Callable[[], int] = lambda: 1,
    ) -> None:
        """max_rows: of one batch. share_timeout: seconds until a query that has not reached
        every party is refused. accounts: what each client may have; None limits nobody.
        wake: called whenever there may be something new to run or to refuse. parts: for how many
        models this party has memory."""
        self._lock = threading.RLock()
        self._wake = wake
        self.pending = PendingQueries(parts)
        self.answered = 0
        self._n = compute_parties
        self._max_rows = max_rows
        self._share_timeout = share_timeout
        self._accounts = accounts
        self._arrivals: OrderedDict[str, _Arrival] = OrderedDict()
        self._ready = Turns()
        self._waits_since = 0.0
        self._begun: Counter[str] = Counter()
        """By client: rows of queries of which some run or ran, and which are not finished."""
        self._remaining: int | None = 0
        self._serving = False
        self._is_draining = False
        self._limit: int | None = None
        self._why_not = Refusal(
            "",
            NotServing.code,
            NotServing.status,
            "the model is shared, but nobody serves it yet; the model owner has to call serve()",
        )
        self._remembered: OrderedDict[str, Refusal] = OrderedDict()
        self._outbox: list[Refusal] = []

    @property
    def serving(self) -> bool:
        """Whether queries are being answered."""
        return self._serving

    @property
    def limit(self) -> int | None:
        """The num_requests of the current or last `serve`."""
        return self._limit

    def serve(self, num_requests: int | None) -> None:
        """Answer the next `num_requests` rows (a request is one row); without end when None."""
        with self._lock:
            if self._is_draining:
                raise QueryError("another model is shared under this name; serve that", 409)
            if self._serving:
                raise QueryError("the model is being served already; stop that first", 409)
            self._serving = True
            self._limit = self._remaining = num_requests
            self.answered = 0
            self._wake()

    def stop(self) -> None:
        """Refuse what waits and what comes; a batch that runs is finished."""
        with self._lock:
            if self._serving:
                self._close(NotServing, "the model owner stopped serving; the model stays shared")

    def drain(self, reason: str) -> None:
        """Answer what has reached any party; refuse what comes as meant for another session."""
        with self._lock:
            self._is_draining = True
            self._why_not = Refusal("", StaleSession.code, StaleSession.status, reason)
            self._wake()

    @property
    def is_idle(self) -> bool:
        """Whether no query waits or runs, and the followers were told of all that was refused."""
        with self._lock:
            return not (self._arrivals or self._begun.total() or self._outbox)

    def _takes(self, query_id: str) -> bool:
        """Whether a share of this query is taken, or refused with `_why_not`."""
        return self._serving and (not self._is_draining or query_id in self._arrivals)

    def submit(self, query: Pending) -> None:
        """Take the leader's own share of a query."""
        with self._lock:
            known = self._remembered.get(query.id)
            if known is not None:
                raise known.error()
            if not self._takes(query.id):
                refusal = replace(self._why_not, id=query.id)
                self._refuse(refusal)
                raise refusal.error()
            self.pending.add(query)
            self._arrive(query.id, 0, query.rows, query.client)

    def announces_too_many(self, rank: int) -> bool:
        """Whether follower `rank` has announced more queries than a party may hold."""
        with self._lock:
            said = (rank in arrival.said for arrival in self._arrivals.values())
            return len(self._arrivals) > MAX_PENDING and sum(said) > MAX_PENDING

    def announced(self, rank: int, query_id: str, rows: int, client: str = ANONYMOUS) -> None:
        """Note that follower `rank` has its share of a query with this many rows."""
        with self._lock:
            known = self._remembered.get(query_id)
            if known is not None:
                self._outbox.append(known)
                self._wake()
            elif rows == GONE:
                self.withdraw(query_id)
            elif not self._takes(query_id):  # the follower need not hold its share
                self._refuse(replace(self._why_not, id=query_id))
            else:
                self._arrive(query_id, rank, rows, client)

    def withdraw(self, query_id: str) -> None:
        """Let a query go whose client left; one that runs already is answered to nobody."""
        with self._lock:
            if query_id in self._arrivals:
                why = "its client left before it was answered"
                self._refuse(Refusal(query_id, QueryError.code, CLIENT_LEFT, why))

    def _arrive(self, query_id: str, rank: int, rows: int, client: str) -> None:
        arrival = self._arrivals.setdefault(query_id, _Arrival(time.monotonic()))
        if rank in arrival.said:
            return
        arrival.said[rank] = (rows, client)
        if len(arrival.said) == self._n:
            if len(set(arrival.said.values())) == 1:
                if not self._ready:
                    self._waits_since = time.monotonic()
                self._ready.add(self.pending.get(query_id))
            else:
                why = "the parties' shares differ in shape, or come from different clients"
                self._refuse(Refusal(query_id, QueryError.code, 400, why))
        self._wake()

    def _refuse(self, refusal: Refusal) -> None:
        self._arrivals.pop(refusal.id, None)
        self._remembered[refusal.id] = refusal
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        self._outbox.append(refusal)
        query = self.pending.take(refusal.id)
        if query is not None:
            self._ready.discard(query)
            if query.taken:
                self._begun[query.client] -= query.rows
            query.future.set_exception(refusal.error())
        self._wake()

    def _close(self, kind: type[QueryError], reason: str) -> None:
        self._serving = False
        if self._is_draining:  # those whom the limit leaves out are to ask the other session
            kind, reason = StaleSession, self._why_not.reason
        self._why_not = Refusal("", kind.code, kind.status, reason)
        for query_id in list(self._arrivals):
            self._refuse(replace(self._why_not, id=query_id))
        self._wake()

    def expire(self) -> float | None:
        """Refuse what waits for a share too long; seconds until the next one would be."""
        with self._lock:
            now = time.monotonic()
            for query_id, arrival in list(self._arrivals.items()):
                if len(arrival.said) == self._n:
                    continue
                left = arrival.since + self._share_timeout - now
                if left > 0:
                    return left
                self._refuse(
                    Refusal(
                        query_id,
                        QueryError.code,
                        504,
                        f"only {len(arrival.said)} of {self._n} compute parties received a share "
                        f"of this query within {self._share_timeout:g} s; send one to each",
                    )
                )
            return None

    def next_batch(self) -> list[Piece]:
        """Return the rows to run now, of at most max_rows together; maybe none.

        A query that asks for more rows than the limit leaves is refused and told how many are.
        """
        with self._lock:
            if not self._serving:
                return []
            batch = self._ready.take(self._max_rows, self._admit)
            for query, _, stop in batch:
                if stop == query.rows:  # it cannot be refused any more
                    self.pending.take(query.id)
                    self._arrivals.pop(query.id, None)
            return batch

    def patience(self, seconds: float) -> float:
        """For how long the next batch may wait for more rows, of these seconds; 0: no longer."""
        with self._lock:
            if not self._ready or self._ready.rows >= self._max_rows:
                return 0.0
            return max(0.0, self._waits_since + seconds - time.monotonic())

    def _admit(self, query: Pending) -> Admission:
        """Whether a query may begin to run now; it is refused where it may not at all."""
        if query.deadline is not None and time.monotonic() > query.deadline:
            return self._refused(query, DeadlinePassed, "the query's time was up")
        if self._remaining is not None:
            left = self._remaining - self._begun.total()
            if query.rows > self._remaining:
                if left < self._remaining:  # how many are left is certain once these are answered
                    return Admission.LATER
                return self._refused(query, LimitReached, self._too_many(query.rows))
            if query.rows > left:
                return Admission.LATER
        if self._accounts is not None:
            why = self._accounts.refusal(query.client, query.rows)
            if why is not None:
                return self._refused(query, LimitReached, why)
            ahead = self._begun[query.client]
            if ahead and self._accounts.refusal(query.client, query.rows, ahead):
                return Admission.LATER
        self._begun[query.client] += query.rows
        return Admission.RUN

    def _refused(self, query: Pending, kind: type[QueryError], why: str) -> Admission:
        if self._is_draining and kind is LimitReached:  # it may fit into the other one's limit
            kind, why = StaleSession, self._why_not.reason
        self._refuse(Refusal(query.id, kind.code, kind.status, why))
        return Admission.REFUSED

    def _too_many(self, rows: int) -> str:
        return (
            f"this query has {rows} rows, and {self._remaining} of the limit of {self._limit} are "
            "left; ask for fewer, or ask the model owner to serve more"
        )

    def finished(self, batch: Sequence[Piece], *, is_answered: bool = True) -> None:
        """Count the queries whose last rows ran; close the queue with the limit's last row.

        is_answered: whether the batch was; else its queries failed, and none is counted.
        """
        with self._lock:
            for query, _, stop in batch:
                if is_answered and stop == query.rows:
                    self._begun[query.client] -= query.rows
                    self._count(query)
                elif not is_answered:
                    self._begun[query.client] -= query.rows
                    self._ready.discard(query)
                    self.pending.take(query.id)
                    self._arrivals.pop(query.id, None)
            if self._remaining == 0 and self._serving:
                self._close(
                    LimitReached,
                    f"the limit of {self._limit} rows is reached; ask the model owner "
                    "to serve again",
                )
            self._wake()

    def _count(self, query: Pending) -> None:
        self.answered += query.rows
        if self._accounts is not None:
            self._accounts.charge(query.client, query.rows)
        if self._remaining is not None:
            self._remaining -= query.rows

    def fail_all(self, error: QueryError) -> None:
        """Answer every waiting query with `error`."""
        with self._lock:
            self.pending.fail_all(error)

    def take_refusals(self) -> list[Refusal]:
        """Return refusals that the followers have not been told yet, as many as an order holds."""
        with self._lock:
            refusals, self._outbox = self._outbox[:MAX_REFUSALS], self._outbox[MAX_REFUSALS:]
            return refusals
