"""The load benchmark's figures, against a slow reference; what is withheld and what is shown."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privserve.bench.load_client import WRONG, Asked, Order, Outcome
from privserve.bench.load_report import (
    PERCENTILES,
    Point,
    by_kind,
    figures,
    medians,
    percentile,
    plot,
    table,
)
from privserve.errors import ConfigError

ORDER = Order("http", 4, (1,), "seed", warmup=1.0, seconds=10.0)
CLOSED = Point("http", "1", "closed", 4, 2)
OPEN = replace(CLOSED, loop="open", load=0.5, rate=10.0)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99, 1]))
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    reference = min(
        v for v in values if 100 * sum(w <= v for w in values) >= round(100 * share) * len(values)
    )
    assert found == reference


MOMENTS = st.floats(-1, 12)


@settings(deadline=None)
@given(st.lists(st.tuples(MOMENTS, st.floats(0, 5), st.sampled_from([1, 8]), st.booleans())))
def test_figures_are_those_of_the_measured_phase(
    drawn: list[tuple[float, float, int, bool]],
) -> None:
    asked = [
        Asked(due, due, due + took, rows, failure="" if right else WRONG)
        for due, took, rows, right in drawn
    ]
    outcomes = [Outcome(asked[::2]), Outcome(asked[1::2])]
    point = figures(CLOSED, ORDER, outcomes, {"alice": 2.0})
    latencies = sorted(1e3 * (a.done - a.due) for a in asked if not a.failure and 0 <= a.due < 10)
    answers = [a for a in asked if not a.failure and 0 <= a.done < 10]
    assert point.asked == len(latencies)
    assert sum(point.errors.values()) == sum(not right for *_, right in drawn)
    if not latencies or not answers:
        assert point.withheld
        assert point.queries_per_s is None
        return
    assert not point.withheld
    assert point.latency_ms["max"] == pytest.approx(latencies[-1])
    assert list(point.latency_ms.values()) == sorted(point.latency_ms.values())
    assert point.queries_per_s == pytest.approx(len(answers) / 10)
    assert point.rows_per_s == pytest.approx(sum(a.rows for a in answers) / 10)
    assert point.cpu_ms_per_query["alice"] == pytest.approx(2000 / len(answers))


def steady(count: int = 100, **fields: float) -> list[Asked]:
    return [Asked(i / 10, i / 10, i / 10 + 0.02, 1, **fields) for i in range(count)]


def test_a_query_that_is_answered_after_the_phase_counts_with_all_of_its_latency() -> None:
    late = Asked(9.0, 9.0, 30.0, 1)
    point = figures(CLOSED, ORDER, [Outcome([*steady(90), late])], {})
    assert point.latency_ms["max"] == pytest.approx(21_000)
    assert point.queries_per_s == pytest.approx(9.0)


def test_fast_wrong_answers_win_nothing() -> None:
    wrong = [Asked(i / 100, i / 100, i / 100 + 1e-3, 1, failure=WRONG) for i in range(900)]
    point = figures(CLOSED, ORDER, [Outcome([*steady(), *wrong])], {"alice": 1.0})
    assert point.queries_per_s == pytest.approx(10)
    assert point.latency_ms["p50"] == pytest.approx(20)
    assert point.errors == {WRONG: 900}


def test_errors_of_the_warm_up_are_shown() -> None:
    refused = Asked(-0.5, -0.5, -0.4, 1, failure="NotServing 503", why="nobody serves it")
    point = figures(CLOSED, ORDER, [Outcome([refused, *steady()])], {})
    assert point.errors == {"NotServing 503": 1}
    assert "1 x NotServing 503: nobody serves it" in table([point])


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        (Outcome([]), "nothing was answered"),
        (Outcome(steady(), unsent=3), "3 arrivals were still not sent"),
        (Outcome([*steady(97), *steady(3, waited=True)]), "3% of the arrivals found none of 4"),
        (Outcome(steady(lag=0.01)), "50% of the latency is the client processes' own"),
    ],
    ids=["nothing", "unsent", "busy", "late"],
)
def test_figures_that_clients_could_not_keep_up_with_are_withheld(
    outcome: Outcome, why: str
) -> None:
    point = figures(OPEN, ORDER, [outcome], {"alice": 1.0})
    assert why in point.withheld
    assert point.queries_per_s is None
    assert point.rows_per_s is None
    assert not point.latency_ms
    assert not point.cpu_ms_per_query
    assert why in table([point])


def test_clients_that_are_a_little_late_now_and_then_are_good_enough() -> None:
    point = figures(OPEN, ORDER, [Outcome([*steady(99, lag=0.001), *steady(1, waited=True)])], {})
    assert not point.withheld
    assert point.latency_ms["p50"] == pytest.approx(20)


def measured(number: int, rate: float, latency: float) -> Point:
    return replace(
        CLOSED,
        round=number,
        asked=10,
        queries_per_s=rate,
        rows_per_s=rate,
        latency_ms=dict.fromkeys(PERCENTILES, latency),
        cpu_ms_per_query={"alice": latency / 10, "client 0": 1.0, "client 1": 2.0},
    )


def test_rounds_become_medians_and_nothing_bad_is_lost() -> None:
    rounds = [measured(1, 100.0, 5.0), measured(2, 300.0, 1.0), measured(3, 200.0, 9.0)]
    failing = replace(rounds[1], errors={WRONG: 2}, examples={WRONG: "off by 1"})
    (closed,) = medians([rounds[0], failing, rounds[2]])
    assert closed.queries_per_s == 200.0
    assert closed.latency_ms["p99"] == 5.0
    assert closed.latency_ms["max"] == 9.0
    assert closed.asked == 30
    assert closed.errors == {WRONG: 2}
    assert closed.examples == {WRONG: "off by 1"}


def test_a_withheld_round_counts_as_worse_than_any_and_is_named() -> None:
    withheld = replace(OPEN, round=1, withheld="too late")
    kept = [
        replace(measured(n, 10.0 * n, 1.0 * n), loop="open", load=0.5, rate=20.0) for n in (2, 3)
    ]
    other = measured(1, 1.0, 1.0)
    opened, closed = medians([withheld, *kept, other])
    assert closed == other
    assert opened.latency_ms["p50"] == 3.0
    assert opened.queries_per_s == 20.0
    assert opened.rate == 20.0
    assert opened.withheld == "round 1: too late"
    (half,) = medians([withheld, kept[0]])
    assert half.queries_per_s is None
    assert not half.latency_ms
    assert half.rate == 15.0


def test_the_table_adds_client_processes_up_and_counts_cores() -> None:
    point = measured(1, 500.0, 10.0)
    assert by_kind(point.cpu_ms_per_query) == {"alice": 1.0, "clients": 3.0}
    assert point.cores == pytest.approx(2.0)
    head, _, line = table([point]).splitlines()
    for part in ("way", "p99 ms", "cpu alice", "cpu clients", "errors"):
        assert part in head
    for part in ("http", "closed", "500.0", "10.0", "3.00", "2.00"):
        assert part in line


def test_a_table_of_nothing_but_withheld_points_has_its_reasons() -> None:
    lines = table([replace(OPEN, withheld="too late")]).splitlines()
    assert lines[-1] == "[1] withheld: too late"


@pytest.mark.parametrize(("suffix", "begins"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_the_plot_is_a_picture(tmp_path: Path, suffix: str, begins: bytes) -> None:
    pytest.importorskip("matplotlib")
    points = [replace(measured(1, 10.0 * n, 1.0 + n), clients=n) for n in (1, 8)]
    opened = replace(points[0], loop="open", load=0.5, rate=20.0)
    target = tmp_path / f"load.{suffix}"
    plot([*points, opened, replace(OPEN, withheld="too late")], target)
    assert target.read_bytes().startswith(begins)


def test_without_matplotlib_the_plot_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"privserve\[plot\]"):
        plot([], Path("load.svg"))
