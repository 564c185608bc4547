"""The sample in examples/ is what its README says."""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from golden import ROOT

import converters

EXAMPLES = ROOT / "examples"


def test_the_sample_model_reads_the_sample_digits() -> None:
    converted = converters.convert(EXAMPLES / "digits-model.h5")
    with np.load(EXAMPLES / "digits.npz") as archive:
        images, labels = archive["images"], archive["labels"]
    assert images.shape == (200, 28, 28, 1)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 1)
    assert labels.shape == (200,)
    right = converted.predict(images).argmax(axis=1) == labels
    assert right.mean() >= 0.97


def test_the_sample_model_has_the_architecture_of_the_tutorial(third_party: Path) -> None:
    ours = converters.convert(EXAMPLES / "digits-model.h5")
    theirs = converters.convert(third_party / "short-conv-mnist.h5")
    assert [n.op_type for n in ours.onnx.graph.node] == [n.op_type for n in theirs.onnx.graph.node]
    assert [(r.class_name, r.shape, r.parameters) for r in ours.layers] == [
        (r.class_name, r.shape, r.parameters) for r in theirs.layers
    ]


def test_the_sample_model_reads_digits_that_it_was_never_near(third_party: Path) -> None:
    pixels, labels = (
        gzip.decompress((third_party / "mnist" / name).read_bytes())
        for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
    )
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28, 1)[:2000] / 255
    expected = np.frombuffer(labels, np.uint8, offset=8)[:2000]
    found = converters.convert(EXAMPLES / "digits-model.h5").predict(images).argmax(axis=1)
    # The first half of MNIST's test set is its harder half; the whole gives 97.4 %.
    assert (found == expected).mean() >= 0.95


def train(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "train.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200)


def test_training_says_where_the_digits_are_missing(tmp_path: Path) -> None:
    done = train("--digits", tmp_path)
    assert done.returncode == 2
    assert "no digits found" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_training_writes_a_model_that_converts(tmp_path: Path) -> None:
    if importlib.util.find_spec("keras") is None:
        pytest.skip("Keras is not installed")
    with np.load(EXAMPLES / "digits.npz") as archive:
        images, labels = archive["images"], archive["labels"]
    for digit in range(10):
        repeated = np.tile(images[labels == digit], (40, 1, 1, 1))[:420]
        (tmp_path / f"{digit}.json").write_text(
            json.dumps({"data": np.round(repeated, 3).ravel().tolist()})
        )
    done = train(
        "--digits", tmp_path, "--epochs", 1,
        "--output", tmp_path / "m.h5", "--samples", tmp_path / "d.npz",
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    assert "epoch 1/1" in done.stdout
    assert converters.convert(tmp_path / "m.h5").outputs[0].shape == (None, 10)
