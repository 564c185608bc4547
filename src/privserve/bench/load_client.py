"""A client process of the load benchmark: many clients, each a thread with its own connections.

A closed loop asks, waits for the answer, and asks again: it finds what the cluster can do. An
open loop asks at the moments of a Poisson process, whether or not earlier queries are answered,
and counts a query's latency from the moment at which it was due: a cluster that is slow for a
second is then slow for all who would have asked in that second, and not just for the one query
that a closed loop would have had under way (coordinated omission).

Nothing here is secret: queries are samples, and their order follows from a seed.
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from privserve.bench.load_gateway import GatewayAsker
from privserve.client import Client
from privserve.errors import PrivserveError, QueryError
from privserve.prg import Prg

Floats = NDArray[np.floating[Any]]

WRONG = "wrong answer"
REFUSED_SECONDS = 0.05
"""A closed loop waits this long after a refusal, or refusals would crowd the answers out."""
DRAIN_SECONDS = 10.0
"""Arrivals that were not sent this long after the measured phase never are."""
WATCH_SECONDS = 0.05


class Asker(Protocol):
    """One client: what a way of asking has to offer."""

    def query_model(self, x: Floats) -> Any:
        """Return the prediction for the batch `x`; raises PrivserveError."""

    def close(self) -> None:
        """Close all connections."""


WAYS: dict[str, Callable[[Path, Path], Asker]] = {
    "lane": lambda config, key: Client(config, key=key),
    "http": lambda config, key: Client(config, key=key, http=True),
    "gateway": GatewayAsker,
}
"""How clients may ask: by name, what makes one of a cluster.toml and a client's key."""


@dataclass(frozen=True)
class Samples:
    """What is asked, and what the float model answers."""

    inputs: Floats
    """float64[pool, *shape]"""
    expected: tuple[Floats, ...]
    """By output: float32[pool, *shape]."""
    tolerances: tuple[float, ...]
    """By output: an answer that is further off is a wrong one."""

    def rows(self, prg: Prg, sizes: Sequence[int]) -> NDArray[np.int64]:
        """Draw a query: the numbers of as many samples as one of `sizes` says, in a row."""
        size, first = (int(drawn) for drawn in prg.int64(2).view(np.uint64))
        count = sizes[size % len(sizes)]
        return (first % len(self.inputs) + np.arange(count)) % len(self.inputs)

    def errors(self, answer: Any, rows: NDArray[np.int64]) -> list[float]:
        """Return how far `answer` is off, by output; infinitely, where its shape is another."""
        outputs = answer if isinstance(answer, list) else [answer]
        if len(outputs) != len(self.expected):
            return [float("inf")] * len(self.expected)
        return [
            float(np.abs(output - expected[rows]).max())
            if np.shape(output) == expected[rows].shape and np.isfinite(output).all()
            else float("inf")
            for output, expected in zip(outputs, self.expected, strict=True)
        ]


@dataclass(frozen=True)
class Order:
    """What one client process is to do for one point."""

    way: str
    clients: int
    sizes: tuple[int, ...]
    """Rows of a query: each takes one of these, all equally likely."""
    seed: str
    """Of this point and process."""
    warmup: float
    """Seconds before the measured phase in which the same goes on."""
    seconds: float
    rate: float | None = None
    """Arrivals per second at this process: an open loop. None: a closed one."""


@dataclass(frozen=True)
class Asked:
    """One query. Moments are seconds since the measured phase began, negative before it."""

    due: float
    sent: float
    done: float
    rows: int
    waited: bool = False
    """Whether no client was free when it was due."""
    lag: float = 0.0
    """Seconds by which a free client was late: this process's fault, not the cluster's."""
    off: float = 0.0
    """The largest error of the answer."""
    failure: str = ""
    """What kind of error there was instead of a right answer."""
    why: str = ""
    """The message of that error."""


@dataclass
class Outcome:
    """What came of an order."""

    asked: list[Asked] = field(default_factory=list)
    unsent: int = 0
    """Arrivals that no client came to send."""


def stream(seed: str) -> Prg:
    """Return the stream of pseudorandom numbers that belongs to `seed`; not for secrets."""
    return Prg(hashlib.sha256(b"privserve load " + seed.encode()).digest())


def poisson_arrivals(prg: Prg, rate: float, seconds: float) -> NDArray[np.float64]:
    """Return the moments in [0, seconds) of a Poisson process of `rate` events per second."""
    several = int(rate * seconds) + 64
    last, parts = 0.0, []
    while last < seconds:
        uniform = (prg.int64(several).view(np.uint64) >> np.uint64(11)) * 2.0**-53
        parts.append(last - np.cumsum(np.log1p(-uniform)) / rate)
        last = float(parts[-1][-1])
    moments = np.concatenate(parts) if parts else np.empty(0)
    return moments[moments < seconds]


