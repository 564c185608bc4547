"""scripts/convert.py as a user runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from golden import FILES, ROOT

MODEL = FILES / "sequential_keras3.h5"
BOTH = "ottt, crypten"
RUNS_ON = [
    ("input_layer", "-"),
    ("conv2d", BOTH),
    ("average_pooling2d", BOTH),
    ("activation", BOTH),
    ("conv2d_1", BOTH),
    ("max_pooling2d", BOTH),
    ("re_lu", BOTH),
    ("dropout", "-"),
    ("flatten", BOTH),
    ("dense", f"{BOTH}, then client"),
]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "convert.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    copy = tmp_path / "model.h5"
    copy.write_bytes(MODEL.read_bytes())
    return copy


def test_it_writes_the_onnx_file_beside_the_model_and_prints_a_table(model: Path) -> None:
    done = run(model)
    assert (done.returncode, done.stderr) == (0, "")
    onnx.checker.check_model(str(model.with_suffix(".onnx")), full_check=True)
    columns = [re.split("  +", line) for line in done.stdout.splitlines()[3:-2]]
    assert [(row[0], row[-1]) for row in columns] == RUNS_ON
    assert ["dense", "Dense", "(batch, 10)", "1,010"] in [row[:4] for row in columns]
    assert [p.name for p in model.parent.iterdir() if p.name.startswith(".")] == []


def test_check_prints_the_largest_difference_from_keras(model: Path) -> None:
    done = run(model, "-o", model.parent / "other.onnx", "--check", FILES / "sequential_keras3.npz")
    assert done.returncode == 0
    assert "y: largest difference" in done.stdout
    assert (model.parent / "other.onnx").exists()
    assert not model.with_suffix(".onnx").exists()


def test_check_fails_where_the_outputs_differ(model: Path, tmp_path: Path) -> None:
    with np.load(FILES / "sequential_keras3.npz") as archive:
        np.savez(tmp_path / "wrong.npz", x=archive["x"], y=archive["y"] + 0.01)
    assert run(model, "--check", tmp_path / "wrong.npz").returncode == 1


def test_weights_alone_convert_with_an_architecture(tmp_path: Path) -> None:
    done = run(
        FILES / "weights_tf_keras2.h5", "-o", tmp_path / "out.onnx",
        "--architecture", FILES / "weights_tf_keras2.json",
        "--check", FILES / "weights_tf_keras2.npz",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and one line on stderr with all of the words, no traceback."""
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


def test_a_missing_file_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    assert_refused(run(tmp_path / "no.h5"), "no.h5", "no such file")


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(model: Path) -> None:
    # A limit on the size of written files stands in for the disk that is full.
    script = ROOT / "scripts" / "convert.py"
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 2; exec "$0" "$1" "$2"', sys.executable, script, model],
        capture_output=True, text=True, timeout=60,
        env={"PYTHONDONTWRITEBYTECODE": "1", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert_refused(done, "model.onnx", "cannot be written")
    assert sorted(p.name for p in model.parent.iterdir()) == ["model.h5"]


def test_a_target_that_cannot_be_written_is_one_line(model: Path) -> None:
    assert_refused(run(model, "-o", model.parent / "no" / "m.onnx"), "cannot be written")


def test_an_npz_file_with_pickled_objects_is_not_opened(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    assert_refused(run(model, "--check", tmp_path / "evil.npz"), "evil.npz")


def test_an_existing_onnx_file_survives_a_failed_conversion(tmp_path: Path) -> None:
    (tmp_path / "bad.h5").write_bytes(b"not a model")
    (tmp_path / "bad.onnx").write_bytes(b"keep me")
    assert_refused(run(tmp_path / "bad.h5"), "bad.h5", "not a Keras model")
    assert (tmp_path / "bad.onnx").read_bytes() == b"keep me"
