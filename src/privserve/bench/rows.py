"""Many rows by `privserve batch`: python -m privserve.bench.rows --rows 2000,5000,10000,20000

Starts three parties, shares the sample model, and runs the command for each number of rows, in a
process of its own, as its users do: from its start to its end, journal and fsync included. Every
answer is compared with the float model's. A straight line through the times says what a start
costs and what a row costs, and how far the times are from that line: if they are near, a million
rows take what the line says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from privserve.bench.load import INPUT_RANGE, samples_of, served
from privserve.bench.load_client import Samples
from privserve.bench.options import numbers
from privserve.bench.report import machine
from privserve.cluster import Cluster, Worker
from privserve.errors import PrivserveError
from privserve.exit_codes import exit_code
from privserve.interrupts import keep_interrupts
from privserve.model import load_model
from privserve.samples import DIGITS_MODEL
from privserve.text_table import table

MILLION = 1_000_000


@dataclass(frozen=True)
class Run:
    """One run of the command."""

    rows: int
    seconds: float
    wrong: int
    """Rows whose answer is further from the float model's than the load benchmark allows."""

    @property
    def rate(self) -> float:
        """Rows per second."""
        return self.rows / self.seconds


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m privserve.bench.rows",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=numbers, default=[2000, 5000, 10_000, 20_000])
    parser.add_argument("--rounds", type=int, default=3, help="of all sizes; figures are medians")
    parser.add_argument("--rows-per-query", type=int, help="default: what the command finds")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def run_once(home: Path, config: Path, samples: Samples, rows: int, extra: Sequence[str]) -> Run:
    """Run the command for this many rows, which repeat the samples; raises PrivserveError."""
    inputs, output = home / f"rows-{rows}.npy", home / "answers.npy"
    if not inputs.exists():
        shape = (rows, *samples.inputs.shape[1:])
        np.save(inputs, np.resize(samples.inputs, shape).astype(np.float32))
    command = [sys.executable, "-m", "privserve.batch", "--input", str(inputs), "--restart"]
    command += ["--output", str(output), "--config", str(config), *extra]
    begun = time.monotonic()
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - begun
    if ran.returncode:
        raise PrivserveError(f"the command ended with {ran.returncode}: {ran.stderr}")
    expected = samples.expected[0]
    off = np.abs(np.load(output) - np.resize(expected, (rows, *expected.shape[1:])))
    is_wrong = ~(off.reshape(rows, -1).max(axis=1) <= samples.tolerances[0])
    return Run(rows, seconds, int(is_wrong.sum()))


def measure(options: argparse.Namespace) -> list[Run]:
    """Run everything that the options ask for: all sizes in turn, so that noise hits all alike."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    extra = ["--rows-per-query", str(options.rows_per_query)] if options.rows_per_query else []
    model, runs = load_model(DIGITS_MODEL), []
    samples = samples_of(model, True)
    with (
        tempfile.TemporaryDirectory(prefix="privserve-rows-") as home,
        Cluster(*(Worker("127.0.0.1:0") for _ in range(3))) as cluster,
        model,
    ):
        model.share(cluster, engine="ottt", input_range=INPUT_RANGE, report=say)
        with served(cluster, model) as check:
            for _ in range(options.rounds):
                for rows in options.rows:
                    check()
                    runs.append(run_once(Path(home), cluster.config.path, samples, rows, extra))
                    say(f"{rows:,} rows in {runs[-1].seconds:.2f} s")
    return runs


def medians(runs: Sequence[Run]) -> list[Run]:
    """Return one run for each number of rows: the median time, all wrong rows."""
    return [
        Run(
            rows,
            float(np.median([run.seconds for run in runs if run.rows == rows])),
            sum(run.wrong for run in runs if run.rows == rows),
        )
        for rows in sorted({run.rows for run in runs})
    ]


def line_through(found: Sequence[Run]) -> tuple[float, float, float]:
    """Return the seconds of a start, those of a row, and how far the times are off at most.

    The last is a fraction of what the line says.
    """
    rows = np.array([run.rows for run in found], float)
    seconds = np.array([run.seconds for run in found])
    each, start = np.polyfit(rows, seconds, 1)
    said = start + each * rows
    return float(start), float(each), float(np.abs(seconds / said - 1).max())


def report(found: Sequence[Run]) -> str:
    """Return the figures for people."""
    head = ("rows", "seconds", "rows/s", "wrong")
    body = [(f"{r.rows:,}", f"{r.seconds:.2f}", f"{r.rate:,.0f}", str(r.wrong)) for r in found]
    lines = table([head, *body], right=range(4))
    if len(found) > 1:
        start, each, off = line_through(found)
        lines.append(
            f"{start:.2f} s to start and {1e3 * each:.3f} ms a row, off by {100 * off:.1f} % at "
            f"most; {MILLION:,} rows would take {(start + MILLION * each) / 60:.1f} minutes"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 1 where an answer was wrong."""
    options = parse(arguments)
    keep_interrupts()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the launcher sets it

    def work() -> int:
        facts = machine()
        found = medians(measure(options))
        if options.json:
            print(json.dumps({"machine": facts, "runs": [asdict(r) for r in found]}, indent=1))
        else:
            print(f"{facts['processor']}, {facts['cores']} cores; load: {facts['load_before']}")
            print(report(found))
        return 1 if any(run.wrong for run in found) else 0

    return exit_code(work)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # see privserve.bench.__main__
