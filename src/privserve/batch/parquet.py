"""Parquet, in and out: by pyarrow, which is the extra `privserve[parquet]`.

An input is a column of lists: nested as the input's shape says, or flat lists of as many numbers in
C order. A flat input may also be a column per feature.
"""

from __future__ import annotations

import fnmatch
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privserve.batch.sources import Rows, Shapes, file_identity
from privserve.errors import ConfigError, InputError
from privserve.files import naming, sync_directory

try:
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.parquet as pq
except ModuleNotFoundError as missing:
    raise ConfigError("Parquet needs pyarrow: pip install 'privserve[parquet]'") from missing

WRITTEN_ROWS = 65_536
"""Of a row group that is written."""
READ_ROWS = 1024
"""That are decoded at a time."""


def columns_for(
    shapes: Shapes, columns: Sequence[str], found: Sequence[str], where: str
) -> dict[str, list[str]]:
    """Return the columns that make each input of these shapes: one of lists, or one per feature.

    columns: "input=column" names an input's column; other entries are the features of a model's
    only input, in order, and may have wildcards such as "pixel*", which mean the file's order. None
    at all: columns that are called as the inputs are. found: the file's. Raises InputError.
    """
    named = dict(entry.split("=", 1) for entry in columns if "=" in entry)
    features = [entry for entry in columns if "=" not in entry]
    if features and (named or len(shapes) != 1):
        raise InputError(
            "--columns: one column per feature is for models of one input; for several write "
            f"{','.join(f'{name}=COLUMN' for name in shapes)}"
        )
    if features:
        chosen = [name for entry in features for name in _matching(entry, found, where)]
        return {next(iter(shapes)): chosen}
    if unknown := set(named) - set(shapes):
        raise InputError(f"--columns: the model has no input {min(unknown)!r}: {sorted(shapes)}")
    wanted = {name: [named.get(name, name)] for name in shapes}
    if len(shapes) == len(found) == 1 and not named:
        return {next(iter(shapes)): list(found)}
    for name, (column,) in wanted.items():
        if column not in found:
            raise InputError(
                f"{where} has no column {column!r} for input '{name}', but {_few(found)}; say "
                f"which it is with --columns {name}=COLUMN"
            )
    return wanted


def _matching(entry: str, found: Sequence[str], where: str) -> list[str]:
    """The columns that an entry means; itself, where it is one."""
    matching = [entry] if entry in found else fnmatch.filter(found, entry)
    if not matching:
        raise InputError(f"{where} has no column {entry!r}, but {_few(found)}")
    return matching


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" * (len(names) > 8))


class ParquetFile:
    """One Parquet file, decoded a few rows at a time."""

    def __init__(self, path: Path, shapes: Shapes, columns: Sequence[str]) -> None:
        """Raise ConfigError where it is no Parquet, and InputError where it does not fit."""
        self._path, self._shapes = path, shapes
        try:
            with pq.ParquetFile(path) as file:
                self._metadata, schema = file.metadata, file.schema_arrow
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"{path} is no Parquet file: {error}") from None
        self._columns = columns_for(shapes, columns, schema.names, str(path))
        for name, chosen in self._columns.items():
            _check_columns(path, schema, name, chosen, shapes[name])
        self._file: Any = None
        self._position = -1
        self._batches: Iterator[Any] = iter(())
        self._left: Any = None

    @property
    def rows(self) -> int:
        """How many there are."""
        return int(self._metadata.num_rows)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Of the file, and the columns that are read."""
        return file_identity(self._path, rows=self.rows, columns=self._columns)

    def read(self, start: int, stop: int) -> Rows:
        """Return rows; see `Source`. Quick where they follow those that were read before."""
        if start != self._position:
            self._seek(start)
        parts, missing = [], stop - start
        while missing:
            if self._left is None or not self._left.num_rows:
                self._left = next(self._batches)
            part = self._left.slice(0, missing)
            self._left = self._left.slice(part.num_rows)
            parts.append(part)
            missing -= part.num_rows
        self._position = stop
        table = pa.Table.from_batches(parts)
        return {name: self._array(table, name, start) for name in self._columns}

    def _seek(self, row: int) -> None:
        """Begin with the row group that has this row."""
        self.leave()
        self._file = pq.ParquetFile(self._path, pre_buffer=False)
        metadata, group, first = self._metadata, 0, 0
        while row - first >= metadata.row_group(group).num_rows:
            first += metadata.row_group(group).num_rows
            group += 1
        wanted = list(dict.fromkeys(c for chosen in self._columns.values() for c in chosen))
        self._batches = self._file.iter_batches(
            READ_ROWS, list(range(group, metadata.num_row_groups)), columns=wanted
        )
        skip, self._left = row - first, None
        while skip:
            self._left = next(self._batches)
            skipped = min(skip, self._left.num_rows)
            self._left = self._left.slice(skipped)
            skip -= skipped

    def _array(self, table: Any, name: str, first: int) -> NDArray[Any]:
        """An input's rows; a number that is missing is NaN."""
        columns, shape = self._columns[name], self._shapes[name]
        if not is_lists(table.schema.field(columns[0]).type):
            features = [table[column].to_numpy() for column in columns]
            return np.stack(features, axis=1).reshape(-1, *shape)
        rows = []
        for chunk in table[columns[0]].chunks:
            rows.append(_from_lists(chunk, shape, f"column {columns[0]!r} of {self._path}", first))
            first += len(chunk)
        return np.concatenate(rows)

    def where(self, row: int) -> str:
        """Name a row."""
        return f"{self._path}[{row}]"

    def leave(self) -> None:
        """Close the file, until rows are read again."""
        if self._file is not None:
            self._file.close()
        self._file, self._left, self._batches, self._position = None, None, iter(()), -1


