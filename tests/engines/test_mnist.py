"""The whole MNIST test set, privately: as many right as in plaintext."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from parties import run_session
from serving import ROOT

from privserve.bench.subjects import Subject
from privserve.engines import load_engine
from privserve.fixedpoint import decode, encode

SHARED = ROOT.parent / "shared" / "data"


@pytest.mark.slow
def test_all_10000_mnist_images_are_classified_as_in_plaintext() -> None:
    import converters

    model, images = SHARED / "short-conv-mnist.h5", SHARED / "mnist/t10k-images-idx3-ubyte.gz"
    if not (model.is_file() and images.is_file()):
        pytest.skip("the tutorial's model or the MNIST test set is not here")
    raw = gzip.decompress(images.read_bytes())
    x = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28, 1) / 255.0
    raw = gzip.decompress((SHARED / "mnist/t10k-labels-idx1-ubyte.gz").read_bytes())
    labels = np.frombuffer(raw, np.uint8, offset=8)
    subject = Subject("tutorial", converters.convert(model), x)
    expected = np.concatenate([subject.logits(part) for part in np.split(x, 50)])
    prepared = load_engine("ottt").prepare(subject.converted.onnx)
    bits = prepared.description["fraction_bits"]
    session = run_session(prepared, [[encode(part, bits)] for part in np.split(x, 50)])
    shares = np.concatenate([answer[0] for answer in session.answers])
    got = decode(shares, prepared.description["output_fraction_bits"])
    print(f"largest error {np.abs(got - expected).max():.2e}")
    np.testing.assert_allclose(got, expected, atol=5e-3)
    right, right_in_plaintext = (
        int((logits.argmax(-1) == labels).sum()) for logits in (got, expected)
    )
    print(f"right: {right}, in plaintext: {right_in_plaintext}")
    assert right == right_in_plaintext
