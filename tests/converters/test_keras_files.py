"""Whole files of each Keras generation give what Keras gave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import FILES, assert_agrees, convert_fixture, golden, stem

import converters

MODELS = sorted(p for p in FILES.iterdir() if p.suffix in (".h5", ".keras"))


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.name)
def test_a_file_gives_the_outputs_of_the_keras_that_wrote_it(path: Path) -> None:
    inputs, outputs = golden(path.with_name(f"{stem(path)}.npz"))
    assert_agrees(convert_fixture(path), inputs, outputs)


def test_the_module_is_plain_torch_in_eval_mode() -> None:
    module = convert_fixture(FILES / "sequential_keras3.h5").module
    assert isinstance(module, torch.nn.Module)
    assert not module.training
    assert "conv2d_kernel" in dict(module.named_parameters())
    assert module(torch.zeros(2, 28, 28, 1)).shape == (2, 10)


def test_the_tutorials_network_needs_one_transpose_and_ends_with_its_softmax() -> None:
    nodes = [n.op_type for n in convert_fixture(FILES / "sequential_keras3.h5").onnx.graph.node]
    assert nodes == [
        "Transpose", "Conv", "AveragePool", "Relu", "Conv", "MaxPool", "Relu",
        "Flatten", "Gemm", "Softmax",
    ]  # fmt: skip


def test_the_architecture_may_be_text_or_a_dictionary() -> None:
    text = (FILES / "weights_tf_keras2.json").read_text()
    inputs, outputs = golden(FILES / "weights_tf_keras2.npz")
    for architecture in (text, json.loads(text)):
        converted = converters.convert(FILES / "weights_tf_keras2.h5", architecture)
        assert_agrees(converted, inputs, outputs)


def test_the_table_names_layers_shapes_and_parameters() -> None:
    rows = convert_fixture(FILES / "sequential_tf_keras2.h5").layers
    by_name = {row.name: row for row in rows}
    assert by_name["conv2d"].class_name == "Conv2D"
    assert by_name["conv2d"].shape == (None, 26, 26, 3)
    assert by_name["conv2d"].parameters == 3 * 9 + 3
    assert by_name["dense"].nodes == ("dense/Gemm", "dense/Softmax")


def test_predict_says_which_shape_it_needs() -> None:
    converted = convert_fixture(FILES / "sequential_keras3.h5")
    with pytest.raises(converters.ConversionError, match=r"\(batch, 28, 28, 1\) is needed"):
        converted.predict(np.zeros((1, 1, 28, 28), np.float32))


def test_nothing_of_the_machine_is_in_the_model() -> None:
    model = convert_fixture(FILES / "sequential_keras3.h5").onnx
    properties = {p.key: p.value for p in model.metadata_props}
    assert properties["source_format"] == "Keras HDF5"
    assert properties["keras_version"].startswith("3.")
    assert str(FILES).encode() not in model.SerializeToString()


def test_the_tutorials_own_file_converts(third_party: Path) -> None:
    converted = converters.convert(third_party / "short-conv-mnist.h5")
    assert converted.inputs[0].shape == (None, 28, 28, 1)
    assert sum(row.parameters for row in converted.layers) == 22_158
