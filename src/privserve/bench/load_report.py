"""What the load benchmark reports: the figures of a point, medians, the table, the plot."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from privserve import text_table
from privserve.bench.load_client import Asked, Order, Outcome
from privserve.bench.report import figure

PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
MOST_WAITED = 0.01
"""The share of arrivals that may find no client free; more would be a closed loop in disguise."""
MOST_LAG = 0.1
"""The share of all latency that the clients' own lateness may make up."""


@dataclass(frozen=True)
class Point:
    """One line of the table; see --json."""

    way: str
    rows: str
    """Of each query: a number, or "mix"."""
    loop: str
    """closed | open"""
    clients: int
    processes: int
    """That the clients are spread over, evenly."""
    load: float | None = None
    """Of an open loop: its rate as a share of the capacity that the closed loop found."""
    rate: float | None = None
    """Of an open loop: arrivals per second."""
    round: int = 1
    """Which one; of medians, how many there were."""
    asked: int = 0
    """Queries of the measured phase that got a right answer: those whose latency counts."""
    queries_per_s: float | None = None
    """Right answers."""
    rows_per_s: float | None = None
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    """By percentile; of an open loop from the moment at which a query was due."""
    cpu_ms_per_query: Mapping[str, float] = field(default_factory=dict)
    """User and system time by process, per right answer."""
    bytes_per_query: Mapping[str, float] = field(default_factory=dict)
    """By link between parties; see `load_costs`."""
    exchanges_per_query: float | None = None
    """Between compute parties; queries that run together share them."""
    max_abs_error: float = 0.0
    """Of right answers, against the float model."""
    waited: float = 0.0
    """The share of arrivals that found no client free."""
    lag: float = 0.0
    """The share of all latency that is the client processes' own lateness."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """By kind, warm-up included."""
    examples: Mapping[str, str] = field(default_factory=dict)
    """By kind of error: the first message."""
    withheld: str = ""
    """Why there are no figures."""

    @property
    def key(self) -> tuple[object, ...]:
        """What tells points apart, but for their round."""
        return self.way, self.rows, self.loop, self.clients, self.load

    @property
    def cores(self) -> float | None:
        """How many cores all processes together kept busy."""
        if self.queries_per_s is None or not self.cpu_ms_per_query:
            return None
        return sum(self.cpu_ms_per_query.values()) * self.queries_per_s / 1e3


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of `values` that at least `share` of them do not exceed (nearest rank).

    It is one that was measured, not a mean of two: a tail is not smoothed away.
    """
    return float(np.quantile(np.asarray(values), share, method="inverted_cdf"))


def figures(
    point: Point, order: Order, outcomes: Sequence[Outcome], cpu: Mapping[str, float]
) -> Point:
    """Return `point` with the figures of what came of it at all client processes.

    Latencies are those of the queries due in the measured phase, whenever they were answered, so
    that slow ones are not cut off; rates are those of the answers that came in that phase. cpu:
    seconds by process that the phase took.
    """
    everything = [one for outcome in outcomes for one in outcome.asked]
    asked = [one for one in everything if 0 <= one.due < order.seconds]
    right = [one for one in asked if not one.failure]
    failed = [one for one in everything if one.failure]
    answers = [one for one in everything if not one.failure and 0 <= one.done < order.seconds]
    latencies = [one.done - one.due for one in right]
    total = sum(one.done - one.due for one in asked)
    point = replace(
        point,
        asked=len(right),
        max_abs_error=max((one.off for one in right), default=0.0),
        waited=sum(one.waited for one in asked) / max(1, len(asked)),
        lag=sum(one.lag for one in asked) / total if total else 0.0,
        errors=dict(Counter(one.failure for one in failed)),
        examples={one.failure: one.why for one in reversed(failed)},
    )
    why = _unreliable(point, answers, sum(outcome.unsent for outcome in outcomes))
    if why:
        return replace(point, withheld=why)
    return replace(
        point,
        queries_per_s=len(answers) / order.seconds,
        rows_per_s=sum(one.rows for one in answers) / order.seconds,
        latency_ms={n: 1e3 * percentile(latencies, share) for n, share in PERCENTILES.items()},
        cpu_ms_per_query={name: 1e3 * seconds / len(answers) for name, seconds in cpu.items()},
    )


def _unreliable(point: Point, answers: Sequence[Asked], unsent: int) -> str:
    """Why the figures of a point would mislead; "" where they would not."""
    if not answers or not point.asked:
        return "nothing was answered in the measured phase; see the errors, or measure for longer"
    if unsent:
        return (
            f"{unsent} arrivals were still not sent long after they were due: this rate is beyond "
            "what is answered"
        )
    if point.waited > MOST_WAITED:
        return (
            f"{point.waited:.0%} of the arrivals found none of {point.clients} clients free and "
            "were sent late, so that the cluster was not offered this rate: more clients, or a "
            "lower rate"
        )
    if point.lag > MOST_LAG:
        return (
            f"{point.lag:.0%} of the latency is the client processes' own lateness: they do not "
            "keep up with the schedule; more cores, or clients on a machine of their own"
        )
    return ""


def medians(points: Sequence[Point]) -> list[Point]:
    """Return one point for the rounds of each: medians, but the largest maximum and all errors.

    A round whose figures are withheld counts as worse than all others, since leaving it out would
    flatter the point; where half of the rounds are, there are no figures.
    """
    rounds: dict[tuple[object, ...], list[Point]] = {}
    for point in points:
        rounds.setdefault(point.key, []).append(point)
    return [_median(each) for each in rounds.values()]