def ask(
    client: Asker,
    samples: Samples,
    rows: NDArray[np.int64],
    begin: float,
    due: float | None = None,
    free: float | None = None,
) -> Asked:
    """Ask for the samples `rows`, now.

    Moments of `time.monotonic`: begin, of the measured phase; due, when this was to happen, and
    free, since when a client was there for it; both are now where None.
    """
    x = samples.inputs[rows]
    sent = time.monotonic()
    due, free = sent if due is None else due, sent if free is None else free
    failure = why = ""
    off = 0.0
    try:
        answer = client.query_model(x)
        done = time.monotonic()
        errors = samples.errors(answer, rows)
        off = max(errors)
        if any(e > t for e, t in zip(errors, samples.tolerances, strict=True)):
            failure, why = WRONG, f"off by {off:.3g} from the float model's"
    except PrivserveError as error:
        done = time.monotonic()
        status = f" {error.status}" if isinstance(error, QueryError) else ""
        failure, why = f"{type(error).__name__}{status}", str(error)
    return Asked(
        due=due - begin,
        sent=sent - begin,
        done=done - begin,
        rows=len(rows),
        waited=free > due,
        lag=sent - max(due, free),
        off=off,
        failure=failure,
        why=why,
    )


def ask_in_turn(
    client: Asker, samples: Samples, order: Order, prg: Prg, begin: float, asked: list[Asked]
) -> None:
    """Be one client of a closed loop until the measured phase, from `begin` on, is over."""
    while time.monotonic() < begin + order.seconds:
        asked.append(ask(client, samples, samples.rows(prg, order.sizes), begin))
        if asked[-1].failure:
            time.sleep(REFUSED_SECONDS)


Schedule = deque[tuple[float, NDArray[np.int64]]]
"""Moments of `time.monotonic`, in order, and which samples to ask for then."""


def schedule(order: Order, samples: Samples, start: float) -> Schedule:
    """Draw the arrivals of an open loop that starts, with its warm-up, at `start`."""
    if order.rate is None:
        raise ValueError("a closed loop has no schedule")
    prg, length = stream(f"{order.seed} rows"), order.warmup + order.seconds
    arrivals = poisson_arrivals(stream(f"{order.seed} arrivals"), order.rate, length)
    return deque((start + float(t), samples.rows(prg, order.sizes)) for t in arrivals)


def keep_schedule(
    arrivals: Schedule,
    idle: list[Asker],
    samples: Samples,
    begin: float,
    give_up: float,
    asked: list[Asked],
) -> None:
    """Be one of the threads that send what is due next: an open loop.

    idle: clients without a query under way, at least as many as there are threads. The one that
    asked last is taken, so that few connections are busy and those do not go stale. give_up:
    when what is still not sent stays so.
    """
    while (free := time.monotonic()) < give_up:
        try:
            due, rows = arrivals.popleft()
        except IndexError:
            return
        time.sleep(max(0.0, due - free))
        client = idle.pop()
        try:
            asked.append(ask(client, samples, rows, begin, due, free))
        finally:
            idle.append(client)


def carry_out(
    order: Order,
    begin: float,
    clients: Sequence[Asker],
    samples: Samples,
    watch: Callable[[], None],
) -> Outcome:
    """Do what `order` says; the measured phase begins at `begin` of `time.monotonic`.

    watch: called again and again meanwhile; what it raises ends this. Raises whatever a client
    raised that was no PrivserveError.
    """
    outcome = Outcome()
    arrivals: Schedule = deque()
    jobs: list[Callable[[], None]]
    if order.rate is None:
        streams = [stream(f"{order.seed} client {number}") for number in range(len(clients))]
        jobs = [
            partial(ask_in_turn, client, samples, order, prg, begin, outcome.asked)
            for client, prg in zip(clients, streams, strict=True)
        ]
    else:
        arrivals, idle = schedule(order, samples, begin - order.warmup), list(clients)
        give_up = begin + order.seconds + DRAIN_SECONDS
        work = partial(keep_schedule, arrivals, idle, samples, begin, give_up, outcome.asked)
        jobs = [work] * len(clients)
    failures: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as failure:  # raised by the main thread
            failures.append(failure)

    time.sleep(max(0.0, begin - order.warmup - time.monotonic()))
    threads = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive() and not failures:
            thread.join(WATCH_SECONDS)
            watch()
    if failures:
        raise failures[0]
    outcome.unsent = len(arrivals)
    return outcome


@contextlib.contextmanager
def opened(order: Order, config: Path, key: Path, samples: Samples) -> Iterator[list[Asker]]:
    """The clients of an order, each connected: it has asked once."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(order.clients):
            client = WAYS[order.way](config, key)
            stack.callback(client.close)
            client.query_model(samples.inputs[:1])
            clients.append(client)
        yield clients


def run_clients(config: Path, key: Path, samples: Samples, pipe: Connection) -> None:
    """Be a client process: carry out the orders that come over the pipe until it closes."""
    # Ctrl-C reaches all processes of a terminal; the one that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        if pipe.poll():  # nothing is to come while an order is carried out: the pipe was closed
            raise EOFError

    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            order = pipe.recv()
            try:
                with opened(order, config, key, samples) as clients:
                    pipe.send("ready")
                    pipe.send(carry_out(order, pipe.recv(), clients, samples, watch))
            except PrivserveError as error:
                raise SystemExit(f"error: a client cannot ask: {error}") from None
