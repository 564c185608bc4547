"""Load on a whole cluster, from clients' processes: python -m privserve.bench --load

Starts three parties, shares a model, and asks it from client processes on the same machine. A
closed loop asks as soon as it has its answer, and finds the capacity: right answers per second.
An open loop asks at the moments of a Poisson process at 50 and 80 % of the capacity that its way
and rows have with the most clients, and counts latency from the moment at which a query was due.

All answers are compared with the float model's; only right ones count, and a wrong one makes the
exit code 1. Clients ask over lanes, over HTTP, or as applications do that ask a gateway. Each has
connections of its own; they are spread over a few processes, each of which is a client of the
cluster by itself, without limits. The owner polls the leader ten times a second, as it always
does. Restrict it (--clients 1,8 --rows 1 --seconds 5 --loop closed --rounds 1) to alternate two
checkouts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from privserve.bench.load_client import WAYS, WRONG, Order, Samples
from privserve.bench.load_costs import Spent, lane_bytes, spent
from privserve.bench.load_crowd import Crowd, shares
from privserve.bench.load_gateway import gateway
from privserve.bench.load_report import Point, figures, medians, plot, table
from privserve.bench.options import among, numbers, positive, row_sizes
from privserve.bench.report import figure
from privserve.bench.subjects import sample_digits
from privserve.cell import STARTED_AGAIN
from privserve.cluster import Cluster, Worker
from privserve.compiler.ranges import synthetic_samples
from privserve.credentials import ClientKey, ClientTable, Limits
from privserve.engines import ENGINES
from privserve.errors import ClusterError, ConfigError, PrivserveError, QueryError
from privserve.files import write_file
from privserve.model import SecureModel, load_model
from privserve.samples import DIGITS_MODEL

INPUT_RANGE = (0.0, 1.0)
MIX = (1, 1, 1, 1, 8, 32)
LOOPS = ("closed", "open")
LOADS = (0.5, 0.8)
"""Of the capacity: the rates of open loops."""
OPEN_CLIENTS = 64
"""At least this many send an open loop's queries: few would let arrivals wait for each other."""
SAMPLE_BYTES = 64 << 20
MOST_SAMPLES = 200
TOLERANCE = 0.02
"""Of the spread of an output's values: an answer that is further off is wrong."""
SERVE_SECONDS = 20.0
POLL_SECONDS = 0.02
VERSIONS = ("privserve", "numpy", "httpx", "uvicorn", "starlette", "cryptography", "numba")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of `--load`, checked."""
    parser = argparse.ArgumentParser(
        prog="privserve bench --load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--load", action="store_true", required=True, help="this benchmark")
    parser.add_argument("--clients", type=numbers, default=[1, 8, 64, 256], metavar="1,8,...")
    parser.add_argument("--ways", type=among(WAYS), default=list(WAYS), metavar=",".join(WAYS))
    parser.add_argument(
        "--rows", type=row_sizes, default=["1", "32", "mix"], metavar="1,32,mix", help="per query"
    )
    parser.add_argument("--loop", type=among(LOOPS), default=list(LOOPS), metavar="closed,open")
    parser.add_argument("--seconds", type=positive, default=10.0, help="per point")
    parser.add_argument("--warmup", type=positive, default=2.0, help="seconds before each point")
    parser.add_argument("--rounds", type=int, default=3, help="of all points; figures are medians")
    parser.add_argument("--processes", type=int, default=4, help="that the clients are spread over")
    parser.add_argument("--cells", type=int, default=1, help="sets of parties, all on this machine")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and samples")
    parser.add_argument("--engine", choices=list(ENGINES), default="ottt")
    parser.add_argument(
        "--model", type=Path, default=DIGITS_MODEL, help="another than the digits', for [0, 1]"
    )
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="write JSON; -: instead of the table"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw rates and latencies")
    options = parser.parse_args(arguments)
    for name in ("rounds", "processes", "cells"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    for name in ("json", "plot"):
        target = getattr(options, name)
        if target not in (None, "-") and not Path(target).absolute().parent.is_dir():
            parser.error(f"--{name}: there is no directory {Path(target).parent}")
    return options


def samples_of(model: SecureModel, digits: bool) -> Samples:
    """Return samples in [0, 1] and the float model's answers to them.

    digits: whether they are the sample digits. Raises ConfigError for several inputs.
    """
    if len(model.converted.inputs) != 1:
        raise ConfigError(
            f"'{model.name}' takes {len(model.converted.inputs)} inputs; one is supported here"
        )
    shape = tuple(d for d in model.converted.inputs[0].shape[1:] if d is not None)
    count = min(MOST_SAMPLES, max(2, SAMPLE_BYTES // (8 * int(np.prod(shape)))))
    inputs = sample_digits() if digits else synthetic_samples(shape, *INPUT_RANGE, count)
    answers = model.converted.predict(inputs)
    expected = tuple(answers) if isinstance(answers, list | tuple) else (answers,)
    # Where all values are the same, what they amount to stands in for their spread.
    spreads = [float(np.ptp(v) or np.abs(v).max() or 1.0) for v in expected]
    tolerances = tuple(TOLERANCE * spread for spread in spreads)
    return Samples(inputs, expected, tolerances)


def let_in(cluster: Cluster, count: int) -> list[Path]:
    """Make `count` clients without limits, before a model is shared; returns their keys' files.

    Several, since a party bounds how many queries of one client may wait.
    """
    table, paths = ClientTable.read(cluster.config), []
    for number in range(count):
        key = ClientKey.fresh(f"load-{number}")
        table.add(key, Limits())
        paths.append(cluster.config.path.parent / f"{key.name}.key")
        write_file(paths[-1], key.to_text().encode(), secret=True)
    write_file(table.path, table.to_text().encode())
    return paths


@contextlib.contextmanager
def served(cluster: Cluster, model: SecureModel) -> Iterator[Callable[[], None]]:
    """Serve a shared model in the background; yields what raises where that has ended."""
    ended: list[PrivserveError] = []
    told: list[str] = []

    def serve() -> None:
        try:
            model.serve(tell=told.append)
        except PrivserveError as error:
            ended.append(error)

    def check() -> None:
        cluster.check_processes()
        # A party that ended was started again, which is no reason to measure on.
        for line in list(told):
            if line.endswith(STARTED_AGAIN):
                raise ClusterError(line)
        if not thread.is_alive():
            raise ended[0] if ended else ClusterError("serving ended; nobody asked for that")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + SERVE_SECONDS
        while not all(shared.serving for shared in cluster.models()):
            check()
            if time.monotonic() > deadline:
                raise ClusterError(f"the model is still not served after {SERVE_SECONDS:g} s")
            time.sleep(POLL_SECONDS)
        yield check
    finally:
        with contextlib.suppress(ClusterError, QueryError):
            model.stop_serving()
        thread.join(SERVE_SECONDS)


def measure(
    crowd: Crowd,
    parties: Mapping[str, int],
    options: argparse.Namespace,
    cost: Callable[[], Spent] = Spent,
) -> list[Point]:
    """Measure all points of all rounds.

    parties: the processes whose CPU time counts. cost: what queries have cost besides, by now.
    """
    points: list[Point] = []

    def take(point: Point) -> Point:
        sizes = MIX if point.rows == "mix" else (int(point.rows),)
        seed = f"{options.seed} {point.key} {point.round}"
        order = Order(
            point.way, point.clients, sizes, seed, options.warmup, options.seconds, point.rate
        )
        before = cost()
        outcomes, cpu = crowd.run(order, parties)
        found = figures(point, order, outcomes, cpu)
        points.append(replace(found, **cost().since(before)))
        print(".", end="", file=sys.stderr, flush=True)
        return points[-1]

    def spread(way: str, rows: str, loop: str, clients: int, **fields: Any) -> Point:
        processes = len(shares(clients, options.processes))
        return Point(way, rows, loop, clients, processes, **fields)

    most = max(options.clients)
    for number in range(1, options.rounds + 1):
        for way in options.ways:
            for rows in options.rows:
                # The open loop's rates follow from the most clients in a closed one.
                counts = sorted(options.clients) if "closed" in options.loop else [most]
                for clients in counts:
                    last = take(spread(way, rows, "closed", clients, round=number))
                for load in LOADS if "open" in options.loop else ():
                    clients = max(most, OPEN_CLIENTS)
                    point = spread(way, rows, "open", clients, load=load, round=number)
                    if last.queries_per_s is None:
                        points.append(replace(point, withheld="the closed loop has no figures"))
                    else:
                        take(replace(point, rate=load * last.queries_per_s))
    print(file=sys.stderr)
    return points


def run(options: argparse.Namespace) -> tuple[list[Point], dict[str, int]]:
    """Start everything, measure, and end everything; also the bytes of a row on query lanes."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    model = load_model(options.model)
    samples = samples_of(model, options.model == DIGITS_MODEL)
    say(f"{model.name}: starting parties, sharing")
    workers = [Worker("127.0.0.1:0") for _ in range(3)]
    with Cluster(*workers, cells=options.cells) as cluster, model:
        most = max(options.clients + [OPEN_CLIENTS] * ("open" in options.loop))
        keys = let_in(cluster, min(options.processes, most))
        model.share(cluster, engine=options.engine, input_range=INPUT_RANGE, report=say)
        with contextlib.ExitStack() as stack:
            check = stack.enter_context(served(cluster, model))
            counted = {**cluster.process_ids, "owner": os.getpid()}
            if "gateway" in options.ways:
                way = gateway(cluster.config.path, keys[0], model.name)
                counted["gateway"] = stack.enter_context(way)
            crowd = stack.enter_context(Crowd(cluster.config.path, keys, samples, check))
            return measure(crowd, counted, options, lambda: spent(cluster)), lane_bytes(model)


