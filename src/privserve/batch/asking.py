"""Ask for many rows: several queries under way at a time, and answers in order.

What fails is asked again, in a way that fits why it failed: after a while, with fewer rows, or
without the rows that have no answer. Only the query that comes next in order is looked at; the
others keep their answers meanwhile.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from privserve.batch.pace import Pace
from privserve.batch.sources import Rows, Source
from privserve.client import BackgroundQuery, Client
from privserve.errors import (
    ClusterError,
    DeadlinePassed,
    GuessedRangeError,
    InputError,
    LimitReached,
    NotServing,
    PartyRevoked,
    PrivserveError,
    QueryError,
    RangeError,
    StaleSession,
)
from privserve.served_model import ServedModel

Outputs = dict[str, NDArray[np.float32]]
"""By output: some rows, batch axis first."""

FIRST_WAIT, LONGEST_WAIT = 0.25, 5.0
"""Seconds before a failed query is asked again; twice as many each time."""
AGAIN_IN = re.compile(r"try again in (\d+) s")


class Asker(Protocol):
    """Who answers rows: one cluster, or several that share the work."""

    def model(self, *, again: bool = False) -> ServedModel:
        """Return what is served; raises as `Client.read_model` does.

        again: ask also where it is known.
        """

    def begin(self, rows: Rows) -> Future[Outputs]:
        """Begin a query; what becomes of it is in the future, errors included."""

    def close(self) -> None:
        """Close all connections."""


class Patience:
    """How long a cluster that answers nothing is asked again."""

    def __init__(
        self,
        seconds: float,
        say: Callable[[str], None] = lambda _: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """say: takes lines for people."""
        self._seconds, self.say, self.sleep = seconds, say, sleep
        self._since: float | None = None
        self._next = FIRST_WAIT

    def wait(self, error: PrivserveError) -> None:
        """Wait before another try; raises `error` where there were tries enough."""
        now = time.monotonic()
        if self._since is None:
            self._since, self._next = now, FIRST_WAIT
        left = self._seconds - (now - self._since)
        if left <= 0:
            raise error
        self.say(f"{error}; trying again for {left:.0f} s")
        self.sleep(min(self._next, left))
        self._next = min(2 * self._next, LONGEST_WAIT)

    def renew(self) -> None:
        """Note that something was answered."""
        self._since = None


def served(asker: Asker, patience: Patience) -> ServedModel:
    """Return what is served, once that can be told; raises when patience is at its end."""
    while True:
        try:
            model = asker.model()
        except PrivserveError as error:
            if not is_passing(error):
                raise
            patience.wait(error)
        else:
            patience.renew()
            return model


class ClusterAsker:
    """One cluster."""

    def __init__(
        self, config: Path, key: Path | None, timeout: float, logits: bool, model: str | None = None
    ) -> None:
        """See `Client`."""
        self._client = Client(config, key=key, timeout=timeout, model=model)
        self._logits = logits

    def model(self, *, again: bool = False) -> ServedModel:
        """Return what is served."""
        return self._client.read_model(again=again)

    def begin(self, rows: Rows) -> Future[Outputs]:
        """Begin a query."""
        return BackgroundQuery(self._client, rows, self._logits, True).future

    def close(self) -> None:
        """Close all connections."""
        self._client.close()


@dataclass(frozen=True)
class Answered:
    """The answers to some rows in a row."""

    start: int
    outputs: Outputs
    """NaN where a row is bad."""
    bad: Mapping[int, str] = field(default_factory=dict)
    """By number of the row: why it has no answer."""

    sharing: str = ""
    """Of the model; see `ServedModel.sharing`."""


@dataclass
class Piece:
    """Rows that are asked in one query, without those that are known to be bad."""

    start: int
    rows: Rows
    kept: NDArray[np.int64]
    """Which of `rows` are asked."""
    bad: dict[int, str] = field(default_factory=dict)
    """By position in `rows`."""
    future: Future[Outputs] | None = None

    @property
    def count(self) -> int:
        """How many rows it has, bad ones included."""
        return len(next(iter(self.rows.values())))

    @property
    def asked(self) -> Rows:
        """What is sent."""
        if len(self.kept) == self.count:
            return self.rows
        return {name: array[self.kept] for name, array in self.rows.items()}

    def drop(self, bad: Mapping[int, str]) -> None:
        """Leave rows away; bad: why, by position in what was asked."""
        self.bad.update({int(self.kept[position]): why for position, why in bad.items()})
        self.kept = np.delete(self.kept, list(bad))

    def halves(self) -> tuple[Piece, Piece]:
        """Return the same rows as two pieces, of which nothing is known."""
        middle = self.count // 2
        return (
            piece_of(self.start, {name: a[:middle] for name, a in self.rows.items()}),
            piece_of(self.start + middle, {name: a[middle:] for name, a in self.rows.items()}),
        )


def piece_of(start: int, rows: Rows) -> Piece:
    """Return a piece with all of these rows."""
    return Piece(start, rows, np.arange(len(next(iter(rows.values())))))


class Asking:
    """Asks one asker for a source's rows."""

    def __init__(
        self,
        asker: Asker,
        source: Source,
        pace: Pace,
        on_bad_row: Literal["stop", "nan"] = "stop",
        patience: Patience | None = None,
    ) -> None:
        """on_bad_row: raise InputError for a row that has no answer, or answer it with NaN."""
        self._asker, self._source, self._pace = asker, source, pace
        self._stops_at_bad_rows = on_bad_row == "stop"
        self._patience = patience or Patience(60.0)

    def answers(self, start: int, stop: int) -> Generator[Answered]:
        """Yield the answers to the rows from `start` to before `stop`, in order.

        Raises LimitReached, InputError for a bad row, the last error where the cluster answered
        nothing for longer than `patience`, and what else `Client.query_model` raises.
        """
        ahead: deque[Piece] = deque()
        while ahead or start < stop:
            while start < stop and len(ahead) < self._pace.in_flight:
                end = min(stop, start + self._pace.rows)
                ahead.append(self._begun(piece_of(start, self._source.read(start, end))))
                start = end
            piece = ahead.popleft()
            try:
                answer = self._answer(piece)
            except PrivserveError as error:
                self._recover(piece, error, ahead)
                continue
            self._patience.renew()
            self._pace.answered(piece.count)
            yield answer

    def _begun(self, piece: Piece) -> Piece:
        piece.future = self._asker.begin(piece.asked) if len(piece.kept) else None
        return piece

    def _answer(self, piece: Piece) -> Answered:
        """Wait for a piece's answer; raises what became of its query instead."""
        bad = {piece.start + position: why for position, why in piece.bad.items()}
        if piece.future is None:  # the second half of one that failed, or all of its rows are bad
            self._begun(piece)
        answered: Outputs = {} if piece.future is None else piece.future.result()
        model = served(self._asker, self._patience)
        if piece.future is None:
            described = model.description["outputs"]
            answered = {t["name"]: np.empty((0, *t["shape"]), np.float32) for t in described}
        if len(piece.kept) == piece.count:
            return Answered(piece.start, answered, bad, model.sharing)
        outputs = {}
        for name, values in answered.items():
            outputs[name] = np.full((piece.count, *values.shape[1:]), np.nan, np.float32)
            outputs[name][piece.kept] = values
        return Answered(piece.start, outputs, bad, model.sharing)

    # -- after an error -------------------------------------------------------------------

    def _recover(self, piece: Piece, error: PrivserveError, ahead: deque[Piece]) -> None:
        """Put `piece` in front again, in a way that may fare better; raises where there is none."""
        if isinstance(error, RangeError):
            self._drop_bad(piece, error)
            ahead.appendleft(self._begun(piece))
        elif isinstance(error, LimitReached) and (again := AGAIN_IN.search(str(error))):
            self._patience.say(f"{error}; waiting")
            self._patience.sleep(float(again[1]) + FIRST_WAIT)
            self._begin_again(piece, ahead)
        elif piece.count > 1 and wants_fewer(error):
            if isinstance(error, DeadlinePassed):  # each try takes as long as a query may
                self._patience.wait(error)
            self._pace.ask_fewer(piece.count // 2)
            # The second half waits until it is seen how the first one fares.
            first, second = piece.halves()
            ahead.extendleft([second, self._begun(first)])
        elif is_passing(error):
            self._patience.wait(error)
            self._begin_again(piece, ahead)
        else:
            raise error

    def _begin_again(self, piece: Piece, ahead: deque[Piece]) -> None:
        """Ask for a piece again, and for those behind it that have failed, most likely alike."""
        ahead.appendleft(piece)
        for one in ahead:
            if one.future is not None and _has_failed(one.future):
                self._begun(one)

    def _drop_bad(self, piece: Piece, error: RangeError) -> None:
        """Leave the rows away that are why there is no answer; raises where that ends the job."""
        if isinstance(error, GuessedRangeError):
            bad = {row: _of_layers(layers) for row, layers in error.layers.items()}
        else:
            bad = self._out_of_range(piece.asked, len(piece.kept))
        if not bad:
            raise error
        if self._stops_at_bad_rows:
            position = min(bad)
            row = piece.start + int(piece.kept[position])
            raise InputError(
                f"{self._source.where(row)} has no answer: {bad[position]}. Mend this row or leave "
                "it away, or have such rows answered with NaN with --on-bad-row nan"
            ) from None
        piece.drop(bad)

    def _out_of_range(self, rows: Rows, count: int) -> dict[int, str]:
        """Which of these rows cannot be asked, and why."""
        model, bad = served(self._asker, self._patience), {}
        for position in range(count):
            try:
                model.encode({name: a[position : position + 1] for name, a in rows.items()})
            except RangeError as error:
                bad[position] = str(error)
        return bad


def _of_layers(layers: tuple[str, ...]) -> str:
    return f"in layer '{layers[0]}' a value left the range that was guessed from samples"


def _has_failed(future: Future[Outputs]) -> bool:
    return future.done() and future.exception() is not None


def is_passing(error: PrivserveError) -> bool:
    """Whether the same query may be answered a while later."""
    if isinstance(error, PartyRevoked):
        return False
    if isinstance(error, ClusterError | NotServing | DeadlinePassed | StaleSession):
        return True
    return isinstance(error, QueryError) and error.status == 503


def wants_fewer(error: PrivserveError) -> bool:
    """Whether fewer rows may be answered where these were not."""
    if isinstance(error, LimitReached | DeadlinePassed):
        return True
    return isinstance(error, QueryError) and error.status == 413
