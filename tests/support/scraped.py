"""What a party's metrics say, by the parser of Prometheus' own library."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

import privserve as ps


@dataclass
class Scrape:
    """All samples of one party at one time."""

    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]
    names: frozenset[str]
    """Of samples, and of those families that have none now."""
    text: str

    def __call__(self, name: str, **labels: str) -> float:
        return self.samples[name, frozenset(labels.items())]

    def total(self, name: str) -> float:
        return sum(number for (sample, _), number in self.samples.items() if sample == name)


def log_of(cluster: ps.Cluster, party: str) -> Path:
    return cluster.cells[0].log(party)


def metrics_url(cluster: ps.Cluster, party: str) -> str:
    """Where a party says in its log that it is scraped."""
    found = re.search(r"http://[^\s\"]*/metrics", log_of(cluster, party).read_text())
    assert found is not None, "the log does not say where the metrics are"
    return found[0]


def scrape(cluster: ps.Cluster, party: str) -> Scrape:
    with urllib.request.urlopen(metrics_url(cluster, party), timeout=10) as answer:
        return parsed(answer.read().decode())


SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


def parsed(text: str) -> Scrape:
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    names: set[str] = set()
    for family in text_string_to_metric_families(text):
        names |= {family.name + suffix for suffix in SUFFIXES.get(family.type, ("",))}
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"twice: {key}"
            samples[key] = sample.value
    return Scrape(samples, frozenset(names), text)


def json_lines(path: Path) -> list[dict[str, Any]]:
    """A log, of which each line has to be a JSON object."""
    return [json.loads(line) for line in path.read_text().splitlines()]
