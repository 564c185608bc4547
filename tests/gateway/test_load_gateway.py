"""The load benchmark's applications, which ask a gateway."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gateway_process import gateway
from serving import Digits

import privserve as ps
from privserve.bench import load_gateway
from privserve.bench.load_gateway import ADDRESS_FILE, GatewayAsker


def test_an_application_gets_what_the_gateway_answers_or_a_typed_error(
    digits: Digits, tmp_path: Path
) -> None:
    config = digits.cluster.config.path
    with digits.serving(), gateway(config) as front:
        (tmp_path / ADDRESS_FILE).write_text(f"{front.http} {digits.model.name}\n")
        asker = GatewayAsker(tmp_path / "cluster.toml", tmp_path / "unused.key")
        images = digits.images[:3]
        expected = digits.model.converted.predict(images)
        assert np.abs(asker.query_model(images) - expected).max() < 1e-2
        with pytest.raises(ps.InputError):
            asker.query_model(images[:, :5])
        assert np.abs(asker.query_model(images[:1]) - expected[:1]).max() < 1e-2
    with pytest.raises(ps.ClusterError, match="the gateway"):
        asker.query_model(images)
    asker.close()


def test_the_benchmark_starts_a_gateway_and_ends_it(digits: Digits) -> None:
    config = digits.cluster.config.path
    key = config.parent / "client.key"
    try:
        with digits.serving(), load_gateway.gateway(config, key, digits.model.name) as pid:
            asker = GatewayAsker(config, key)
            assert asker.query_model(digits.images[:2]).shape == (2, 10)
            asker.close()
    finally:
        (config.parent / ADDRESS_FILE).unlink(missing_ok=True)
    assert not Path(f"/proc/{pid}").exists()
