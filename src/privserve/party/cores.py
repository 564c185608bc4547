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
    """Bind the calling thread to the first of `own_cores`; returns it.

    Does nothing and returns None where there is none.
    """
    cores = own_cores(config, rank)[:1]
    return cores[0] if stay_on(cores) else None


def own_cores(config: ClusterConfig, rank: int) -> list[int]:
    """Return the cores of compute party `rank`, of those that the calling thread may use.

    The one of its own comes first; sessions of several models have the others as well. Empty where
    the party has its machine for itself, where there are fewer cores than parties, and where the
    system does not offer it (Linux does).
    """
    if not hasattr(os, "sched_setaffinity"):
        return []
    host = config.compute[rank].endpoint[0]
    neighbours = [
        (cell.cell, other)
        for cell in config.cells
        for other, party in enumerate(cell.compute)
        if party.endpoint[0] == host
    ]
    cores = physical_first(sorted(os.sched_getaffinity(0)))
    if len(neighbours) < 2 or len(cores) < len(neighbours):
        return []
    return cores[neighbours.index((config.cell, rank)) :: len(neighbours)]


def stay_on(cores: Sequence[int]) -> bool:
    """Bind the calling thread to these cores, if there are any; whether it is."""
    if not cores:
        return False
    try:
        os.sched_setaffinity(0, cores)
    except OSError:  # a container may forbid it; it is only slower without
        return False
    return True


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
