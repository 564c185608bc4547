"""What a party does in a session, by its role: dealer, leader or follower.

The leader (party 0) decides which queries run and says so on the orders lane; followers tell it
on the arrivals lane which have reached them; all compute parties run the engine on them.
"""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from privserve.engines import Compute, RunStats, load_engine
from privserve.errors import BadFrame, NotServing, PeerLost, QueryError, TooManyRows
from privserve.party.accounts import Accounts
from privserve.party.answers import AnswerCoins
from privserve.party.cores import own_cores
from privserve.party.messages import MOST_NOTES, Note, Order, framed, read_notes, read_order
from privserve.party.pending import Pending, PendingQueries
from privserve.party.polling import PollingSession
from privserve.party.queries import GONE, LeaderQueue
from privserve.party.query_format import QueryFormat
from privserve.party.query_log import report_to
from privserve.party.session import (
    ARRIVALS,
    CAUSE_SECONDS,
    ORDERS,
    REPLACED,
    Seat,
    Session,
    SessionSpec,
)
from privserve.party.spans import spans_of
from privserve.party.statistics import RunTime, Statistics
from privserve.party.turns import Piece
from privserve.prg import Prg

MAX_BATCH = 128
"""Rows that run together, where the model owner says nothing else."""
NOTE_SECONDS = 5.0
"""At most this long a follower's notes wait for the leader to take them."""


class DealerSession(Session):
    """The dealer's side: hand out randomness until the others leave."""

    def _serve(self) -> None:
        engine = load_engine(self.spec.engine)
        lanes = {lane: self._lanes[lane] for lane in engine.LANES}
        self._loaded()
        engine.deal(self.spec.description, lanes, **self.spec.options)

    def _rouse(self) -> None:
        """Nothing is called at the dealer."""

    def _refuse_all(self, error: QueryError) -> None:
        """Nothing ever waits at the dealer."""


class ComputeSession(PollingSession):
    """What leader and followers have in common: the engine and its counters."""

    def __init__(self, seat: Seat, spec: SessionSpec) -> None:
        super().__init__(seat, spec)
        self._compute: Compute | None = None
        self._coins: AnswerCoins | None = None
        self.statistics = Statistics(report_to(spec.model, spec.id), spans_of(spec.model, spec.id))
        self.engine_stats = RunStats()
        """What the engine counted, also once the session is over."""
        self.accounts = (seat.accounts or Accounts()).of_model(spec.model, spec.everybody)

    @cached_property
    def query_format(self) -> QueryFormat:
        """What the frame of a query has to hold."""
        return QueryFormat.of(self.spec.id, self.spec.description)

    @property
    @abstractmethod
    def is_idle(self) -> bool:
        """Whether no query waits here or runs."""

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
        self._coins = AnswerCoins(self.spec.description["outputs"], Prg())
        self.engine_stats = self._compute.stats
        # After the engine has begun its own threads, which would inherit what it chooses.
        self._cores = own_cores(self._config, self._config.rank(self._me.name))
        # The engine has arranged its own copies; a large network's shares need not stay.
        self.spec = replace(self.spec, shares={})
        self._before = self._counters()
        self._loaded()

    @property
    def packs(self) -> tuple[int, int] | None:
        """See `engines.Compute.packs`; None also while there is no engine."""
        compute = self._compute
        return None if compute is None else compute.packs()

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

    def _run(self, batch: Sequence[Piece]) -> bool:
        """Evaluate a batch and answer its queries; whether they were, at all parties alike."""
        assert self._compute is not None
        assert self._coins is not None
        begun_ns = time.perf_counter_ns()
        for piece in batch:
            piece.query.begun_ns = piece.query.begun_ns or begun_ns
        parts = ([x[start:stop] for x in query.inputs] for query, start, stop in batch)
        arrays = list(zip(*parts, strict=True))
        inputs = [a[0] if len(a) == 1 else np.concatenate(a) for a in arrays]
        stats = self._compute.stats
        waited, exchanged = stats.waiting_seconds, stats.exchange_seconds
        started_ns = time.perf_counter_ns()
        try:
            with self._poller.away():
                shares = self._compute.run(inputs)
            computed_ns = time.perf_counter_ns()
            outputs = self._coins.told(shares)
        except TooManyRows as error:
            for query, _, _ in batch:
                query.future.set_exception(error)
            return False
        except BaseException as error:
            # The batch left the queue, so only this thread can tell its clients; the reason
            # that they get is the one that the watcher finds, unless the error names its cause.
            named = isinstance(error, BadFrame)
            self._ended.wait(CAUSE_SECONDS if isinstance(error, PeerLost) and not named else 0)
            lost = str(error) if named else f"{self._me.name} lost the session during this query"
            for query, _, _ in batch:
                why = self.reason or lost
                query.future.set_exception(NotServing(f"{why}; the query was not answered"))
            raise
        ended_ns = time.perf_counter_ns()
        took = RunTime(
            inputs=started_ns - begun_ns,
            engine=computed_ns - started_ns,
            outputs=ended_ns - computed_ns,
            packs=int(1e9 * (stats.waiting_seconds - waited)),
            exchanges=int(1e9 * (stats.exchange_seconds - exchanged)),
        )
        self.statistics.ran(batch, took)
        at = 0
        for piece in batch:
            piece.query.answer([output[at : at + piece.rows] for output in outputs])
            at += piece.rows
        self._coins.draw_ahead()
        return True

    def facts(self) -> dict[str, Any]:
        """Return the session's state, whether anything waits, and what the anonymous had."""
        return {**super().facts(), "idle": self.is_idle, "anonymous": self.accounts.anonymous()}

    def status(self) -> dict[str, Any]:
        """Return its facts, with what its queries cost so far."""
        facts = super().status()
        compute = self._compute  # the session's thread forgets it in the end
        ran = self.statistics.runs()
        if compute is not None and ran.queries:
            frames, sent, dealt = (
                after - before for after, before in zip(self._counters(), self._before, strict=True)
            )
            facts["cost"] = {
                "queries": ran.queries,
                "rows": ran.rows,
                "bytes_online": sent,
                "bytes_dealt": dealt,
                "frames": frames,
                "recent": [[rows, seconds] for rows, seconds in ran.recent],
                "exchanges": compute.stats.exchanges,
            }
        return facts

    def _release(self) -> None:
        super()._release()
        if self._compute is not None:
            self._compute.close()
            self._compute = None
        self._coins = None


