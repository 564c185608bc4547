"""Applications that know nothing of shares, unmodified, against a gateway and real parties."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from gateway_process import GatewayProcess, gateway
from serving import ROOT, Digits, free_workers, serving
from tritonclient.utils import InferenceServerException

import privserve as ps

MODEL, INPUT, OUTPUT = "digits-model", "input_layer", "dense"
ATOL = 2e-2


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """tritonclient's HTTP client may be collected in the thread only that made it."""
    yield
    gc.collect()


@pytest.fixture(params=["http", "grpc"])
def triton(request: pytest.FixtureRequest, front: GatewayProcess) -> Iterator[Any]:
    """NVIDIA's client of either kind, and its module."""
    module = {"http": triton_http, "grpc": triton_grpc}[request.param]
    client = module.InferenceServerClient(getattr(front, request.param))
    yield module, client
    client.close()


def given(module: Any, x: np.ndarray, datatype: str = "FP32", **how: Any) -> list[Any]:
    tensor = module.InferInput(INPUT, list(x.shape), datatype)
    tensor.set_data_from_numpy(x, **how)
    return [tensor]


def predicted(digits: Digits, x: np.ndarray) -> np.ndarray:
    return digits.model.converted.predict(x.astype(np.float32))


def test_tritonclient_is_answered_as_by_a_plain_server(digits: Digits, triton: Any) -> None:
    module, client = triton
    x = digits.images[:3].astype(np.float32)
    with digits.serving():
        answer = client.infer(MODEL, given(module, x), request_id="seven").as_numpy(OUTPUT)
        versioned = client.infer(MODEL, given(module, x), model_version="1")
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, predicted(digits, x), atol=ATOL)
    np.testing.assert_allclose(versioned.as_numpy(OUTPUT), answer, atol=1e-2)


@pytest.mark.parametrize(
    ("datatype", "dtype"),
    {
        "BOOL": np.bool_,
        "UINT8": np.uint8,
        "UINT16": np.uint16,
        "UINT32": np.uint32,
        "UINT64": np.uint64,
        "INT8": np.int8,
        "INT16": np.int16,
        "INT32": np.int32,
        "INT64": np.int64,
        "FP16": np.float16,
        "FP64": np.float64,
    }.items(),
)
def test_all_datatypes_of_numbers_are_read(
    digits: Digits, triton: Any, datatype: str, dtype: type
) -> None:
    module, client = triton
    x = (digits.images[:2] > 0.5).astype(dtype)
    with digits.serving():
        answer = client.infer(MODEL, given(module, x, datatype)).as_numpy(OUTPUT)
    np.testing.assert_allclose(answer, predicted(digits, x), atol=ATOL)


def test_a_bfloat16_is_read_too(digits: Digits, triton: Any) -> None:
    module, client = triton
    x = (digits.images[:2] > 0.5).astype(np.float32)
    with digits.serving():
        answer = client.infer(MODEL, given(module, x, "BF16")).as_numpy(OUTPUT)
    np.testing.assert_allclose(answer, predicted(digits, x), atol=ATOL)


def test_tritonclient_sends_and_gets_json(digits: Digits, front: GatewayProcess) -> None:
    x = digits.images[:2].astype(np.float32)
    outputs = [triton_http.InferRequestedOutput(OUTPUT, binary_data=False)]
    with digits.serving(), triton_http.InferenceServerClient(front.http) as client:
        inputs = given(triton_http, x, binary_data=False)
        answer = client.infer(MODEL, inputs, outputs=outputs)
        assert "data" in answer.get_output(OUTPUT)
        np.testing.assert_allclose(answer.as_numpy(OUTPUT), predicted(digits, x), atol=ATOL)


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
def test_tritonclient_packs_its_bodies(digits: Digits, front: GatewayProcess, packing: str) -> None:
    x = digits.images[:2].astype(np.float32)
    with digits.serving(), triton_http.InferenceServerClient(front.http) as client:
        answer = client.infer(
            MODEL,
            given(triton_http, x),
            request_compression_algorithm=packing,
            response_compression_algorithm=packing,
        )
    np.testing.assert_allclose(answer.as_numpy(OUTPUT), predicted(digits, x), atol=ATOL)


