"""Parties that compute for long are not taken for dead: batches of many times `--peer-timeout`."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from serving import serving
from stage import NAMES, Stage

import privserve as ps

PEER_SECONDS = 1.5
BUSY_SECONDS = 3 * PEER_SECONDS


def convolutions(width: int, size: int) -> ps.SecureModel:
    """A network that takes long for its size."""
    torch.manual_seed(1)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, width, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(width, width, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(width, 4, 3, padding=1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    )
    return ps.load_model(net, input_shape=(3, size, size), name="large")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "width", "size", "rows"), [("ottt", 32, 96, 16), ("crypten", 8, 32, 4)]
)
def test_a_batch_of_many_seconds_is_answered_in_one_round(
    tmp_path: Path, engine: str, width: int, size: int, rows: int
) -> None:
    model = convolutions(width, size)
    stage = Stage(tmp_path, "--peer-timeout", str(PEER_SECONDS))
    try:
        model.share(stage.cluster, engine=engine, input_range=(-1, 1), report=lambda line: None)
        x = np.random.default_rng(1).uniform(-1, 1, (rows, 3, size, size))
        with serving(stage.cluster, model), ps.Client(stage.config.path, timeout=200) as client:
            began = time.monotonic()
            got = client.query_model(x)
            took = time.monotonic() - began
        assert np.abs(got - model.converted.predict(x)).max() < 1e-2
        assert took > BUSY_SECONDS, f"{took:.1f} s are too few to show anything: make it larger"
        for name in NAMES:
            assert "another round" not in stage.log_path(name).read_text()
            stage.check_log(name)
    finally:
        stage.close()