class LeaderSession(ComputeSession):
    """Party 0: decides which queries run, in which order."""

    def __init__(self, seat: Seat, spec: SessionSpec) -> None:
        super().__init__(seat, spec)
        rows = spec.options.get("max_batch", MAX_BATCH)
        self._max_delay = spec.options.get("max_delay_ms", 0) / 1000
        self.queue = LeaderQueue(
            self._n,
            rows,
            seat.timeouts.share,
            None if seat.accounts is None else self.accounts,
            self._rouse,
            lambda: self.parts,
        )

    @property
    def is_idle(self) -> bool:
        """Whether no query waits here or runs, nor is anything left to be told of one."""
        return self.queue.is_idle

    def drain(self) -> None:
        """Answer what has come in; refuse the rest, whose clients find the other session."""
        super().drain()
        self.queue.drain(REPLACED)

    def submit(self, query: Pending) -> None:
        """Queue the leader's share of a query."""
        if self._ended.is_set():
            raise self._over()
        self.statistics.follow(query)
        self.queue.submit(query)
        if self._ended.is_set():
            self._refuse_all(self._over())

    def withdraw(self, query: Pending) -> None:
        """Let a query go whose client left."""
        self.queue.withdraw(query.id)

    def facts(self) -> dict[str, Any]:
        """Return the session's facts, with the leader's counts."""
        return {
            **super().facts(),
            "serving": self.queue.serving and self.is_alive,
            "limit": self.queue.limit,
            "answered": self.queue.answered,
            "waiting": len(self.queue.pending),
        }

    def _serve(self) -> None:
        self._set_up()
        takes = {peer: partial(self._take_notes, peer) for peer in range(1, self._n)}
        with self._at_wheel():
            while not self._ended.is_set():
                self._choose_poller()
                with self._hearing(ARRIVALS, read_notes, takes):
                    wait: float | None = 0
                    while self._stays:
                        self._poll(wait)
                        wait = self._lead()

    def _lead(self) -> float | None:
        """Run and refuse what there is now; for how long nothing is to be done of itself."""
        wait = self.queue.expire()
        if self._max_delay and (patience := self.queue.patience(self._max_delay)):
            return patience if wait is None else min(wait, patience)
        batch = self.queue.next_batch()
        refusals = self.queue.take_refusals()  # last: choosing a batch may refuse too
        if not refusals and not batch:
            return wait
        order = {
            "run": [[query.id, start, stop] for query, start, stop in batch],
            "refuse": [[r.id, r.code, r.status, r.reason] for r in refusals],
        }
        payload = framed(order)
        for peer in range(1, self._n):
            self._lanes[ORDERS].send(peer, payload)
        if batch:
            self.queue.finished(batch, is_answered=self._run(batch))
        return 0

    def _take_notes(self, peer: int, notes: Sequence[Note]) -> None:
        """Take a follower's notes of which queries have come in there."""
        for note in notes:
            self.queue.announced(peer, note.query_id, note.rows, note.client)
        if self.queue.announces_too_many(peer):
            channel = self._lanes[ARRIVALS].channels[peer]
            raise channel.bad("it announces more queries than a party may hold")

    def _refuse_all(self, error: QueryError) -> None:
        self.queue.fail_all(error)


