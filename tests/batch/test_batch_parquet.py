"""Parquet, read and written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from privserve.batch.opening import open_source
from privserve.batch.parquet import write_parquet
from privserve.errors import ConfigError, InputError

X = np.arange(3000 * 6, dtype=np.float32).reshape(3000, 2, 3)


def save(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path, row_group_size=700)
    return path


def fixed(array: np.ndarray) -> pa.Array:
    values = pa.array(array.reshape(-1))
    for length in reversed(array.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, length)
    return values


COLUMNS = {
    "nested lists": pa.array(X.tolist()),
    "nested lists of fixed sizes": fixed(X),
    "flat lists": pa.array(X.reshape(3000, 6).tolist()),
    "flat lists of whole numbers": pa.array(X.reshape(3000, 6).astype(int).tolist()),
}


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_lists_are_rows_from_any_row_on(tmp_path: Path, column: pa.Array) -> None:
    path = save(tmp_path / "rows.parquet", pa.table({"id": list(range(3000)), "x": column}))
    source = open_source(path, {"x": (2, 3)})
    assert source.rows == 3000
    for start, stop in [(0, 5), (5, 1500), (1500, 3000), (2100, 2110), (3, 4), (699, 701)]:
        assert (source.read(start, stop)["x"] == X[start:stop]).all()
    assert source.where(7) == f"{path}[7]"


def test_features_are_columns_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    table = pa.table({"b": X[:, 0, 0], "a": X[:, 0, 1], "label": X[:, 0, 2]})
    path = save(tmp_path / "rows.parquet", table)
    rows = open_source(path, {"x": (2,)}, ["a", "b"]).read(10, 12)["x"]
    assert (rows == X[10:12, 0, [1, 0]]).all()
    rows = open_source(path, {"x": (3,)}, ["[ab]", "label"]).read(10, 12)["x"]
    assert (rows == X[10:12, 0]).all()


def test_several_inputs_are_columns_of_their_names_or_of_others(tmp_path: Path) -> None:
    table = pa.table({"a": fixed(X[:, 0]), "other": X[:, 1, 2]})
    path = save(tmp_path / "rows.parquet", table)
    rows = open_source(path, {"a": (3,), "b": ()}, ["b=other"]).read(0, 9)
    assert (rows["a"] == X[:9, 0]).all()
    assert (rows["b"] == X[:9, 1, 2]).all()


def test_a_feature_that_is_missing_is_nan(tmp_path: Path) -> None:
    path = save(tmp_path / "rows.parquet", pa.table({"a": [1.0, None], "b": [1, 2]}))
    rows = open_source(path, {"x": (2,)}, ["a", "b"]).read(0, 2)["x"]
    assert np.isnan(rows[1, 0])
    assert (rows[0] == [1, 1]).all()


def test_a_directory_of_parquet_is_read_in_order(tmp_path: Path) -> None:
    for name, rows in (("b", X[1000:]), ("a", X[:1000])):
        save(tmp_path / f"{name}.parquet", pa.table({"x": fixed(rows)}))
    source = open_source(tmp_path, {"x": (2, 3)})
    assert (source.read(900, 1100)["x"] == X[900:1100]).all()
    assert (source.read(1100, 3000)["x"] == X[1100:]).all()
    held = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
    assert [path for path in held if path.endswith("a.parquet")] == []


BAD = {
    "another name": ({"z": [[1, 2]], "y": [1]}, {"x": (2,)}, [], "no column 'x'"),
    "text": ({"x": ["a"]}, {"x": (2,)}, [], "not numbers"),
    "too few features": ({"a": [1], "b": [2]}, {"x": (3,)}, ["a", "b"], "2 columns of numbers"),
    "no such feature": ({"a": [1]}, {"x": (1,)}, ["c*"], "no column 'c*'"),
    "no such input": ({"a": [1]}, {"x": ()}, ["y=a"], "no input 'y'"),
    "features for two": ({"a": [1]}, {"x": (), "y": ()}, ["a"], "for models of one input"),
}


@pytest.mark.parametrize(("table", "shapes", "columns", "words"), BAD.values(), ids=BAD)
def test_columns_that_do_not_fit_are_refused(
    tmp_path: Path, table: dict, shapes: dict, columns: list[str], words: str
) -> None:
    path = save(tmp_path / "rows.parquet", pa.table(table))
    with pytest.raises(InputError) as caught:
        open_source(path, shapes, columns)
    assert words in str(caught.value)


LISTS = {
    "too long": [[1.0, 2.0], [1.0, 2.0, 3.0]],
    "missing": [[1.0, 2.0], None],
}


@pytest.mark.parametrize("lists", LISTS.values(), ids=LISTS)
def test_a_list_of_another_length_names_its_row(tmp_path: Path, lists: list) -> None:
    path = save(tmp_path / "rows.parquet", pa.table({"x": lists}))
    source = open_source(path, {"x": (2,)})
    assert (source.read(0, 1)["x"] == [[1, 2]]).all()
    with pytest.raises(InputError, match=r"row 1 of column 'x' of .* has"):
        source.read(1, 2)


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_text("PAR1?")
    with pytest.raises(ConfigError, match="no Parquet file"):
        open_source(tmp_path / "rows.parquet", {"x": (2,)})


def test_answers_are_written_as_lists_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "answers.parquet"
    write_parquet(path, {"y": X, "z": X[:, 0, 0]})
    table = pq.read_table(path)
    assert table["y"].to_pylist() == X.tolist()
    assert table["z"].to_pylist() == X[:, 0, 0].tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["answers.parquet"]


def test_without_pyarrow_it_is_said_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").touch()
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path\n"
        "from privserve.batch.opening import open_source\n"
        "open_source(Path(sys.argv[1]), {'x': (2,)})"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "rows.parquet")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "pip install 'privserve[parquet]'" in ran.stderr
