"""From what a query costs to how a service grows: python scripts/growing.py costs.json

costs.json is what `python -m privserve.bench --load --json costs.json` measured on one machine.
Printed is, for 1 to 1,000 cells with a host of its own for each party, how many queries they answer
per second, which resource ends first, how long a query takes at a share of that, and what a million
predictions cost; within one data centre (LAN) and between three administrations far apart (WAN).

It is arithmetic and no simulation of events: docs/growing.md says what is assumed, and how wrong
that may be. `--compare measured.json` holds it against other measurements on the same machine.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

COMPUTE, DEALER = ("alice", "bob"), "carol"
PARTIES = (*COMPUTE, DEALER)
CELLS = (1, 2, 5, 10, 30, 100, 300, 1000)
MOST_ROWS = 128
"""That run together: launch --max-batch."""
BITS, GIGA = 8, 1e9
TAIL = 0.01
"""Of queries that take longer than what is called p99."""


@dataclass(frozen=True)
class Costs:
    """What one query costs, in milliseconds and bytes."""

    rows: float
    """Of a query."""
    cpu: Mapping[str, float]
    """By process, under full load."""
    alone: float
    """What one client waits for, all on one machine."""
    exchanges: float
    """Of a query that runs alone; those that run together share them."""
    links: Mapping[str, float]
    """Between parties, by "alice to bob"."""
    asked: float
    answered: float
    """With a client, at each compute party."""
    rate: float
    """Queries per second that were measured."""
    clients: int
    """That asked for these."""
    p50: float
    cores: int

    @property
    def per_row(self) -> float:
        """What each further query adds to a batch at the slower compute party."""
        return max(self.cpu[name] for name in COMPUTE)

    def moved(self, party: str) -> tuple[float, float]:
        """Return the bytes that a query brings to a party, and those that leave it."""
        comes = sum(count for link, count in self.links.items() if link.endswith(f" to {party}"))
        goes = sum(count for link, count in self.links.items() if link.startswith(f"{party} to "))
        is_asked = party in COMPUTE
        return comes + is_asked * self.asked, goes + is_asked * self.answered


@dataclass(frozen=True)
class Place:
    """Where the parties are, and what that costs."""

    name: str
    delay: float
    """Milliseconds from one party to another, one way."""
    client_delay: float
    """From a client to a party, one way."""
    host_gbit: float
    """In each direction, of a host."""
    site_gbit: float
    """In each direction, of all hosts of one party together."""
    cores: float = 4.0
    """Of a host."""
    threads: float = 1.0
    """Cores that one party of one cell can use: an engine's thread and little more."""
    cells_per_host: int = 1
    core_hour: float = 0.04
    gigabyte: float = 0.0
    """For each that leaves a site."""


LAN = Place("LAN", delay=0.1, client_delay=0.1, host_gbit=10.0, site_gbit=400.0)
WAN = Place("WAN", 10.0, 10.0, host_gbit=10.0, site_gbit=40.0, gigabyte=0.05)


@dataclass(frozen=True)
class Ceiling:
    """What one resource allows."""

    what: str
    rate: float
    """Queries per second, of all cells together."""
    servers: int = 1
    """Among how many that is split, each with a queue of its own."""


@dataclass(frozen=True)
class Grown:
    """What some cells do."""

    place: str
    cells: int
    capacity: float
    first: str
    """The resource that ends first."""
    rate: float
    """At the share of the capacity that latency and price are for."""
    mean_ms: float
    p99_ms: float
    hosts: int
    per_million: float
    """Predictions (rows), in the currency of the prices."""
    ceilings: Mapping[str, float] = field(default_factory=dict)


def read_costs(report: Mapping[str, Any], way: str, rows: str) -> Costs:
    """Return the costs in a report of the load benchmark; raises ValueError for what it lacks."""
    points = [
        p
        for p in report["medians"]
        if (p["way"], p["rows"], p["loop"]) == (way, rows, "closed") and p["queries_per_s"]
    ]
    alone = [p for p in points if p["clients"] == 1]
    if not alone:
        raise ValueError(f"no figures of one client ({way}, rows {rows}, closed loop) are in it")
    best = max(points, key=lambda p: float(p["queries_per_s"]))
    if not best.get("bytes_per_query") or alone[0].get("exchanges_per_query") is None:
        raise ValueError("it has no bytes by link and no exchanges; measure with this version")
    each = best["rows_per_s"] / best["queries_per_s"]
    cpu: dict[str, float] = {}
    for name, spent in best["cpu_ms_per_query"].items():
        kind = "clients" if name.startswith("client ") else name
        cpu[kind] = cpu.get(kind, 0.0) + spent
    return Costs(
        rows=each,
        cpu=_of_cells(cpu),
        alone=alone[0]["latency_ms"]["p50"],
        exchanges=alone[0]["exchanges_per_query"],
        links=best["bytes_per_query"],
        asked=each * report["row_bytes"]["client to party"],
        answered=each * report["row_bytes"]["party to client"],
        rate=best["queries_per_s"],
        clients=best["clients"],
        p50=best["latency_ms"]["p50"],
        cores=report["machine"]["cores"],
    )