class FollowerSession(ComputeSession):
    """Every other compute party: announces its shares and does what the leader orders."""

    def __init__(self, seat: Seat, spec: SessionSpec) -> None:
        super().__init__(seat, spec)
        self._pending = PendingQueries(lambda: self.parts)
        self._is_running = False
        self._notes: list[tuple[str, int, str]] = []
        """What the leader is to be told of queries: id, rows or GONE, client."""
        self._orders: deque[Order] = deque()
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        """Held by whoever sends notes: for a moment two pollers may have been called to."""

    @property
    def is_idle(self) -> bool:
        """Whether no query waits here or runs."""
        with self._lock:
            return not (self._pending or self._notes or self._is_running)

    def submit(self, query: Pending) -> None:
        """Hold this party's share of a query and tell the leader."""
        with self._lock:
            if self._ended.is_set():
                raise self._over()
            self.statistics.follow(query)
            self._pending.add(query)
            self._note(query, query.rows)

    def withdraw(self, query: Pending) -> None:
        """Tell the leader that a query's client left; the share stays until it has said so."""
        with self._lock:
            if query.id in self._pending:
                self._note(query, GONE)

    def _note(self, query: Pending, rows: int) -> None:
        self._notes.append((query.id, rows, query.client))
        if len(self._notes) == 1:
            self._poller.call(self._send_notes)

    def _send_notes(self) -> None:
        """Tell the leader of all that came in since it was told last."""
        channel = self._lanes[ARRIVALS].channels[0]
        with self._sending:
            with self._lock:
                notes, self._notes = self._notes, []
            try:
                for at in range(0, len(notes), MOST_NOTES):
                    channel.send(framed(notes[at : at + MOST_NOTES]))
            except PeerLost as error:
                # Half a frame may be under way: the leader is to see the end, not what follows.
                channel.close()
                self._lost = error
                self._rouse()

    def _serve(self) -> None:
        # Notes are sent by the front, which answers nobody while it waits.
        self._lanes[ARRIVALS].set_timeout(NOTE_SECONDS)
        self._set_up()
        with self._at_wheel():
            while not self._ended.is_set():
                self._choose_poller()
                with self._hearing(ORDERS, read_order, {0: self._orders.append}):
                    wait: float | None = 0
                    while self._stays:
                        self._poll(wait)
                        while self._orders:
                            self._obey(self._orders.popleft())
                        wait = None

    def _obey(self, order: Order) -> None:
        """Refuse and run what the leader says; raises BadFrame for what cannot be run."""
        with self._lock:
            for refusal in order.refuse:
                refused = self._pending.take(refusal.id)
                if refused is not None:
                    refused.future.set_exception(refusal.error())
            # Before any is taken: a query that nobody holds would never be answered.
            self._check(order)
            batch = [self._piece(*rows) for rows in order.run]
            self._is_running = bool(batch)
        if batch and not self._run(batch):
            with self._lock:
                for query, _, _ in batch:
                    self._pending.take(query.id)
        self._is_running = False

    def _check(self, order: Order) -> None:
        channel = self._lanes[ORDERS].channels[0]
        for query_id, start, stop in order.run:
            if query_id not in self._pending:
                raise channel.bad("it orders a query that was never announced to it")
            query = self._pending.get(query_id)
            if not query.taken == start < stop <= query.rows:
                raise channel.bad("it orders rows that a query does not have, or that ran already")

    def _piece(self, query_id: str, start: int, stop: int) -> Piece:
        """The rows of a query that are to run; it waits no more when they are its last."""
        query = self._pending.get(query_id)
        query.taken = stop
        if stop == query.rows:
            self._pending.take(query_id)
        return Piece(query, start, stop)

    def _refuse_all(self, error: QueryError) -> None:
        with self._lock:
            self._pending.fail_all(error)


def open_session(seat: Seat, spec: SessionSpec) -> Session:
    """Return the session of this seat's role, not started yet."""
    if seat.rank == 0:
        return LeaderSession(seat, spec)
    is_dealer = seat.rank == len(seat.config.compute)
    return DealerSession(seat, spec) if is_dealer else FollowerSession(seat, spec)
