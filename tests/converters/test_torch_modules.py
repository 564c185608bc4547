"""torch modules, and files that torch's exporters write in any opset, against torch itself."""

from __future__ import annotations

import logging
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from onnx import helper, numpy_helper
from torch import Tensor, nn

import converters

Forward = Callable[[Any, Tensor], Tensor]
IMAGE = (3, 8, 8)


class Net(nn.Module):
    """One convolution, and what is done with it."""

    def __init__(self, forward: Forward, *more: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), *more])
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layers, x)


def shuffled_block(m: Any, x: Tensor) -> Tensor:
    """ShuffleNet's block: half of the channels are convolved, then all are mixed."""
    kept, rest = m[0](x).chunk(2, 1)
    joined = torch.cat([kept, F.relu(m[1](rest))], 1)
    batch, channels, height, width = joined.shape
    mixed = joined.view(batch, 2, channels // 2, height, width).transpose(1, 2)
    return m[2](mixed.reshape(batch, channels, height, width).mean((2, 3)))


NETS: dict[str, Callable[[], Net]] = {
    "view by the batch's size": lambda: Net(
        lambda m, x: m[1](m[0](x).view(x.size(0), -1)), nn.Linear(256, 3)
    ),
    "view by a product of sizes": lambda: Net(
        lambda m, x: m[1](m[0](x).view(-1, int(np.prod(x.size()[1:])) * 4 // 3)), nn.Linear(256, 3)
    ),
    "channel shuffle by hand": lambda: Net(
        lambda m, x: m[0](x).view(x.size(0), 2, 2, 8, 8).transpose(1, 2).reshape(x.size(0), 4, 8, 8)
    ),
    "pixel shuffle": lambda: Net(lambda m, x: F.pixel_shuffle(m[0](x), 2)),
    "chunk": lambda: Net(lambda m, x: torch.cat(m[0](x).chunk(2, 1)[::-1], 1)),
    "split": lambda: Net(lambda m, x: torch.cat(m[0](x).split([1, 3], 1)[::-1], 1)),
    "split into unequal rows": lambda: Net(lambda m, x: m[0](x).split(3, -2)[2] * 2),
    "a block of ShuffleNet": lambda: Net(
        shuffled_block, nn.Conv2d(2, 2, 3, padding=1), nn.Linear(4, 3)
    ),
    "mean of an axis after the other": lambda: Net(lambda m, x: m[0](x).mean(2).mean(2)),
    "length of each pixel's vector": lambda: Net(lambda m, x: m[0](x).norm(dim=1)),
    "vectors of length 1": lambda: Net(lambda m, x: F.normalize(m[0](x))),
    "maximum with a constant": lambda: Net(
        lambda m, x: torch.maximum(m[0](x), torch.tensor([0.1]))
    ),
    "clamped below": lambda: Net(lambda m, x: m[0](x).clamp(min=0.1)),
    "padded by less than nothing": lambda: Net(lambda m, x: F.pad(m[0](x), (-1, 2, 0, -2))),
    "reflected": lambda: Net(lambda m, x: m[0](F.pad(x, (2, 1, 1, 2), mode="reflect"))),
    "turned around": lambda: Net(lambda m, x: m[0](x).flip(3)),
    "squeezed": lambda: Net(lambda m, x: m[0](x).mean((2, 3)).unsqueeze(1).squeeze(1)),
    "slopes of a PReLU": lambda: Net(lambda m, x: m[1](m[0](x)), nn.PReLU(4)),
    "gelu": lambda: Net(lambda m, x: F.gelu(m[0](x), approximate="tanh")),
}

OLDEST = {"turned around": 10, "vectors of length 1": 8}


def export(net: nn.Module, path: Path, opset: int, is_free: bool) -> None:
    axes = {"x": {0: "N"}, "y": {0: "N"}} if is_free else None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.zeros(2, *IMAGE),), str(path), dynamo=False, opset_version=opset,
            input_names=["x"], output_names=["y"], dynamic_axes=axes,
        )  # fmt: skip


def assert_agrees(converted: converters.Converted, net: nn.Module) -> None:
    for batch in (1, 3):
        x = torch.randn((batch, *IMAGE), generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = net(x).numpy()
        found = converted.predict(x.numpy())
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("opset", [7, 9, 12, 17, 20])
@pytest.mark.parametrize("name", NETS)
def test_an_exported_file_of_any_opset_agrees_with_torch(
    name: str, opset: int, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    net = NETS[name]().eval()
    if opset < OLDEST.get(name, 7):
        pytest.skip(f"torch exports it from opset {OLDEST[name]} on")
    for is_free in (True, False):
        export(net, tmp_path / "net.onnx", opset, is_free)
        assert_agrees(converters.convert(tmp_path / "net.onnx"), net)


@pytest.mark.parametrize("name", NETS)
def test_a_module_agrees_with_torch(name: str) -> None:
    torch.manual_seed(1)
    net = NETS[name]().eval()
    assert_agrees(converters.convert(net, input_shape=IMAGE), net)


def test_a_reshape_that_keeps_zeros_frees_its_batch_too(tmp_path: Path) -> None:
    """As torch's newer exporter writes it, for one sample unless it is told otherwise."""
    weight = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["x", "shape"], ["flat"], allowzero=1),
            helper.make_node("MatMul", ["flat", "weight"], ["y"]),
        ],
        "fixed",
        [helper.make_tensor_value_info("x", 1, [1, 3, 4])],
        [helper.make_tensor_value_info("y", 1, [1, 2])],
        [
            numpy_helper.from_array(np.array([1, 12]), "shape"),
            numpy_helper.from_array(weight, "weight"),
        ],
    )
    path = tmp_path / "one.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    x = np.random.default_rng(1).normal(size=(5, 3, 4)).astype(np.float32)
    found = converters.convert(path).predict(x)
    np.testing.assert_allclose(found, x.reshape(5, 12) @ weight, atol=1e-5)


