"""What rows are read from: a .npy file, an .npz file, a directory, Parquet.

A source is read from front to back, a few rows at a time. Its `identity` is what a journal
remembers of it, so that a job is not continued with other rows.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from privserve.errors import ConfigError, InputError
from privserve.inputs import batched

Rows = dict[str, NDArray[Any]]
"""By input: some rows, batch axis first."""
Shapes = Mapping[str, tuple[int, ...]]
"""By input of the model: its shape without the batch axis."""

HEAD_BYTES = 1 << 20
"""Of a file, that its identity's digest covers."""


class Source(Protocol):
    """Rows that can be read again."""

    @property
    def rows(self) -> int:
        """How many there are."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What says that these are the same rows as before; JSON."""

    def read(self, start: int, stop: int) -> Rows:
        """Return the rows from `start` to before `stop`, by input; raises InputError."""

    def where(self, row: int) -> str:
        """Say where a row comes from, for people."""

    def leave(self) -> None:
        """Hold no file open, until rows are read again."""


def file_identity(path: Path, **facts: Any) -> dict[str, Any]:
    """Return what tells a file from others and from what it was before."""
    found = path.stat()
    with path.open("rb") as file:
        head = hashlib.sha256(file.read(HEAD_BYTES)).hexdigest()
    return {
        "path": str(path.resolve()),
        "bytes": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "head_sha256": head,
        **facts,
    }


class NpyFile:
    """One array for a model of one input, read by memory map."""

    def __init__(self, path: Path, shapes: Shapes) -> None:
        """Raise ConfigError where it is no array, and InputError where the model takes another."""
        if len(shapes) != 1:
            raise InputError(
                f"the model takes the inputs {sorted(shapes)}; give an .npz file with an array for "
                "each, or Parquet with a column for each"
            )
        ((self._name, shape),) = shapes.items()
        self._path = path
        try:
            with path.open("rb") as file:
                found, self._dtype, fortran = _header(file)
                self._offset = file.tell()
        except (ValueError, EOFError, SyntaxError) as error:
            raise ConfigError(f"{path} is no .npy array: {error}") from None
        check_array(f"{path}", self._name, found, self._dtype, shape)
        # A single sample is a batch of one.
        self._shape = found if len(found) > len(shape) else (1, *found)
        self._order: Literal["F", "C"] = "F" if fortran else "C"
        size = self._offset + int(np.prod(self._shape, dtype=np.int64)) * self._dtype.itemsize
        if path.stat().st_size < size:
            raise ConfigError(f"{path} is cut off: it has {path.stat().st_size} bytes of {size}")
        self._map: NDArray[Any] | None = None

    @property
    def rows(self) -> int:
        """How many there are."""
        return self._shape[0]

    @property
    def identity(self) -> Mapping[str, Any]:
        """Of the file."""
        return file_identity(self._path, shape=list(self._shape), dtype=self._dtype.str)

    def read(self, start: int, stop: int) -> Rows:
        """Return rows; see `Source`."""
        if self._map is None:
            self._map = np.memmap(
                self._path, self._dtype, "r", self._offset, self._shape, self._order
            )
        return {self._name: np.array(self._map[start:stop])}

    def where(self, row: int) -> str:
        """Name a row."""
        return f"{self._path}[{row}]"

    def leave(self) -> None:
        """Give the map up, until rows are read again."""
        self._map = None


def _header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """The shape and dtype of an .npy file, and whether it is in Fortran's order."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
        version, np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(file)
    return tuple(shape), dtype, bool(fortran)


def check_array(
    where: str, name: str, found: tuple[int, ...], dtype: np.dtype[Any], shape: tuple[int, ...]
) -> None:
    """Raise InputError unless these are real numbers, and rows or one row of input `name`."""
    if dtype.kind not in "fiub":
        raise InputError(f"{where} holds {dtype}, and input '{name}' takes real numbers")
    if found[1:] != shape and found != shape:
        raise InputError(
            f"{where} has the shape {found}, and input '{name}' takes {batched(shape)}; reshape it"
        )


class NpzFile:
    """An array for each input. It is read whole: for what fits into memory."""

    def __init__(self, path: Path, shapes: Shapes) -> None:
        """Raise ConfigError where it is no archive, and InputError where it does not fit."""
        self._path = path
        try:
            with np.load(path, allow_pickle=False) as archive:
                names = archive.files
                self._arrays = {name: np.asarray(archive[name]) for name in names if name in shapes}
        except (ValueError, EOFError, AttributeError, BadZipFile) as error:
            raise ConfigError(f"{path} is no .npz file of arrays: {error}") from None
        if set(names) != set(shapes):
            raise InputError(
                f"{path} holds the arrays {sorted(names)}, and the model takes {sorted(shapes)}"
            )
        for name, array in self._arrays.items():
            check_array(f"'{name}' of {path}", name, array.shape, array.dtype, shapes[name])
            if array.shape == shapes[name]:
                self._arrays[name] = array[None]
        counts = {name: len(array) for name, array in self._arrays.items()}
        if len(set(counts.values())) != 1:
            raise InputError(f"the arrays of {path} need the same number of rows, not {counts}")

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(next(iter(self._arrays.values())))

    @property
    def identity(self) -> Mapping[str, Any]:
        """Of the file."""
        return file_identity(self._path, rows=self.rows)

    def read(self, start: int, stop: int) -> Rows:
        """Return rows; see `Source`."""
        return {name: array[start:stop] for name, array in self._arrays.items()}

    def where(self, row: int) -> str:
        """Name a row."""
        return f"{self._path}[{row}]"

    def leave(self) -> None:
        """Do nothing: it was read whole."""


class Concatenated:
    """The files of a directory, one after the other in the order of their names."""

    def __init__(self, path: Path, sources: Sequence[Source]) -> None:
        """Raise InputError where there are no rows in any."""
        self._path, self._sources = path, sources
        self._ends = list(itertools.accumulate(source.rows for source in sources))
        self._last: Source | None = None
        if not self.rows:
            raise InputError(f"the files in {path} hold no rows")

    @property
    def rows(self) -> int:
        """How many there are."""
        return self._ends[-1]

    @property
    def identity(self) -> Mapping[str, Any]:
        """Of all the files together."""
        files = [source.identity for source in self._sources]
        listed = json.dumps(files, sort_keys=True).encode()
        return {
            "path": str(self._path.resolve()),
            "files": len(files),
            "bytes": sum(facts["bytes"] for facts in files),
            "rows": self.rows,
            "files_sha256": hashlib.sha256(listed).hexdigest(),
        }

    def read(self, start: int, stop: int) -> Rows:
        """Return rows, of several files where need be; see `Source`."""
        parts = []
        while start < stop:
            number = bisect.bisect_right(self._ends, start)
            source, first = self._sources[number], self._first(number)
            if self._last is not None and self._last is not source:
                self._last.leave()  # or a directory of many files would need as many descriptors
            self._last = source
            end = min(stop, self._ends[number])
            parts.append(source.read(start - first, end - first))
            start = end
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _first(self, number: int) -> int:
        return self._ends[number - 1] if number else 0

    def where(self, row: int) -> str:
        """Name a row and its file."""
        number = bisect.bisect_right(self._ends, row)
        return f"{self._sources[number].where(row - self._first(number))} (row {row} in all)"

    def leave(self) -> None:
        """Hold no file open."""
        if self._last is not None:
            self._last.leave()
