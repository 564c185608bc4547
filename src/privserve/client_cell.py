"""One cell as a client knows it: which model it serves, and how it is asked.

A cell's session has number formats and an id of its own, so that each query is encoded, split and
numbered for the cell that it goes to.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from privserve import sharing
from privserve.describing import SWITCH_SECONDS, Describer
from privserve.errors import (
    ClusterError,
    ConfigError,
    InputError,
    NotServing,
    QueryError,
    StaleSession,
)
from privserve.fixedpoint import RingArray
from privserve.inputs import Inputs
from privserve.lane_client import Asked, LaneClient
from privserve.lane_connection import Peer, SpeaksHttpOnly
from privserve.prg import Prg
from privserve.query_frames import QUERY_HEAD, Kind
from privserve.revocation import Revocations
from privserve.served_model import ServedModel

if TYPE_CHECKING:
    from privserve.http_client import HttpClient

IN_FLIGHT = 128
"""Queries of one client that are with the parties at a time; further ones wait here."""
CONNECT_SECONDS = 5.0
"""For each party to take a connection and say what it serves, where there are other cells."""
SILENT_SECONDS = 5.0
"""Where there are other cells, one is given up of which a party says nothing for so long."""
FIRST_PAUSE, MOST_PAUSE = 0.1, 5.0
"""For this long a cell that failed is left alone where another one can be asked; twice as long the
next time."""


class ClientCell:
    """One cell of a cluster, for one client. Thread-safe."""

    def __init__(
        self,
        number: int,
        peers: Sequence[Peer],
        revocations: Revocations,
        model: str | None,
        timeout: float,
        *,
        http: bool = False,
        in_flight: threading.BoundedSemaphore | None = None,
        check: Callable[[ClientCell, ServedModel], None] | None = None,
    ) -> None:
        """peers: its compute parties. in_flight: held by each query. check: called with each
        description of the model that is read, and raises ClusterError for one that does not fit
        those of the other cells; None where there are none. model, timeout, http: see `Client`.
        """
        self.number = number
        self.peers = list(peers)
        self.model: ServedModel | None = None
        """What its parties said last that they serve; None before, and where that is over."""
        self.way: LaneClient | HttpClient | None = None
        """How its parties are asked; None: nobody has asked yet."""
        self.lock = threading.RLock()
        self.pending = 0
        """Queries that are with its parties."""
        self.avoided_until = 0.0
        """By `time.monotonic`."""
        self._pause = 0.0
        self._revocations = revocations
        self._describer = Describer(self.peers, revocations, model)
        self._timeout = timeout
        self._http_only = http
        self._in_flight = in_flight or threading.BoundedSemaphore(IN_FLIGHT)
        self._check = check
        self._is_closed = False
        self._prg, self._splitting = Prg(), threading.Lock()
        self._process = os.getpid()

    def close(self) -> None:
        """Close all connections."""
        with self.lock:
            self._is_closed = True
            if self.way is not None:
                self.way.close()

    # -- how it fares -----------------------------------------------------------------------

    def fared(self, *, well: bool) -> None:
        """Note whether it answered a query."""
        if well:
            self._pause = self.avoided_until = 0.0
            return
        self._pause = min(max(FIRST_PAUSE, 2 * self._pause), MOST_PAUSE)
        self.avoided_until = time.monotonic() + self._pause

    def tried(self) -> None:
        """Note that a query is about to find out how it fares: others need not, where it failed."""
        if self._pause:
            self.avoided_until = time.monotonic() + max(self._pause, CONNECT_SECONDS)

    @property
    def is_connected(self) -> bool:
        """Whether a query can be sent now without waiting for anything."""
        is_ready = self.way is not None and (
            not isinstance(self.way, LaneClient) or self.way.is_fresh
        )
        return is_ready and self.model is not None

    # -- the model --------------------------------------------------------------------------

    def read_model(self, *, again: bool = False) -> ServedModel:
        """Connect, and read the model; see `Client.read_model`."""
        with self.lock:
            if self.model is not None and not again:
                return self.model
            model = self._describer.read(self.open())
            if self._check is None:
                self.model = model
                return model
        self._check(self, model)  # without the lock: it may read what other cells serve
        self.model = model
        return model

    def look(self) -> ServedModel | None:
        """Read the model, whatever other cells serve; None where it cannot be told now."""
        with self.lock:
            try:
                self.model = self._describer.read(self.open())
            except (ClusterError, QueryError):
                self.model = None
            return self.model

    def names(self, *, served: bool) -> list[str]:
        """Ask which models there are; see `Client.models`."""
        with self.lock:
            return self._describer.names(self.open(), served)

    def is_stale(self, model: ServedModel, error: QueryError) -> bool:
        """Whether the model has to be read anew and asked again; forgets it in any such case."""
        if (isinstance(error, StaleSession) or error.status == 404) and self.model is model:
            # Without the lock: whoever reads the model holds it, and waits for the thread of this.
            self.model = None
        return isinstance(error, StaleSession)

    # -- queries ----------------------------------------------------------------------------

    def asked(
        self, x: Inputs, seconds: float, before: ServedModel | None = None
    ) -> tuple[ServedModel, list[list[RingArray]]]:
        """Return the model that was asked, and the answers by party and output.

        A client may outlive a model: what it knows of number formats belongs to one session,
        which the query names. Where that is over, the model is read and asked once more. before:
        what was over already.
        """
        if before is None:
            model = self.model or self.read_model()
            try:
                return model, self._ask(model, model.encode(x), seconds)
            except QueryError as error:
                if not self.is_stale(model, error):
                    raise
            before = model
        return self._asked_anew(before, x, seconds)

    def _asked_anew(
        self, before: ServedModel, x: Inputs, seconds: float
    ) -> tuple[ServedModel, list[list[RingArray]]]:
        """Ask what is shared now; raises QueryError where it is not called as it was `before`."""
        deadline = time.monotonic() + SWITCH_SECONDS
        while True:
            model = self.read_model()
            if model.name != before.name:  # it need not be what was meant, though its shapes may be
                raise QueryError(
                    f"there is no model '{before.name}' any more; '{model.name}' is served now", 404
                )
            try:
                return model, self._ask(model, model.encode(x), seconds)
            except StaleSession as error:  # replaced once more, or not at every party yet
                self.is_stale(model, error)
            if time.monotonic() > deadline:
                raise NotServing("the model is being shared anew; try again in a moment")

    def _ask(
        self, model: ServedModel, elements: dict[str, RingArray], seconds: float
    ) -> list[list[RingArray]]:
        """Send one share to each party; their answers, by party and output."""
        way, query_id = self.open(), os.urandom(16)
        shares = self.split(elements)
        if not isinstance(way, LaneClient):
            return way.ask(model, query_id, shares)
        payloads = self.payloads(model, query_id, shares, seconds)
        self._enter()
        try:
            answers = way.finish(way.begin(Kind.QUERY, payloads), seconds)
        finally:
            self.leave()
        return self.read(model, answers, rows_of(shares))

    def begin(
        self, way: LaneClient, model: ServedModel, x: Inputs, callback: Callable[[Asked], None]
    ) -> tuple[Asked, int]:
        """Begin a query; the callback has its end, and has to call `leave`. Also its rows."""
        shares = self.split(model.encode(x))
        payloads = self.payloads(model, os.urandom(16), shares, self._timeout)
        self._enter()
        try:
            return way.begin(Kind.QUERY, payloads, callback), rows_of(shares)
        except BaseException:  # nothing was sent, and no answer will come
            self.leave()
            raise

    def _enter(self) -> None:
        if not self._in_flight.acquire(timeout=self._timeout):
            raise ClusterError("too many queries of this client wait for their answers")
        with self._splitting:
            self.pending += 1

    def leave(self) -> None:
        """Note that a query is not with the parties any more."""
        self._in_flight.release()
        with self._splitting:
            self.pending -= 1

    def split(self, elements: Mapping[str, RingArray]) -> list[dict[str, RingArray]]:
        """Return one share of every input for each party."""
        if os.getpid() != self._process:
            # The child's stream is the parent's: two queries under one mask would be told apart.
            raise ConfigError("a client does not survive a fork; make one in each process")
        parties = len(self.peers)
        with self._splitting:
            split = {name: sharing.split(e, parties, self._prg) for name, e in elements.items()}
        return [{name: shares[rank] for name, shares in split.items()} for rank in range(parties)]

    def payloads(
        self,
        model: ServedModel,
        query_id: bytes,
        shares: Sequence[Mapping[str, RingArray]],
        seconds: float,
    ) -> list[bytes]:
        """Return what goes to each party; seconds: for how long the answer is of use."""
        rows = rows_of(shares)
        session, milliseconds = bytes.fromhex(model.session), max(1, int(1000 * seconds))
        head = QUERY_HEAD.pack(query_id, session, rows, min(milliseconds, 0xFFFFFFFF), 0)
        return [b"".join((head, *(s.tobytes() for s in share.values()))) for share in shares]

    def read(
        self, model: ServedModel, answers: Sequence[memoryview], rows: int
    ) -> list[list[RingArray]]:
        """Return the parties' shares of the outputs, of as many rows as were asked."""
        shares = []
        for peer, payload in zip(self.peers, answers, strict=True):
            try:
                shares.append(model.words(payload, rows))
            except InputError as error:
                raise ClusterError(f"{peer.name} gave a malformed answer: {error}") from None
        return shares

    def open(self) -> LaneClient | HttpClient:
        """Return how the parties are asked: over lanes where all of them know what that is."""
        if self.way is not None:
            return self.way
        with self.lock:
            if self._is_closed:
                raise ClusterError("this client is closed")
            if self.way is None and not self._http_only:
                lanes = LaneClient(self.peers, self._revocations.context, self._timeout)
                lanes.model = self._describer.wanted
                if self._check is not None:
                    lanes.connect_seconds = min(CONNECT_SECONDS, self._timeout)
                    lanes.silent_seconds = SILENT_SECONDS
                try:
                    lanes.about()
                    self.way = lanes
                except SpeaksHttpOnly:
                    lanes.close()
            if self.way is None:
                # Only where it is needed: it takes long to load.
                from privserve.http_client import HttpClient

                self.way = HttpClient(self.peers, self._revocations.context, self._timeout)
            return self.way


def rows_of(shares: Sequence[Mapping[str, RingArray]]) -> int:
    """Return how many rows a query has."""
    return len(next(iter(shares[0].values())))
