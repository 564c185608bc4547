"""The processes that a benchmark measures: an engine's parties on real TLS channels, no HTTP."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privserve import sharing
from privserve.certificates import write_cluster
from privserve.config import party_names, read_config
from privserve.engines import Prepared, load_engine
from privserve.errors import ClusterError, PeerLost
from privserve.fixedpoint import RingArray, decode, encode
from privserve.party.cores import stay_on_own_core
from privserve.party.lanes import LaneMesh, Listener

SPAWN = multiprocessing.get_context("spawn")
QUIET_ROWS = 100
"""This many rows leave the pools full enough for the dealer to rest."""
START_SECONDS = 300


@dataclass
class Report:
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
    return compute.stats.exchange_seconds, compute.stats.waiting_seconds


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
                Report(
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

    def run(self, x: NDArray[np.float64], runs: int, pause: float) -> tuple[Report, Any]:
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
