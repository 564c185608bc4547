"""What a party does in a session, by its role: dealer, leader or follower.

The leader (party 0) decides which queries run and says so on the orders lane; followers tell it
on the arrivals lane which have reached them; all compute parties run the engine on them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from abc import abstractmethod
from collections import deque
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from privserve.engines import Compute, load_engine
from privserve.errors import BadFrame, NotServing, PeerLost, QueryError, TooManyRows
from privserve.party.cores import stay_on_own_core
from privserve.party.messages import framed, hear, read_note, read_order
from privserve.party.queries import GONE, LeaderQueue, Pending, PendingQueries
from privserve.party.session import (
    ARRIVALS,
    CAUSE_SECONDS,
    ORDERS,
    Seat,
    Session,
    SessionSpec,
    gone,
)

RECENT_RUNS = 1000
NOTE_SECONDS = 5.0
"""At most this long a follower's note of a query waits for the leader to take it."""


class DealerSession(Session):
    """The dealer's side: hand out randomness until the others leave."""

    def _serve(self) -> None:
        engine = load_engine(self.spec.engine)
        lanes = {lane: self._lanes[lane] for lane in engine.LANES}
        self._loaded()
        engine.deal(self.spec.description, lanes, **self.spec.options)

    def _refuse_all(self, error: QueryError) -> None:
        """Nothing ever waits at the dealer."""


class ComputeSession(Session):
    """What leader and followers have in common: the engine and its counters."""

    def __init__(self, seat: Seat, spec: SessionSpec) -> None:
        super().__init__(seat, spec)
        self._compute: Compute | None = None
        self._runs: deque[tuple[int, float]] = deque(maxlen=RECENT_RUNS)
        self._queries = 0
        self._rows = 0
        self._counting = threading.Lock()
        """Of the three above, which the session's thread writes and `status` reads."""

    @abstractmethod
    def submit(self, query: Pending) -> None:
        """Take this party's share of a query; its future gets the answer's shares."""

    @abstractmethod
    def withdraw(self, query: Pending) -> None:
        """Let a query go whose client left."""

    def _set_up(self) -> None:
        engine = load_engine(self.spec.engine)
        lanes = {lane: self._lanes[lane] for lane in engine.LANES}
        self._compute = engine.Compute(
            self.spec.description, self.spec.shares, lanes, **self.spec.options
        )
        # After the engine has begun its own threads, which would inherit it.
        stay_on_own_core(self._config, self._config.rank(self._me.name))
        # The engine has arranged its own copies; a large network's shares need not stay.
        self.spec = replace(self.spec, shares={})
        self._before = self._counters()
        self._loaded()

    def _counters(self) -> tuple[int, int, int]:
        """(frames and bytes sent to compute parties, bytes received from the dealer)."""
        frames = sent = dealt = 0
        for lane in load_engine(self.spec.engine).LANES:
            for peer, channel in self._lanes[lane].channels.items():
                if peer == self._n:
                    dealt += channel.bytes_received
                else:
                    frames += channel.frames_sent
                    sent += channel.bytes_sent
        return frames, sent, dealt

    def _run(self, batch: list[Pending]) -> bool:
        """Evaluate a batch and answer its queries; whether they were, at all parties alike."""
        assert self._compute is not None
        arrays = list(zip(*(query.inputs for query in batch), strict=True))
        inputs = [a[0] if len(a) == 1 else np.concatenate(a) for a in arrays]
        started = time.perf_counter()
        try:
            outputs = self._compute.run(inputs)
        except TooManyRows as error:
            for query in batch:
                query.future.set_exception(error)
            return False
        except BaseException as error:
            # The batch left the queue, so only this thread can tell its clients; the reason
            # that they get is the one that the watcher finds, unless the error names its cause.
            named = isinstance(error, BadFrame)
            self._ended.wait(CAUSE_SECONDS if isinstance(error, PeerLost) and not named else 0)
            lost = str(error) if named else f"{self._me.name} lost the session during this query"
            for query in batch:
                why = self.reason or lost
                query.future.set_exception(NotServing(f"{why}; the query was not answered"))
            raise
        with self._counting:
            self._runs.append((len(inputs[0]), time.perf_counter() - started))
            self._queries += len(batch)
            self._rows += len(inputs[0])
        start = 0
        for query in batch:
            stop = start + query.rows
            query.future.set_result([output[start:stop] for output in outputs])
            start = stop
        return True

    def status(self) -> dict[str, Any]:
        """Return the session's state, with what its queries cost so far."""
        facts = super().status()
        compute = self._compute  # the session's thread forgets it in the end
        with self._counting:
            queries, rows, runs = self._queries, self._rows, list(self._runs)
        if compute is not None and queries:
            frames, sent, dealt = (
                after - before for after, before in zip(self._counters(), self._before, strict=True)
            )
            facts["cost"] = {
                "queries": queries,
                "rows": rows,
                "bytes_online": sent,
                "bytes_dealt": dealt,
                "frames": frames,
                "recent": [[rows, seconds] for rows, seconds in runs],
                "exchanges": compute.stats.exchanges,
            }
        return facts

    def _release(self) -> None:
        super()._release()
        if self._compute is not None:
            self._compute.close()
            self._compute = None


