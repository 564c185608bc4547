"""Files that other people trained give what Keras gave for them, or are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import wild
from golden import ROOT

import converters

pytestmark = pytest.mark.skipif(
    not wild.INDEX.exists(), reason="the third-party model files are not here"
)


def entries(expected: str) -> list:
    return [pytest.param(e, id=e["file"]) for e in wild.entries(expected)]


@pytest.mark.parametrize("entry", entries("convert"))
def test_a_file_gives_what_keras_gave(entry: dict) -> None:
    converted = wild.convert(entry)
    assert [entry["input_shape"]] == [list(t.shape) for t in converted.inputs]
    assert sum(row.parameters for row in converted.layers) == entry["params"]
    for golden in wild.goldens(entry):
        difference = np.abs(converted.predict(golden.x) - golden.y).max()
        assert difference <= 1e-5 * max(1.0, np.abs(golden.y).max())


@pytest.mark.parametrize("entry", entries("refuse"))
def test_a_file_that_cannot_be_served_is_refused(entry: dict, tmp_path: Path) -> None:
    path = wild.FOLDER / entry["file"]
    command = [sys.executable, ROOT / "scripts" / "convert.py", path, "-o", tmp_path / "m.onnx"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert entry["file"] in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_refusal_of_a_recurrent_network_names_the_layer() -> None:
    with pytest.raises(converters.ConversionError, match=r"layer 'lstm' \(LSTM\).*recurrent"):
        converters.convert(wild.FOLDER / "refuse_lstm_keras3_5_0.keras")
