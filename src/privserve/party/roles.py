"""What a party does in a session, by its role: dealer, leader or follower.

The leader (party 0) decides which queries run and says so on the orders lane; followers tell it
on the arrivals lane which have reached them; all compute parties run the engine on them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

from privserve.engines import load_engine
from privserve.errors import PeerLost, QueryError
from privserve.party.computing import ComputeSession
from privserve.party.journal import Book
from privserve.party.messages import MOST_NOTES, Note, Order, framed, read_notes, read_order
from privserve.party.pending import Pending, PendingQueries
from privserve.party.queries import GONE, LeaderQueue
from privserve.party.reasons import REPLACED, draining
from privserve.party.seat import Seat
from privserve.party.session import ARRIVALS, LOADED, ORDERS, Session
from privserve.party.session_spec import SessionSpec
from privserve.party.turns import Piece

MAX_BATCH = 128
"""Rows that run together, where the model owner says nothing else."""
NOTE_SECONDS = 5.0
"""At most this long a follower's notes wait for the leader to take them."""


class DealerSession(Session):
    """The dealer's side: hand out randomness until the others leave."""

    def _serve(self) -> None:
        engine = load_engine(self.spec.engine)
        lanes = {lane: self._round.lanes[lane] for lane in engine.LANES}
        self._loaded()
        engine.deal(self.spec.description, lanes, **self.spec.options)

    def _rouse(self) -> None:
        """Nothing is called at the dealer."""

    def _refuse_all(self, error: QueryError) -> None:
        """Nothing ever waits at the dealer."""


class LeaderSession(ComputeSession):
    """Party 0: decides which queries run, in which order."""

    def __init__(self, seat: Seat, spec: SessionSpec, came_back: str = "") -> None:
        super().__init__(seat, spec, came_back)
        rows = spec.options.get("max_batch", MAX_BATCH)
        self._max_delay = spec.options.get("max_delay_ms", 0) / 1000
        self.queue = LeaderQueue(
            self._n,
            rows,
            seat.timeouts.share,
            None if seat.accounts is None else self.accounts,
            self._rouse,
            lambda: self.parts,
            self._excuse,
            self._book(seat),
        )

    def _book(self, seat: Seat) -> Book | None:
        if seat.keep is None or seat.keep.journal is None:
            return None
        return Book(seat.keep.journal, self.spec.id, self.accounts.key)

    def _settle(self, batch: Sequence[Piece]) -> None:
        self.queue.settle(batch)

    def _excuse(self) -> str | None:
        """Why queries may lack shares that is no fault of their clients; None: nothing is known."""
        silent = self._watch.silent() if self._watch is not None else []
        return f"{' and '.join(silent)} gives no sign of life" if silent else None

    @property
    def is_idle(self) -> bool:
        """Whether no query waits here or runs, nor is anything left to be told of one."""
        return self.queue.is_idle

    def drain(self) -> None:
        """Answer what has come in; refuse the rest, whose clients find the other session."""
        super().drain()
        self.queue.drain(REPLACED)

    def take_no_more(self, why: str) -> None:
        """Refuse queries from now on, and those of which some party has no share yet."""
        super().take_no_more(why)
        self.queue.take_no_more(str(draining(why)))

    def _take_again(self) -> None:
        super()._take_again()
        self.queue.take_again()

    def submit(self, query: Pending) -> None:
        """Queue the leader's share of a query."""
        if not self._is_open:
            raise self._over()
        self.statistics.follow(query)
        self.queue.submit(query)
        if not self._is_open:
            self._refuse_all(self._over())

    def withdraw(self, query: Pending) -> None:
        """Let a query go whose client left."""
        self.queue.withdraw(query.id)

    def facts(self) -> dict[str, Any]:
        """Return the session's facts, with the leader's counts."""
        return {
            **super().facts(),
            "serving": self.queue.serving and self.state == LOADED,
            "limit": self.queue.limit,
            "answered": self.queue.answered,
            "waiting": len(self.queue.pending),
            **self.queue.leased(),
        }

    def _serve(self) -> None:
        self._set_up()
        takes = {peer: partial(self._take_notes, peer) for peer in range(1, self._n)}
        with self._at_wheel():
            while not self._round.over.is_set():
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
            self._round.lanes[ORDERS].send(peer, payload)
        if batch:
            self.queue.finished(batch, is_answered=self._run(batch))
        return 0

    def _take_notes(self, peer: int, notes: Sequence[Note]) -> None:
        """Take a follower's notes of which queries have come in there."""
        for note in notes:
            self.queue.announced(peer, note.query_id, note.rows, note.client)
        if self.queue.announces_too_many(peer):
            channel = self._round.lanes[ARRIVALS].channels[peer]
            raise channel.bad("it announces more queries than a party may hold")

    def _refuse_all(self, error: QueryError) -> None:
        self.queue.lose(error)


class FollowerSession(ComputeSession):
    """Every other compute party: announces its shares and does what the leader orders."""

    def __init__(self, seat: Seat, spec: SessionSpec, came_back: str = "") -> None:
        super().__init__(seat, spec, came_back)
        self._pending = PendingQueries(lambda: self.parts)
        self._is_running = False
        self._is_back = bool(came_back)
        self._ran = 0
        """Rows of the queries all of which were answered here."""
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

    def take_no_more(self, why: str) -> None:
        """Refuse queries from now on; the leader decides what becomes of those that are here."""
        with self._lock:
            super().take_no_more(why)

    def submit(self, query: Pending) -> None:
        """Hold this party's share of a query and tell the leader."""
        with self._lock:
            if not self._is_open:
                raise self._over()
            if self.stopping:
                raise draining(self.stopping)
            self.statistics.follow(query)
            self._pending.add(query)
            self._note(query, query.rows)

    def facts(self) -> dict[str, Any]:
        """Return the session's facts, and how many rows it had a share of the answer of.

        A party that was started again does not know how many that were.
        """
        facts = super().facts()
        return facts if self._is_back else {**facts, "ran": self._ran}

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
        with self._sending:
            with self._lock:
                notes, self._notes = self._notes, []
                round_ = self._round
            if not notes:  # they were of a round that is over
                return
            channel = round_.lanes[ARRIVALS].channels[0]
            try:
                for at in range(0, len(notes), MOST_NOTES):
                    channel.send(framed(notes[at : at + MOST_NOTES]))
            except PeerLost as error:
                # Half a frame may be under way: the leader is to see the end, not what follows.
                channel.close()
                round_.lost = error
                self._rouse()

    def _serve(self) -> None:
        # Notes are sent by the front, which answers nobody while it waits.
        self._round.lanes[ARRIVALS].set_timeout(NOTE_SECONDS)
        self._orders.clear()
        self._is_running = False
        self._set_up()
        with self._at_wheel():
            while not self._round.over.is_set():
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
        elif batch:
            self._ran += sum(query.rows for query, _, stop in batch if stop == query.rows)
        self._is_running = False

    def _check(self, order: Order) -> None:
        channel = self._round.lanes[ORDERS].channels[0]
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
            self._notes = []


def open_session(seat: Seat, spec: SessionSpec, came_back: str = "") -> Session:
    """Return the session of this seat's role, not started yet; came_back: see `Session`."""
    kind: type[Session] = LeaderSession if seat.rank == 0 else FollowerSession
    if seat.rank == len(seat.config.compute):
        kind = DealerSession
    return kind(seat, spec, came_back)
