"""What answers are written to: one .npy file, a directory of parts, or Parquet.

Each part has a file per output, and its length is known before its first row: the file begins with
the header of the whole array, grows while rows are answered, and gets its name when it is full. So
nothing is copied in the end; Parquet alone is made of such files once all rows are there.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privserve.batch.appended import Appended, digest_of
from privserve.batch.journal import SUFFIX, Journal, PartEntry, check_same, read_journal
from privserve.batch.layout import Layout, beside, npy_header, row_bytes
from privserve.batch.lock import Lock
from privserve.errors import ConfigError
from privserve.files import sync_directory

COMMIT_SECONDS = 1.0
"""Rows are on disk this long after they were answered, at most."""
OPEN = ".open"
"""Ends the name of a file that is not full."""
BAD_ROWS = ".bad_rows.jsonl"
SPARE_BYTES = 16 << 20
"""Of disk, for the journal and the like."""


class Results:
    """The answers of a job on disk. One job at a time; a context manager."""

    def __init__(
        self, layout: Layout, facts: Mapping[str, Mapping[str, Any]], restart: bool
    ) -> None:
        """Begin, or go on where the journal says that these facts' job was left.

        restart: forget what was done. Raises ConfigError where it is another job's journal, where
        files are not as it says, or where the output is there and no journal knows it.
        """
        self.layout = layout
        layout.output.parent.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(beside(layout.output, ".lock"))
        self._parts: dict[str, Appended] = {}
        self._bad: Appended | None = None
        self._is_whole, self._new_files, self._committed = True, False, time.monotonic()
        try:
            path = beside(layout.output, SUFFIX)
            known = read_journal(path)
            if known is not None and restart:
                _forget(layout, known)
                known = None
            if known is None:
                _check_free(layout)
                known = Journal(path, json.loads(json.dumps(facts)))
                known.write()  # before there is any file that it would not know of
            check_same(known, facts)
            self.journal = known
            self._go_on()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def done(self) -> int:
        """How many rows are written; on disk once they are committed."""
        return self.journal.done if not self._parts else self._first + self._rows

    @property
    def bad_path(self) -> Path:
        """Where bad rows are listed."""
        return beside(self.layout.output, BAD_ROWS)

    def check_space(self) -> None:
        """Raise ConfigError unless the disk can hold the rows that are left."""
        layout = self.layout
        needed = (layout.rows - self.done) * row_bytes(layout.shapes) + SPARE_BYTES
        if layout.kind == "parquet":
            needed += layout.rows * row_bytes(layout.shapes)  # both are there for a moment
        free = shutil.disk_usage(layout.output.parent).free
        if free < needed:
            raise ConfigError(
                f"{layout.output} will take {needed >> 20:,} MiB more, and {free >> 20:,} are free "
                "there; make room, or name another --output"
            )

    # -- writing --------------------------------------------------------------------------

    def append(
        self,
        outputs: Mapping[str, NDArray[np.float32]],
        bad: Mapping[int, str],
        where: Callable[[int], str],
    ) -> None:
        """Write the answers to the next rows, float32 by output, and which of them are bad.

        bad: why, by number of the row; where: says where a row is. Raises ConfigError where they
        have another shape than the model's outputs had, and OSError; after that, what was committed
        counts.
        """
        if set(outputs) != set(self.layout.shapes):
            raise ConfigError(f"the model has other outputs now: {sorted(outputs)}")
        arrays = {name: np.asarray(outputs[name], "<f4") for name in self.layout.shapes}
        for name, array in arrays.items():
            if array.shape[1:] != self.layout.shapes[name]:
                raise ConfigError(f"output '{name}' has another shape now: {array.shape[1:]}")
        start, count, first = 0, len(next(iter(arrays.values()))), self.done
        self._is_whole = False
        while start < count:
            if not self._parts:
                self._open_part()
            stop = min(count, start + self.layout.part_size(self._number) - self._rows)
            for row in sorted(bad):
                if first + start <= row < first + stop:
                    self._append_bad({"row": row, "where": where(row), "why": bad[row]})
            for name, file in self._parts.items():
                rows = np.ascontiguousarray(arrays[name][start:stop])
                file.append(rows.reshape(-1).view(np.uint8).data)
            self._rows += stop - start
            start = stop
            if self._rows == self.layout.part_size(self._number):
                self._seal()
        self._is_whole = True

    def _append_bad(self, entry: Mapping[str, Any]) -> None:
        if self._bad is None:
            self._bad, self._new_files = Appended(self.bad_path), True
        self._bad.append(json.dumps(entry).encode() + b"\n")
        self.journal.bad_rows += 1

    def commit(self, *, now: bool = True) -> None:
        """Have all rows that were written counted; now=False: unless that was a moment ago.

        Does nothing after a write that failed: what was committed before counts then.
        """
        is_due = now or time.monotonic() - self._committed > COMMIT_SECONDS
        if self._is_whole and is_due:
            self._commit()

    def _commit(self) -> None:
        for file in self._parts.values():
            file.sync()
        if self._bad is not None:
            self._bad.sync()
            self.journal.bad_mark = self._bad.mark
        if self._new_files:
            for directory in {self.layout.home, self.bad_path.parent, *self._directories()}:
                sync_directory(directory)
            self._new_files = False
        if self._parts:
            self.journal.parts[self._number :] = [self._entry()]
        self.journal.write()
        self._committed = time.monotonic()

    def _entry(self) -> PartEntry:
        names = self.layout.names(self._number)
        marks = {names[name]: file.mark for name, file in self._parts.items()}
        return PartEntry(self._first, self._rows, marks)

    def _directories(self) -> set[Path]:
        names = self.layout.names(0).values()
        return {(self.layout.home / name).parent for name in names}

    def _open_part(self) -> None:
        """Begin with the part after the last one."""
        self._number = len(self.journal.parts)
        self._first, self._rows = self.journal.done, 0
        rows = self.layout.part_size(self._number)
        for name, file in self.layout.names(self._number).items():
            path = self.layout.home / (file + OPEN)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._parts[name] = Appended(path)
            self._parts[name].append(npy_header(rows, self.layout.shapes[name]))
        self._new_files = True

    def _seal(self) -> None:
        """Have a full part counted, and give its files their names."""
        self._commit()
        for file in self._parts.values():
            file.close()
        self._parts = {}
        self._name(self._number)

    def _name(self, number: int) -> None:
        """Give the files of a full part their names, where they have not got them yet."""
        for name in self.layout.names(number).values():
            path = self.layout.home / name
            opened = path.with_name(path.name + OPEN)
            if opened.exists():
                opened.replace(path)
                sync_directory(path.parent)

    def finish(self) -> None:
        """Have the output whole, once all rows are written."""
        if self.layout.kind == "parquet":
            from privserve.batch.parquet import write_parquet

            files = self.layout.names(0)
            home = self.layout.home
            arrays = {name: np.load(home / file, mmap_mode="r") for name, file in files.items()}
            write_parquet(self.layout.output, arrays)
        self.journal.finished = True
        self.commit()
        if self.layout.kind == "parquet":
            shutil.rmtree(self.layout.home, ignore_errors=True)

    # -- going on -------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Open what the journal says is begun, and check the rest."""
        journal, layout = self.journal, self.layout
        if journal.finished:
            if not layout.output.exists():
                raise ConfigError(
                    f"{journal.path} says that all rows are in {layout.output}, which is not "
                    "there; put it back, or ask for all rows anew with --restart"
                )
            return
        self._bad = self._bad_file()
        for number, part in enumerate(journal.parts):
            if set(part.files) != set(layout.names(number).values()):
                raise ConfigError(f"{journal.path} does not fit the model's outputs; use --restart")
            if part.rows == layout.part_size(number):
                self._check_whole(number, part)
            elif number == len(journal.parts) - 1:
                self._go_on_with(number, part)
            else:
                raise ConfigError(
                    f"{journal.path} is damaged; ask for all rows anew with --restart"
                )

    def _bad_file(self) -> Appended | None:
        if self.journal.bad_mark.bytes:
            return Appended(self.bad_path, self.journal.bad_mark)
        self.bad_path.unlink(missing_ok=True)  # of rows that do not count
        return None

    def _check_whole(self, number: int, part: PartEntry) -> None:
        self._name(number)
        for name, mark in part.files.items():
            digest_of(self.layout.home / name, mark)

    def _go_on_with(self, number: int, part: PartEntry) -> None:
        self._number, self._first, self._rows = number, part.first, part.rows
        for name, file in self.layout.names(number).items():
            self._parts[name] = Appended(self.layout.home / (file + OPEN), part.files[file])

    def close(self) -> None:
        """Close all files as they are; what was not committed does not count."""
        for file in (*self._parts.values(), *([self._bad] if self._bad else [])):
            file.close()
        self._lock.release()


def _check_free(layout: Layout) -> None:
    """Raise ConfigError where there is an output already that no journal knows."""
    output = layout.output
    is_taken = any(output.iterdir()) if output.is_dir() else output.exists()
    if is_taken:
        raise ConfigError(
            f"{output} is there already, without a journal; move it away, or name another --output"
        )


def _forget(layout: Layout, journal: Journal) -> None:
    """Take away what a job has written, and its journal."""
    for part in journal.parts:
        for name in part.files:
            for path in (layout.home / name, layout.home / (name + OPEN)):
                path.unlink(missing_ok=True)
    for name in layout.names(len(journal.parts)).values():
        (layout.home / (name + OPEN)).unlink(missing_ok=True)
    if layout.kind != "directory":
        layout.output.unlink(missing_ok=True)
    if layout.kind == "parquet":
        shutil.rmtree(layout.home, ignore_errors=True)
    beside(layout.output, BAD_ROWS).unlink(missing_ok=True)
    journal.path.unlink()
    if layout.kind == "directory" and layout.output.is_dir():
        for directory in layout.output.iterdir():
            if directory.is_dir() and not any(directory.iterdir()):
                directory.rmdir()
