"""What rows are read from, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from privserve.batch.opening import open_source
from privserve.errors import ConfigError, InputError

X = np.arange(60, dtype=np.float32).reshape(10, 2, 3)
SHAPES = {"x": (2, 3)}
TWO = {"a": (3,), "b": ()}


def test_an_array_is_read_in_pieces_and_each_row_has_a_name(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", X)
    source = open_source(tmp_path / "rows.npy", SHAPES)
    assert source.rows == 10
    assert (source.read(3, 7)["x"] == X[3:7]).all()
    assert source.where(4) == f"{tmp_path}/rows.npy[4]"


def test_an_array_in_fortrans_order_is_the_same(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.asfortranarray(X))
    source = open_source(tmp_path / "rows.npy", SHAPES)
    assert (source.read(0, 10)["x"] == X).all()


def test_a_directory_is_read_in_the_order_of_names_across_files_and_single_rows(
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "b.npy", X[4:9])
    np.save(tmp_path / "a.npy", X[:4])
    np.save(tmp_path / "c.npy", X[9])
    (tmp_path / "notes.txt").write_text("not rows")
    source = open_source(tmp_path, SHAPES)
    assert source.rows == 10
    assert (source.read(0, 10)["x"] == X).all()
    assert (source.read(2, 6)["x"] == X[2:6]).all()
    assert (source.read(1, 3)["x"] == X[1:3]).all()
    assert source.where(5) == f"{tmp_path}/b.npy[1] (row 5 in all)"
    assert source.where(9) == f"{tmp_path}/c.npy[0] (row 9 in all)"


def test_an_npz_file_has_an_array_for_each_input(tmp_path: Path) -> None:
    arrays = {"b": np.arange(5.0), "a": np.ones((5, 3))}
    np.savez(tmp_path / "rows.npz", **arrays)
    source = open_source(tmp_path / "rows.npz", TWO)
    assert source.rows == 5
    rows = source.read(1, 3)
    assert (rows["b"] == [1, 2]).all()
    assert rows["a"].shape == (2, 3)


def cut_off(path: Path) -> None:
    np.save(path, X)
    os.truncate(path, path.stat().st_size - 1)


BAD: dict[str, tuple[str, Callable[[Path], object], type[Exception], str]] = {
    "missing": ("rows.npy", lambda p: None, ConfigError, "there is no"),
    "text": ("rows.npy", lambda p: p.write_text("1 2 3"), ConfigError, "no .npy array"),
    "cut off": ("rows.npy", cut_off, ConfigError, "cut off"),
    "pickled": (
        "rows.npy",
        lambda p: np.save(p, np.array([{}], dtype=object), allow_pickle=True),
        InputError,
        "real numbers",
    ),
    "text in an array": ("rows.npy", lambda p: np.save(p, ["a"]), InputError, "real numbers"),
    "another shape": ("rows.npy", lambda p: np.save(p, X[..., None]), InputError, "(B, 2, 3)"),
    "no rows": ("rows.npy", lambda p: np.save(p, X[:0]), InputError, "no rows"),
    "another kind": ("rows.csv", lambda p: p.write_text("1,2"), ConfigError, "no .npy, .npz"),
    "no archive": ("rows.npz", lambda p: p.write_text("PK"), ConfigError, "no .npz file"),
    "another input": ("rows.npz", lambda p: np.savez(p, y=X), InputError, "takes ['x']"),
    "an empty directory": ("rows", lambda p: p.mkdir(), ConfigError, "holds no .npy"),
}


@pytest.mark.parametrize(("name", "write", "error", "words"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused_with_the_cause(
    tmp_path: Path, name: str, write: Callable[[Path], object], error: type[Exception], words: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(error) as caught:
        open_source(tmp_path / name, SHAPES)
    assert words in str(caught.value)
    assert name in str(caught.value)


def test_one_array_for_two_inputs_says_what_to_give(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", X)
    with pytest.raises(InputError, match="npz file with an array for each"):
        open_source(tmp_path / "rows.npy", TWO)


def test_inputs_with_different_numbers_of_rows_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", a=np.ones((5, 3)), b=np.ones(4))
    with pytest.raises(InputError, match="same number of rows"):
        open_source(tmp_path / "rows.npz", TWO)


def change_in_place(path: Path) -> None:
    before = path.stat()
    np.save(path, X + 1)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "other values of the same time": change_in_place,
    "more rows": lambda p: np.save(p, np.concatenate([X, X])),
    "another time": lambda p: os.utime(p, ns=(1, 1)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("in_directory", [False, True], ids=["file", "directory"])
def test_an_input_that_changed_has_another_identity(
    tmp_path: Path, change: Callable[[Path], object], in_directory: bool
) -> None:
    home = tmp_path / "rows"
    home.mkdir()
    np.save(home / "rows.npy", X)
    path = home if in_directory else home / "rows.npy"
    before = open_source(path, SHAPES).identity
    assert open_source(path, SHAPES).identity == before
    change(home / "rows.npy")
    assert open_source(path, SHAPES).identity != before
