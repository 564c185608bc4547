"""The client: splits a query into shares, sends one to each compute party, joins the answer.

The plaintext never leaves this process: what goes out is a uniformly random share per
party, and what comes back is joined here, where the final softmax or sigmoid is applied.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privserve import sharing
from privserve.config import ClusterConfig
from privserve.describing import SWITCH_SECONDS, Describer
from privserve.errors import (
    ClusterError,
    ConfigError,
    InputError,
    NotServing,
    PrivserveError,
    QueryError,
    StaleSession,
)
from privserve.fixedpoint import RingArray
from privserve.inputs import Inputs
from privserve.known_parties import authorization, client_key, resolve
from privserve.lane_client import Asked, LaneClient
from privserve.lane_connection import Peer, SpeaksHttpOnly
from privserve.prg import Prg
from privserve.query_frames import QUERY_HEAD, Kind
from privserve.revocation import Revocations
from privserve.served_model import ServedModel

if TYPE_CHECKING:
    from privserve.cluster import Cluster
    from privserve.http_client import HttpClient

IN_FLIGHT = 128
"""Queries of one client that are with the parties at a time; further ones wait here."""
STREAMED = 32
BEGUN = 1024
"""Queries in the background that `query_model_join` remembers."""


class Client:
    """Queries one served model of a cluster. Thread-safe; also a context manager."""

    def __init__(
        self,
        cluster: str | Path | ClusterConfig | Cluster | Sequence[str] = ".privserve/cluster.toml",
        *,
        ca: str | Path | None = None,
        key: str | Path | None = None,
        timeout: float = 60.0,
        http: bool = False,
        model: str | None = None,
    ) -> None:
        """cluster: a cluster.toml, a running `Cluster`, or the compute parties' addresses
        together with `ca`, the cluster's ca.pem. key: the client's key, by default client.key
        beside cluster.toml or ca.pem where there is one. timeout: seconds that a query may take.
        http: ask over HTTP, slower, also where the parties know query lanes. model: the name of
        the one to ask; None: the only one there is.
        """
        parties, authority, beside = resolve(cluster, ca)
        self._revocations = Revocations(authority)
        shown = client_key(key, beside)
        self._timeout = timeout
        self._peers = [
            Peer(name, addresses, identity, authorization(shown, identity))
            for name, addresses, identity in parties
        ]
        self._describer = Describer(self._peers, self._revocations, model)
        self._http_only = http
        self._way: LaneClient | HttpClient | None = None
        self._model: ServedModel | None = None
        self._is_closed = False
        self._lock = threading.RLock()
        self._prg, self._splitting = Prg(), threading.Lock()
        self._process = os.getpid()
        self._begun: deque[Future[Any]] = deque(maxlen=BEGUN)
        self._in_flight = threading.BoundedSemaphore(IN_FLIGHT)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            self._is_closed = True
            if self._way is not None:
                self._way.close()

    def query_model(self, x: Inputs, *, logits: bool = False, named: bool = False) -> Any:
        """Return the model's prediction for `x`, as Keras would give it, learnt by nobody else.

        x: real numbers in the Keras layout with a batch axis, such as (B, 28, 28, 1); for
        several inputs a list in the model's order or a dict by name. Returns float32 of
        Keras' output shape, a list in the model's order for several outputs; with named=True
        a dict by the outputs' names; with logits=True what goes into the final activation, but
        log-probabilities where that is a softmax: its input is told up to a constant only.
        Raises InputError or RangeError for an x that does not fit, GuessedRangeError (a
        RangeError) where x takes a deep model out of the ranges that were guessed when it was
        shared, LimitReached or NotServing when nobody answers queries now, ClusterError when a
        party is gone.
        """
        model, shares = self._asked(x)
        return _shaped(model.decode(shares, logits=logits), named)

    def query_model_async(
        self, x: Inputs, *, logits: bool = False, named: bool = False
    ) -> Future[Any]:
        """Begin `query_model` in the background; returns a future of its result."""
        future = BackgroundQuery(self, x, logits, named).future
        self._begun.append(future)
        return future

    def query_model_join(self, timeout: float | None = None) -> Any:
        """Return the result of the first `query_model_async` that was not joined yet.

        Of the last BEGUN at most, and whether or not its future was asked. Raises as `query_model`
        does, TimeoutError after `timeout` seconds, QueryError where none was begun.
        """
        try:
            future = self._begun[0]
        except IndexError:
            raise QueryError("no query was begun; call query_model_async(x) first", 400) from None
        try:
            return future.result(timeout)
        finally:
            if future.done():
                with contextlib.suppress(ValueError):
                    self._begun.remove(future)

    def stream(
        self,
        queries: Iterable[Inputs],
        *,
        in_flight: int = STREAMED,
        logits: bool = False,
        named: bool = False,
    ) -> Iterator[Any]:
        """Yield `query_model` of each of many queries, in order, `in_flight` of them at a time.

        That many are taken from `queries` ahead of what is yielded. Raises what the first query
        that fails raises; those after it are not awaited.
        """
        if in_flight < 1:
            raise ConfigError(f"at least one query has to be in flight, not {in_flight}")
        begun: deque[Future[Any]] = deque()
        for x in queries:
            begun.append(BackgroundQuery(self, x, logits, named).future)
            if len(begun) >= in_flight:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()

    def read_model(self, *, again: bool = False) -> ServedModel:
        """Connect, check that these are all compute parties of one cluster, and read their model.

        The first query does so by itself. again: ask them also where the model is known.
        """
        with self._lock:
            if self._model is not None and not again:
                return self._model
            self._model = self._describer.read(self._open())
            return self._model

    def models(self, *, served: bool = False) -> list[str]:
        """Ask the parties now which models this client may ask; returns their names.

        served: only those of which the leader says that they are being served.
        """
        with self._lock:
            return self._describer.names(self._open(), served)

    # -- with the parties -----------------------------------------------------------------

    def _asked(self, x: Inputs) -> tuple[ServedModel, list[list[RingArray]]]:
        """The model that was asked, and the answers by party and output.

        A client may outlive a model: what it knows of number formats belongs to one session,
        which the query names. Where that is over, the model is read and asked once more.
        """
        model = self._model or self.read_model()
        try:
            return model, self._ask(model, model.encode(x))
        except QueryError as error:
            if not self._is_stale(model, error):
                raise
        return self._asked_anew(model, x)

    def _asked_anew(
        self, before: ServedModel, x: Inputs
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
                return model, self._ask(model, model.encode(x))
            except StaleSession as error:  # replaced once more, or not at every party yet
                self._is_stale(model, error)
            if time.monotonic() > deadline:
                raise NotServing("the model is being shared anew; try again in a moment")

    def _is_stale(self, model: ServedModel, error: QueryError) -> bool:
        """Whether the model has to be read anew and asked again; forgets it in any such case."""
        if (isinstance(error, StaleSession) or error.status == 404) and self._model is model:
            # Without the lock: whoever reads the model holds it, and waits for the thread of this.
            self._model = None
        return isinstance(error, StaleSession)

    def _ask(self, model: ServedModel, elements: dict[str, RingArray]) -> list[list[RingArray]]:
        """Send one share to each party; their answers, by party and output."""
        way, query_id = self._open(), os.urandom(16)
        shares = self._split(elements)
        if not isinstance(way, LaneClient):
            return way.ask(model, query_id, shares)
        payloads = self._payloads(model, query_id, shares)
        if not self._in_flight.acquire(timeout=self._timeout):
            raise ClusterError("too many queries of this client wait for their answers")
        try:
            answers = way.finish(way.begin(Kind.QUERY, payloads), self._timeout)
        finally:
            self._in_flight.release()
        return self._read(model, answers, rows_of(shares))

    def _split(self, elements: Mapping[str, RingArray]) -> list[dict[str, RingArray]]:
        """One share of every input for each party."""
        if os.getpid() != self._process:
            # The child's stream is the parent's: two queries under one mask would be told apart.
            raise ConfigError("a client does not survive a fork; make one in each process")
        parties = len(self._peers)
        with self._splitting:
            split = {name: sharing.split(e, parties, self._prg) for name, e in elements.items()}
        return [{name: shares[rank] for name, shares in split.items()} for rank in range(parties)]

    def _payloads(
        self, model: ServedModel, query_id: bytes, shares: Sequence[Mapping[str, RingArray]]
    ) -> list[bytes]:
        """What goes to each party."""
        rows = rows_of(shares)
        session, milliseconds = bytes.fromhex(model.session), max(1, int(1000 * self._timeout))
        head = QUERY_HEAD.pack(query_id, session, rows, min(milliseconds, 0xFFFFFFFF), 0)
        return [b"".join((head, *(s.tobytes() for s in share.values()))) for share in shares]

    def _read(
        self, model: ServedModel, answers: Sequence[memoryview], rows: int
    ) -> list[list[RingArray]]:
        """The parties' shares of the outputs, of as many rows as were asked."""
        shares = []
        for peer, payload in zip(self._peers, answers, strict=True):
            try:
                shares.append(model.words(payload, rows))
            except InputError as error:
                raise ClusterError(f"{peer.name} gave a malformed answer: {error}") from None
        return shares

    def _open(self) -> LaneClient | HttpClient:
        """How the parties are asked: over lanes where all of them know what that is."""
        if self._way is not None:
            return self._way
        with self._lock:
            if self._is_closed:
                raise ClusterError("this client is closed")
            if self._way is None and not self._http_only:
                lanes = LaneClient(self._peers, self._revocations.context, self._timeout)
                lanes.model = self._describer.wanted
                try:
                    lanes.about()
                    self._way = lanes
                except SpeaksHttpOnly:
                    lanes.close()
            if self._way is None:
                # Only where it is needed: it takes long to load.
                from privserve.http_client import HttpClient

                self._way = HttpClient(self._peers, self._revocations.context, self._timeout)
            return self._way


