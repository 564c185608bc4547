"""ONNX files and torch modules convert, or are refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import converters


def small_net() -> torch.nn.Module:
    torch.manual_seed(1)
    layers = [torch.nn.Conv2d(2, 3, 3), torch.nn.ReLU(), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(3 * 16, 4), torch.nn.Softmax(-1)).eval()


def test_a_torch_module_converts_and_predicts_the_same_for_every_batch_size() -> None:
    net = small_net()
    converted = converters.convert(net, input_shape=(2, 6, 6))
    for batch in (1, 5):
        x = np.random.default_rng(batch).normal(size=(batch, 2, 6, 6)).astype(np.float32)
        with torch.no_grad():
            expected = net(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(converted.predict(x), expected, atol=1e-6)
    assert converted.inputs[0].shape == (None, 2, 6, 6)
    assert converted.outputs[0].shape == (None, 4)


def test_a_torch_module_without_a_shape_is_refused_with_the_remedy() -> None:
    with pytest.raises(converters.ConversionError, match="input_shape"):
        converters.convert(small_net())


def test_an_onnx_file_converts_to_itself(tmp_path: Path) -> None:
    converted = converters.convert(small_net(), input_shape=(2, 6, 6))
    path = tmp_path / "net.onnx"
    path.write_bytes(converted.onnx.SerializeToString())
    again = converters.convert(path)
    x = np.random.default_rng(0).normal(size=(3, 2, 6, 6)).astype(np.float32)
    np.testing.assert_array_equal(again.predict(x), converted.predict(x))
    assert sum(row.parameters for row in again.layers) == sum(
        p.numel() for p in small_net().parameters()
    )


def test_an_onnx_file_for_one_sample_serves_batches(tmp_path: Path) -> None:
    model = converters.convert(small_net(), input_shape=(2, 6, 6)).onnx
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    path = tmp_path / "one.onnx"
    path.write_bytes(fixed.SerializeToString())
    assert converters.convert(path).predict(np.zeros((4, 2, 6, 6))).shape == (4, 4)


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x89PNG\r\n\x1a\n" * 10])
def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(converters.ConversionError, match=r"bad\.onnx"):
        converters.convert(path)


def test_weights_outside_the_onnx_file_are_refused(tmp_path: Path) -> None:
    model = converters.convert(small_net(), input_shape=(2, 6, 6)).onnx
    path = tmp_path / "split.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(converters.ConversionError):
        converters.convert(path)
