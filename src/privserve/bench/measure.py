"""Which runs make a figure: rounds over engines and batches, medians."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np

from privserve.bench.report import Result
from privserve.bench.runs import QUIET_ROWS, Bench, Report
from privserve.bench.subjects import Subject

PAUSE_SECONDS = 0.3  # in which the dealer fills the pools
LATENCY_RUNS = 20
THROUGHPUT_ROWS = {"ottt": 2048, "crypten": 64}
WARM_ROWS = {"ottt": 640, "crypten": 1}


def measure_plaintext(subject: Subject, batch: int, rounds: int) -> Result:
    """Measure torch on the float model, on one thread as every party has."""
    import torch

    torch.set_num_threads(1)
    x = subject.batch(batch)
    seconds = []
    for _ in range(max(rounds * LATENCY_RUNS, 3)):
        started = time.perf_counter()
        subject.logits(x)
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    return Result(
        subject.name,
        "plaintext torch",
        0,
        batch,
        1e3 * median,
        1e3 * float(np.quantile(seconds, 0.9)),
        batch / median,
    )


def measure(
    subject: Subject, benches: Sequence[Bench], batches: Sequence[int], rounds: int
) -> list[Result]:
    """Measure all engines on all batch sizes, round robin."""
    reports: dict[tuple[int, int], list[tuple[Report, float]]] = {}
    rates: dict[tuple[int, int], list[float]] = {}
    for number in range(rounds):
        for i, bench in enumerate(benches):
            for batch in batches:
                x = subject.batch(batch)
                report, logits = bench.run(x, latency_runs(bench.engine, batch), PAUSE_SECONDS)
                error = float(np.abs(logits - subject.logits(x)).max())
                reports.setdefault((i, batch), []).append((report, error))
                rows = THROUGHPUT_ROWS[bench.engine]
                if number == 0:
                    bench.run(x, max(1, WARM_ROWS[bench.engine] // batch), 0)
                steady, _ = bench.run(x, max(2, rows // batch), 0)
                done = len(steady.seconds) * batch
                rates.setdefault((i, batch), []).append(done / steady.elapsed)
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return [
        _result(subject, benches[i], batch, measured, statistics.median(rates[i, batch]))
        for (i, batch), measured in reports.items()
    ]


def latency_runs(engine: str, batch: int) -> int:
    """Return how often a batch is timed in one round."""
    if engine == "crypten":
        return max(2, LATENCY_RUNS // 4 // max(batch // 8, 1))
    # Twenty queries of a quarter of a millisecond are over before the caches are warm.
    return max(LATENCY_RUNS, QUIET_ROWS // batch)


def _result(
    subject: Subject, bench: Bench, batch: int, measured: list[tuple[Report, float]], rate: float
) -> Result:
    first = measured[0][0]
    seconds = [s for report, _ in measured for s in report.seconds]
    runs = len(first.seconds)
    parts = {
        name: round(statistics.median(report.parts[name] for report, _ in measured), 3)
        for name in first.parts
    }
    if any(parts.values()):
        parts["compute"] = round(1 - sum(parts.values()), 3)
    else:
        parts = {}
    return Result(
        model=subject.name,
        engine=bench.engine,
        parties=bench.parties,
        batch=batch,
        online_ms=1e3 * statistics.median(seconds),
        p90_ms=1e3 * float(np.quantile(seconds, 0.9)),
        queries_per_s=rate,
        bytes_online_per_query=first.bytes_online / runs / batch,
        bytes_dealt_per_query=first.bytes_dealt_per_query,
        exchanges=first.exchanges,
        max_abs_error=max(error for _, error in measured),
        share_of_time=parts,
        party_memory_mb=max(report.memory_mb for report, _ in measured),
    )
