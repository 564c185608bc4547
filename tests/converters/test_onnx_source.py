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


def in_two_files(path: Path, location: str) -> converters.Converted:
    """Write a model with its weights in a second file; return it as it was before."""
    converted = converters.convert(small_net(), input_shape=(2, 6, 6))
    onnx.save_model(
        converted.onnx, path, save_as_external_data=True, location=location, size_threshold=0
    )
    return converted


@pytest.mark.parametrize("location", ["net.onnx.data", "net.onnx_data", "net.data"])
def test_weights_in_a_file_called_after_the_model_are_read(tmp_path: Path, location: str) -> None:
    converted = in_two_files(tmp_path / "net.onnx", location)
    x = np.random.default_rng(0).normal(size=(3, 2, 6, 6)).astype(np.float32)
    again = converters.convert(tmp_path / "net.onnx")
    np.testing.assert_array_equal(again.predict(x), converted.predict(x))


def test_weights_in_any_other_file_are_not_read(tmp_path: Path) -> None:
    in_two_files(tmp_path / "net.onnx", "secrets.bin")
    with pytest.raises(converters.ConversionError, match=r"only net\.onnx\.data is opened"):
        converters.convert(tmp_path / "net.onnx")


def test_a_link_in_place_of_the_weights_is_not_followed(tmp_path: Path) -> None:
    in_two_files(tmp_path / "net.onnx", "net.onnx.data")
    (tmp_path / "net.onnx.data").rename(tmp_path / "secrets.bin")
    (tmp_path / "net.onnx.data").symlink_to(tmp_path / "secrets.bin")
    with pytest.raises(converters.ConversionError, match="cannot be read"):
        converters.convert(tmp_path / "net.onnx")


def test_weights_that_are_missing_or_cut_off_are_refused(tmp_path: Path) -> None:
    in_two_files(tmp_path / "net.onnx", "net.onnx.data")
    weights = tmp_path / "net.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(converters.ConversionError, match="too short"):
        converters.convert(tmp_path / "net.onnx")
    weights.unlink()
    with pytest.raises(converters.ConversionError, match="copy both"):
        converters.convert(tmp_path / "net.onnx")
