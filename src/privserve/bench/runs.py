"""Timed runs of one engine, in processes of its own for every party."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privserve import sharing
from privserve.bench.processes import START_SECONDS, Member, PartyProcesses
from privserve.engines import Compute, Prepared
from privserve.fixedpoint import RingArray, decode, encode
from privserve.party.cores import stay_on_own_core
from privserve.party.lane_mesh import LaneMesh

QUIET_ROWS = 100
"""This many rows leave the pools full enough for the dealer to rest."""


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


@dataclass(frozen=True)
class _Counts:
    """What a compute party counted so far."""

    bytes_online: int
    """Sent to compute parties."""
    bytes_dealt: int
    """Got from the dealer."""
    exchanges: int
    exchange_seconds: float
    waiting_seconds: float


def _counts(compute: Compute, lanes: Mapping[str, LaneMesh]) -> _Counts:
    sent = dealt = 0
    for lane in lanes.values():
        for peer, channel in lane.channels.items():
            if peer == lane.n:
                dealt += channel.bytes_received
            else:
                sent += channel.bytes_sent
    stats = compute.stats
    return _Counts(sent, dealt, stats.exchanges, stats.exchange_seconds, stats.waiting_seconds)


def _meet(lanes: Mapping[str, LaneMesh], times: int) -> None:
    """Let all compute parties arrive at one point (and their cores wake up)."""
    online = next(lane for lane in lanes.values() if len(lane.channels))
    for _ in range(times):
        online.exchange(b"")


def _memory_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _measured(
    compute: Compute,
    lanes: Mapping[str, LaneMesh],
    inputs: Sequence[RingArray],
    runs: int,
    pause: float,
) -> Report:
    """Run one batch `runs` times, with `pause` seconds where the dealer has to catch up."""
    rows = len(inputs[0])
    before = _counts(compute, lanes)
    seconds: list[float] = []
    output: list[RingArray] = []
    began = time.perf_counter()
    for number in range(runs):
        if pause and number % max(1, QUIET_ROWS // rows) == 0:
            time.sleep(pause)
            _meet(lanes, 20)
        _meet(lanes, 1)
        started = time.perf_counter()
        output = compute.run(inputs)
        seconds.append(time.perf_counter() - started)
    elapsed = time.perf_counter() - began
    after = _counts(compute, lanes)
    # Packs are dealt ahead: the bytes belong to the packs made, not to the queries run.
    pool = getattr(compute, "pool", None)
    dealt = (
        compute.stats.bytes_dealt / pool.made
        if pool
        else (after.bytes_dealt - before.bytes_dealt) / (runs * rows)
    )
    total = sum(seconds)
    return Report(
        seconds,
        elapsed,
        after.bytes_online - before.bytes_online,
        dealt,
        (after.exchanges - before.exchanges) / runs,
        {
            "exchange": (after.exchange_seconds - before.exchange_seconds) / total,
            "waiting": (after.waiting_seconds - before.waiting_seconds) / total,
        },
        _memory_mb(),
        output[0],
    )


def run_batches(member: Member) -> None:
    """Be a party's process: measure the batches that come over the pipe until it closes."""
    logging.disable(logging.CRITICAL)
    lanes = member.open("bench", START_SECONDS)
    if member.deals:
        member.deal(lanes)
        return
    compute = member.compute(lanes)
    member.shares.clear()
    stay_on_own_core(member.config, member.rank)  # as a session does
    member.pipe.send("ready")
    try:
        while True:
            inputs, runs, pause = member.pipe.recv()
            member.pipe.send(_measured(compute, lanes, inputs, runs, pause))
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
        self._processes = PartyProcesses(prepared, parties, run_batches, options=options)
        self._compute = self._processes.names[:-1]
        self._processes.start_all(prepared.parameters)

    def wait_ready(self) -> None:
        """Return once all compute parties are set up."""
        for party in self._compute:
            self._processes.hear(party)

    def run(self, x: NDArray[np.float64], runs: int, pause: float) -> tuple[Report, Any]:
        """Run one batch `runs` times: (the leader's report, the joined logits)."""
        shares = sharing.split(encode(x, self.bits), len(self._compute))
        for party, share in zip(self._compute, shares, strict=True):
            self._processes.tell(party, ([share], runs, pause))
        reports: list[Report] = [self._processes.hear(party) for party in self._compute]
        leader = reports[0]
        leader.bytes_dealt_per_query = sum(r.bytes_dealt_per_query for r in reports)
        leader.memory_mb = max(r.memory_mb for r in reports)
        logits = decode(sharing.join([r.output for r in reports]), self.output_bits)
        return leader, logits

    def peak_memory_mb(self) -> dict[str, float]:
        """Return, by party, the most resident memory that its process ever had (Linux)."""
        peaks = {}
        for name, process in self._processes.processes.items():
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peaks[name] = next(int(s.split()[1]) / 1024 for s in lines if s.startswith("VmHWM:"))
        return peaks

    def close(self) -> None:
        """End all processes."""
        self._processes.close()
