"""A party's state at rest: its sessions with their shares, and its clients, sealed with a key.

DIR/<cluster>/<party>/ID.session    a session; one file each
                      index         which session has which model's name
                      clients       who may ask
                      answered.journal    at the leader, see `journal`
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from privserve import oip
from privserve.credentials import Entry, checked_limits, read_entries
from privserve.description import read_description
from privserve.engines import read_options
from privserve.errors import ConfigError, PrivserveError, QueryError
from privserve.files import sync_directory
from privserve.party.journal import AnsweredJournal
from privserve.party.sealed import derived_key, read_sealed, write_sealed
from privserve.party.session_spec import SessionSpec

SUFFIX = ".session"
LENGTH = struct.Struct("<Q")


class Keep:
    """What a party has on disk; one process at a time. Thread-safe but for one session's file."""

    def __init__(
        self, directory: Path, cluster: str, party: str, key: bytes, *, leads: bool
    ) -> None:
        """Raises ConfigError where it cannot be used: another process, another key, damage."""
        self._about = (cluster, party)
        self._key = derived_key(key, cluster, party, "state")
        self.home = directory / cluster / party
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"--state-dir: {self.home}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ConfigError(
                f"{self.home} is in use by another process: {party} runs already with this "
                "--state-dir"
            ) from None
        try:
            self.journal: AnsweredJournal | None = None
            if leads:
                journal = self.home / "answered.journal"
                sealing = derived_key(key, cluster, party, "journal")
                self.journal = AnsweredJournal(journal, sealing, party)
            self._index: dict[str, str] = self._read_json("index", {})
        except BaseException:
            self.close()
            raise

    # -- sessions -------------------------------------------------------------------------

    def save(self, spec: SessionSpec) -> None:
        """Keep a session, durably."""
        message = {
            "session": spec.id,
            "model": spec.model,
            "engine": spec.engine,
            "description": spec.description,
            "options": spec.options,
            "everybody": None if spec.everybody is None else asdict(spec.everybody),
        }
        parts, headers = oip.format_message(message, spec.shares, "inputs")
        length = LENGTH.pack(int(headers[oip.HEADER_LENGTH]))
        about = (*self._about, spec.id, "session")
        with self._writing():
            write_sealed(self._path(spec.id), self._key, about, [length, *parts])

    def forget(self, session: str) -> None:
        """Keep a session no more, nor what it has answered."""
        self.drop(session)
        if self.journal is not None and session in self.journal.totals.sessions:
            self.journal.append({"kind": "gone", "session": session})

    def drop(self, session: str) -> None:
        """Keep no share of a session any more: it would not be asked again after a restart."""
        with self._writing():
            self._path(session).unlink(missing_ok=True)
            sync_directory(self.home)

    def name(self, model: str, session: str) -> None:
        """Note that this session has a model's name from now on."""
        known = {n: s for n, s in self._index.items() if self._path(s).exists()}
        self._index = {**known, model: session}
        self._write_json("index", self._index)

    def sessions(self) -> list[tuple[SessionSpec, bool]]:
        """Return what is kept, and of each session whether it has its model's name.

        Raises ConfigError for a file that cannot be read.
        """
        paths = sorted(self.home.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime_ns)
        specs = [self._read(path) for path in paths]
        return [(spec, self._index.get(spec.model) == spec.id) for spec in specs]

    def _read(self, path: Path) -> SessionSpec:
        session = path.name.removesuffix(SUFFIX)
        content = read_sealed(path, self._key, (*self._about, session, "session"))
        (length,) = LENGTH.unpack(content[: LENGTH.size])
        del content[: LENGTH.size]
        try:
            message, shares = oip.parse_message(content, str(length), "inputs")
            everybody = message["everybody"]
            return SessionSpec(
                id=message["session"],
                model=message["model"],
                engine=message["engine"],
                description=read_description(message["description"]),
                shares=shares,
                options=read_options(message["options"]),
                everybody=None if everybody is None else checked_limits(everybody, 0),
            )
        except (PrivserveError, KeyError) as error:
            raise ConfigError(
                f"{path} was written by another version of privserve ({error}): move it away, and "
                "have the model owner share the model again"
            ) from None

    def _path(self, session: str) -> Path:
        return self.home / f"{session}{SUFFIX}"

    # -- clients --------------------------------------------------------------------------

    def know(self, entries: Sequence[Entry]) -> None:
        """Keep who may ask, by their credentials' digests."""
        told = [{"name": e.name, "digest": e.digest, **asdict(e.limits)} for e in entries]
        self._write_json("clients", told)

    def clients(self) -> list[Entry]:
        """Return who may ask."""
        return read_entries(self._read_json("clients", []))

    # -- small files ----------------------------------------------------------------------

    def _write_json(self, kind: str, value: Any) -> None:
        content = json.dumps(value).encode()
        with self._writing():
            write_sealed(self.home / kind, self._key, (*self._about, "", kind), [content])

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raise QueryError where the disk does not take what is written in the block."""
        try:
            yield
        except OSError as error:
            raise QueryError(
                f"{self._about[1]} cannot keep its state in {self.home} ({error.strerror}); see to "
                "the disk, or start the party without a key for its state"
            ) from None

    def _read_json(self, kind: str, default: Any) -> Any:
        path = self.home / kind
        if not path.exists():
            return default
        return json.loads(bytes(read_sealed(path, self._key, (*self._about, "", kind))))

    def close(self) -> None:
        """Let another process have it."""
        if self.journal is not None:
            self.journal.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
