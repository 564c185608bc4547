"""The benchmark measures what it says, in the form that it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from privserve.bench.report import Result, plot, ratios, table


def line(engine: str, parties: int = 3, batch: int = 1, online_ms: float = 1.0) -> Result:
    return Result("net", engine, parties, batch, online_ms, online_ms, 1e3 * batch / online_ms)


def test_it_prints_json_with_what_one_query_costs() -> None:
    command = [sys.executable, "-m", "privserve.bench", "--engine", "ottt", "--parties", "3"]
    run = subprocess.run(
        [*command, "--batch", "1,4", "--rounds", "1", "--json"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["machine"]["cores"] >= 1
    private = [r for r in report["results"] if r["engine"] == "ottt"]
    assert [r["batch"] for r in private] == [1, 4]
    for result in private:
        assert result["parties"] == 3
        assert 0 < result["online_ms"] <= result["p90_ms"]
        assert result["queries_per_s"] > 0
        # What does not depend on the machine has its bounds here.
        assert result["exchanges"] == 9
        assert 0 < result["bytes_online_per_query"] < 43_000
        assert 0 < result["bytes_dealt_per_query"] < 400_000
        assert 0 < result["max_abs_error"] < 5e-3


def test_ratios_compare_like_with_like_only() -> None:
    results = [line("crypten", online_ms=50), line("ottt", online_ms=0.5), line("ottt", batch=8)]
    assert "100x faster" in ratios(results)
    assert "batch 8" not in ratios(results)


def test_the_table_has_a_line_for_each_result() -> None:
    lines = table([line("crypten"), line("ottt"), line("plaintext torch", parties=0)]).splitlines()
    assert len(lines) == 2 + 3


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "bench.png"
    plot([line("ottt", batch=int(b)) for b in np.array([1, 8, 32])], target)
    assert target.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arguments", [["--parties", "2"], ["--batch", "x"], ["--rounds", "0"]])
def test_bad_arguments_are_refused(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "privserve.bench", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 2
    assert "error" in run.stderr


def test_an_unknown_engine_is_named() -> None:
    command = [sys.executable, "-m", "privserve.bench", "--engine", "nosuch"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 2
    assert "nosuch" in run.stderr
