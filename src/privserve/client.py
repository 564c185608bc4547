"""The client: splits a query into shares, sends one to each compute party, joins the answer.

The plaintext never leaves this process: what goes out is a uniformly random share per
party, and what comes back is joined here, where the final softmax or sigmoid is applied.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from privserve.choosing import Trip
from privserve.client_cell import IN_FLIGHT, ClientCell
from privserve.config import ClusterConfig
from privserve.errors import ClusterError, ConfigError, PrivserveError, QueryError
from privserve.fixedpoint import RingArray
from privserve.inputs import Inputs
from privserve.known_parties import authorization, client_key, resolve
from privserve.lane_client import Asked, LaneClient
from privserve.lane_connection import Peer
from privserve.revocation import Revocations
from privserve.served_model import ServedModel

if TYPE_CHECKING:
    from privserve.cluster import Cluster

STREAMED = 32
PATIENCE_SECONDS = 1.0
"""For one more cell to say which models it has, where another one has."""
BEGUN = 1024
"""Queries in the background that `query_model_join` remembers."""


class Client:
    """Queries one served model of a cluster, in whichever cell. Thread-safe; a context manager."""

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
        cells, authority, beside = resolve(cluster, ca)
        self._revocations = Revocations(authority)
        shown = client_key(key, beside)
        self._timeout = timeout
        in_flight = threading.BoundedSemaphore(IN_FLIGHT)
        self._cells = [
            ClientCell(
                number,
                [Peer(*known, authorization(shown, known.identity)) for known in parties],
                self._revocations,
                model,
                timeout,
                http=http,
                in_flight=in_flight,
                check=self._check_same if len(cells) > 1 else None,
            )
            for number, parties in enumerate(cells)
        ]
        self._begun: deque[Future[Any]] = deque(maxlen=BEGUN)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        for cell in self._cells:
            cell.close()

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
        party is gone. Where there are several cells, only once none of them answers.
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
        trip = self.trip()
        while True:
            cell = trip.next()
            try:
                return cell.read_model(again=again)
            except PrivserveError as error:
                if (why := trip.failed(cell, error)) is not None:
                    raise why from None

    def models(self, *, served: bool = False) -> list[str]:
        """Ask the parties now which models this client may ask; returns their names.

        served: only those of which the leader says that they are being served. Of several cells
        those that any of them has which can be reached.
        """
        if len(self._cells) == 1:
            return self._cells[0].names(served=served)
        said: SimpleQueue[tuple[int, list[str] | PrivserveError]] = SimpleQueue()

        def ask(cell: ClientCell) -> None:
            try:
                said.put((cell.number, cell.names(served=served)))
            except PrivserveError as error:
                said.put((cell.number, error))

        for cell in self._cells:
            threading.Thread(target=ask, args=(cell,), daemon=True).start()
        found: dict[int, list[str]] = {}
        failed: list[PrivserveError] = []
        with contextlib.suppress(Empty):
            for _ in self._cells:
                number, names = said.get(timeout=PATIENCE_SECONDS if found else None)
                if isinstance(names, PrivserveError):
                    failed.append(names)
                else:
                    found[number] = names
        if not found:
            raise failed[0]
        return list(dict.fromkeys(name for _, names in sorted(found.items()) for name in names))

    # -- with the cells -------------------------------------------------------------------

    @property
    def model(self) -> ServedModel | None:
        """What the parties said last that they serve; None before, and where that is over."""
        return next((cell.model for cell in self._cells if cell.model is not None), None)

    def trip(self) -> Trip:
        """Return the way of one query through the cells."""
        return Trip(self._cells, self._timeout)

    def _asked(
        self,
        x: Inputs,
        trip: Trip | None = None,
        cell: ClientCell | None = None,
        before: ServedModel | None = None,
    ) -> tuple[ServedModel, list[list[RingArray]]]:
        """The model that was asked, and the answers by party and output.

        trip: where the query was already; cell: where it is, with a model that is over, `before`.
        """
        trip = trip or self.trip()
        while True:
            cell = cell or trip.next()
            try:
                found = cell.asked(x, trip.seconds, before)
            except PrivserveError as error:
                if (why := trip.failed(cell, error)) is not None:
                    raise why from None
                cell = before = None
            else:
                cell.fared(well=True)
                return found

    def _check_same(self, cell: ClientCell, model: ServedModel) -> None:
        """Raise ClusterError for a model of one cell that is not like that of the others.

        A model is replaced in one cell after the other: whoever said something else before is asked
        again, and has no say where it cannot be.
        """
        for other in self._cells:
            if other is cell or other.model is None or other.model.is_like(model):
                continue
            now = other.look()
            if now is not None and not now.is_like(model):
                raise ClusterError(
                    f"cell {cell.number} describes another model than cell {other.number} does, so "
                    "it is not asked; if the model is being replaced it will be soon, else the "
                    "model owner has to share one model in all cells"
                )


class BackgroundQuery:
    """One query in the background, from its encoding to its future's result."""

    def __init__(
        self,
        client: Client,
        x: Inputs,
        logits: bool,
        named: bool,
        trip: Trip | None = None,
        cell: ClientCell | None = None,
    ) -> None:
        """trip, cell: the query's way, and where it leads first; any where they are None."""
        self.future: Future[Any] = Future()
        self._client = client
        self._x, self._logits, self._named = x, logits, named
        self._model: ServedModel | None = None
        self._rows = 0
        self._trip = trip or client.trip()
        self._cell = cell or self._trip.next()
        try:
            way = self._cell.open()
            if isinstance(way, LaneClient):
                self._begin(way)
            else:
                self._ask_again(self._cell)
        except PrivserveError as error:
            self._go_on(error)

    def _begin(self, way: LaneClient) -> None:
        self._model = model = self._cell.model or self._cell.read_model()
        asked, self._rows = self._cell.begin(way, model, self._x, self._answered)

        def withdraw(future: Future[Any]) -> None:
            if future.cancelled():
                way.withdraw(asked)

        self.future.add_done_callback(withdraw)

    def _answered(self, asked: Asked) -> None:
        """Read the answer; in the thread that reads all answers."""
        cell, model = self._cell, self._model
        cell.leave()
        assert model is not None  # it was asked
        try:
            if asked.error is not None:
                raise asked.error
            payloads = [payload for payload in asked.payloads if payload is not None]
            shares = cell.read(model, payloads, self._rows)
            answer = _shaped(model.decode(shares, logits=self._logits), self._named)
        except QueryError as error:
            if cell.is_stale(model, error):
                self._ask_again(cell, model)
            else:
                self._go_on(error)
        except PrivserveError as error:
            self._go_on(error)
        except Exception as error:
            self._fail(error)
        else:
            cell.fared(well=True)
            self._succeed(answer)

    def _succeed(self, answer: Any) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(answer)

    def _fail(self, error: BaseException) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def _go_on(self, error: PrivserveError) -> None:
        """Ask another cell, if there is one that may answer."""
        if self.future.cancelled():
            return
        if (why := self._trip.failed(self._cell, error)) is not None:
            self._fail(why)
        else:
            self._ask_again()

    def _ask_again(self, cell: ClientCell | None = None, before: ServedModel | None = None) -> None:
        """Ask in a thread of its own, which may wait; see `Client._asked`."""

        def ask() -> None:
            try:
                model, shares = self._client._asked(self._x, self._trip, cell, before)
                answer = _shaped(model.decode(shares, logits=self._logits), self._named)
            except BaseException as error:
                self._fail(error)
            else:
                self._succeed(answer)

        threading.Thread(target=ask, name="privserve-query", daemon=True).start()


def _shaped(outputs: dict[str, Any], named: bool) -> Any:
    if named:
        return outputs
    return next(iter(outputs.values())) if len(outputs) == 1 else list(outputs.values())
