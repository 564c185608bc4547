"""Files that other people trained, served on shares, give what Keras gave.

Measured: errors of at most 3e-4 of the outputs' spread. What looks worst is the pictogram
classifier, 5e-3 in logits that differ by 27: its three batch normalizations multiply by 42,
36 and 27, and with them what the first layer's values of 0.2 lost by rounding to 14 bits. Two
fraction bits more make it 7e-4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import wild
from parties import run_session
from serving import free_workers, serving

import privserve as ps
from privserve.activations import apply_activation
from privserve.engines import load_engine
from privserve.fixedpoint import decode, encode

pytestmark = pytest.mark.skipif(
    not wild.INDEX.exists(), reason="the third-party model files are not here"
)
RELATIVE = 1e-3


def assert_same(got: np.ndarray, golden: wild.Golden) -> None:
    """The outputs are Keras' within the tolerance, and so is the class that each row means."""
    assert got.shape == golden.y.shape
    error = np.abs(got - golden.y).max() / golden.spread
    assert error <= RELATIVE, f"off by {error:.2g} of the spread {golden.spread:.3g}"
    if golden.y.shape[-1] > 1:
        assert (got.argmax(-1) == golden.y.argmax(-1)).all()
    else:
        assert ((got > 0.5) == (golden.y > 0.5)).all()


@pytest.mark.parametrize(
    "entry",
    [pytest.param(e, id=e["file"].split(".")[0]) for e in wild.entries("convert")],
)
def test_a_file_is_answered_as_by_keras(entry: dict[str, Any]) -> None:
    converted, pairs = wild.convert(entry), wild.goldens(entry)
    inputs = np.concatenate([pair.x for pair in pairs])
    prepared = load_engine("ottt").prepare(
        converted.onnx, input_range=wild.range_of(inputs), calibration=[inputs]
    )
    facts = prepared.description
    batches = [[encode(pair.x, facts["fraction_bits"])] for pair in pairs]
    session = run_session(prepared, batches, pool_queries=8)
    for outputs, golden in zip(session.answers, pairs, strict=True):
        values = decode(outputs[0], facts["output_fraction_bits"])
        assert_same(apply_activation(values, facts["outputs"][0]["activation"]), golden)


@pytest.fixture(scope="module")
def cluster() -> Any:
    """Parties for the files that a client asks, one after the other."""
    with ps.Cluster(*free_workers()) as running:
        yield running


@pytest.mark.parametrize(
    ("start", "calibrated"), [("churn", False), ("timeseries", False), ("emotion", True)]
)
def test_a_client_gets_keras_answers_from_a_cluster(
    cluster: ps.Cluster, start: str, calibrated: bool
) -> None:
    entry = wild.entry_named(start)
    golden = wild.goldens(entry)[0]
    options: dict[str, Any] = {"calibration": golden.x} if calibrated else {}
    with ps.load_model(wild.FOLDER / entry["file"]) as model:
        model.share(cluster, input_range=wild.range_of(golden.x), **options)
        with serving(cluster, model, len(golden.x) + 1), ps.Client(cluster) as client:
            assert_same(client.query_model(golden.x), golden)
            alone = client.query_model(golden.x[:1])
            np.testing.assert_allclose(alone, golden.y[:1], atol=RELATIVE * golden.spread)
