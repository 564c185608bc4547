"""Which source a path is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from privserve.batch.sources import Concatenated, NpyFile, NpzFile, Shapes, Source
from privserve.errors import ConfigError, InputError

SUFFIXES = (".npy", ".parquet")
"""Files that a directory of rows may hold."""


def open_source(path: Path, shapes: Shapes, columns: Sequence[str] = ()) -> Source:
    """Return the rows at `path` for a model with inputs of these shapes.

    columns: of Parquet; see `parquet.columns_for`. Raises ConfigError for what cannot be read, and
    InputError for what the model does not take.
    """
    if not path.exists():
        raise ConfigError(f"there is no {path}; name a .npy, .npz or .parquet file or a directory")
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if len({file.suffix for file in files}) != 1:
            found = "both .npy and .parquet files" if files else "no .npy and no .parquet file"
            raise ConfigError(f"{path} holds {found}; it has to hold files of one kind")
        return Concatenated(path, [_open_file(file, shapes, columns) for file in files])
    source = _open_file(path, shapes, columns)
    if not source.rows:
        raise InputError(f"{path} holds no rows")
    return source


def _open_file(path: Path, shapes: Shapes, columns: Sequence[str]) -> Source:
    if path.suffix == ".parquet":
        # Only where it is needed: an extra, and slow to load.
        from privserve.batch.parquet import ParquetFile

        return ParquetFile(path, shapes, columns)
    if columns:
        raise ConfigError(f"--columns is for Parquet, and {path} is none")
    if path.suffix == ".npz":
        return NpzFile(path, shapes)
    if path.suffix == ".npy":
        return NpyFile(path, shapes)
    raise ConfigError(f"{path} is no .npy, .npz or .parquet file and no directory of such")