def _of_cells(cpu: Mapping[str, float]) -> dict[str, float]:
    """CPU times by role, where several cells ran: "alice" and "alice.1" are one role."""
    roles: dict[str, float] = {}
    for name, spent in cpu.items():
        role = name.split(".")[0].split(" ")[0]
        roles[role] = roles.get(role, 0.0) + spent
    return roles


def fixed_ms(costs: Costs, place: Place) -> float:
    """Return what a batch takes besides its rows: exchanges wait for the way to the other party."""
    return max(0.0, costs.alone - costs.per_row) + costs.exchanges * place.delay


def row_ms(costs: Costs, place: Place) -> float:
    """Return what each query adds to a batch: CPU, and the line between the compute parties."""
    sent = max(costs.moved(name)[1] for name in COMPUTE)
    return costs.per_row + 1e3 * sent * BITS / (place.host_gbit * GIGA)


def ceilings(costs: Costs, place: Place, cells: int) -> Iterator[Ceiling]:
    """Yield what each resource allows."""
    share = min(place.threads, place.cores / place.cells_per_host)
    hosts = math.ceil(cells / place.cells_per_host)
    for party in PARTIES:
        yield Ceiling(f"{party}'s CPU", cells * share * 1e3 / costs.cpu[party], cells)
        for way, count in zip(("in", "out"), costs.moved(party), strict=True):
            if count:
                each = place.host_gbit * GIGA / BITS / count
                yield Ceiling(f"{party}'s hosts, {way}", hosts * each, hosts)
                yield Ceiling(f"{party}'s site, {way}", place.site_gbit * GIGA / BITS / count)
    most = max(1.0, MOST_ROWS / costs.rows)
    batch = fixed_ms(costs, place) + most * row_ms(costs, place)
    yield Ceiling("batches, one after another", cells * most * 1e3 / batch, cells)


def grown(costs: Costs, place: Place, cells: int, load: float) -> Grown:
    """Return what `cells` cells do at a share `load` (below 1) of what they can."""
    found = list(ceilings(costs, place, cells))
    first = min(found, key=lambda c: c.rate)
    rate = load * first.rate
    mean, p99 = latency(costs, place, cells, rate)
    hosts = len(PARTIES) * math.ceil(cells / place.cells_per_host)
    left = sum(costs.moved(party)[1] for party in PARTIES)
    paid = hosts * place.cores * place.core_hour / 3600 / rate + left / GIGA * place.gigabyte
    return Grown(
        place.name,
        cells,
        first.rate,
        first.what,
        rate,
        mean,
        p99,
        hosts,
        1e6 * paid / costs.rows,
        {c.what: c.rate for c in found},
    )


def latency(costs: Costs, place: Place, cells: int, rate: float) -> tuple[float, float]:
    """Return the mean and the p99 of what a client waits for, in ms, at `rate` queries per second.

    A query waits for half of the batch that runs, and then runs in the next one, with those that
    came meanwhile: a batch takes fixed + rows * each, and its rows are the rate times that.
    """
    fixed, each = fixed_ms(costs, place), row_ms(costs, place)
    arrivals = rate / cells / 1e3  # per ms, at one cell
    batch = max(fixed + each, fixed / max(1e-9, 1 - arrivals * each))
    batch = min(batch, fixed + each * max(1.0, MOST_ROWS / costs.rows))
    busy = min(1.0, arrivals * (fixed + each))
    legs = 2 * place.client_delay
    # Compute parties' CPU is in the batches; of all else the fullest makes queries wait.
    waits = [(0.0, 0.0)]
    for ceiling in ceilings(costs, place, cells):
        if ceiling.what not in (*(f"{p}'s CPU" for p in COMPUTE), "batches, one after another"):
            waits.append(waited(rate / ceiling.rate, 1e3 * ceiling.servers / ceiling.rate))
    mean, tail = max(waits)
    return legs + batch * (1 + busy / 2) + mean, legs + batch * (1 + busy) + tail


