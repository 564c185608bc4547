"""Which queries run next, and who refuses which: the bookkeeping of a party, no sockets.

A query reaches every compute party by itself, so each party first holds it as *pending*.
The leader (party 0) learns from the others' arrival notes which queries are complete, runs
those in order, and alone decides refusals and time-outs; followers never drop a query that
they announced, so the parties cannot disagree.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, OrderedDict, deque
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from privserve.credentials import ANONYMOUS
from privserve.errors import BY_CODE, LimitReached, NotServing, QueryError
from privserve.fixedpoint import RingArray
from privserve.party.accounts import Accounts

MAX_PENDING = 1024
MAX_PENDING_PER_CLIENT = 256
"""So that one client's queries, or halves of queries, leave room for the others'."""
MAX_PENDING_BYTES = 256 << 20
MAX_REMEMBERED = 4096
MAX_ID = 128
"""Characters of a query's id."""
MAX_REFUSALS = 256
"""That one order tells of: it has to fit into a frame, however long the ids are."""
CLIENT_LEFT = 499
"""An HTTP status that nobody sees: whom it is for is gone."""
GONE = -1
"""In place of a query's rows: its client left."""


@dataclass
class Pending:
    """One query at one party: its shares, and the future of its answer's shares."""

    id: str
    inputs: list[RingArray] = field(repr=False)
    rows: int
    client: str = ANONYMOUS
    future: Future[list[RingArray]] = field(default_factory=Future, repr=False)

    @property
    def nbytes(self) -> int:
        """What its shares take."""
        return sum(share.nbytes for share in self.inputs)


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


class PendingQueries:
    """Queries that wait at this party, by id."""

    def __init__(self) -> None:
        self._pending: dict[str, Pending] = {}
        self._of: Counter[str] = Counter()
        self._bytes = 0

    def add(self, query: Pending) -> None:
        """Hold `query`; raises QueryError for an id in use and for a full queue."""
        if query.id in self._pending:
            raise QueryError(f"a query with id '{query.id}' is already waiting", 409)
        if len(self._pending) >= MAX_PENDING or self._bytes + query.nbytes > MAX_PENDING_BYTES:
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
            if not query.future.done():
                query.future.set_exception(error)
        self._pending.clear()
        self._of.clear()
        self._bytes = 0


@dataclass
class _Arrival:
    """Who announced a query, and when the first of them did."""

    since: float
    said: dict[int, tuple[int, str]] = field(default_factory=dict)
    """By party: the rows of its share, and which client sent it."""


