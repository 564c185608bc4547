"""A party's counters in Prometheus' words: see docs/metrics.md.

All is read when somebody scrapes; queries pay for no more than what `Statistics` adds up. Labels
are models, clients that the owner has named, parties, and words of ours: never what a query says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from privserve import __version__
from privserve.party.computing import ComputeSession
from privserve.party.free_memory import available_memory
from privserve.party.memory import promised_memory
from privserve.party.models import Listed, Place
from privserve.party.roles import LeaderSession
from privserve.party.statistics import BOUNDS, STAGES, WHOLE, Histogram
from privserve.party.tallies import Count, Tallies

if TYPE_CHECKING:
    from privserve.party.party import Party

STATES = ("loading", "loaded", "waiting", "failed", "ended")
Samples = Sequence[tuple[tuple[str, ...], float | None]]
"""Labels' values, and the number; None: it is not known, and left out."""


def registry_of(party: Party) -> CollectorRegistry:
    """Return what there is to scrape of a party: its own counters, and its process' ones."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(PartyCollector(party))
    ProcessCollector(registry=registry)
    return registry


class PartyCollector(Collector):
    """Reads a party's counters. Thread-safe."""

    def __init__(self, party: Party) -> None:
        self._party = party
        self._tallies = Tallies(party.models)
        self._version = str(__version__)
        is_leader = party.me.name == party.config.compute[0].name
        self._role = "leader" if is_leader else "follower" if party.role == "compute" else "dealer"

    def describe(self) -> Iterator[Metric]:
        """Return nothing: which models there are is not known before."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Return all metrics as they are now."""
        counts, listed = self._tallies.by_model(), self._party.models.listed()
        yield from self._of_party(listed)
        yield from _sessions(listed)
        yield from _traffic(counts)
        if self._role != "dealer":
            yield from self._of_queries(counts)
            yield from _gauges(listed)
        if self._role == "leader":
            yield from _of_leader(listed)
            yield from self._of_clients(listed)

    def _of_party(self, listed: Sequence[Listed]) -> Iterator[Metric]:
        party, days = self._party, None
        with contextlib.suppress(OSError, ValueError):  # it may be half copied just now
            days = party.certificate_days_left()
        about = {"party": party.me.name, "role": self._role, "version": self._version}
        yield _gauge(
            "party_info", "Which party this is.", tuple(about), [(tuple(about.values()), 1)]
        )
        text = "Days for which this party's certificate is good."
        yield _gauge("certificate_days_left", text, (), [((), days)])
        text = "Memory that the host could give a process without swapping."
        yield _gauge("memory_available_bytes", text, (), [((), available_memory())])
        promised = promised_memory(session for _, session in listed)
        text = "Memory that the models are estimated to take beside what the process has."
        yield _gauge("memory_promised_bytes", text, (), [((), promised)])
        lanes = party.lanes.status()
        yield _gauge("query_lanes_open", "Clients' open query lanes.", (), [((), lanes["open"])])
        dropped = [((why,), n) for why, n in sorted(lanes["dropped"].items())]
        text = "Query lanes that the party closed, or did not let in, by why."
        yield _counter("query_lanes_dropped", text, ("reason",), dropped)

    def _of_queries(self, counts: Mapping[str, Count]) -> Iterator[Metric]:
        placed = [((m, o), n) for m, c in counts.items() for o, n in c.queries.outcomes.items()]
        unplaced = self._party.unplaced.tally().outcomes.items()
        text = "Queries that ended, by their outcome; without a model those that named none."
        outcomes = [*placed, *(((("", outcome), n) for outcome, n in unplaced))]
        yield _counter("queries", text, ("model", "outcome"), outcomes)
        told: Mapping[str, tuple[str, Any]] = {
            "rows": ("Rows that were evaluated.", lambda c: c.queries.rows),
            "batches": ("Batches that were evaluated.", lambda c: c.queries.batches),
            "pool_stalls": ("Batches that waited for packs.", lambda c: c.queries.stalls),
            "exchanges": ("Exchanges with the other parties.", lambda c: c.exchanges),
        }
        for name, (text, number) in told.items():
            yield _counter(name, text, ("model",), [((m,), number(c)) for m, c in counts.items()])
        text = "From the arrival of a query at this party to its answer."
        whole = HistogramMetricFamily("privserve_query_seconds", text, labels=("model",))
        text = "Of it, what each stage took: of a query its queue, of a batch the others."
        stages = HistogramMetricFamily("privserve_stage_seconds", text, labels=("model", "stage"))
        for model, count in counts.items():
            _add(whole, (model,), count.queries.took[WHOLE])
            for stage in STAGES:
                _add(stages, (model, stage), count.queries.took[stage])
        yield whole
        yield stages

    def _of_clients(self, listed: Sequence[Listed]) -> Iterator[Metric]:
        clients = self._party.accounts.status().items()
        text = "Rows that a client had, of all models."
        had = [((name,), facts["rows"]) for name, facts in clients]
        yield _counter("client_rows", text, ("client",), had)
        text = "Rows that a client may have."
        limits = [((name,), facts["limit"]) for name, facts in clients]
        yield _gauge("client_limit_rows", text, ("client",), limits)
        found = {s.spec.model: s.accounts.anonymous() for s in _current(listed)}
        text = "Rows that those had who are no clients, of a model that answers everybody."
        anonymous = [((model,), facts["rows"]) for model, facts in found.items() if facts]
        yield _counter("anonymous_rows", text, ("model",), anonymous)


