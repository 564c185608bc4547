"""A cluster whose parties and client are apart: python -m privserve.bench --network lan|wan|MS,MBIT

Three parties and a client on this machine, with a line between each two of them that takes its time
and has a rate (see `bench.links`): `lan` is a round trip of 0.2 ms at 1 Gb/s, `wan` 40 ms at
100 Mb/s, and `80,20` would be 80 ms at 20 Mb/s. `none` is this machine without lines. The owner,
who waits for nothing that counts here, calls the parties without lines.

"one row" is what a client waits for one query of one row, asked alone: the median, with pauses in
which packs are dealt ahead, and the sum of what it consists of at least: half a round trip for each
exchange, since all parties send at once, and a whole one for the client. "rows/s" are asked
without pauses, several queries at a time, dealing included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from privserve.bench.large import APPLICATIONS, large_subject
from privserve.bench.links import Line, Links, Network, bound, measured_round_trip
from privserve.bench.load import served
from privserve.bench.load_costs import Spent, spent
from privserve.bench.options import among, positive
from privserve.bench.subjects import Subject, digits_subject, resnet_subject
from privserve.client import Client
from privserve.cluster import Cluster, Worker
from privserve.config import read_config
from privserve.engines import ENGINES
from privserve.model import SecureModel
from privserve.samples import DIGITS_MODEL

NETWORKS = {
    "none": None,
    "lan": Network("lan", 0.2e-3, 1e9 / 8),
    "wan": Network("wan", 40e-3, 100e6 / 8),
}
RESNET = "resnet20"
CLIENT = "client"
LEAST_QUERIES, MOST_QUERIES = 3, 60
PAUSE_SECONDS = 0.05
AHEAD, ROWS = 8, 32
"""Queries at a time, and their rows, where rows/s are measured."""
TIMEOUT = 600.0


def network(text: str) -> Network | None:
    """Return the network of that name, or of "MS,MBIT": its round trip and rate."""
    if text in NETWORKS:
        return NETWORKS[text]
    try:
        milliseconds, rate = (float(part) for part in text.split(","))
    except ValueError:
        milliseconds = rate = 0.0
    if not (0 < milliseconds < 60e3 and 0 < rate < 1e6):
        raise argparse.ArgumentTypeError(
            f"'{text}' is none of {', '.join(NETWORKS)} nor a round trip in ms and a rate in "
            "Mb/s, such as 80,20"
        )
    return Network(text, milliseconds / 1e3, rate * 1e6 / 8)


@dataclass(frozen=True)
class Apart:
    """What queries cost where the parties are apart; times in seconds."""

    model: str
    engine: str
    network: str
    round_trip: float
    """As it was measured, of one byte."""
    one_row: float
    least: float
    """Of `one_row`: what exchanges and the client's way take, without sending or computing."""
    queries: int
    """That `one_row` is the median of."""
    rows_per_s: float | None
    """None where a query of one row takes seconds."""
    exchanges: float
    bytes_sent: float
    """By a compute party to the others, per row."""
    bytes_dealt: float
    """To all of them together, per row."""
    max_abs_error: float
    same_class: bool


class DistantCluster(Cluster):
    """A cluster of this machine, in whose files all others are where a line leads."""

    def __init__(self, network: Network | None, parties: int = 3) -> None:
        super().__init__(*(Worker("127.0.0.1:0") for _ in range(parties)))
        self._network = network
        self._lines = contextlib.ExitStack()

    @property
    def clients_config(self) -> Path:
        """The client's cluster.toml."""
        return self.config.path.parent / CLIENT / "cluster.toml"

    def _written(self, path: Path) -> None:
        config, text = read_config(path), path.read_text()
        lines: list[Line] = []
        there = path.parent / CLIENT
        there.mkdir()
        for file in ("ca.pem", "client.key"):
            (there / file).write_bytes((path.parent / file).read_bytes())
            (there / file).chmod(0o600)
        for host in (*self.names, CLIENT):
            seen = (path.parent / host / "cluster.toml").read_text() if host != CLIENT else text
            for party in config.parties:
                if party.name == host or self._network is None:
                    continue
                port, address = bound()  # of two parties always the same one dials
                lines.append(Line(port, party.address))
                seen = seen.replace(f'"{party.address}"', f'"{address}"')
            (path.parent / host / "cluster.toml").write_text(seen)
        if self._network is not None:
            self._lines.enter_context(Links(lines, self._network))

    def stop(self) -> None:
        """End all processes."""
        super().stop()
        self._lines.close()


