"""Which queries run next, and who refuses which: the bookkeeping of a party, no sockets.

A query reaches every compute party by itself, so each party first holds it as *pending*.
The leader (party 0) learns from the others' arrival notes which queries are complete, runs
those in order, and alone decides refusals and time-outs; followers never drop a query that
they announced, so the parties cannot disagree.

It is one class under one lock, and longer than most: what runs, what is refused and what is left of
a limit are decided together.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from privserve.credentials import ANONYMOUS
from privserve.errors import (
    DeadlinePassed,
    Draining,
    LimitReached,
    NotServing,
    QueryError,
    StaleSession,
)
from privserve.party.accounts import Counted
from privserve.party.journal import Book, Served
from privserve.party.leased import USED_UP, Lease
from privserve.party.pending import MAX_PENDING, Pending, PendingQueries
from privserve.party.refusals import Refusal, Refused
from privserve.party.turns import Admission, Piece, Turns

CLIENT_LEFT = 499
"""An HTTP status that nobody sees: whom it is for is gone."""
GONE = -1
"""In place of a query's rows: its client left."""


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
        excuse: Callable[[], str | None] = lambda: None,
        book: Book | None = None,
    ) -> None:
        """max_rows: of one batch. share_timeout: seconds until a query that has not reached
        every party is refused. accounts: what each client may have; None limits nobody.
        wake: called whenever there may be something new to run or to refuse. parts: for how many
        models this party has memory. excuse: what is wrong with the cluster, where a query lacks
        shares for that. book: where what is answered is written down, and was before."""
        self._excuse = excuse
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
        self._stopping = ""
        self._limit: int | None = None
        self._lease = Lease()
        self._why_not = Refusal(
            "",
            NotServing.code,
            NotServing.status,
            "the model is shared, but nobody serves it yet; the model owner has to call serve()",
        )
        self._owner_seconds: float | None = None
        self._owner_at = 0.0
        self._refused = Refused()
        self._book = book
        if book is not None and (served := book.served()) is not None:
            self._restore(served)

    def _restore(self, served: Served) -> None:
        """Go on where the process before this one left."""
        self._limit, self.answered = served.limit, served.answered
        self._remaining = None if served.limit is None else served.limit - served.answered
        self._owner_seconds, self._owner_at = served.owner_seconds, time.monotonic()
        self._lease = Lease(served.lease, is_open=served.leased)
        if served.refusal is not None:
            self._why_not = Refusal("", *served.refusal)
        elif self._remaining is not None and self._remaining <= 0 and not self._lease.is_open:
            self._why_not = Refusal("", LimitReached.code, LimitReached.status, self._is_reached())
        else:
            self._serving = True

    def _is_reached(self) -> str:
        limit = f"the limit of {self._limit} rows"
        if self._lease.name:
            limit = f"the limit, of which this cell had {self._limit} rows,"
        return f"{limit} is reached; ask the model owner to serve again"

    def settle(self, batch: Sequence[Piece]) -> None:
        """Write down whom the answers of a batch go to, before they do; see `finished`."""
        if self._book is None:
            return
        rows: Counter[str] = Counter()
        for query, _, stop in batch:
            if stop == query.rows:
                rows[query.client] += query.rows
        self._book.settle(rows)

    @property
    def serving(self) -> bool:
        """Whether queries are being answered."""
        return self._serving

    @property
    def limit(self) -> int | None:
        """The num_requests of the current or last `serve`."""
        return self._limit

    def serve(
        self,
        num_requests: int | None,
        owner_seconds: float | None = None,
        *,
        lease: str = "",
    ) -> None:
        """Answer the next `num_requests` rows (a request is one row); without end when None.

        owner_seconds: for how long after the last `owner_heard`; None: without end. lease: the name
        of a part of a limit, of which there may be more (see `extend`): what does not fit waits.
        """
        with self._lock:
            if self._is_draining:
                raise QueryError("another model is shared under this name; serve that", 409)
            if self._serving:
                raise QueryError("the model is being served already; stop that first", 409)
            if self._book is not None:
                self._book.begin(num_requests, owner_seconds, lease)
            self._owner_seconds, self._owner_at = owner_seconds, time.monotonic()
            self._serving = True
            self._limit = self._remaining = num_requests
            self._lease = Lease(lease, is_open=bool(lease))
            self.answered = 0
            self._wake()

    def extend(self, lease: str, limit: int, number: int, *, final: bool) -> None:
        """Answer this many rows since `serve`, as far as these are not answered or begun already.

        So it may be fewer than before. lease: the name of what is served. final: there are no
        more; what does not fit is refused, and all of what comes where `serve` was never called and
        the limit is 0.
        number: of this call; one that comes after a later one is refused. Raises QueryError where
        no part of a limit is served.
        """
        with self._lock:
            is_new = self._limit is None and not self._serving and not limit and final
            is_over = not self._serving and self._why_not.code != LimitReached.code
            if (not is_new and (self._limit is None or is_over)) or self._is_draining:
                raise QueryError("no part of a limit is being served; call serve first", 409)
            if not is_new and lease != self._lease.name:
                raise QueryError("another part of a limit is being served", 409)
            if number <= self._lease.number:
                raise QueryError("a later call has said already how many rows to answer", 409)
            limit = max(limit, self.answered + self._begun.total())
            if self._book is not None and is_new:
                self._book.begin(limit, None, lease)
            if self._book is not None:
                self._book.extend(limit, not final)
            self._limit, self._remaining = limit, limit - self.answered
            self._lease = Lease(lease, is_open=not final, number=number)
            self._serving = True
            self._close_at_limit()
            self._wake()

    def leased(self) -> dict[str, Any]:
        """Return what the owner's program goes by when it leases rows; JSON-able."""
        with self._lock:
            begun, remaining = self._begun.total(), self._remaining or 0
            return {
                "lease": self._lease.name,
                "begun": begun,
                "spare": remaining - begun - self._ready.rows,
                "short": 0 if begun or not self._ready else self._lease.short,
                "refuses": "" if self._serving else self._why_not.code,
            }

    def owner_heard(self) -> None:
        """Note that the owner's program is there."""
        self._owner_at = time.monotonic()

    def _owner_left(self) -> float | None:
        """Seconds until the owner is given up, which is done where they are over."""
        if self._owner_seconds is None or not self._serving:
            return None
        left = self._owner_at + self._owner_seconds - time.monotonic()
        if left > 0:
            return left
        self._close(
            NotServing,
            f"the model owner's program has not been heard of for {self._owner_seconds:g} s, and "
            "serving was to end with it; the model owner has to call serve() again",
        )
        return None

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

    def take_no_more(self, reason: str) -> None:
        """Refuse what comes, and what has not reached every party: one is being stopped."""
        with self._lock:
            self._stopping = self._stopping or reason
            for query_id, arrival in list(self._arrivals.items()):
                if len(arrival.said) < self._n:
                    self._refuse(self._refusal_now(query_id))
            self._wake()

    def take_again(self) -> None:
        """Take queries again: the party was stopped, and is back."""
        self._stopping = ""

    def _refusal_now(self, query_id: str) -> Refusal:
        """What becomes of a query that is not taken."""
        if self._serving and self._stopping:
            return Refusal(query_id, Draining.code, Draining.status, self._stopping)
        return replace(self._why_not, id=query_id)

    @property
    def is_idle(self) -> bool:
        """Whether no query waits or runs, and the followers were told of all that was refused."""
        with self._lock:
            return self._refused.is_told and not (self._arrivals or self._begun.total())

    def _takes(self, query_id: str) -> bool:
        """Whether a share of this query is taken, or refused with `_refusal_now`."""
        is_open = not (self._is_draining or self._stopping)
        return self._serving and (is_open or query_id in self._arrivals)

    def submit(self, query: Pending) -> None:
        """Take the leader's own share of a query."""
        with self._lock:
            known = self._refused.find(query.id)
            if known is not None:
                raise known.error()
            if not self._takes(query.id):
                refusal = self._refusal_now(query.id)
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
            known = self._refused.find(query_id)
            if known is not None:
                self._refused.tell_again(known)
                self._wake()
            elif rows == GONE:
                self.withdraw(query_id)
            elif not self._takes(query_id):  # the follower need not hold its share
                self._refuse(self._refusal_now(query_id))
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
        self._refused.add(refusal)
        query = self.pending.take(refusal.id)
        if query is not None:
            self._ready.discard(query)
            if query.taken:
                self._has_ended(query)
            query.future.set_exception(refusal.error())
        self._wake()

    def _close(self, kind: type[QueryError], reason: str) -> None:
        self._serving = False
        if self._is_draining:  # those whom the limit leaves out are to ask the other session
            kind, reason = StaleSession, self._why_not.reason
        self._why_not = Refusal("", kind.code, kind.status, reason)
        if self._book is not None:
            self._book.end(kind.code, kind.status, reason)
        for query_id in list(self._arrivals):
            self._refuse(replace(self._why_not, id=query_id))
        self._wake()

    def expire(self) -> float | None:
        """Refuse what waits for a share too long; seconds until the next one would be.

        Serving ends here too where the owner has not been heard of for too long.
        """
        with self._lock:
            owner_left = self._owner_left()
            left = self._expire_shares()
            waits = (owner_left, left, self._lease.patience() if self._ready else None)
            return min((s for s in waits if s is not None), default=None)

    def _expire_shares(self) -> float | None:
        now = time.monotonic()
        for query_id, arrival in list(self._arrivals.items()):
            if len(arrival.said) == self._n:
                continue
            left = arrival.since + self._share_timeout - now
            if left > 0:
                return left
            self._refuse(self._incomplete(query_id, len(arrival.said)))
        return None

    def _incomplete(self, query_id: str, parties: int) -> Refusal:
        """What becomes of a query of which this many parties have a share."""
        if (why := self._excuse()) is not None:
            why = f"{why}, so that this query cannot be answered now; ask again in a while"
            return Refusal(query_id, NotServing.code, NotServing.status, why)
        why = (
            f"only {parties} of {self._n} compute parties received a share of this query within "
            f"{self._share_timeout:g} s; send one to each"
        )
        return Refusal(query_id, QueryError.code, 504, why)

    def next_batch(self) -> list[Piece]:
        """Return the rows to run now, of at most max_rows together; maybe none.

        A query that asks for more rows than the limit leaves is refused and told how many are.
        """
        with self._lock:
            if not self._serving:
                return []
            self._lease.short = 0
            batch = self._ready.take(self._max_rows, self._admit)
            for query, _, stop in batch:
                if stop == query.rows:  # it cannot be refused any more
                    self.pending.take(query.id)
                    self._arrivals.pop(query.id, None)
            if batch or not self._lease.short:
                self._lease.since = None
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
            return self._turned_away(query, DeadlinePassed, "the query's time was up")
        if self._remaining is not None:
            left = self._remaining - self._begun.total()
            if query.rows > left and self._lease.is_open:
                if self._lease.lacks(query.rows - left):
                    return self._turned_away(query, LimitReached, USED_UP)
                return Admission.LATER
            if query.rows > self._remaining:
                if left < self._remaining:  # how many are left is certain once these are answered
                    return Admission.LATER
                return self._turned_away(query, LimitReached, self._too_many(query.rows))
            if query.rows > left:
                return Admission.LATER
        if self._accounts is not None:
            why = self._accounts.refusal(query.client, query.rows)
            if why is not None:
                return self._turned_away(query, LimitReached, why)
            ahead = self._begun[query.client]
            if ahead and self._accounts.refusal(query.client, query.rows, ahead):
                return Admission.LATER
        self._begun[query.client] += query.rows
        return Admission.RUN

    def _turned_away(self, query: Pending, kind: type[QueryError], why: str) -> Admission:
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
                    self._has_ended(query)
                    self._count(query)
                elif not is_answered:
                    self._has_ended(query)
                    self._ready.discard(query)
                    self.pending.take(query.id)
                    self._arrivals.pop(query.id, None)
            self._close_at_limit()
            self._wake()

    def _close_at_limit(self) -> None:
        if self._remaining == 0 and self._serving and not self._lease.is_open:
            self._close(LimitReached, self._is_reached())

    def _has_ended(self, query: Pending) -> None:
        """Count a query's rows no more as begun; nothing was begun where the round was lost."""
        self._begun[query.client] = max(0, self._begun[query.client] - query.rows)

    def _count(self, query: Pending) -> None:
        self.answered += query.rows
        if self._accounts is not None:
            self._accounts.charge(query.client, query.rows)
        if self._remaining is not None:
            self._remaining -= query.rows

    def lose(self, error: QueryError) -> None:
        """Answer every query that waits or runs with `error`: the parties lost each other.

        What was answered and the limit stay; the queries are remembered, so that a share which
        comes late waits for nobody.
        """
        with self._lock:
            for query_id in list(self._arrivals):
                self._refuse(Refusal(query_id, error.code, error.status, str(error)))
            self.pending.fail_all(error)
            self._ready = Turns()
            self._begun.clear()
            self._refused.tell_nobody()

    def take_refusals(self) -> list[Refusal]:
        """Return refusals that the followers have not been told yet, as many as an order holds."""
        with self._lock:
            return self._refused.take()