def spread_text(points: Sequence[Point], engine: str) -> str:
    """Say how the clients are spread over processes."""
    counts = sorted({(p.clients, p.processes) for p in points})
    said = ", ".join(f"{n} in {p} process{'es' if p > 1 else ''}" for n, p in counts)
    return f"{engine}, three parties; clients, each a thread with connections of its own: {said}"


def run_load(options: argparse.Namespace, facts: Mapping[str, Any]) -> int:
    """Measure and report; facts: about the machine. Returns 1 where an answer was wrong."""
    if options.plot:
        figure(1, 1)  # or a long run ends with an error
    points, row_bytes = run(options)
    found = medians(points)
    if options.json:
        report = {
            "machine": {**facts, "versions": {name: version(name) for name in VERSIONS}},
            "options": vars(options),
            "row_bytes": row_bytes,
            "spread": spread_text(points, options.engine),
            "medians": [asdict(p) for p in found],
            "points": [asdict(p) for p in points],
        }
        text = json.dumps(report, indent=1, default=str) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
        else:
            Path(options.json).write_text(text)
    if options.json != "-":
        print(f"{facts['processor']}, {facts['cores']} cores; load before: {facts['load_before']}")
        print(spread_text(points, options.engine))
        print(table(found))
    if options.plot:
        plot(found, options.plot)
    wrong = sum(p.errors.get(WRONG, 0) for p in points)
    if wrong:
        print(f"error: {wrong} answers were wrong", file=sys.stderr)
    return 1 if wrong else 0
