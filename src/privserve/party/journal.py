"""The leader's journal: what was answered, written down before an answer leaves.

A line is one JSON record and an HMAC of it and of the line before, in the order in which they were
written. What it tells of is no secret, but nobody without the key can change it. Each append is
one write and one fdatasync, so that after a crash at most the last line is torn: its answers had
not left, and it counts for nothing. A line that is whole counts, whether its answers left or not.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privserve.errors import CannotCount, ConfigError
from privserve.files import write_file

MAC_DIGITS = 64
COMPACT_BYTES = 4 << 20
"""A journal that is longer is written anew, as what it comes to."""
MINUTE = 60.0


@dataclass
class Served:
    """What became of the last `serve` of a session."""

    limit: int | None = None
    owner_seconds: float | None = None
    answered: int = 0
    lease: str = ""
    leased: bool = False
    """Whether there may be more rows than `limit` says; see `LeaderQueue.extend`."""
    refusal: list[Any] | None = None
    """Code, status and reason of what later queries are told; None while it is served."""


@dataclass
class Totals:
    """What a journal comes to."""

    sessions: dict[str, Served] = field(default_factory=dict)
    rows: Counter[str] = field(default_factory=Counter)
    """By what usage is counted under (see `accounts`): rows that were answered."""
    recent: list[tuple[float, str, int]] = field(default_factory=list)
    """When, by the wall clock, who had how many rows; of the last minute."""

    def take(self, record: Mapping[str, Any]) -> None:
        """Count one record; raises KeyError, TypeError, ValueError for what is none."""
        kind, session = record["kind"], str(record.get("session", ""))
        if kind == "all":
            self._take_all(record)
        elif kind == "serve":
            self.sessions[session] = Served(
                record["limit"],
                record["owner_seconds"],
                lease=record.get("lease", ""),
                leased=bool(record.get("lease")),
            )
        elif kind == "extend":
            served = self.sessions[session]
            served.limit, served.leased, served.refusal = record["limit"], record["leased"], None
        elif kind == "over":
            self.sessions[session].refusal = record["refusal"]
        elif kind == "rows":
            for key, rows in record["rows"].items():
                self.rows[key] += rows
                self.recent.append((record["at"], key, rows))
            if session in self.sessions:
                self.sessions[session].answered += sum(record["rows"].values())
            self.recent = [one for one in self.recent if one[0] > record["at"] - MINUTE]
        elif kind == "gone":
            self.sessions.pop(session, None)
        else:
            raise ValueError(kind)

    def _take_all(self, record: Mapping[str, Any]) -> None:
        self.sessions = {key: Served(**fields) for key, fields in record["sessions"].items()}
        self.rows = Counter(record["rows"])
        self.recent = [(at, key, rows) for at, key, rows in record["recent"]]

    def record(self) -> dict[str, Any]:
        """Return one record that comes to the same."""
        return {
            "kind": "all",
            "sessions": {key: vars(served) for key, served in self.sessions.items()},
            "rows": dict(self.rows),
            "recent": self.recent,
        }


class AnsweredJournal:
    """A journal that is open; one process at a time. Thread-safe."""

    def __init__(self, path: Path, key: bytes, party: str = "this party") -> None:
        """Read what is there; raises ConfigError for what was changed, or another key.

        party: whose it is, for who reads that it cannot be written.
        """
        self._path, self._key, self._party = path, key, party
        self._lock = threading.Lock()
        self.totals, self._last = read(path, key)
        self._file = -1
        self._is_torn = False
        """Whether half a line may be at its end."""
        self._compact()

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record down, durably; raises CannotCount where that fails."""
        with self._lock:
            line, last = sealed_line(record, self._key, self._last)
            try:
                self._take_back()
                self._is_torn = True
                _write_all(self._file, line)
                os.fdatasync(self._file)
            except OSError as error:
                with contextlib.suppress(OSError):  # else before the next one
                    self._take_back()
                raise CannotCount(
                    f"{self._party} cannot write down what it answers ({error.strerror}: see to "
                    "the disk of its --state-dir), and answers nothing that is not counted"
                ) from None
            self._is_torn = False
            self._last = last
            self.totals.take(record)
            self._length += len(line)
            if self._length > COMPACT_BYTES:
                with contextlib.suppress(OSError):  # it is whole, and only long
                    self._compact()

    def _take_back(self) -> None:
        """Cut off half a line, after which no other one would count."""
        if self._is_torn:
            os.ftruncate(self._file, self._length)
            self._is_torn = False

    def _compact(self) -> None:
        """Begin anew with one line that comes to the same."""
        line, last = sealed_line(self.totals.record(), self._key, "")
        write_file(self._path, line, secret=True, durable=True)
        self._last, self._length = last, len(line)
        before, self._file = self._file, -1  # it has no name any more: nothing may go there
        if before >= 0:
            os.close(before)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1