def _median(rounds: Sequence[Point]) -> Point:
    good = [p for p in rounds if not p.withheld]
    withheld = [p for p in rounds if p.withheld]
    errors: Counter[str] = Counter()
    for p in rounds:
        errors.update(p.errors)
    rates = [p.rate for p in rounds if p.rate is not None]
    point = replace(
        rounds[0],
        round=len(rounds),
        asked=sum(p.asked for p in rounds),
        rate=statistics.median(rates) if rates else None,
        max_abs_error=max(p.max_abs_error for p in rounds),
        waited=statistics.median(p.waited for p in rounds),
        lag=statistics.median(p.lag for p in rounds),
        errors=dict(errors),
        examples={kind: why for p in reversed(rounds) for kind, why in p.examples.items()},
        withheld="; ".join(f"round {p.round}: {p.withheld}" for p in withheld),
    )
    if len(good) <= len(withheld):
        return point
    latency = {
        n: statistics.median(p.latency_ms.get(n, float("inf")) for p in rounds) for n in PERCENTILES
    }
    latency["max"] = max(p.latency_ms["max"] for p in good)
    return replace(
        point,
        queries_per_s=statistics.median(p.queries_per_s or 0.0 for p in rounds),
        rows_per_s=statistics.median(p.rows_per_s or 0.0 for p in rounds),
        latency_ms=latency,
        cpu_ms_per_query={
            name: statistics.median(p.cpu_ms_per_query[name] for p in good)
            for name in good[0].cpu_ms_per_query
        },
        bytes_per_query={
            link: statistics.median(p.bytes_per_query.get(link, 0.0) for p in good)
            for link in good[0].bytes_per_query
        },
        exchanges_per_query=_middle([p.exchanges_per_query for p in good]),
    )


def _middle(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def by_kind(cpu: Mapping[str, float]) -> dict[str, float]:
    """Return CPU times by process with all client processes as one, "clients"."""
    kinds: dict[str, float] = {}
    for name, value in cpu.items():
        kind = "clients" if name.startswith("client ") else name
        kinds[kind] = kinds.get(kind, 0.0) + value
    return kinds


def table(points: Sequence[Point]) -> str:
    """Return the points as a table for people, with a note for whatever went wrong."""
    processes = list(dict.fromkeys(n for p in points for n in by_kind(p.cpu_ms_per_query)))
    head = ["way", "rows", "loop", "clients", "arrivals/s", "queries/s", "rows/s"]
    head += [f"{name} ms" for name in PERCENTILES]
    head += [f"cpu {name}" for name in processes] + ["cores", "errors"]
    rows: list[Sequence[str]] = [head]
    notes = []
    for number, p in enumerate(points, 1):
        cpu = by_kind(p.cpu_ms_per_query)
        marked = p.errors or p.withheld
        rows.append(
            [
                p.way,
                p.rows,
                p.loop if p.load is None else f"open {p.load:.0%}",
                str(p.clients),
                _shown(p.rate, ".0f"),
                _shown(p.queries_per_s, ".1f"),
                _shown(p.rows_per_s, ".0f"),
                *(_shown(p.latency_ms.get(name), ".1f") for name in PERCENTILES),
                *(_shown(cpu.get(name), ".2f") for name in processes),
                _shown(p.cores, ".2f"),
                f"{sum(p.errors.values())}" + (f" [{number}]" if marked else ""),
            ]
        )
        if p.withheld:
            notes.append(f"[{number}] withheld: {p.withheld}")
        notes += [f"[{number}] {n} x {kind}: {p.examples[kind]}" for kind, n in p.errors.items()]
    return "\n".join([*text_table.table(rows, right=range(3, len(head))), *notes])


def _shown(value: float | None, how: str) -> str:
    return "-" if value is None else f"{value:,{how}}"


def plot(points: Sequence[Point], target: Path) -> None:
    """Draw rates and latencies by clients, and the latencies of open loops by arrivals."""
    drawn = figure(14, 4.5)
    closed = [p for p in points if p.loop == "closed" and p.latency_ms]
    opened = [p for p in points if p.loop == "open" and p.latency_ms]
    panels: list[tuple[str, str, list[Point], Callable[[Point], float], str]] = [
        ("queries/s, closed loop", "clients", closed, lambda p: float(p.clients), ""),
        ("latency, closed loop, ms", "clients", closed, lambda p: float(p.clients), "p50 p99"),
        ("latency, open loop, ms", "arrivals/s", opened, lambda p: p.rate or 0.0, "p50 p99"),
    ]
    for axes, (title, label, chosen, across, percentiles) in zip(
        drawn.subplots(1, len(panels)), panels, strict=True
    ):
        lines: dict[str, list[Point]] = {}
        for p in chosen:
            lines.setdefault(f"{p.way}, rows {p.rows}", []).append(p)
        for name, line in lines.items():
            line.sort(key=across)
            places = [across(p) for p in line]
            for which in percentiles.split():
                heights = [p.latency_ms[which] for p in line]
                style = "-" if which == "p50" else "--"
                axes.plot(places, heights, style, marker="o", label=f"{name}, {which}")
            if not percentiles:
                axes.plot(places, [p.queries_per_s for p in line], marker="o", label=name)
        if chosen:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.legend(fontsize=7)
        axes.set_xlabel(label)
        axes.set_title(title)
        axes.grid(alpha=0.3)
    drawn.savefig(target, dpi=120)
