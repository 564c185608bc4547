"""What every engine has to do alike: the same answers as the plaintext network."""

from __future__ import annotations

import gzip
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from parties import run_session
from serving import ROOT
from torch import nn

import converters
from privserve.description import read_description
from privserve.engines import ENGINES, Prepared, load_engine
from privserve.errors import ModelError
from privserve.fixedpoint import decode, encode

TOLERANCE = 2e-2
SHARED = ROOT.parent / "shared" / "data"


class Keep(nn.Module):
    """x + conv(x): a branch that joins again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.conv(x))


class Bent(nn.Module):
    """Hidden tanh, GELU and softmax, and a product of two computed values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.squeeze = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)
        self.last = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = nn.functional.gelu(self.conv(x))
        gate = torch.tanh(self.squeeze(features.mean((2, 3))))
        pooled = (features * gate[:, :, None, None]).mean((2, 3))
        return self.last(torch.softmax(4 * self.head(pooled), -1))


def nets() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(7)
    return {
        "gemm": (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (6,)),
        "conv": (nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU()), (2, 7, 7)),
        "average pooling": (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2), nn.ReLU(), nn.Flatten()),
            (1, 8, 8),
        ),
        "max pooling": (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 4)),
            (1, 8, 8),
        ),
        "branches": (Keep(), (2, 5, 5)),
    }


NETS = list(nets())


def predict(converted: converters.Converted, x: np.ndarray) -> np.ndarray:
    return np.asarray(converted.predict(x))


def answer(prepared: Prepared, batches: list[np.ndarray], compute_parties: int) -> list[np.ndarray]:
    """The decoded answers to all batches of one session."""
    bits = prepared.description["fraction_bits"]
    encoded = [[encode(batch, bits)] for batch in batches]
    session = run_session(prepared, encoded, compute_parties)
    out_bits = prepared.description["output_fraction_bits"]
    return [decode(outputs[0], out_bits) for outputs in session.answers]


CASES = [*((net, 2) for net in NETS), ("max pooling", 3), ("conv", 3)]
# CrypTen takes ten seconds for each; these say least beyond the others.
SLOW = [
    *(("crypten", net, 2) for net in ("conv", "average pooling", "gemm", "branches")),
    *(("crypten", net, 3) for net in ("conv", "max pooling")),
]


@pytest.mark.parametrize(
    ("engine", "net", "compute_parties"),
    [
        pytest.param(engine, *case, marks=pytest.mark.slow if (engine, *case) in SLOW else [])
        for engine in ENGINES
        for case in CASES
    ],
)
def test_answers_are_those_of_the_plaintext_network(
    engine: str, net: str, compute_parties: int
) -> None:
    module, shape = nets()[net]
    converted = converters.convert(module, input_shape=shape)
    prepared = load_engine(engine).prepare(converted.onnx, input_range=(-4, 4))
    draw = np.random.default_rng(1)
    batches = [draw.uniform(-4, 4, (rows, *shape)).astype(np.float32) for rows in (1, 5, 1)]
    for batch, got in zip(batches, answer(prepared, batches, compute_parties), strict=True):
        np.testing.assert_allclose(got, predict(converted, batch), atol=TOLERANCE)