class Book:
    """The journal as the queue of one session sees it."""

    def __init__(
        self, journal: AnsweredJournal, session: str, key_of: Callable[[str], str]
    ) -> None:
        """key_of: what a client's usage is counted under."""
        self._journal, self._session, self._key_of = journal, session, key_of

    def served(self) -> Served | None:
        """Return what became of the session before this process began; None: nothing."""
        return self._journal.totals.sessions.get(self._session)

    def begin(self, limit: int | None, owner_seconds: float | None, lease: str = "") -> None:
        """Note that the session is served."""
        self._append("serve", limit=limit, owner_seconds=owner_seconds, lease=lease)

    def extend(self, limit: int, leased: bool) -> None:
        """Note that it answers this many rows since it is served."""
        self._append("extend", limit=limit, leased=leased)

    def end(self, code: str, status: int, reason: str) -> None:
        """Note that it is not served any more, and what later queries are told."""
        if self.served() is not None:
            self._append("over", refusal=[code, status, reason])

    def settle(self, rows: Mapping[str, int]) -> None:
        """Note how many rows each client is answered now, before it is."""
        by_key: Counter[str] = Counter()
        for client, count in rows.items():
            by_key[self._key_of(client)] += count
        if by_key:
            self._append("rows", rows=dict(by_key), at=time.time())

    def _append(self, kind: str, **fields: Any) -> None:
        self._journal.append({"kind": kind, "session": self._session, **fields})


def sealed_line(record: Mapping[str, Any], key: bytes, last: str) -> tuple[bytes, str]:
    """Return the line of a record, and its HMAC; last: of the line before."""
    text = json.dumps(record, separators=(",", ":"))
    mac = _mac(text, key, last)
    return f"{mac} {text}\n".encode(), mac


def _mac(text: str, key: bytes, last: str) -> str:
    return hmac.new(key, f"{last}\n{text}".encode(), hashlib.sha256).hexdigest()


def read(path: Path, key: bytes) -> tuple[Totals, str]:
    """Return what a journal comes to, and the HMAC of its last line that counts.

    A last line that is torn counts for nothing. Raises ConfigError for anything else that is not
    as it was written.
    """
    totals, last = Totals(), ""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return totals, last
    for number, line in enumerate(lines):
        is_end = number >= len(lines) - 2 and not lines[-1].strip(b"\0")
        is_torn = number == len(lines) - 1 or is_end
        try:
            mac, text = line[:MAC_DIGITS].decode(), line[MAC_DIGITS + 1 :].decode()
            if not hmac.compare_digest(mac, _mac(text, key, last)):
                raise ValueError
            totals.take(json.loads(text))
        except (ValueError, KeyError, TypeError):
            if is_torn and number:
                break
            raise ConfigError(
                f"the journal {path} is not as this party wrote it (line {number + 1}), or the key "
                "is another one. It was left as it is: how much was answered is not known without "
                "it. Start the party with the right key; or move it away, and counts begin anew"
            ) from None
        last = mac
    return totals, last


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