def rows_of(shares: Sequence[Mapping[str, RingArray]]) -> int:
    """Return how many rows a query has."""
    return len(next(iter(shares[0].values())))


class BackgroundQuery:
    """One query in the background, from its encoding to its future's result."""

    def __init__(self, client: Client, x: Inputs, logits: bool, named: bool) -> None:
        self.future: Future[Any] = Future()
        self._client = client
        self._x, self._logits, self._named = x, logits, named
        self._model: ServedModel | None = None
        self._rows = 0
        try:
            way = client._open()
            if isinstance(way, LaneClient):
                self._begin(way)
            else:
                self._ask_again()
        except PrivserveError as error:
            self._fail(error)

    def _begin(self, way: LaneClient) -> None:
        client = self._client
        self._model = model = client._model or client.read_model()
        shares = client._split(model.encode(self._x))
        self._rows = rows_of(shares)
        payloads = client._payloads(model, os.urandom(16), shares)
        if not client._in_flight.acquire(timeout=client._timeout):
            raise ClusterError("too many queries of this client wait for their answers")
        try:
            asked = way.begin(Kind.QUERY, payloads, self._answered)
        except BaseException:  # nothing was sent, and no answer will come
            client._in_flight.release()
            raise

        def withdraw(future: Future[Any]) -> None:
            if future.cancelled():
                way.withdraw(asked)

        self.future.add_done_callback(withdraw)

    def _answered(self, asked: Asked) -> None:
        """Read the answer; in the thread that reads all answers."""
        self._client._in_flight.release()
        model = self._model
        assert model is not None  # it was asked
        try:
            if asked.error is not None:
                raise asked.error
            payloads = [payload for payload in asked.payloads if payload is not None]
            shares = self._client._read(model, payloads, self._rows)
            answer = _shaped(model.decode(shares, logits=self._logits), self._named)
        except QueryError as error:
            if self._client._is_stale(model, error):
                self._ask_again()
            else:
                self._fail(error)
        except Exception as error:
            self._fail(error)
        else:
            self._succeed(answer)

    def _succeed(self, answer: Any) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(answer)

    def _fail(self, error: BaseException) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def _ask_again(self) -> None:
        """Ask in a thread of its own, which may wait."""
        threading.Thread(target=self._ask, name="privserve-query", daemon=True).start()

    def _ask(self) -> None:
        try:
            client, before = self._client, self._model
            asked = (
                client._asked(self._x) if before is None else client._asked_anew(before, self._x)
            )
            answer = _shaped(asked[0].decode(asked[1], logits=self._logits), self._named)
        except BaseException as error:
            self._fail(error)
        else:
            self._succeed(answer)


def _shaped(outputs: dict[str, Any], named: bool) -> Any:
    if named:
        return outputs
    return next(iter(outputs.values())) if len(outputs) == 1 else list(outputs.values())
