"""How much memory a party takes, and how much its models are still going to take."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from privserve.party.session import Session


def used_memory() -> int | None:
    """Return the bytes that this process takes now; None: unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def promised_memory(sessions: Iterable[Session], used: int | None = None) -> int:
    """Return about how many bytes these sessions will take beside what the process has by now.

    Packs are dealt as time allows, so that a model which was shared just now has taken little of
    what it was estimated at. used: what the process takes, where that is not to be looked up.
    """
    alive = [s for s in sessions if s.is_alive and s.memory is not None]
    taken = used_memory() if used is None else used
    if taken is None or not alive:
        return 0
    engines = {s.spec.engine: s.engine_memory for s in alive}
    own = sum(s.memory - s.engine_memory for s in alive if s.memory is not None)
    return max(0, own + sum(engines.values()) - taken)
