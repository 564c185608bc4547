"""What a job has done, in a small JSON file beside its output.

The journal is replaced as a whole, after what it tells of is on disk: at any moment it says how
much of each file counts, and whatever lies behind that does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from privserve.batch.appended import NOTHING, Mark
from privserve.errors import ConfigError
from privserve.files import write_file

FORMAT = 1
SUFFIX = ".journal.json"
DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class PartEntry:
    """Some rows in a row, and the files that hold them: one for each output."""

    first: int
    rows: int
    """So far."""
    files: Mapping[str, Mark]
    """By the file's path in the output's directory."""


@dataclass
class Journal:
    """See the module."""

    path: Path
    facts: dict[str, dict[str, Any]]
    """What may not change while a job is under way: its `input`, `model` and `options`."""
    parts: list[PartEntry] = field(default_factory=list)
    """Each but the last one is whole."""
    bad_rows: int = 0
    bad_mark: Mark = NOTHING
    """Of the file with the bad rows."""
    sessions: list[str] = field(default_factory=list)
    """What the sharings of which rows were asked are told by, or, of an older version, sessions."""
    finished: bool = False

    @property
    def done(self) -> int:
        """How many rows are on disk, bad ones included."""
        return self.parts[-1].first + self.parts[-1].rows if self.parts else 0

    def write(self) -> None:
        """Replace the file, durably."""
        fields = {"format": FORMAT, "rows_done": self.done, **asdict(self)}
        del fields["path"]
        write_file(self.path, json.dumps(fields, indent=1).encode() + b"\n", durable=True)


def read_journal(path: Path) -> Journal | None:
    """Return the journal of a job, None where there is none; ConfigError for another file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return _parse(path, json.loads(content))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(
            f"{path} is no journal of this version; move it and what it belongs to away"
        ) from None


def _parse(path: Path, fields: Any) -> Journal:
    if fields["format"] != FORMAT:
        raise ValueError
    parts = [
        PartEntry(
            _count(part["first"]),
            _count(part["rows"]),
            {_inside(name): _mark(mark) for name, mark in part["files"].items()},
        )
        for part in fields["parts"]
    ]
    expected = 0
    for part in parts:
        if part.first != expected:
            raise ValueError
        expected += part.rows
    return Journal(
        path,
        {key: dict(fields["facts"][key]) for key in ("input", "model", "options")},
        parts,
        _count(fields["bad_rows"]),
        _mark(fields["bad_mark"]),
        [str(session) for session in fields["sessions"]],
        bool(fields["finished"]),
    )


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


def _mark(fields: Any) -> Mark:
    if not DIGEST.fullmatch(fields["sha256"]):
        raise ValueError
    return Mark(_count(fields["bytes"]), fields["sha256"])


def _inside(name: str) -> str:
    """A file's path that does not lead out of its directory."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError
    return name


def check_same(journal: Journal, facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ConfigError, saying what differs, unless the journal is of the job with these facts."""
    now = json.loads(json.dumps(facts))  # tuples are lists there
    for what in ("input", "model", "options"):
        before, wanted = journal.facts[what], now[what]
        changed = [key for key in wanted if before.get(key) != wanted[key]]
        changed += [key for key in before if key not in wanted]
        if changed:
            said = "; ".join(f"{k}: {before.get(k)!r} then, {wanted.get(k)!r} now" for k in changed)
            raise ConfigError(
                f"{journal.path} was begun with {_OTHER[what]} ({said}): its rows cannot be mixed "
                "with these. Name another --output, or ask for all rows anew with --restart"
            )


_OTHER = {"input": "another input", "model": "another model", "options": "other options"}
