"""`python -m privserve.bench --load`, as it is run: real parties, clients in real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from serving import SAMPLE_MODEL, tagged_processes, wait_until

import converters
import privserve as ps
from privserve.bench import load
from privserve.bench.__main__ import parse
from privserve.bench.load_client import WRONG, Asked, Order, Outcome
from privserve.bench.load_crowd import Crowd
from privserve.bench.load_report import Point
from privserve.query_frames import ANSWER_HEAD, HEADER, QUERY_HEAD

COMMAND = [sys.executable, "-m", "privserve.bench", "--load"]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """An ONNX file that is quick to share: four numbers to three probabilities."""
    torch.manual_seed(2)
    net = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3), torch.nn.Softmax(dim=-1)
    )
    path = tmp_path / "small.onnx"
    path.write_bytes(converters.convert(net, input_shape=(4,)).onnx.SerializeToString())
    return path


@pytest.mark.usefixtures("tag")
def test_one_client_and_two_are_measured_in_both_loops(small: Path, tmp_path: Path) -> None:
    target = tmp_path / "load.json"
    arguments = ["--clients", "1,2", "--rows", "mix", "--seconds", "1", "--warmup", "0.3"]
    arguments += [
        "--ways",
        "lane",
        "--rounds",
        "1",
        "--seed",
        "5",
        "--model",
        str(small),
        "--json",
        str(target),
    ]
    run = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=200, check=False
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(target.read_text())
    assert report["machine"]["cores"] >= 1
    assert "privserve" in report["machine"]["versions"]
    assert report["options"]["seed"] == 5
    assert "1 in 1 process, 2 in 2 processes, 64 in 4 processes" in report["spread"]
    points = report["points"]
    closed = [p for p in points if p["loop"] == "closed"]
    assert [(p["rows"], p["clients"]) for p in closed] == [("mix", 1), ("mix", 2)]
    for point in closed:
        assert not point["withheld"]
        assert not point["errors"]
        assert point["asked"] > 10
        assert point["queries_per_s"] > 10
        percentiles = point["latency_ms"]
        assert 0 < percentiles["p50"] <= percentiles["p95"] <= percentiles["max"]
        assert 0 < point["max_abs_error"] < 1e-2
        clients = {f"client {n}" for n in range(point["clients"])}
        assert set(point["cpu_ms_per_query"]) == {"alice", "bob", "carol", "owner", *clients}
        assert point["cpu_ms_per_query"]["alice"] > 0
        assert 2 < point["rows_per_s"] / point["queries_per_s"] < 20
        links = point["bytes_per_query"]
        assert set(links) == {"alice to bob", "bob to alice", "carol to alice", "carol to bob"}
        assert links["carol to alice"] > 0  # bob makes his part of a pack from a seed
        assert links["alice to bob"] == pytest.approx(links["bob to alice"], rel=0.1)
    assert closed[0]["exchanges_per_query"] >= closed[1]["exchanges_per_query"] > 0
    assert report["row_bytes"] == {
        "client to party": HEADER.size + QUERY_HEAD.size + 8 * 4,
        "party to client": HEADER.size + ANSWER_HEAD.size + 8 * 3,
    }
    opened = [p for p in points if p["loop"] == "open"]
    assert [p["load"] for p in opened] == [0.5, 0.8]
    for point in opened:
        assert point["rate"] == pytest.approx(point["load"] * closed[-1]["queries_per_s"])
        # A machine that is busy with other tests may not keep up, and has to say so.
        assert point["withheld"] or point["latency_ms"]["p50"] > 0
    for part in ("queries/s", "open 80%", "cpu clients", "mix"):
        assert part in run.stdout


class Running:
    """The benchmark's process while it measures for a long time."""

    def __init__(self, small: Path) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "--clients", "4", "--rows", "1", "--loop", "closed", "--rounds", "1000",
             "--seconds", "0.2", "--warmup", "0.1", "--model", str(small)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.output = ""

    def read(self) -> str:
        assert self.process.stdout is not None
        self.output += (self.process.stdout.read() or b"").decode()
        return self.output

    def wait_for_points(self) -> None:
        wait_until(lambda: ".." in self.read() or self.process.poll() is not None, "points", 60)
        assert self.process.poll() is None, self.output

    def end(self) -> int:
        wait_until(lambda: self.read() is None or self.process.poll() is not None, "its end", 40)
        self.read()
        return self.process.returncode


@pytest.fixture
def running(tag: str, small: Path) -> Iterator[Running]:
    one = Running(small)
    yield one
    if one.process.poll() is None:
        one.process.kill()
    one.process.wait()
    assert one.process.stdout is not None
    one.process.stdout.close()


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interrupt_ends_parties_and_clients(running: Running, number: int, tag: str) -> None:
    running.wait_for_points()
    assert len(tagged_processes(tag)) >= 1 + 3 + 4
    os.killpg(running.process.pid, number)  # as a terminal does
    assert running.end() == 130, running.output
    assert "Traceback" not in running.output


