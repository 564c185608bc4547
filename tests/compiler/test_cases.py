"""Small models that were once served wrongly or refused, on shares, against the right outputs.

Outputs are those of Keras, tf.keras, torch or onnxruntime. Options are what makes a case hard:
a declared range, or samples that are unlike what is asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ottt_session import Session

import privserve as ps
from privserve.activations import apply_activation

CASES = Path(__file__).parents[1] / "data" / "cases"
OPTIONS: dict[str, dict[str, Any]] = {
    "gap_logits_refused": {"input_range": (0, 255)},
    "elu_saturates": {"input_range": (0, 1)},
    "calibration_far_input": {"input_range": (0, 4552)},
}
FILES = sorted(
    path
    for path in CASES.rglob("*")
    if path.suffix in (".keras", ".h5", ".onnx") and path.stem != "model_regressor"
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_case_is_answered_rightly_or_not_at_all(path: Path) -> None:
    by_tf = path.with_name("expected_tf_keras.npz")
    source = by_tf if "tf_keras" in path.name else path.with_name("expected.npz")
    with np.load(source) as archive:
        inputs = [archive[name] for name in sorted(archive.files) if name[0] == "x"]
        expected = archive["y"]
    architecture = path.with_name("model.json")
    model = ps.load_model(path, architecture if architecture.exists() else None)
    spread = float(np.ptp(expected)) or 1.0
    plain = model.converted.predict(inputs if len(inputs) > 1 else inputs[0])
    assert np.abs(plain - expected).max() < 1e-4 * spread

    options = dict(OPTIONS.get(path.parent.name, {}))
    samples = path.with_name("calibration.npz")
    if samples.exists():
        with np.load(samples) as archive:
            options["calibration"] = [archive["calibration"]]
    with Session(model.converted.onnx, **options) as session:
        outputs = session.query(*(x.astype(np.float64) for x in inputs))
        assert not session.program.guards
    got = apply_activation(outputs[0], session.program.outputs[0].activation)
    assert np.abs(got.reshape(expected.shape) - expected).max() < 1e-3 * spread