def test_a_module_that_decides_by_its_data_is_refused() -> None:
    net = Net(lambda m, x: m[0](x) if x.sum() > 0 else -m[0](x)).eval()
    with pytest.raises(converters.ConversionError, match="decides by its data"):
        converters.convert(net, input_shape=IMAGE)


def test_an_answer_without_a_row_for_each_sample_is_refused() -> None:
    net = Net(lambda m, x: m[0](x).transpose(0, 1)).eval()
    with pytest.raises(converters.ConversionError, match="row of its own"):
        converters.convert(net, input_shape=IMAGE)


@pytest.mark.parametrize(
    ("net", "shape", "says"),
    [
        (nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), (5, 8), "attention"),
        (nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4)), (8,), "use BatchNormalization"),
        (Net(lambda m, x: F.channel_shuffle(m[0](x), 2)), IMAGE, "channel_shuffle"),
        (Net(lambda m, x: x.int().float()), IMAGE, "between floats only"),
        (Net(lambda m, x: torch.einsum("bchw,oc->bohw", x, torch.ones(2, 3))), IMAGE, "Einsum"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line_and_nothing_is_printed(
    net: nn.Module, shape: tuple[int, ...], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(converters.ConversionError, match=says) as refusal:
        converters.convert(net.eval(), input_shape=shape)
    assert "graph(" not in str(refusal.value)
    assert len(str(refusal.value)) < 500
    assert "graph(" not in "".join(capfd.readouterr())


def test_constants_of_enormous_size_are_not_computed(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["sizes"], ["zeros"]),
            helper.make_node("Slice", ["zeros", "starts", "ends"], ["few"]),
            helper.make_node("Add", ["x", "few"], ["y"]),
        ],
        "bomb",
        [helper.make_tensor_value_info("x", 1, ["N", 3])],
        [helper.make_tensor_value_info("y", 1, ["N", 3])],
        [
            numpy_helper.from_array(np.array([1 << 12, 1 << 13]), "sizes"),
            numpy_helper.from_array(np.array([0, 0]), "starts"),
            numpy_helper.from_array(np.array([1, 3]), "ends"),
        ],
    )
    path = tmp_path / "bomb.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    )
    tracemalloc.start()
    try:
        with pytest.raises(converters.ConversionError):
            converters.convert(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20  # the zeros alone take 128 MiB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [1, 2])
def test_a_branch_on_a_length_is_taken_at_conversion(length: int, tmp_path: Path) -> None:
    """As torch writes x.squeeze(1) where it does not know how long that axis is."""

    def branch(node: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(
            [node], "branch", [], [helper.make_tensor_value_info(node.output[0], 1, None)]
        )

    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Gather", ["shape", "one"], ["length"]),
            helper.make_node("Equal", ["length", "one"], ["is_one"]),
            helper.make_node(
                "If", ["is_one"], ["y"],
                then_branch=branch(helper.make_node("Squeeze", ["x", "axes"], ["short"])),
                else_branch=branch(helper.make_node("Identity", ["x"], ["long"])),
            ),
        ],
        "squeeze",
        [helper.make_tensor_value_info("x", 1, ["N", length, 4])],
        [helper.make_tensor_value_info("y", 1, ["N", 4] if length == 1 else ["N", length, 4])],
        [
            numpy_helper.from_array(np.array(1), "one"),
            numpy_helper.from_array(np.array([1]), "axes"),
        ],
    )  # fmt: skip
    path = tmp_path / "squeeze.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    x = np.random.default_rng(1).normal(size=(5, length, 4)).astype(np.float32)
    found = converters.convert(path).predict(x)
    np.testing.assert_array_equal(found, x[:, 0] if length == 1 else x)
