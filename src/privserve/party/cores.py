"""A core of their own for the compute parties that share a machine.

Parties answer each other within microseconds, and the scheduler likes to put a process that
is woken by another on that one's core: two parties then take turns on one core while the
next one idles. So the thread that answers queries stays on a core of its own. Only that
thread does: the dealer and everything that works ahead of queries go wherever there is room.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from privserve.config import ClusterConfig

TOPOLOGY = Path("/sys/devices/system/cpu")


def stay_on_own_core(config: ClusterConfig, rank: int) -> int | None:
    """Bind the calling thread to the core of compute party `rank`; returns it.

    Does nothing and returns None where the party has its machine for itself, where there are
    fewer cores than parties, and where the system does not offer it (Linux does).
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    hosts = [party.endpoint[0] for party in config.compute]
    neighbours = [other for other, host in enumerate(hosts) if host == hosts[rank]]
    cores = physical_first(sorted(os.sched_getaffinity(0)))
    if len(neighbours) < 2 or len(cores) < len(neighbours):
        return None
    core = cores[neighbours.index(rank)]
    try:
        os.sched_setaffinity(0, {core})
    except OSError:  # a container may forbid it; it is only slower without
        return None
    return core


def physical_first(cores: Sequence[int], topology: Path = TOPOLOGY) -> list[int]:
    """Return the cores, one thread of each physical core before any second one."""
    first: list[int] = []
    second: list[int] = []
    seen: set[str] = set()
    for core in cores:
        try:
            siblings = (topology / f"cpu{core}/topology/thread_siblings_list").read_text()
        except OSError:
            siblings = f"{core}"
        (second if siblings in seen else first).append(core)
        seen.add(siblings)
    return first + second