def test_grpc_takes_typed_contents_and_answers_with_them(
    digits: Digits, front: GatewayProcess
) -> None:
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    x = digits.images[:1].astype(np.float32)
    request = service_pb2.ModelInferRequest(model_name=MODEL, id="typed")
    tensor = request.inputs.add(name=INPUT, datatype="FP32", shape=x.shape)
    tensor.contents.fp32_contents.extend(x.reshape(-1).tolist())
    with digits.serving(), grpc.insecure_channel(front.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(request, timeout=30)
        tensor.datatype = "INT8"
        with pytest.raises(grpc.RpcError, match="takes its elements from int_contents"):
            stub.ModelInfer(request, timeout=30)
        tensor.datatype = "FP16"
        with pytest.raises(grpc.RpcError, match="raw_input_contents"):
            stub.ModelInfer(request, timeout=30)
        tensor.datatype = "BYTES"
        with pytest.raises(grpc.RpcError, match="takes numbers"):
            stub.ModelInfer(request, timeout=30)
    assert (answer.id, answer.model_version) == ("typed", "1")
    got = np.array(answer.outputs[0].contents.fp32_contents).reshape(answer.outputs[0].shape)
    np.testing.assert_allclose(got, predicted(digits, x), atol=ATOL)


def test_tritonclient_reads_what_there_is(digits: Digits, triton: Any) -> None:
    _, client = triton
    assert client.is_server_live()
    assert not client.is_server_ready(), "it is shared, and not served"
    assert not client.is_model_ready(MODEL)
    with digits.serving():
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        assert client.is_model_ready(MODEL, "1")
        assert not client.is_model_ready(MODEL, "2")
        assert not client.is_model_ready("other")
    server, model = client.get_server_metadata(), client.get_model_metadata(MODEL)
    if not isinstance(server, dict):
        assert server.name == "privserve-gateway"
        assert (model.name, list(model.versions)) == (MODEL, ["1"])
        assert (model.inputs[0].name, list(model.inputs[0].shape)) == (INPUT, [-1, 28, 28, 1])
        assert (model.outputs[0].name, model.outputs[0].datatype) == (OUTPUT, "FP32")
    else:
        assert server["name"] == "privserve-gateway"
        assert model["inputs"] == [{"name": INPUT, "datatype": "FP32", "shape": [-1, 28, 28, 1]}]
        assert model["outputs"] == [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, 10]}]
        assert model["parameters"]["input_range"] == [-8.0, 8.0]


def test_logits_are_a_parameter(digits: Digits, triton: Any) -> None:
    module, client = triton
    x = digits.images[:2].astype(np.float32)
    with digits.serving():
        answer = client.infer(MODEL, given(module, x), parameters={"logits": True})
    logits = answer.as_numpy(OUTPUT)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    np.testing.assert_allclose(
        powers / powers.sum(-1, keepdims=True), predicted(digits, x), atol=ATOL
    )
    assert (logits < 0).any()