@pytest.mark.parametrize("compute_parties", [2, 3])
def test_hidden_functions_and_products_are_those_of_the_plaintext_network(
    compute_parties: int,
) -> None:
    """`ottt` only: CrypTen's own approximations are not offered."""
    torch.manual_seed(8)
    converted = converters.convert(Bent(), input_shape=(2, 6, 6))
    prepared = load_engine("ottt").prepare(converted.onnx, input_range=(-4, 4))
    batch = np.random.default_rng(2).uniform(-4, 4, (5, 2, 6, 6)).astype(np.float32)
    (got,) = answer(prepared, [batch], compute_parties)
    np.testing.assert_allclose(got, predict(converted, batch), atol=4e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_description_is_json_and_has_what_clients_need(engine: str) -> None:
    module, shape = nets()["gemm"]
    converted = converters.convert(module, input_shape=shape)
    prepared = load_engine(engine).prepare(converted.onnx, input_range=(-2, 3))
    assert prepared.engine == engine
    description = read_description(json.loads(json.dumps(prepared.description)))
    assert description["inputs"][0]["shape"] == [6]
    assert description["outputs"][0]["shape"] == [3]
    assert description["input_range"] == [-2, 3]
    assert all(array.dtype == np.int64 for array in prepared.parameters.values())


RANGES = {"bits", "bound", "comparison_bits"}


def stripped(description: Any) -> Any:
    """Without the widths: they tell the size of the values, as a power of two."""
    if isinstance(description, list):
        return [stripped(item) for item in description]
    if not isinstance(description, dict):
        return description
    bound = description.get("bound", 1)
    assert math.frexp(bound)[0] in (0, 0.5), "no finer than a power of two"
    return {key: stripped(v) for key, v in description.items() if key not in RANGES}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_description_holds_no_weight(engine: str) -> None:
    module, shape = nets()["average pooling"]
    twins = []
    for scale in (1.0, -1.0):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(scale)
        converted = converters.convert(module, input_shape=shape)
        twins.append(load_engine(engine).prepare(converted.onnx, input_range=(-1, 1)))
    first, second = twins
    assert any(
        not np.array_equal(first.parameters[name], second.parameters[name])
        for name in first.parameters
    )
    assert stripped(first.description) == stripped(second.description)
    assert "parameters" not in repr(first)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("activation", ["Softmax", "Sigmoid"])
def test_a_final_activation_is_left_to_the_client(engine: str, activation: str) -> None:
    layer = nn.Softmax(-1) if activation == "Softmax" else nn.Sigmoid()
    converted = converters.convert(nn.Sequential(nn.Linear(4, 3), layer), input_shape=(4,))
    prepared = load_engine(engine).prepare(converted.onnx)
    assert prepared.description["outputs"][0]["activation"]["op"] == activation


@pytest.mark.parametrize("engine", ENGINES)
def test_an_op_that_the_engine_lacks_is_named(engine: str) -> None:
    shape = [None, 4]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Cos", ["x"], ["y"], "wave")], "g", *([v] for v in values)
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(ModelError, match="Cos"):
        load_engine(engine).prepare(model)


@pytest.mark.parametrize("engine", ENGINES)
def test_values_that_the_fixed_point_cannot_hold_are_refused(engine: str) -> None:
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.fill_(1e6)
    converted = converters.convert(nn.Sequential(layer, nn.ReLU()), input_shape=(4,))
    with pytest.raises(ModelError, match=r"--(input-range|fraction-bits)"):
        load_engine(engine).prepare(converted.onnx, input_range=(-1e6, 1e6))


@pytest.fixture(scope="module")
def mnist() -> np.ndarray:
    path = SHARED / "mnist" / "t10k-images-idx3-ubyte.gz"
    if not path.is_file():
        pytest.skip("the MNIST test set is not here")
    content = gzip.decompress(path.read_bytes())
    _, count, rows, columns = struct.unpack(">4I", content[:16])
    images = np.frombuffer(content, np.uint8, offset=16).reshape(count, rows, columns, 1)
    return images[:200].astype(np.float32) / 255


def logits_model(path: Path) -> converters.Converted:
    """The file's network without its softmax: what its last layer gives."""
    if not path.is_file():
        pytest.skip(f"{path.name} is not here")
    return converters.convert(path)


@pytest.mark.parametrize(
    ("engine", "compute_parties"),
    [
        ("ottt", 2),
        pytest.param("ottt", 3, marks=pytest.mark.slow),
        pytest.param("crypten", 2, marks=pytest.mark.slow),
        pytest.param("crypten", 3, marks=pytest.mark.slow),
    ],
)
def test_200_mnist_images_are_answered_as_by_keras(
    mnist: np.ndarray, engine: str, compute_parties: int
) -> None:
    converted = logits_model(SHARED / "short-conv-mnist.h5")
    prepared = load_engine(engine).prepare(converted.onnx, input_range=(0, 1))
    expected = plain_logits(converted, mnist)
    batches = [mnist[start : start + 50] for start in range(0, 200, 50)]
    got = np.concatenate(answer(prepared, batches, compute_parties))
    np.testing.assert_allclose(got, expected, atol=TOLERANCE)
    top = np.sort(expected, -1)
    clear = top[:, -1] - top[:, -2] > TOLERANCE
    assert clear.sum() > 190
    assert (got.argmax(-1) == expected.argmax(-1))[clear].all()


def plain_logits(converted: converters.Converted, x: np.ndarray) -> np.ndarray:
    """What goes into the final softmax, in float32."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = onnx.ModelProto()
    model.CopyFrom(converted.onnx)
    last = next(n for n in model.graph.node if n.op_type == "Softmax")
    del model.graph.output[:]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(last.input[0], onnx.TensorProto.FLOAT, None)
    )
    name = model.graph.input[0].name
    logits = ReferenceEvaluator(model).run(None, {name: x})[0]
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    np.testing.assert_allclose(
        powers / powers.sum(-1, keepdims=True), converted.predict(x), atol=1e-5
    )
    return np.asarray(logits)
