"""A party's clients: who is admitted, and at the leader how much each has had.

Every compute party checks the credential of each query; the leader alone counts, since it alone
decides what runs. What a client has had stays counted when a model is shared again, and is
forgotten when the leader's process ends.
"""

from __future__ import annotations

import datetime
import hmac
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from privserve.credentials import ANONYMOUS, Entry, Limits, digest, shown
from privserve.errors import UnknownClient

MINUTE = 60.0


@dataclass
class _Usage:
    rows: int = 0
    recent: deque[tuple[float, int]] = field(default_factory=deque)
    """When rows were answered, and how many; of the last minute."""
    recent_rows: int = 0
    """The sum of `recent`, kept: a busy client has thousands of entries, and each query asks."""


NONE = _Usage()
"""Of who had nothing."""


class Accounts:
    """Who may ask a party. Thread-safe."""

    def __init__(
        self,
        now: Callable[[], float] = time.monotonic,
        today: Callable[[], datetime.date] = lambda: datetime.datetime.now(datetime.UTC).date(),
    ) -> None:
        self._now = now
        self._today = today
        self._entries: dict[str, Entry] = {}
        self._anonymous: Limits | None = None
        self._usage: dict[str, _Usage] = {}
        self._lock = threading.Lock()

    def know(self, entries: Sequence[Entry]) -> None:
        """Let these clients in, by their credentials, and no others."""
        with self._lock:
            self._entries = {entry.name: entry for entry in entries}

    def let_everybody_in(self, limits: Limits | None) -> None:
        """Let all others have this much together, without a credential; None: nothing."""
        with self._lock:
            self._anonymous = limits

    def admit(self, header: str) -> str:
        """The name of the client that sends this Authorization header; raises UnknownClient."""
        found = shown(header)
        with self._lock:
            if found is None and self._anonymous is not None:
                limits, name = self._anonymous, ANONYMOUS
            else:
                entry = self._entries.get(found[0]) if found else None
                # Compared also where there is no such client: it takes the same time.
                told = entry.digest if entry else "0" * 64
                fits = found is not None and hmac.compare_digest(digest(found[1]), told)
                if entry is None or not fits:
                    raise UnknownClient(
                        "this party does not know the client; the model owner adds one with "
                        "`python -m privserve.clients add NAME`, or serves everybody with --open"
                    )
                limits, name = entry.limits, entry.name
        if limits.is_over(self._today()):
            raise UnknownClient(f"client '{name}' was let in until {limits.expires} only")
        return name

    def refusal(self, name: str, rows: int, ahead: int = 0) -> str | None:
        """Why this client may not have this many rows now; None where it may.

        ahead: rows of its that are about to be answered.
        """
        with self._lock:
            limits = self._limits(name)
            if limits is None:
                return f"client '{name}' is not let in any more"
            usage = self._usage.get(name, NONE)
            if limits.rows_per_query is not None and rows > limits.rows_per_query:
                return f"client '{name}' may ask {limits.rows_per_query} rows per query, not {rows}"
            if limits.rows is not None and usage.rows + ahead + rows > limits.rows:
                left = max(0, limits.rows - usage.rows - ahead)
                return f"{left} of the {limits.rows} rows of client '{name}' are left, not {rows}"
            if limits.rows_per_minute is not None:
                recent = self._recent(usage) + ahead
                if recent + rows > limits.rows_per_minute:
                    return (
                        f"client '{name}' may ask {limits.rows_per_minute} rows a minute and had "
                        f"{recent}; try again {self._when(usage, rows, limits.rows_per_minute)}"
                    )
            return None

    def charge(self, name: str, rows: int) -> None:
        """Count rows that were answered."""
        with self._lock:
            usage = self._usage.setdefault(name, _Usage())
            usage.rows += rows
            usage.recent.append((self._now(), rows))
            usage.recent_rows += rows
            self._recent(usage)

    def status(self) -> dict[str, Any]:
        """By client: the rows that it had, and its limits."""
        with self._lock:
            named = {name: entry.limits for name, entry in self._entries.items()}
            if self._anonymous is not None:
                named[ANONYMOUS] = self._anonymous
            return {
                name: {"rows": self._usage.get(name, NONE).rows, "limit": limits.rows}
                for name, limits in named.items()
            }

    def _limits(self, name: str) -> Limits | None:
        if name == ANONYMOUS and name not in self._entries:
            return self._anonymous
        entry = self._entries.get(name)
        return entry.limits if entry else None

    def _recent(self, usage: _Usage) -> int:
        """Rows of the last minute; drops older ones."""
        while usage.recent and usage.recent[0][0] <= self._now() - MINUTE:
            usage.recent_rows -= usage.recent.popleft()[1]
        return usage.recent_rows

    def _when(self, usage: _Usage, rows: int, most: int) -> str:
        if rows > most:
            return "with fewer rows per query"
        left, freed = self._recent(usage) + rows - most, 0
        for at, had in usage.recent:
            freed += had
            if freed >= left:
                return f"in {max(1, round(at + MINUTE - self._now()))} s"
        return "later"
