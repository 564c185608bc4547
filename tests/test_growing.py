"""scripts/growing.py: what a query costs, and how a service of many cells grows by that."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import ROOT


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("growing", ROOT / "scripts" / "growing.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["growing"] = module
    spec.loader.exec_module(module)
    return module


growing = script()
LINKS = {"alice to bob": 1e4, "bob to alice": 1e4, "carol to alice": 5e4, "carol to bob": 5e4}
COSTS = growing.Costs(
    rows=1.0,
    cpu={"alice": 0.4, "bob": 0.3, "carol": 0.2, "clients": 0.3},
    alone=0.9,
    exchanges=10.0,
    links=LINKS,
    asked=1000.0,
    answered=100.0,
    rate=1600.0,
    clients=64,
    p50=40.0,
    cores=2,
)
NEAR = growing.Place("near", 0.0, 0.0, host_gbit=1e6, site_gbit=1e6)


def point(clients: int, **fields: Any) -> dict[str, Any]:
    return {
        "way": "lane",
        "rows": "1",
        "loop": "closed",
        "clients": clients,
        "queries_per_s": 1000.0,
        "rows_per_s": 1000.0,
        "latency_ms": {"p50": 0.9},
        "cpu_ms_per_query": {"alice": 0.7, "bob": 0.6, "carol": 0.2, "client 0": 0.3},
        "bytes_per_query": LINKS,
        "exchanges_per_query": 10.0,
        **fields,
    }


def report(*points: dict[str, Any], cells: int = 1) -> dict[str, Any]:
    row_bytes = {"client to party": 1000, "party to client": 100}
    machine, options = {"cores": 2}, {"cells": cells}
    return {"machine": machine, "options": options, "row_bytes": row_bytes, "medians": list(points)}


FULL = point(
    64,
    queries_per_s=1600.0,
    rows_per_s=1600.0,
    latency_ms={"p50": 40.0},
    cpu_ms_per_query={"alice": 0.4, "bob": 0.3, "carol": 0.2, "client 0": 0.1, "client 1": 0.2},
    exchanges_per_query=0.5,
)


def test_costs_are_those_of_full_load_and_latency_that_of_one_client() -> None:
    found = growing.read_costs(report(point(1), FULL, point(8, queries_per_s=None)), "lane", "1")
    assert found.cpu == pytest.approx(COSTS.cpu)
    assert replace(found, cpu=COSTS.cpu) == COSTS


def test_several_cells_of_a_role_are_one() -> None:
    cpu = {"alice": 0.2, "alice.1": 0.2, "bob": 0.3, "carol": 0.2, "client 0": 0.3}
    found = growing.read_costs(report(point(1), {**FULL, "cpu_ms_per_query": cpu}), "lane", "1")
    assert found.cpu == pytest.approx(COSTS.cpu)


@pytest.mark.parametrize(
    ("points", "why"),
    [
        ([FULL], "no figures of one client"),
        ([point(1, exchanges_per_query=None), FULL], "no exchanges"),
        ([point(1), {**FULL, "bytes_per_query": {}}], "no bytes by link"),
    ],
)
def test_a_report_without_what_is_needed_is_refused(points: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        growing.read_costs(report(*points), "lane", "1")


def rates(costs: Any, place: Any, cells: int) -> dict[str, float]:
    return {c.what: c.rate for c in growing.ceilings(costs, place, cells)}


def test_each_resource_allows_what_its_arithmetic_says() -> None:
    place = replace(NEAR, host_gbit=1.0, site_gbit=10.0, delay=2.0)
    found = rates(COSTS, place, 4)
    assert found["alice's CPU"] == pytest.approx(4 * 1000 / 0.4)
    assert found["carol's CPU"] == pytest.approx(4 * 1000 / 0.2)
    assert found["carol's hosts, out"] == pytest.approx(4 * 1e9 / 8 / 1e5)
    assert found["carol's site, out"] == pytest.approx(1e10 / 8 / 1e5)
    assert found["alice's hosts, in"] == pytest.approx(4 * 1e9 / 8 / (1e4 + 5e4 + 1000))
    assert found["bob's site, out"] == pytest.approx(1e10 / 8 / (1e4 + 100))
    assert not any(what.startswith("carol's") and what.endswith("in") for what in found)
    # 128 rows: what a batch takes by itself, ten exchanges of 2 ms, and each row's CPU and bytes.
    batch = (0.9 - 0.4) + 10 * 2.0 + 128 * (0.4 + 1e3 * 10100 * 8 / 1e9)
    assert found["batches, one after another"] == pytest.approx(4 * 128 * 1000 / batch)


def test_cells_that_share_a_host_share_its_cores_and_its_line() -> None:
    place = replace(NEAR, host_gbit=1.0, cores=2.0, cells_per_host=4)
    found = rates(COSTS, place, 8)
    assert found["alice's CPU"] == pytest.approx(8 * 0.5 * 1000 / 0.4)
    assert found["carol's hosts, out"] == pytest.approx(2 * 1e9 / 8 / 1e5)
    assert growing.grown(COSTS, place, 8, 0.5).hosts == 6


@given(st.integers(1, 999), st.floats(0.05, 0.95))
def test_more_cells_never_do_less_and_what_ends_first_is_the_least(cells: int, load: float) -> None:
    for place in (growing.LAN, growing.WAN):
        few, more = (growing.grown(COSTS, place, n, load) for n in (cells, cells + 1))
        assert more.capacity >= few.capacity
        assert few.capacity == min(few.ceilings.values()) == few.ceilings[few.first]
        assert few.rate == pytest.approx(load * few.capacity)
        assert 0 < few.mean_ms <= few.p99_ms < math.inf


@given(st.floats(0.01, 0.98), st.floats(0.001, 0.01))
def test_a_busier_cell_is_slower(load: float, more: float) -> None:
    now, later = (growing.grown(COSTS, growing.LAN, 3, r) for r in (load, load + more))
    assert later.mean_ms >= now.mean_ms
    assert later.p99_ms >= now.p99_ms


def test_an_idle_cell_takes_what_one_client_waited_for_and_the_way() -> None:
    mean, p99 = growing.latency(COSTS, growing.WAN, 1, 1e-6)
    sent = 1e3 * 10100 * 8 / 10e9
    assert mean == pytest.approx(0.9 + 10 * 10.0 + 2 * 10.0 + sent, rel=1e-6)
    assert p99 == pytest.approx(mean, rel=1e-6)


def test_the_wait_at_a_server_is_that_of_the_books() -> None:
    mean, tail = growing.waited(0.5, 2.0)
    assert mean == pytest.approx(0.5 * 2.0 / (2 * 0.5))
    # An exponential tail that holds `utilisation` of all: its mean is the one above.
    decay = mean / 0.5
    assert 0.5 * math.exp(-tail / decay) == pytest.approx(0.01)
    assert growing.waited(0.0, 2.0) == (0.0, 0.0)
    assert growing.waited(0.005, 2.0)[1] == 0.0  # fewer than one in a hundred wait at all
    assert growing.waited(1.0, 2.0) == (math.inf, math.inf)


def test_the_price_is_that_of_hosts_and_of_what_leaves_sites() -> None:
    place = replace(NEAR, cores=4.0, core_hour=0.036, gigabyte=0.5)
    found = growing.grown(COSTS, place, 2, 0.5)
    seconds = 6 * 4 * 0.036 / 3600
    left = (2 * 1e4 + 2 * 5e4 + 2 * 100) / 1e9
    assert found.per_million == pytest.approx(1e6 * (seconds / found.rate + left * 0.5))
    rows = growing.grown(replace(COSTS, rows=4.0), place, 2, 0.5)
    assert rows.per_million < found.per_million


def test_on_one_machine_all_processes_share_the_cores() -> None:
    assert growing.here(COSTS, 1) == pytest.approx(2 * 1000 / 1.2)
    assert growing.here(COSTS, 2) == growing.here(COSTS, 1)
    many = replace(COSTS, cores=64)
    assert growing.here(many, 1) < 1000 / 0.4  # one cell's leader
    assert growing.here(many, 2) == pytest.approx(2 * growing.here(many, 1))


def test_it_prints_tables_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    costs, measured = tmp_path / "costs.json", tmp_path / "two.json"
    costs.write_text(json.dumps(report(point(1), FULL)))
    measured.write_text(json.dumps(report(point(1), {**FULL, "queries_per_s": 2000.0}, cells=2)))
    assert growing.main([str(costs), "--compare", str(costs), str(measured)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| 1 | 64 | 1,667 | 1,600 | 0.96 | 38.4 | 40.0 |"
    assert lines[3] == "| 2 | 64 | 1,667 | 2,000 | 1.20 | 38.4 | 40.0 |"
    assert sum(line.startswith("| LAN") for line in lines) == len(growing.CELLS)
    assert growing.main([str(costs), "--json", "--delay", "3", "--load", "0.5"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert len(results) == 2 * len(growing.CELLS)
    measured.write_text("{}")
    assert growing.main([str(measured)]) == 2
    assert "cannot be used: KeyError" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--load", "1"], ["--cores", "0"], ["--host-gbit", "-1"]])
def test_options_that_mean_nothing_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        growing.parse(["costs.json", *wrong])
