"""What leader and followers have in common in a session: the engine, and what it has cost."""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from privserve.engines import Compute, load_engine
from privserve.errors import BadFrame, CannotCount, NotServing, PeerLost, TooManyRows
from privserve.party.accounts import Accounts
from privserve.party.answers import AnswerCoins
from privserve.party.cores import own_cores
from privserve.party.pending import Pending
from privserve.party.polling import PollingSession
from privserve.party.query_format import QueryFormat
from privserve.party.query_log import report_to
from privserve.party.seat import Seat
from privserve.party.session import CAUSE_SECONDS
from privserve.party.session_spec import SessionSpec
from privserve.party.spans import spans_of
from privserve.party.statistics import RunTime, Statistics
from privserve.party.turns import Piece
from privserve.prg import Prg


class ComputeSession(PollingSession):
    """What leader and followers have in common: the engine and its counters."""

    def __init__(self, seat: Seat, spec: SessionSpec, came_back: str = "") -> None:
        super().__init__(seat, spec, came_back)
        self._compute: Compute | None = None
        self._coins: AnswerCoins | None = None
        self._before: tuple[int, int, int] = (0, 0, 0)
        self._spent_before = [0] * 5
        self._counting = threading.Lock()
        """Held while a round's costs become those of the rounds before."""
        self.statistics = Statistics(report_to(spec.model, spec.id), spans_of(spec.model, spec.id))
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
        lanes = {lane: self._round.lanes[lane] for lane in engine.LANES}
        compute = engine.Compute(
            self.spec.description, self.spec.shares, lanes, **self.spec.options
        )
        self._coins = AnswerCoins(self.spec.description["outputs"], Prg())
        # After the engine has begun its own threads, which would inherit what it chooses.
        self._cores = own_cores(self._config, self._config.rank(self._me.name))
        with self._counting:
            self._before, self._compute = self._counters(), compute
        self._loaded()

    @property
    def packs(self) -> tuple[int, int] | None:
        """See `engines.Compute.packs`; None also while there is no engine."""
        compute = self._compute
        return None if compute is None else compute.packs()

    @property
    def exchanges(self) -> int:
        """How many exchanges there were, in all rounds."""
        return self._spent()[3]

    def _counters(self) -> tuple[int, int, int]:
        """(frames and bytes sent to compute parties, bytes received from the dealer)."""
        frames = sent = dealt = 0
        lanes = self._round.lanes
        for lane in load_engine(self.spec.engine).LANES:
            for peer, channel in lanes[lane].channels.items() if lane in lanes else ():
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
            self._settle(batch)
        except TooManyRows as error:
            for query, _, _ in batch:
                query.future.set_exception(error)
            return False
        except BaseException as error:
            # The batch left the queue, so only this thread can tell its clients; the reason
            # that they get is the one that the watcher finds, unless the error names its cause.
            named = isinstance(error, BadFrame | CannotCount)
            self._round.over.wait(CAUSE_SECONDS if isinstance(error, PeerLost) and not named else 0)
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

    def _settle(self, batch: Sequence[Piece]) -> None:
        """Do what has to be done before a batch's answers leave."""

    def facts(self) -> dict[str, Any]:
        """Return the session's state, whether anything waits, and what the anonymous had."""
        return {**super().facts(), "idle": self.is_idle, "anonymous": self.accounts.anonymous()}

    def status(self) -> dict[str, Any]:
        """Return its facts, with what its queries cost so far."""
        facts = super().status()
        ran = self.statistics.runs()
        if ran.queries:
            frames, sent, dealt, exchanges, packs = self._spent()
            facts["cost"] = {
                "queries": ran.queries,
                "rows": ran.rows,
                "bytes_online": sent,
                "bytes_dealt": dealt,
                "packs_dealt": packs,
                "frames": frames,
                "recent": [[rows, seconds] for rows, seconds in ran.recent],
                "exchanges": exchanges,
            }
        return facts

    def _spent(self) -> list[int]:
        """Frames, bytes sent, bytes dealt, exchanges and packs dealt, of all rounds."""
        with self._counting:
            return self._spent_by_now()

    def _spent_by_now(self) -> list[int]:
        compute = self._compute  # the session's thread forgets it in the end
        if compute is None:
            return self._spent_before
        spent = [after - b for after, b in zip(self._counters(), self._before, strict=True)]
        spent += [compute.stats.exchanges, compute.stats.packs_dealt]
        return [now + before for now, before in zip(spent, self._spent_before, strict=True)]

    def _leave_round(self) -> None:
        self._round.part()
        with self._counting:
            self._spent_before = self._spent_by_now()
            compute, self._compute, self._coins = self._compute, None, None
        if compute is not None:  # its threads use the channels, which are broken by now
            compute.close()
        super()._leave_round()
        # Once more: what peers said of queries may have been read since the round was over, and
        # they know nothing of it in the next one.
        self._refuse_all(self._over())