def _sessions(listed: Sequence[Listed]) -> Iterator[Metric]:
    """How many sessions of each model are in which state."""
    numbers = {(s.spec.model, state): 0 for _, s in listed for state in STATES}
    for _, session in listed:
        numbers[session.spec.model, session.state] += 1
    yield _gauge("sessions", "Sessions, by state.", ("model", "state"), list(numbers.items()))


def _traffic(counts: Mapping[str, Count]) -> Iterator[Metric]:
    """Bytes to and from the other parties."""
    for name in ("sent", "received"):
        found = [
            ((model, peer), number)
            for model, count in counts.items()
            for peer, number in getattr(count, name).items()
        ]
        text = f"Bytes that were {name}, before encryption, by the other party."
        yield _counter(f"{name}_bytes", text, ("model", "peer"), found)


def _gauges(listed: Sequence[Listed]) -> Iterator[Metric]:
    """How full the pools of the models are that have their names."""
    pools = {session.spec.model: session.packs for session in _current(listed)}
    for at, (name, text) in enumerate(
        (
            ("pool_packs", "Packs that are ready; a row takes one."),
            ("pool_slots", "Packs that the pool holds when it is full."),
        )
    ):
        found = [((model,), packs[at]) for model, packs in pools.items() if packs is not None]
        yield _gauge(name, text, ("model",), found)


def _of_leader(listed: Sequence[Listed]) -> Iterator[Metric]:
    """What the leader alone knows, since it decides."""
    facts: dict[str, dict[str, Any]] = {
        session.spec.model: session.facts()
        for session in _current(listed)
        if isinstance(session, LeaderSession)
    }
    serving = [((model,), int(told["serving"])) for model, told in facts.items()]
    yield _gauge("serving", "1 where queries are answered.", ("model",), serving)
    waiting = [((model,), told["waiting"]) for model, told in facts.items()]
    yield _gauge("queries_waiting", "Queries that wait for their turn.", ("model",), waiting)
    left = [
        ((model,), told["limit"] - told["answered"])
        for model, told in facts.items()
        if told["limit"] is not None
    ]
    yield _gauge("rows_left", "Rows until the limit of `serve`.", ("model",), left)


def _current(listed: Sequence[Listed]) -> list[ComputeSession]:
    """The sessions that have their models' names."""
    found = [session for place, session in listed if place is Place.CURRENT]
    return [session for session in found if isinstance(session, ComputeSession)]


def _gauge(name: str, text: str, labels: Sequence[str], samples: Samples) -> Metric:
    family = GaugeMetricFamily(f"privserve_{name}", text, labels=labels)
    for values, number in samples:
        if number is not None:
            family.add_metric(values, number)
    return family


def _counter(name: str, text: str, labels: Sequence[str], samples: Samples) -> Metric:
    family = CounterMetricFamily(f"privserve_{name}", text, labels=labels)
    for values, number in samples:
        if number is not None:
            family.add_metric(values, number)
    return family


def _add(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram) -> None:
    """Add a histogram, whose buckets hold for Prometheus what the ones before hold as well."""
    bounds = [*(str(bound) for bound in BOUNDS), "+Inf"]
    buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
    family.add_metric(labels, buckets, sum_value=histogram.ns / 1e9)