def named(tag: str, name: str) -> int:
    """The process of party `name`."""
    for pid in tagged_processes(tag):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"--name" in words and words[words.index(b"--name") + 1] == name.encode():
            return pid
    raise AssertionError(f"there is no {name}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alice", "bob", "carol"])
def test_a_party_that_dies_is_named_and_everything_ends(
    running: Running, tag: str, name: str
) -> None:
    running.wait_for_points()
    os.kill(named(tag, name), signal.SIGKILL)
    assert running.end() == 2, running.output
    assert f"error: {name} was killed" in running.output
    assert "Traceback" not in running.output


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--clients", "0"], "not a list of numbers"),
        (["--rows", "1,some"], "not a list of numbers"),
        (["--ways", "pigeon"], "'pigeon' is none of lane, http"),
        (["--loop", "spiral"], "'spiral' is none of closed, open"),
        (["--seconds", "-1"], "not a positive number"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--json", "/nosuch/load.json"], "there is no directory"),
        (["--batch", "1"], "unrecognized arguments"),
    ],
)
def test_bad_options_are_refused(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        load.parse(["--load", *arguments])
    assert why in capsys.readouterr().err


def test_a_model_that_is_not_there_is_named() -> None:
    command = [*COMMAND, "--model", "nosuch.h5"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 2
    assert "error: " in run.stderr
    assert "nosuch.h5" in run.stderr


def test_an_abbreviated_load_does_not_start_the_other_benchmark(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(["--loa"])
    assert "--load in full" in capsys.readouterr().err


def test_samples_of_the_digits_are_digits_and_their_answers() -> None:
    samples = load.samples_of(ps.load_model(SAMPLE_MODEL), digits=True)
    assert samples.inputs.shape == (200, 28, 28, 1)
    (expected,) = samples.expected
    assert expected.shape == (200, 10)
    np.testing.assert_allclose(expected.sum(axis=1), 1, rtol=1e-5)
    assert samples.tolerances == (pytest.approx(0.02, rel=0.01),)
    # An answer to another digit is told from the right one.
    assert samples.errors(expected[[0]], np.array([1]))[0] > samples.tolerances[0]


class Silent:
    """A crowd that gets no answer."""

    def run(self, order: Order, others: object) -> tuple[list[Outcome], dict[str, float]]:
        assert order.rate is None, "there is no capacity to take a share of"
        return [Outcome([Asked(0.1, 0.1, 0.2, 1, failure="NotServing 503", why="busy")])], {}


def test_without_a_capacity_the_open_loops_say_so_and_are_not_run() -> None:
    given = ["--load", "--clients", "1,2", "--rows", "1", "--rounds", "1", "--ways", "http"]
    options = load.parse(given)
    points = load.measure(cast(Crowd, Silent()), {}, options)
    assert [(p.loop, p.clients, p.load) for p in points] == [
        ("closed", 1, None), ("closed", 2, None), ("open", 64, 0.5), ("open", 64, 0.8)
    ]  # fmt: skip
    assert all(p.withheld for p in points)


def test_an_output_that_never_changes_has_a_tolerance_all_the_same() -> None:
    net = torch.nn.Linear(4, 1)
    torch.nn.init.zeros_(net.weight)
    torch.nn.init.constant_(net.bias, -3.0)
    samples = load.samples_of(ps.load_model(net, input_shape=(4,)), digits=False)
    assert samples.tolerances == (pytest.approx(0.06),)


def test_several_inputs_are_refused() -> None:
    class Sum(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a + b

    model = ps.load_model(Sum(), input_shape=[(4,), (4,)])
    with pytest.raises(ps.ConfigError, match="2 inputs"):
        load.samples_of(model, digits=False)


def test_wrong_answers_make_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Point("http", "1", "closed", 1, 1, asked=3, queries_per_s=1.0, rows_per_s=1.0,
                 latency_ms=dict.fromkeys(("p50", "p95", "p99", "max"), 1.0))  # fmt: skip
    bad = replace(good, errors={WRONG: 2}, examples={WRONG: "off by 1"})
    facts: dict[str, Any] = {"processor": "x", "cores": 2, "load_before": 0}
    for points, code in (([good], 0), ([good, bad], 1)):
        monkeypatch.setattr(load, "run", lambda options, points=points: (points, {}))
        assert load.run_load(load.parse(["--load", "--json", "-"]), facts) == code
        said = capsys.readouterr()
        assert json.loads(said.out)["medians"][0]["queries_per_s"] == 1.0
        assert ("2 answers were wrong" in said.err) == bool(code)
