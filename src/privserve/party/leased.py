"""A part of a limit, as the leader of one cell has it: the rest is in others, or with the owner."""

from __future__ import annotations

import time
from dataclasses import dataclass

LEASE_SECONDS = 3.0
"""For this long a query waits for the owner's program to lease this cell more rows."""
USED_UP = (
    "this cell's part of the limit is used up, and the model owner's program gives it no more now; "
    "ask another cell, or again in a while"
)


@dataclass
class Lease:
    """A part of a limit, which the owner's program makes larger when it is used up."""

    name: str = ""
    """By which the owner's program knows it; empty where the whole limit is this cell's."""
    is_open: bool = False
    """Whether there may be more."""
    number: int = 0
    """Of the last call that said how many rows it has."""
    short: int = 0
    """How many rows the first query lacks that waits for more; 0: none waits."""
    since: float | None = None
    """For how long one has waited, and nothing else ran."""

    def lacks(self, rows: int) -> bool:
        """Note that a query lacks this many rows; whether it has waited for long enough."""
        self.short = self.short or rows
        self.since = self.since or time.monotonic()
        return time.monotonic() - self.since > LEASE_SECONDS

    def patience(self) -> float | None:
        """Seconds until a query has waited for long enough; None: none waits."""
        if self.since is None:
            return None
        return max(0.01, self.since + LEASE_SECONDS - time.monotonic())
