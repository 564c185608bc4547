"""A model to serve: what is refused, shared, served, and served again."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from serving import (
    SAMPLE_MODEL,
    SMALL,
    Digits,
    client_headers,
    free_workers,
    serving,
    small_model,
)

import converters
import privserve as ps
from privserve import oip
from privserve.calls import tls_context
from privserve.config import Timeouts
from privserve.engines import load_engine

QUICK = Timeouts(connect=20, peer=3, share=0.5)


@pytest.fixture
def small() -> ps.SecureModel:
    return small_model()


def test_a_share_that_reaches_one_party_times_out_alone(tag: str, small: ps.SecureModel) -> None:
    with ps.Cluster(*free_workers(), timeouts=QUICK) as cluster:
        small.share(cluster)
        config = cluster.config
        name = small.converted.inputs[0].name
        message = oip.format_json({"id": "alone"}, {name: np.zeros((1, 4), np.int64)}, "inputs")
        with (
            serving(cluster, small),
            httpx.Client(verify=tls_context(config.ca), timeout=20) as plain,
            ps.Client(cluster, timeout=20) as client,
            ThreadPoolExecutor(2) as pool,
        ):
            address = f"https://{config.compute[0].address}/v2/models/model"
            version = plain.get(address).json()["versions"][0]
            lonely = [
                pool.submit(
                    plain.post,
                    f"https://{party.address}/v2/models/model/versions/{version}/infer",
                    json={**message, "id": f"only {party.name}"},
                    headers=client_headers(config, party.name),
                )
                for party in config.compute
            ]
            expected = small.converted.predict(SMALL)
            for _ in range(3):
                np.testing.assert_allclose(client.query_model(SMALL), expected, atol=1e-2)
            for future in lonely:
                response = future.result(10)
                assert response.status_code == 504
                assert "only 1 of 2 compute parties" in response.json()["error"]
            np.testing.assert_allclose(client.query_model(SMALL), expected, atol=1e-2)


def test_another_model_takes_the_place_of_the_first(tag: str, small: ps.SecureModel) -> None:
    torch.manual_seed(2)
    other = ps.load_model(torch.nn.Linear(3, 5), input_shape=(3,), name="other")
    with ps.Cluster(*free_workers()) as cluster, ps.Client(cluster, timeout=30) as client:
        for model, x in ((small, SMALL), (other, SMALL[:, :3])):
            model.share(cluster)
            with serving(cluster, model, 1):
                if model is other:  # the client still knows the first one
                    with pytest.raises(ps.PrivserveError, match="other"):
                        client.query_model(SMALL)
                expected = model.converted.predict(x)
                np.testing.assert_allclose(client.query_model(x), expected, atol=1e-2)
            if model is small:
                model.stop()


def test_a_model_that_is_not_shared_cannot_be_served(small: ps.SecureModel) -> None:
    with pytest.raises(ps.ClusterError, match=r"call share\(cluster\) first"):
        small.serve()
    small.stop()


def test_an_unknown_engine_is_named_with_the_known_ones(
    digits: Digits, small: ps.SecureModel
) -> None:
    with pytest.raises(ps.ConfigError, match=r"no engine 'spdz'; choose one of: .*crypten, ottt"):
        small.share(digits.cluster, engine="spdz")
    with pytest.raises(ps.ConfigError, match="low < high"):
        small.share(digits.cluster, input_range=(1.0, 0.0))


@pytest.mark.parametrize(
    ("others", "advice"),
    [({"Relu"}, "no engine has it; replace that layer"), ({"Cos"}, "use --engine crypten")],
)
def test_an_op_that_an_engine_lacks_is_named_with_the_way_out(
    others: set[str], advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_engine("crypten"), "OPS", others)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in "xy")
    inner = helper.make_graph([helper.make_node("Cos", ["x"], ["y"], "wave")], "g", [x], [y])
    onnx = helper.make_model(inner, opset_imports=[helper.make_opsetid("", 17)])
    converted = replace(converters.convert(torch.nn.Linear(4, 4), input_shape=(4,)), onnx=onnx)
    with pytest.raises(ps.ModelError, match=f"'ottt' has no op 'Cos' .*'wave'.*{advice}"):
        ps.SecureModel(converted, "waves").prepare()


@pytest.mark.parametrize("name", ["missing.h5", "missing.onnx", "missing.keras"])
def test_a_missing_model_is_a_model_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ps.ModelError, match=name):
        ps.load_model(tmp_path / name)


def test_names_that_clients_use_are_safe_in_a_path(tmp_path: Path) -> None:
    module = torch.nn.Linear(4, 2)
    named = ps.load_model(module, input_shape=(4,), name="my model/../x")
    assert named.name == "my-model-..-x"
    assert ps.load_model(SAMPLE_MODEL).name == "digits-model"


def test_serving_can_be_interrupted_and_goes_on_later(digits: Digits, client: ps.Client) -> None:
    from _thread import interrupt_main

    timer = threading.Timer(0.5, interrupt_main)
    timer.start()
    assert digits.model.serve() == 0  # returns how many were answered
    with digits.serving(1):
        assert client.query_model(digits.images[:1]).argmax() == digits.labels[0]
