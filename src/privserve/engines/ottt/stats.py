"""What a compute party counts."""

from __future__ import annotations

from dataclasses import dataclass

from privserve.engines import RunStats


@dataclass
class Stats(RunStats):
    """What a party counted since its session began; times in seconds."""

    packs_used: int = 0
    packs_waited_for: int = 0
    run_seconds: float = 0.0
    """In `run`, exchanges and waiting included."""