class LeaderQueue:
    """The leader's view of all queries. Thread-safe; `changed` is notified on every change."""

    def __init__(
        self,
        compute_parties: int,
        max_rows: int,
        share_timeout: float,
        accounts: Accounts | None = None,
    ) -> None:
        """max_rows: of one batch. share_timeout: seconds until a query that has not reached
        every party is refused. accounts: what each client may have; None limits nobody."""
        self.changed = threading.Condition()
        self.pending = PendingQueries()
        self.answered = 0
        self._n = compute_parties
        self._max_rows = max_rows
        self._share_timeout = share_timeout
        self._accounts = accounts
        self._arrivals: OrderedDict[str, _Arrival] = OrderedDict()
        self._ready: deque[str] = deque()
        self._remaining: int | None = 0
        self._serving = False
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
        with self.changed:
            if self._serving:
                raise QueryError("the model is being served already; stop that first", 409)
            self._serving = True
            self._limit = self._remaining = num_requests
            self.answered = 0
            self.changed.notify_all()

    def stop(self) -> None:
        """Refuse what waits and what comes; a batch that runs is finished."""
        with self.changed:
            if self._serving:
                self._close(NotServing, "the model owner stopped serving; the model stays shared")

    def submit(self, query: Pending) -> None:
        """Take the leader's own share of a query."""
        with self.changed:
            known = self._remembered.get(query.id)
            if known is not None:
                raise known.error()
            if not self._serving:
                refusal = replace(self._why_not, id=query.id)
                self._refuse(refusal)
                raise refusal.error()
            self.pending.add(query)
            self._arrive(query.id, 0, query.rows, query.client)

    def announces_too_many(self, rank: int) -> bool:
        """Whether follower `rank` has announced more queries than a party may hold."""
        with self.changed:
            said = (rank in arrival.said for arrival in self._arrivals.values())
            return len(self._arrivals) > MAX_PENDING and sum(said) > MAX_PENDING

    def announced(self, rank: int, query_id: str, rows: int, client: str = ANONYMOUS) -> None:
        """Note that follower `rank` has its share of a query with this many rows."""
        with self.changed:
            known = self._remembered.get(query_id)
            if known is not None:
                self._outbox.append(known)
                self.changed.notify_all()
            elif rows == GONE:
                self.withdraw(query_id)
            elif not self._serving:  # the follower need not hold its share
                self._refuse(replace(self._why_not, id=query_id))
            else:
                self._arrive(query_id, rank, rows, client)

    def withdraw(self, query_id: str) -> None:
        """Let a query go whose client left; one that runs already is answered to nobody."""
        with self.changed:
            if query_id in self._arrivals:
                with contextlib.suppress(ValueError):  # it was not complete
                    self._ready.remove(query_id)
                why = "its client left before it was answered"
                self._refuse(Refusal(query_id, QueryError.code, CLIENT_LEFT, why))

    def _arrive(self, query_id: str, rank: int, rows: int, client: str) -> None:
        arrival = self._arrivals.setdefault(query_id, _Arrival(time.monotonic()))
        if rank in arrival.said:
            return
        arrival.said[rank] = (rows, client)
        if len(arrival.said) == self._n:
            if len(set(arrival.said.values())) == 1:
                self._ready.append(query_id)
            else:
                why = "the parties' shares differ in shape, or come from different clients"
                self._refuse(Refusal(query_id, QueryError.code, 400, why))
        self.changed.notify_all()

    def _refuse(self, refusal: Refusal) -> None:
        self._arrivals.pop(refusal.id, None)
        self._remembered[refusal.id] = refusal
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        self._outbox.append(refusal)
        query = self.pending.take(refusal.id)
        if query is not None:
            query.future.set_exception(refusal.error())
        self.changed.notify_all()

    def _close(self, kind: type[QueryError], reason: str) -> None:
        self._serving = False
        self._why_not = Refusal("", kind.code, kind.status, reason)
        self._ready.clear()
        for query_id in list(self._arrivals):
            self._refuse(replace(self._why_not, id=query_id))
        self.changed.notify_all()

    def expire(self) -> float | None:
        """Refuse what waits for a share too long; seconds until the next one would be."""
        with self.changed:
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

    def next_batch(self) -> list[Pending]:
        """Return queries to run now, in order, of at most max_rows rows together; maybe none.

        One that asks for more rows than the limit leaves is refused and told how many are left.
        """
        with self.changed:
            batch: list[Pending] = []
            rows = 0
            ahead: Counter[str] = Counter()
            while self._ready and self._serving:
                query = self.pending.get(self._ready[0])
                if batch and rows + query.rows > self._max_rows:
                    break
                if self._remaining is not None and rows + query.rows > self._remaining:
                    if batch:  # how many are left is certain once these are answered
                        break
                    self._refuse_next(query, self._too_many(query.rows))
                    continue
                if self._accounts is not None:
                    why = self._accounts.refusal(query.client, query.rows)
                    if why is not None:
                        self._refuse_next(query, why)
                        continue
                    if self._accounts.refusal(query.client, query.rows, ahead[query.client]):
                        break  # as above
                ahead[query.client] += query.rows
                rows += query.rows
                self.pending.take(query.id)
                self._arrivals.pop(query.id, None)
                self._ready.popleft()
                batch.append(query)
            return batch

    def _refuse_next(self, query: Pending, why: str) -> None:
        self._ready.popleft()
        self._refuse(Refusal(query.id, LimitReached.code, LimitReached.status, why))

    def _too_many(self, rows: int) -> str:
        return (
            f"this query has {rows} rows, and {self._remaining} of the limit of {self._limit} are "
            "left; ask for fewer, or ask the model owner to serve more"
        )

    def finished(self, batch: list[Pending]) -> None:
        """Count `batch` as answered; close the queue when that was the last row of the limit."""
        with self.changed:
            rows = sum(query.rows for query in batch)
            self.answered += rows
            if self._accounts is not None:
                for query in batch:
                    self._accounts.charge(query.client, query.rows)
            if self._remaining is not None:
                self._remaining -= rows
                if self._remaining <= 0 and self._serving:
                    self._close(
                        LimitReached,
                        f"the limit of {self._limit} rows is reached; ask the model owner "
                        "to serve again",
                    )
            self.changed.notify_all()

    def take_refusals(self) -> list[Refusal]:
        """Return refusals that the followers have not been told yet, as many as an order holds."""
        with self.changed:
            refusals, self._outbox = self._outbox[:MAX_REFUSALS], self._outbox[MAX_REFUSALS:]
            return refusals
