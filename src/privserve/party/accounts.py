"""A party's clients: who is admitted, and at the leader how much each has had.

Every compute party checks the credential of each query; the leader alone counts, since it alone
decides what runs. What a client has had, of all models together, stays counted when a model is
shared again; when the leader's process ends it is forgotten, unless there is a journal (`journal`).
Those who are no clients are let in for each model by itself, and counted for each name of a model.
"""

from __future__ import annotations

import datetime
import hmac
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from privserve.credentials import ANONYMOUS, Entry, Limits, digest, shown
from privserve.errors import QueryError, UnknownClient

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
        self._usage: dict[str, _Usage] = {}
        self._lock = threading.Lock()

    def restore(self, rows: Mapping[str, int], recent: Sequence[tuple[float, str, int]]) -> None:
        """Take over what was counted before this process began.

        recent: when rows were answered, in seconds before now; by whom, and how many.
        """
        with self._lock:
            self._usage = {key: _Usage(had) for key, had in rows.items()}
            for ago, key, had in sorted(recent, reverse=True):
                usage = self._usage.setdefault(key, _Usage())
                usage.recent.append((self._now() - ago, had))
                usage.recent_rows += had

    def know(self, entries: Sequence[Entry]) -> None:
        """Let these clients in, by their credentials, and no others."""
        with self._lock:
            self._entries = {entry.name: entry for entry in entries}

    def of_model(self, model: str, everybody: Limits | None = None) -> Counted:
        """What concerns one session of a model. everybody: see `SessionSpec`."""
        return Counted(self, model, everybody)

    def admit(self, header: str, model: str, everybody: Limits | None) -> str:
        """See `Counted.admit`."""
        found = shown(header)
        with self._lock:
            if found is None and everybody is not None:
                limits, name = everybody, ANONYMOUS
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
        if not limits.may_ask(model):
            raise QueryError(_not_among(name, model, limits), 403)
        return name

    def refusal(
        self, name: str, rows: int, ahead: int, model: str, everybody: Limits | None
    ) -> str | None:
        """See `Counted.refusal`."""
        with self._lock:
            is_known = name in self._entries
            limits = self._entries[name].limits if is_known else everybody
            if limits is None or not (is_known or name == ANONYMOUS):
                return f"client '{name}' is not let in any more"
            if not limits.may_ask(model):
                return _not_among(name, model, limits)
            usage = self._usage.get(_key(name, model), NONE)
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

    def charge(self, name: str, rows: int, model: str) -> None:
        """Count rows that were answered."""
        with self._lock:
            usage = self._usage.setdefault(_key(name, model), _Usage())
            usage.rows += rows
            usage.recent.append((self._now(), rows))
            usage.recent_rows += rows
            self._recent(usage)

    def status(self) -> dict[str, Any]:
        """By client: the rows that it had, and its limit."""
        with self._lock:
            return {
                name: {"rows": self._had(name), "limit": entry.limits.rows}
                for name, entry in self._entries.items()
            }

    def anonymous(self, model: str, everybody: Limits) -> dict[str, Any]:
        """The rows that those had of a model who are no clients, and their limit."""
        with self._lock:
            return {"rows": self._had(_key(ANONYMOUS, model)), "limit": everybody.rows}

    def _had(self, key: str) -> int:
        return self._usage.get(key, NONE).rows

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


@dataclass(frozen=True)
class Counted:
    """The accounts as one session of a model sees them. Thread-safe."""

    _accounts: Accounts
    _model: str
    _everybody: Limits | None

    def admit(self, header: str) -> str:
        """The name of the client that sends this Authorization header.

        Raises UnknownClient, and QueryError (403) for a client that may not ask this model.
        """
        return self._accounts.admit(header, self._model, self._everybody)

    def refusal(self, name: str, rows: int, ahead: int = 0) -> str | None:
        """Why this client may not have this many rows now; None where it may.

        ahead: rows of its that are about to be answered.
        """
        return self._accounts.refusal(name, rows, ahead, self._model, self._everybody)

    def charge(self, name: str, rows: int) -> None:
        """Count rows that were answered."""
        self._accounts.charge(name, rows, self._model)

    def key(self, name: str) -> str:
        """What a client's rows are counted under."""
        return _key(name, self._model)

    def anonymous(self) -> dict[str, Any] | None:
        """What those had who are no clients; None where they are not let in."""
        if self._everybody is None:
            return None
        return self._accounts.anonymous(self._model, self._everybody)


def _key(name: str, model: str) -> str:
    """What usage is counted under: a client's name, or all others of one model."""
    return f"{ANONYMOUS} {model}" if name == ANONYMOUS else name


def _not_among(name: str, model: str, limits: Limits) -> str:
    may = ", ".join(f"'{one}'" for one in limits.models or ())
    return f"client '{name}' may ask {may}, and not '{model}'; ask the model owner to let it"