def measure(subject: Subject, engine: str, where: Network | None, seconds: float) -> Apart:
    """Share the model, ask it, and count."""
    actual = 0.0 if where is None else measured_round_trip(where)
    model = SecureModel(subject.converted, Path(subject.name).stem)
    with DistantCluster(where) as cluster, model:
        model.share(cluster, engine=engine, input_range=subject.input_range, report=_say)
        with served(cluster, model), Client(cluster.clients_config, timeout=TIMEOUT) as client:
            x = subject.batch(1)
            expected = model.converted.predict(x)
            found = client.query_model(x)  # connections are made, and the first pack is dealt
            before = spent(cluster)
            times = list(_times(client, x, seconds))
            after = spent(cluster)
            one_row = statistics.median(times)
            rate = _rows_per_s(client, subject, seconds) if one_row < seconds / 4 else None
            last = spent(cluster)
    costs = after.since(before)
    sent, exchanges = costs["bytes_per_query"], costs["exchanges_per_query"]
    # What is dealt ahead is not these queries': counted by packs, of which each row takes one. The
    # first ones may have come before counting began; where no others did, they have to do.
    start = before if last.packs > before.packs else Spent()
    packs = last.packs - start.packs
    dealt = {k: (v - start.sent.get(k, 0)) / packs for k, v in last.sent.items()} if packs else sent
    return Apart(
        model=subject.name,
        engine=engine,
        network="none" if where is None else where.name,
        round_trip=actual,
        one_row=one_row,
        least=(exchanges / 2 + 1) * actual,
        queries=len(times),
        rows_per_s=rate,
        exchanges=exchanges,
        bytes_sent=max(v for link, v in sent.items() if link.startswith("alice to")),
        bytes_dealt=sum(v for link, v in dealt.items() if link.startswith("carol to")),
        max_abs_error=float(np.abs(found - expected).max()),
        same_class=bool(np.argmax(found) == np.argmax(expected)),
    )


def _times(client: Client, x: Any, seconds: float) -> Iterator[float]:
    """Ask one query after the other, for about so long."""
    until = time.monotonic() + seconds
    for number in range(MOST_QUERIES):
        if number >= LEAST_QUERIES and time.monotonic() > until:
            return
        time.sleep(PAUSE_SECONDS)
        began = time.perf_counter()
        client.query_model(x)
        yield time.perf_counter() - began


def _rows_per_s(client: Client, subject: Subject, seconds: float) -> float:
    """Have several queries under way for about so long."""
    x = subject.batch(ROWS)
    began = time.perf_counter()

    def asked() -> Iterator[Any]:
        while time.perf_counter() - began < seconds:
            yield x

    rows = sum(len(answer) for answer in client.stream(asked(), in_flight=AHEAD))
    return rows / (time.perf_counter() - began)


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def subjects(names: Sequence[str]) -> list[Subject]:
    """Return the models that were asked for: digits, resnet20, a large network or a file."""
    found = []
    for name in names:
        if name == "digits":
            found.append(digits_subject(DIGITS_MODEL))
        elif name == RESNET:
            found.append(resnet_subject())
        else:
            found.append(large_subject(name))
    return found


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of `--network`, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m privserve.bench --network",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--network", type=network, action="append", required=True, metavar="lan|wan|none|MS,MBIT"
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help=f"digits (the default), {RESNET}, {', '.join(APPLICATIONS)} or a file, for inputs in "
        "[0, 1]; may be repeated",
    )
    parser.add_argument("--engine", type=among(ENGINES), default=["ottt"], metavar="ottt,crypten")
    parser.add_argument("--seconds", type=positive, default=5.0, help="for each figure, about")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    options.model = options.model or ["digits"]
    return options


def table(results: Sequence[Apart]) -> str:
    """Return the results for people, as Markdown."""
    lines = [
        "| model | engine | network | one row, ms | of which at least, ms | rows/s | exchanges "
        "| sent / dealt per row, KB | largest error |",
        "|---" * 9 + "|",
    ]
    for r in results:
        rate = "-" if r.rows_per_s is None else f"{r.rows_per_s:,.0f}"
        wrong = "" if r.same_class else ", ANOTHER CLASS"
        lines.append(
            f"| {r.model} | {r.engine} | {r.network} | **{1e3 * r.one_row:,.1f}** "
            f"| {1e3 * r.least:,.1f} | {rate} | {r.exchanges:.0f} "
            f"| {r.bytes_sent / 1e3:,.1f} / {r.bytes_dealt / 1e3:,.1f} "
            f"| {r.max_abs_error:.1e}{wrong} |"
        )
    return "\n".join(lines)


def run_network(options: argparse.Namespace, facts: Mapping[str, Any]) -> int:
    """Measure and print; facts: about the machine. Returns 1 where a class was wrong."""
    results: list[Apart] = []
    for subject in subjects(options.model):
        for where in options.network:
            for engine in options.engine:
                name = "none" if where is None else where.name
                print(f"{subject.name}, {engine}, {name}", file=sys.stderr, flush=True)
                results.append(measure(subject, engine, where, options.seconds))
    if options.json:
        print(json.dumps({"machine": facts, "results": [asdict(r) for r in results]}, indent=1))
    else:
        print(f"{facts['processor']}, {facts['cores']} cores; load before: {facts['load_before']}")
        print(table(results))
    return 0 if all(r.same_class for r in results) else 1
