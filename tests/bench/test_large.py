"""Networks of real size: what is reported about a query, and a query through one."""

from __future__ import annotations

import os

import numpy as np
import pytest
from parties import run_session

from privserve.bench.large import LargeResult, application, large_subject, report
from privserve.engines import load_engine
from privserve.errors import ConfigError
from privserve.fixedpoint import decode, encode

RESULT = LargeResult(
    model="net",
    weights=1_000,
    compile_seconds=1.0,
    setup_seconds=2.0,
    dealing_seconds=3.0,
    online_seconds=0.5,
    query_seconds=3.5,
    plaintext_seconds=0.1,
    bytes_online=5e6,
    bytes_dealt=6e7,
    exchanges=7,
    peak_memory_mb={"alice": 300.0, "bob": 200.0, "carol": 100.0},
    logit_spread=2.0,
    max_abs_error=0.01,
    same_class=True,
)


def test_the_report_says_what_a_query_takes() -> None:
    text = report(RESULT)
    for part in ("3.50 s", "0.50 s", "5.0 MB", "60.0 MB", "alice 300", "together 600", "0.5% of"):
        assert part in text


def test_an_unknown_network_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="resnet50"):
        large_subject("resnet5000")


@pytest.fixture
def keras_on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips where there is no Keras."""
    monkeypatch.setenv("KERAS_BACKEND", os.environ.get("KERAS_BACKEND", "torch"))
    pytest.importorskip("keras")


@pytest.mark.slow
@pytest.mark.usefixtures("keras_on_torch")
@pytest.mark.parametrize("options", [{}, {"piece_bytes": 1 << 20}], ids=["default", "small pieces"])
def test_mobilenet_v2_is_answered_as_in_plaintext(
    options: dict[str, int],
) -> None:
    subject = large_subject("mobilenetv2", input_shape=(96, 96, 3), alpha=0.35)
    prepared = load_engine("ottt").prepare(subject.converted.onnx, input_range=(0.0, 1.0))
    x = subject.batch(2)
    encoded = encode(x, prepared.description["fraction_bits"])
    # A batch, and single queries after it: packs are dealt again and again.
    batches = [[encoded], [encoded[:1]], [encoded[1:]]]
    session = run_session(prepared, batches, pool_queries=2, ready_packs=1, **options)
    bits = prepared.description["output_fraction_bits"]
    batch, first, second = (decode(answer[0], bits) for answer in session.answers)
    expected = subject.logits(x)
    for logits in (batch, np.concatenate([first, second])):
        assert np.abs(logits - expected).max() < 0.03 * expected.std()


@pytest.mark.slow
@pytest.mark.usefixtures("keras_on_torch")
def test_batch_statistics_keep_a_random_network_in_range() -> None:
    net = application("mobilenetv2", input_shape=(96, 96, 3), alpha=0.35)
    normalised = [layer for layer in net.layers if type(layer).__name__ == "BatchNormalization"]
    assert len(normalised) > 40
    assert all(layer.momentum > 0.9 for layer in normalised)
    assert any(float(abs(layer.moving_mean).max()) > 0 for layer in normalised)
