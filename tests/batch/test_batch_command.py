"""`privserve batch` as it is run: real parties, a real process, and what ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving import Digits, wait_until

COMMAND = [sys.executable, "-m", "privserve", "batch"]
ONE_BY_ONE = ["--rows-per-query", "1", "--queries", "1"]
TOLERANCE = 0.02
"""The sample model's answers go up to some hundreds."""


@pytest.fixture
def rows(digits: Digits, tmp_path: Path) -> Callable[[int], np.ndarray]:
    """Writes rows.npy: as many digits, no two alike."""

    def write(count: int) -> np.ndarray:
        images = np.resize(digits.images, (count, *digits.images.shape[1:])).astype(np.float32)
        images *= np.linspace(0.5, 1, count, dtype=np.float32).reshape(-1, 1, 1, 1)
        np.save(tmp_path / "rows.npy", images)
        return images

    return write


class Command:
    """The command for one output, and what it left there."""

    def __init__(self, digits: Digits, home: Path, output: str = "answers.npy") -> None:
        self.output = home / output
        self.log = home / "log"
        paths = ["--input", str(home / "rows.npy"), "--output", str(self.output)]
        self._command = [*COMMAND, *paths, "--config", str(digits.cluster.config.path)]

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            return subprocess.Popen([*self._command, *options], stdout=log, stderr=log)

    def run(self, *options: str) -> tuple[int, str]:
        """Run it to its end; its exit code, and what it said."""
        process = self.start(*options)
        try:
            code = process.wait(100)
        finally:
            process.kill()
            process.wait()
        return code, self.log.read_text()

    @property
    def journal(self) -> dict[str, Any]:
        return json.loads(Path(f"{self.output}.journal.json").read_text())

    def written(self) -> int:
        """Bytes of the file that is being written."""
        path = Path(f"{self.output}.open")
        return path.stat().st_size if path.exists() else 0

    def wait_written(self, process: subprocess.Popen[bytes], more: int) -> None:
        """Wait until it has written `more` bytes than now."""
        now = self.written()
        wait_until(lambda: self.written() > now + more or process.poll() is not None, "it writes")
        assert process.poll() is None, self.log.read_text()


@pytest.fixture
def command(digits: Digits, tmp_path: Path) -> Command:
    return Command(digits, tmp_path)


def assert_right(digits: Digits, images: np.ndarray, answers: np.ndarray) -> None:
    expected = digits.model.converted.predict(images)
    assert answers.dtype == np.float32
    assert answers.shape == expected.shape
    assert np.abs(answers - expected).max() < TOLERANCE


def rows_answered(digits: Digits) -> int:
    """How many rows the cluster counted, of all its clients."""
    leader = digits.cluster.config.compute[0]
    clients = digits.cluster.call(leader, "GET", "/privserve/status").json()["clients"]
    return sum(facts["rows"] for facts in clients.values())


def test_killed_and_interrupted_it_goes_on_and_no_row_is_asked_twice(
    digits: Digits, command: Command, rows: Callable[[int], np.ndarray]
) -> None:
    count = 1500
    images, before = rows(count), rows_answered(digits)
    with digits.serving():
        process = command.start(*ONE_BY_ONE)
        command.wait_written(process, 4000)
    # Nobody answers now: what was answered is on disk, and the job waits.
    wait_until(lambda: "trying again" in command.log.read_text(), "it waits for the cluster")
    wait_until(lambda: command.journal["rows_done"], "what is done is in the journal")
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    killed_at = command.journal["rows_done"]
    assert 0 < killed_at < count
    with digits.serving():
        process = command.start(*ONE_BY_ONE)
        command.wait_written(process, 4000)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        said = command.log.read_text()
        done = command.journal["rows_done"]
        assert f"going on after {killed_at:,} rows" in said
        assert f"{done:,} rows are kept, {count - done:,} are left" in said
        assert killed_at < done < count
        assert not command.output.exists()
        code, said = command.run()
    assert code == 0, said
    assert f"{count:,} of {count:,} rows (100 %)" in said
    assert_right(digits, images, np.load(command.output))
    # At either end one query of one row may have been under way.
    assert count <= rows_answered(digits) - before <= count + 2
    code, said = command.run()
    assert code == 0, said
    assert "all rows are in" in said
    assert sorted(p.name for p in command.output.parent.iterdir()) == [
        "answers.npy",
        "answers.npy.journal.json",
        "log",
        "rows.npy",
    ]


def test_a_limit_is_used_up_and_the_next_one_gets_the_rest(
    digits: Digits, command: Command, rows: Callable[[int], np.ndarray]
) -> None:
    images = rows(150)
    with digits.serving(num_requests=100):
        code, said = command.run()
    assert code == 2
    assert "100 rows are kept, 50 are left: the same command goes on" in said
    assert said.splitlines()[-1].startswith("error: ")
    assert "limit of 100" in said.splitlines()[-1]
    with digits.serving(num_requests=50):
        code, said = command.run()
    assert code == 0, said
    assert_right(digits, images, np.load(command.output))


def test_a_row_out_of_range_is_named_or_left_nan(
    digits: Digits, tmp_path: Path, rows: Callable[[int], np.ndarray]
) -> None:
    images = rows(60)
    images[41] = 9.0
    np.save(tmp_path / "rows.npy", images)
    command = Command(digits, tmp_path, "parts")
    with digits.serving():
        code, said = command.run("--part-rows", "25")
        assert code == 2
        assert f"{tmp_path}/rows.npy[41] has no answer" in said.splitlines()[-1]
        code, said = command.run("--part-rows", "25", "--on-bad-row", "nan")
    assert code == 0, said
    found = np.concatenate([np.load(path) for path in sorted(command.output.iterdir())])
    assert len(list(command.output.iterdir())) == 3
    assert np.flatnonzero(np.isnan(found[:, 0])).tolist() == [41]
    good = np.delete(np.arange(60), 41)
    assert_right(digits, images[good], found[good])


def test_parquet_goes_in_and_out(
    digits: Digits, tmp_path: Path, rows: Callable[[int], np.ndarray]
) -> None:
    images = rows(40)
    pq.write_table(pa.table({"pixels": images.tolist()}), tmp_path / "rows.parquet")
    command = Command(digits, tmp_path, "answers.parquet")
    with digits.serving():
        code, said = command.run("--input", str(tmp_path / "rows.parquet"))
    assert code == 0, said
    table = pq.read_table(command.output)
    (name,) = (output.name for output in digits.model.converted.outputs)
    assert_right(digits, images, np.array(table[name].to_pylist(), np.float32))


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    ran = subprocess.run(
        [*COMMAND, "--input", "x.npy", "--output", "y.npy", "--config", str(tmp_path / "c.toml")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ},
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("\n") == 1