def test_more_rows_than_a_query_holds_are_answered_in_order(digits: Digits, triton: Any) -> None:
    module, client = triton
    rows = 1024 + 500
    x = np.concatenate([digits.images] * (1 + rows // len(digits.images)))[:rows]
    x = np.roll(x.astype(np.float32), 7, axis=0)
    with digits.serving():
        answer = client.infer(MODEL, given(module, x)).as_numpy(OUTPUT)
    assert answer.shape == (rows, 10)
    np.testing.assert_allclose(answer, predicted(digits, x), atol=ATOL)


X = np.zeros((1, 28, 28, 1), np.float32)


def test_errors_say_what_is_wrong_and_have_the_status(digits: Digits, triton: Any) -> None:
    module, client = triton
    other = module.InferInput("other", [1], "FP32")
    other.set_data_from_numpy(np.zeros(1, np.float32))
    texts = module.InferInput(INPUT, [1], "BYTES")
    texts.set_data_from_numpy(np.array([b"a"], object))
    output = [module.InferRequestedOutput("other")]
    wrong: list[tuple[dict[str, Any], str, str, str]] = [
        ({"inputs": [other]}, "400", "INVALID_ARGUMENT", f"takes the inputs '{INPUT}'"),
        ({"inputs": [texts]}, "400", "INVALID_ARGUMENT", "takes numbers"),
        ({"inputs": given(module, X[0])}, "400", "INVALID_ARGUMENT", "add a batch axis"),
        ({"inputs": given(module, X[:0])}, "400", "INVALID_ARGUMENT", ""),
        ({"inputs": given(module, X + 99)}, "422", "OUT_OF_RANGE", "outside"),
        ({"inputs": given(module, X * np.nan)}, "422", "OUT_OF_RANGE", "NaN"),
        ({"outputs": output}, "400", "INVALID_ARGUMENT", "outputs ['dense'], and no 'other'"),
        ({"parameters": {"more": True}}, "400", "INVALID_ARGUMENT", "'more'"),
        ({"model_name": "other"}, "404", "NOT_FOUND", f"but '{MODEL}'"),
        ({"model_version": "2"}, "404", "NOT_FOUND", "no version '2'"),
    ]
    with digits.serving():
        for changes, status, code, words in wrong:
            asked = {"model_name": MODEL, "inputs": given(module, X), **changes}
            with pytest.raises(InferenceServerException) as refused:
                client.infer(**asked)
            is_grpc = module is triton_grpc
            assert refused.value.status() == (f"StatusCode.{code}" if is_grpc else status), words
            assert words in refused.value.message()
        assert client.infer(MODEL, given(module, X)).as_numpy(OUTPUT).shape == (1, 10)


def test_limits_and_pauses_have_a_status_of_their_own(digits: Digits, triton: Any) -> None:
    module, client = triton
    with digits.serving(num_requests=1) as thread:
        client.infer(MODEL, given(module, X))
        thread.join(20)
        with pytest.raises(InferenceServerException) as refused:
            client.infer(MODEL, given(module, X))
    assert refused.value.status() in ("429", "StatusCode.RESOURCE_EXHAUSTED")
    with digits.serving():
        pass
    with pytest.raises(InferenceServerException) as refused:
        client.infer(MODEL, given(module, X))
    assert refused.value.status() in ("503", "StatusCode.UNAVAILABLE")


def test_many_applications_at_once_get_their_own_answers(
    digits: Digits, front: GatewayProcess
) -> None:
    images = digits.images.astype(np.float32)
    expected = predicted(digits, images)

    def ask_http(row: int) -> np.ndarray:
        x = images[row : row + 1]
        tensor = {"name": INPUT, "shape": list(x.shape), "datatype": "FP32", "data": x.tolist()}
        body = json.dumps({"inputs": [tensor]}).encode()
        url = f"http://{front.http}/v2/models/{MODEL}/infer"
        with urllib.request.urlopen(url, body, timeout=60) as answer:
            return np.array(json.load(answer)["outputs"][0]["data"])

    def ask(i: int) -> None:
        with triton_grpc.InferenceServerClient(front.grpc) as client:
            for row in range(i, i + 6):
                if i % 2:
                    answer = client.infer(MODEL, given(triton_grpc, images[row : row + 1]))
                    got = answer.as_numpy(OUTPUT)[0]
                else:
                    got = ask_http(row)
                np.testing.assert_allclose(got, expected[row], atol=ATOL)

    with digits.serving(), ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(min(48, len(images) - 6))))


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl_asks_with_the_command_of_the_docs(
    digits: Digits, front: GatewayProcess, tmp_path: Path
) -> None:
    x = digits.images[:1].astype(np.float32)
    tensor = {"name": INPUT, "shape": list(x.shape), "datatype": "FP32", "data": x.tolist()}
    (tmp_path / "request.json").write_text(json.dumps({"inputs": [tensor]}))
    url = f"http://{front.http}/v2/models/{MODEL}/infer"
    with digits.serving():
        ran = subprocess.run(
            ["curl", "-s", "-S", url, "-d", f"@{tmp_path}/request.json"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    output = json.loads(ran.stdout)["outputs"][0]
    np.testing.assert_allclose(output["data"], predicted(digits, x)[0], atol=ATOL)


def test_a_transformer_forwards_to_the_gateway(digits: Digits, front: GatewayProcess) -> None:
    program = ROOT / "tests" / "support" / "transformer.py"
    images = (digits.images[:4, :, :, 0] * 255).round().astype(int)
    with (
        digits.serving(),
        subprocess.Popen(
            [sys.executable, str(program), f"http://{front.http}", MODEL],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as transformer,
    ):
        assert transformer.stdout is not None
        port = int(transformer.stdout.readline())
        sent = json.dumps({"instances": images.tolist()}).encode()
        url = f"http://127.0.0.1:{port}/v1/predict"
        with urllib.request.urlopen(url, sent, timeout=60) as answer:
            classes = json.load(answer)["predictions"]
        transformer.communicate(timeout=20)
    assert classes == list(digits.labels[:4])


def test_several_inputs_and_outputs_are_told_apart_by_name(tag: str) -> None:
    file = ROOT / "tests" / "data" / "keras" / "files" / "several_keras3_keras.keras"
    with np.load(file.with_suffix(".npz")) as golden:
        image, row = golden["x"].astype(np.float32), golden["x_1"].astype(np.float32)
        classes, score = golden["y"], golden["y_1"]
    with ps.Cluster(*free_workers()) as cluster, ps.load_model(file) as model:
        model.share(cluster)
        with serving(cluster, model), gateway(cluster.config.path) as front:
            for module, address in ((triton_http, front.http), (triton_grpc, front.grpc)):
                client = module.InferenceServerClient(address)
                inputs = []
                for name, array in (("input_layer_11", row), ("input_layer_10", image)):
                    inputs.append(module.InferInput(name, list(array.shape), "FP32"))
                    inputs[-1].set_data_from_numpy(array)
                both = client.infer(model.name, inputs)
                np.testing.assert_allclose(both.as_numpy("classes"), classes, atol=2e-3)
                np.testing.assert_allclose(both.as_numpy("score"), score, atol=2e-3)
                wanted = [module.InferRequestedOutput("score")]
                one = client.infer(model.name, inputs, outputs=wanted)
                np.testing.assert_allclose(one.as_numpy("score"), score, atol=2e-3)
                assert one.as_numpy("classes") is None
                with pytest.raises(InferenceServerException, match="takes the inputs"):
                    client.infer(model.name, inputs[:1])
                client.close()
            front.stop()