def _check_columns(
    path: Path, schema: Any, name: str, columns: Sequence[str], shape: tuple[int, ...]
) -> None:
    """Raise InputError unless these columns may make an input of this shape."""
    types = [schema.field(column).type for column in columns]
    for column, kind in zip(columns, types, strict=True):
        if not _is_number(inner_type(kind)):
            raise InputError(f"column {column!r} of {path} holds {kind}, not numbers")
    if len(columns) == 1 and is_lists(types[0]):
        return
    if any(map(is_lists, types)):
        raise InputError(f"input '{name}' is one column of lists, or one of numbers per feature")
    if shape != (len(columns),) and not (shape == () and len(columns) == 1):
        raise InputError(
            f"{len(columns)} columns of numbers do not make input '{name}', which takes {shape} "
            "per row; give as many columns as a flat input has features, or one column of lists"
        )


def is_lists(kind: Any) -> bool:
    """Whether a column of this type holds lists."""
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def inner_type(kind: Any) -> Any:
    """What lists of lists hold in the end."""
    while is_lists(kind):
        kind = kind.value_type
    return kind


def _is_number(kind: Any) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    )


def _from_lists(lists: Any, shape: tuple[int, ...], what: str, first: int) -> NDArray[Any]:
    """The array that a column of lists is: nested as `shape` says, or flat.

    first: the number of its first row, for errors. Raises InputError where a list is missing or has
    another length.
    """
    rows, depth = len(lists), 0
    each, kind = 1, lists.type
    while is_lists(kind):
        kind, depth = kind.value_type, depth + 1
    wanted: Sequence[int] = (math.prod(shape),) if depth == 1 else shape
    if depth != len(wanted):
        raise InputError(f"{what} nests {depth} lists, and a row has the shape {shape}")
    for length in wanted:
        found = pa.compute.list_value_length(lists).fill_null(-1).to_numpy(zero_copy_only=False)
        if (wrong := np.flatnonzero(found != length)).size:
            row, had = first + int(wrong[0]) // each, int(found[wrong[0]])
            said = "no list" if had < 0 else f"a list of {had}"
            raise InputError(f"row {row} of {what} has {said}, where {length} values belong")
        each *= length
        lists = lists.flatten()
    numbers: NDArray[Any] = lists.to_numpy(zero_copy_only=False)
    return numbers.reshape(rows, *shape)


def write_parquet(path: Path, outputs: Mapping[str, NDArray[np.float32]]) -> None:
    """Write arrays with as many rows each as columns, whole or not at all.

    An output of one number per row is a column of numbers, others are lists of fixed sizes, nested
    as the output's shape says.
    """
    partial = path.with_name(path.name + ".part")
    rows = len(next(iter(outputs.values())))
    schema = pa.schema([(name, _list_type(array.shape[1:])) for name, array in outputs.items()])
    with naming(path), partial.open("wb") as file:
        with pq.ParquetWriter(file, schema) as writer:
            for start in range(0, rows, WRITTEN_ROWS):
                columns = [_lists(a[start : start + WRITTEN_ROWS]) for a in outputs.values()]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_directory(path.parent)


def _list_type(shape: tuple[int, ...]) -> Any:
    kind = pa.float32()
    for length in reversed(shape):
        kind = pa.list_(kind, length)
    return kind


def _lists(array: NDArray[np.float32]) -> Any:
    """Rows as lists of fixed sizes, nested as the shape says."""
    values = pa.array(np.ascontiguousarray(array).reshape(-1), type=pa.float32())
    for length in reversed(array.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, length)
    return values