class LeaderSession(ComputeSession):
    """Party 0: decides which queries run, in which order."""

    def __init__(self, seat: Seat, spec: SessionSpec) -> None:
        super().__init__(seat, spec)
        rows = int(spec.options.get("max_batch", 128))
        self.queue = LeaderQueue(self._n, rows, seat.timeouts.share, seat.accounts)

    def submit(self, query: Pending) -> None:
        """Queue the leader's share of a query."""
        if self._ended.is_set():
            raise self._over()
        self.queue.submit(query)
        if self._ended.is_set():
            self._refuse_all(self._over())

    def withdraw(self, query: Pending) -> None:
        """Let a query go whose client left."""
        self.queue.withdraw(query.id)

    def status(self) -> dict[str, Any]:
        """Return the session's state, with the leader's counts."""
        return {
            **super().status(),
            "serving": self.queue.serving,
            "limit": self.queue.limit,
            "answered": self.queue.answered,
            "waiting": len(self.queue.pending),
        }

    def _serve(self) -> None:
        self._set_up()
        for peer in range(1, self._n):
            self._spawn(partial(self._listen, peer), f"arrivals-{peer}")
        while not self._ended.is_set():
            with self.queue.changed:
                wait = self.queue.expire()
                batch = self.queue.next_batch()
                refusals = self.queue.take_refusals()  # last: choosing a batch may refuse too
                if not refusals and not batch:
                    self.queue.changed.wait(wait)
                    continue
            order = {
                "run": [query.id for query in batch],
                "refuse": [[r.id, r.code, r.status, r.reason] for r in refusals],
            }
            payload = framed(order)
            for peer in range(1, self._n):
                self._lanes[ORDERS].send(peer, payload)
            if batch:
                self.queue.finished(batch if self._run(batch) else [])

    def _listen(self, peer: int) -> None:
        """Take one follower's arrival notes, until the session is over."""
        channel = self._lanes[ARRIVALS].channels[peer]
        while True:
            note = hear(channel, read_note)
            self.queue.announced(peer, note.query_id, note.rows, note.client)
            if self.queue.announces_too_many(peer):
                raise channel.bad("it announces more queries than a party may hold")

    def _refuse_all(self, error: QueryError) -> None:
        with self.queue.changed:
            self.queue.pending.fail_all(error)
            self.queue.changed.notify_all()


class FollowerSession(ComputeSession):
    """Every other compute party: announces its shares and does what the leader orders."""

    def __init__(self, seat: Seat, spec: SessionSpec) -> None:
        super().__init__(seat, spec)
        self._pending = PendingQueries()
        self._lock = threading.Lock()

    def submit(self, query: Pending) -> None:
        """Hold this party's share of a query and tell the leader."""
        with self._lock:
            if self._ended.is_set():
                raise self._over()
            self._pending.add(query)
            try:
                self._note(query, query.rows)
            except PeerLost:
                self._pending.take(query.id)
                raise NotServing(gone(self._config.parties[0].name)) from None

    def withdraw(self, query: Pending) -> None:
        """Tell the leader that a query's client left; the share stays until it has said so."""
        with self._lock, contextlib.suppress(PeerLost):
            if query.id in self._pending:
                self._note(query, GONE)

    def _note(self, query: Pending, rows: int) -> None:
        """Tell the leader of a query; raises PeerLost, after which nothing more can be told."""
        channel = self._lanes[ARRIVALS].channels[0]
        try:
            channel.send(framed([query.id, rows, query.client]))
        except PeerLost:
            # Half a note may be under way: the leader is to see the end, not what comes after it.
            channel.close()
            raise

    def _serve(self) -> None:
        # Notes are sent by the front, which answers nobody while it waits.
        self._lanes[ARRIVALS].set_timeout(NOTE_SECONDS)
        self._set_up()
        channel = self._lanes[ORDERS].channels[0]
        while True:
            order = hear(channel, read_order)
            with self._lock:
                for refusal in order.refuse:
                    refused = self._pending.take(refusal.id)
                    if refused is not None:
                        refused.future.set_exception(refusal.error())
                # Before any is taken: a query that nobody holds would never be answered.
                if not all(query_id in self._pending for query_id in order.run):
                    raise channel.bad("it orders a query that was never announced to it")
                taken = [self._pending.take(query_id) for query_id in order.run]
            if queries := [query for query in taken if query is not None]:
                self._run(queries)

    def _refuse_all(self, error: QueryError) -> None:
        with self._lock:
            self._pending.fail_all(error)


def open_session(seat: Seat, spec: SessionSpec) -> Session:
    """Return the session of this seat's role, not started yet."""
    if seat.rank == 0:
        return LeaderSession(seat, spec)
    is_dealer = seat.rank == len(seat.config.compute)
    return DealerSession(seat, spec) if is_dealer else FollowerSession(seat, spec)
