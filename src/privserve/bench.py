"""Measure engines on this machine: python -m privserve.bench

Every engine and party count gets its own real processes on real TLS channels, all of them
alive during the whole run; measurements go round robin, so that a noisy minute hits all
alike, and every figure is a median. "online" is the time that a compute party spends on a
batch that finds its randomness ready (queries come one at a time, with a pause for the
dealer); "queries/s" runs batches back to back for longer than the pools last, so dealing
and all per-query preparation are in it. HTTP is not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privserve import sharing
from privserve.bench_report import Result, machine, plot, ratios, table
from privserve.bench_subjects import (
    EXAMPLES,
    Subject,
    digits_subject,
    resnet_subject,
    wide_subject,
)
from privserve.certificates import write_cluster
from privserve.config import party_names, read_config
from privserve.cores import stay_on_own_core
from privserve.engines import Prepared, load_engine
from privserve.errors import ClusterError, PeerLost, PrivserveError
from privserve.fixedpoint import RingArray, decode, encode
from privserve.transport import LaneMesh, Listener

SPAWN = multiprocessing.get_context("spawn")
PAUSE_SECONDS = 0.3  # in which the dealer fills the pools
QUIET_ROWS = 100  # so many rows leave the pools full enough for the dealer to rest
LATENCY_RUNS = 20
THROUGHPUT_ROWS = {"ottt": 2048, "crypten": 64}
WARM_ROWS = {"ottt": 640, "crypten": 1}
START_SECONDS = 300


@dataclass
class _Report:
    """What one compute party measured while running one batch several times."""

    seconds: list[float]
    elapsed: float
    bytes_online: int
    bytes_dealt_per_query: float
    exchanges: float
    parts: dict[str, float]
    memory_mb: float
    output: RingArray


def _traffic(lanes: dict[str, LaneMesh], dealer: int) -> tuple[int, int, int]:
    """(bytes sent to compute parties, bytes got from the dealer, frames sent to one peer)."""
    sent = dealt = frames = 0
    for lane in lanes.values():
        for peer, channel in lane.channels.items():
            if peer == dealer:
                dealt += channel.bytes_received
            else:
                sent += channel.bytes_sent
                frames = max(frames, channel.frames_sent)
    return sent, dealt, frames


def _engine_times(compute: Any) -> tuple[float, float]:
    stats = getattr(compute, "stats", None)
    return (
        float(getattr(stats, "exchange_seconds", 0.0)),
        float(getattr(stats, "waiting_seconds", 0.0)),
    )


def _meet(lanes: dict[str, LaneMesh], dealer: int, times: int) -> None:
    """Let all compute parties arrive at one point (and their cores wake up)."""
    online = next(lane for lane in lanes.values() if len(lane.channels) and lane.rank < dealer)
    for _ in range(times):
        online.exchange(b"")


def _memory_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _party(
    home: str,
    name: str,
    sock: socket.socket,
    engine: str,
    description: dict[str, Any],
    shares: dict[str, RingArray],
    options: dict[str, Any],
    pipe: Any,
) -> None:
    """The process of one party: does what the pipe says until it closes."""
    logging.disable(logging.CRITICAL)
    config = read_config(Path(home) / name / "cluster.toml")
    listener = Listener(config, config.parties[config.rank(name)], sock)
    module = load_engine(engine)
    limits = module.frame_limits(description, **options)
    lanes = listener.open_lanes("bench", module.LANES, START_SECONDS, limits=limits)
    if config.role(name) == "dealer":
        with contextlib.suppress(PeerLost):  # the parties left: the benchmark is over
            module.deal(description, lanes, **options)
        return
    compute: Any = module.Compute(description, shares, lanes, **options)
    shares.clear()
    stay_on_own_core(config, config.rank(name))  # as a session does
    pipe.send("ready")
    dealer = len(config.compute)
    try:
        while True:
            inputs, runs, pause = pipe.recv()
            before, times_before = _traffic(lanes, dealer), _engine_times(compute)
            exchanges_before = getattr(getattr(compute, "stats", None), "exchanges", None)
            seconds: list[float] = []
            output: list[RingArray] = []
            began = time.perf_counter()
            for number in range(runs):
                if pause and number % max(1, QUIET_ROWS // len(inputs[0])) == 0:
                    time.sleep(pause)
                    _meet(lanes, dealer, 20)
                _meet(lanes, dealer, 1)
                started = time.perf_counter()
                output = compute.run(inputs)
                seconds.append(time.perf_counter() - started)
            elapsed = time.perf_counter() - began
            after, times_after = _traffic(lanes, dealer), _engine_times(compute)
            exchanges = (
                compute.stats.exchanges - exchanges_before
                if exchanges_before is not None
                else after[2] - before[2]
            )
            # Packs are dealt ahead: the bytes belong to the packs made, not to the queries run.
            pool = getattr(compute, "pool", None)
            rows = runs * len(inputs[0])
            dealt = compute.stats.bytes_dealt / pool.made if pool else (after[1] - before[1]) / rows
            total = sum(seconds)
            waits = [b - a for a, b in zip(times_before, times_after, strict=True)]
            parts = {"exchange": waits[0] / total, "waiting": waits[1] / total}
            pipe.send(
                _Report(
                    seconds,
                    elapsed,
                    after[0] - before[0],
                    dealt,
                    exchanges / runs,
                    parts,
                    _memory_mb(),
                    output[0],
                )
            )
    except EOFError:
        compute.close()
        for lane in lanes.values():
            lane.close()


class Bench:
    """The processes of one engine, party count and model."""

    def __init__(self, name: str, prepared: Prepared, parties: int, **options: Any) -> None:
        self.name = name
        self.engine = prepared.engine
        self.parties = parties
        self.bits = prepared.description["fraction_bits"]
        self.output_bits = prepared.description["output_fraction_bits"]
        self._home = tempfile.TemporaryDirectory(prefix="privserve-bench-")
        self._processes = []
        self._pipes = []
        names = party_names(parties)
        socks = [socket.create_server(("127.0.0.1", 0)) for _ in names]
        addresses = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in socks]
        write_cluster(
            Path(self._home.name), [(n, a, a) for n, a in zip(names, addresses, strict=True)]
        )
        split = {k: sharing.split(v, parties - 1) for k, v in prepared.parameters.items()}
        for rank, (party, sock) in enumerate(zip(names, socks, strict=True)):
            ours, theirs = SPAWN.Pipe()
            shares = {k: s[rank] for k, s in split.items()} if rank < parties - 1 else {}
            process = SPAWN.Process(
                target=_party,
                args=(
                    self._home.name,
                    party,
                    sock,
                    prepared.engine,
                    prepared.description,
                    shares,
                    options,
                    theirs,
                ),
                daemon=True,
            )
            process.start()
            theirs.close()
            sock.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def wait_ready(self) -> None:
        """Return once all compute parties are set up."""
        for rank in range(self.parties - 1):
            self._receive(rank)

    def _receive(self, rank: int) -> Any:
        if not self._pipes[rank].poll(START_SECONDS):
            raise ClusterError(f"{self.engine}: a party does not answer")
        try:
            return self._pipes[rank].recv()
        except EOFError:
            raise ClusterError(f"{self.engine}: a party ended; see the messages above") from None

    def run(self, x: NDArray[np.float64], runs: int, pause: float) -> tuple[_Report, Any]:
        """Run one batch `runs` times: (the leader's report, the joined logits)."""
        shares = sharing.split(encode(x, self.bits), self.parties - 1)
        for pipe, share in zip(self._pipes, shares, strict=False):
            pipe.send(([share], runs, pause))
        reports = [self._receive(rank) for rank in range(self.parties - 1)]
        leader = reports[0]
        leader.bytes_dealt_per_query = sum(r.bytes_dealt_per_query for r in reports)
        leader.memory_mb = max(r.memory_mb for r in reports)
        logits = decode(sharing.join([r.output for r in reports]), self.output_bits)
        return leader, logits

    def peak_memory_mb(self) -> dict[str, float]:
        """By party: the most resident memory that its process ever had (Linux)."""
        peaks = {}
        for name, process in zip(party_names(self.parties), self._processes, strict=True):
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peaks[name] = next(int(s.split()[1]) / 1024 for s in lines if s.startswith("VmHWM:"))
        return peaks

    def close(self) -> None:
        """End all processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
        self._home.cleanup()


def measure_plaintext(subject: Subject, batch: int, rounds: int) -> Result:
    """torch on the float model, one thread as every party has."""
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
    """All engines on all batch sizes, round robin."""
    reports: dict[tuple[int, int], list[tuple[_Report, float]]] = {}
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
    """How often a batch is timed in one round."""
    if engine == "crypten":
        return max(2, LATENCY_RUNS // 4 // max(batch // 8, 1))
    # Twenty queries of a quarter of a millisecond are over before the caches are warm.
    return max(LATENCY_RUNS, QUIET_ROWS // batch)


def _result(
    subject: Subject, bench: Bench, batch: int, measured: list[tuple[_Report, float]], rate: float
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


def subjects(options: argparse.Namespace) -> list[Subject]:
    """The models that were asked for."""
    chosen = [digits_subject(options.model)]
    if options.sizes:
        chosen += [wide_subject(factor) for factor in (1, 2, 4)]
        chosen.append(resnet_subject())
    return chosen


def run(options: argparse.Namespace) -> list[Result]:
    """Everything that was asked for."""
    results: list[Result] = []
    for number, subject in enumerate(subjects(options)):
        batches = options.batch if number == 0 else [1]
        party_counts = options.parties if number == 0 else [3]
        engines = options.engine if number == 0 else [e for e in options.engine if e == "ottt"]
        benches: list[Bench] = []
        print(f"{subject.name}: setting up", file=sys.stderr, flush=True)
        try:
            for engine in engines:
                prepared = load_engine(engine).prepare(
                    subject.converted.onnx, input_range=subject.input_range
                )
                for parties in party_counts:
                    benches.append(Bench(subject.name, prepared, parties))
                    benches[-1].wait_ready()
            plain = [measure_plaintext(subject, batch, options.rounds) for batch in batches]
            results += plain + measure(subject, benches, batches, options.rounds)
        finally:
            for bench in benches:
                bench.close()
    return results


def numbers(text: str) -> list[int]:
    """[1, 8] from "1,8"."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers such as 1,8,32")
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m privserve.bench", description=__doc__)
    parser.add_argument("--engine", type=lambda t: t.split(","), default=["crypten", "ottt"])
    parser.add_argument("--batch", type=numbers, default=[1, 8, 32, 128], metavar="1,8,...")
    parser.add_argument(
        "--parties", type=numbers, default=[3, 4], metavar="3,4", help="with dealer"
    )
    parser.add_argument("--model", type=Path, default=EXAMPLES / "digits-model.h5")
    parser.add_argument("--rounds", type=int, default=3, help="of the round robin")
    parser.add_argument("--sizes", action="store_true", help="also wider models and a ResNet-20")
    parser.add_argument(
        "--large",
        action="append",
        metavar="MODEL",
        help="instead, single queries through resnet50, mobilenetv2, densenet121 or a file",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw latency and throughput")
    options = parser.parse_args(arguments)
    if min(options.parties) < 3:
        parser.error("--parties counts the dealer: at least 3")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    # As the launcher sets it: parties share the cores, and torch's threads would fight.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        facts = machine()
        if options.large:
            from privserve.bench_large import run_large

            return run_large(options, facts)
        results = run(options)
        if options.json:
            print(json.dumps({"machine": facts, "results": [asdict(r) for r in results]}, indent=1))
        else:
            print(
                f"{facts['processor']}, {facts['cores']} cores; load before: {facts['load_before']}"
            )
            print(table(results))
            print(ratios(results))
        if options.plot:
            plot(results, options.plot)
    except PrivserveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