def waited(utilisation: float, service: float) -> tuple[float, float]:
    """Return the mean and the p99 of the wait at a server of a fixed service time (M/D/1).

    The mean is Pollaczek and Khinchine's; the tail is exponential with the same mean, which is
    what it comes to where the server is nearly full.
    """
    if utilisation >= 1:
        return math.inf, math.inf
    decay = service / (2 * (1 - utilisation))
    return utilisation * decay, max(0.0, math.log(utilisation / TAIL)) * decay if utilisation else 0


def here(costs: Costs, cells: int) -> float:
    """Return the queries per second of `cells` cells on the one machine that was measured.

    All processes share its cores, the clients' too.
    """
    alone = Place("here", 0.0, 0.0, host_gbit=1e6, site_gbit=1e6, cores=costs.cores)
    own = min(c.rate for c in ceilings(costs, alone, cells))
    return min(own, 1e3 * costs.cores / sum(costs.cpu.values()))


def compared(costs: Costs, report: Mapping[str, Any], way: str, rows: str) -> list[str]:
    """Return a line of a table: what a report measured on this machine, and what was computed."""
    found = read_costs(report, way, rows)
    cells = int(report["options"].get("cells", 1))
    rate = here(costs, cells)
    waits = 1e3 * found.clients / rate  # a closed loop: all clients wait, all the time
    return [
        *(str(cells), f"{found.clients}", f"{rate:,.0f}", f"{found.rate:,.0f}"),
        *(f"{found.rate / rate:.2f}", f"{waits:.1f}", f"{found.p50:.1f}"),
    ]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def told(places: Sequence[Place], costs: Costs, load: float) -> list[Grown]:
    """Return what is printed: all counts of cells at all places."""
    return [grown(costs, place, cells, load) for place in places for cells in CELLS]


def shown(results: Sequence[Grown]) -> str:
    """Return the table of results."""
    head = ["place", "cells", "queries/s at most", "ends first", "mean, ms", "p99, ms", "hosts"]
    rows = [[*head, "per million"]]
    for g in results:
        rows.append(
            [
                *(g.place, f"{g.cells:,}", f"{g.capacity:,.0f}", g.first),
                *(f"{g.mean_ms:,.1f}", f"{g.p99_ms:,.1f}", f"{g.hosts:,}", f"{g.per_million:,.3f}"),
            ]
        )
    return table(rows)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("costs", type=Path, help="what the load benchmark wrote")
    parser.add_argument("--way", default="lane", help="of its points (lane)")
    parser.add_argument("--rows", default="1", help="of its points (1)")
    parser.add_argument("--load", type=float, default=0.7, help="share of the capacity (0.7)")
    parser.add_argument("--cores", type=float, help="of a host (4)")
    parser.add_argument("--threads", type=float, help="cores that a party can use (1)")
    parser.add_argument("--cells-per-host", type=int, help="1")
    parser.add_argument("--core-hour", type=float, help="price of a core for an hour (0.04)")
    parser.add_argument("--gigabyte", type=float, help="price of one that leaves a site")
    parser.add_argument("--delay", type=float, metavar="MS", help="between parties, one way")
    parser.add_argument("--host-gbit", type=float, help="of a host")
    parser.add_argument("--site-gbit", type=float, help="of a party's site")
    parser.add_argument(
        "--compare", type=Path, nargs="+", default=[], help="other reports, of this machine"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if not 0 < options.load < 1:
        parser.error("--load is a share, above 0 and below 1")
    changed = _changed(options)
    if any(value <= 0 for name, value in changed.items() if name not in ("delay", "gigabyte")):
        parser.error("cores, threads, cells, rates and prices are above 0")
    return options


def _changed(options: argparse.Namespace) -> dict[str, Any]:
    """What of the places the options say otherwise."""
    known = Place.__dataclass_fields__
    return {n: v for n, v in vars(options).items() if n in known and v is not None}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse(arguments)
    try:
        costs = read_costs(json.loads(options.costs.read_text()), options.way, options.rows)
        reports = [json.loads(path.read_text()) for path in options.compare]
        lines = [compared(costs, report, options.way, options.rows) for report in reports]
    except (OSError, ValueError, KeyError, TypeError) as error:
        name = f"{type(error).__name__}: " if isinstance(error, KeyError) else ""
        print(f"error: the report cannot be used: {name}{error}", file=sys.stderr)
        return 2
    places = [Place(**{**asdict(place), **_changed(options)}) for place in (LAN, WAN)]
    results = told(places, costs, options.load)
    if options.json:
        print(json.dumps([asdict(g) for g in results], indent=1))
        return 0
    if lines:
        head = ["cells here", "clients", "queries/s computed", "measured", "ratio"]
        print(table([[*head, "ms computed", "p50 measured"], *lines]) + "\n")
    print(shown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
