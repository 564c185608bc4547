"""Split: parts of every spelling are ONNX's, and a ShuffleNet block gives torch's logits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator
from ottt_models import graph
from ottt_session import Session, uniform
from torch import nn

import converters
from privserve.compiler.compile import compile_model
from privserve.errors import ModelError

FULL = ["a", "b", "c"]


def parted(
    inputs: list[str], constants: dict[str, np.ndarray], opset: int, **attributes: object
) -> onnx.ModelProto:
    """x in three parts, which come together in another order."""
    nodes = [
        helper.make_node("Split", inputs, FULL, name="parts", **attributes),
        helper.make_node("Concat", ["c", "a", "b"], ["y"], axis=attributes["axis"]),
    ]
    model = graph(nodes, constants, (7, 4))
    model.opset_import[0].version = opset
    return model


@pytest.mark.parametrize(
    "model",
    [
        parted(["x"], {}, 11, axis=1, split=[2, 4, 1]),
        parted(["x", "s"], {"s": np.array([1, 3, 3])}, 17, axis=1),
        parted(["x", "s"], {"s": np.array([2, 1, 1])}, 17, axis=-1),
        parted(["x"], {}, 18, axis=1, num_outputs=3),
        parted(["x"], {}, 18, axis=-2, num_outputs=3),
    ],
)
def test_parts_on_shares_are_those_of_onnx(model: onnx.ModelProto) -> None:
    x = uniform((3, 7, 4), -8, 8)
    with Session(model) as session:
        (got,) = session.query(x)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x.astype(np.float32)})
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (parted(["x"], {}, 17, axis=0), "batch"),
        (parted(["x", "s"], {"s": np.array([3, 3, 3])}, 17, axis=1), "axis of 7"),
        (parted(["x", "s"], {"s": np.array([3, 4])}, 17, axis=1), "3 parts"),
        (parted(["x"], {}, 18, axis=1, num_outputs=2), "3 parts"),
        (parted(["x", "s"], {"s": np.array([7, 0, 0])}, 17, axis=1), r"\[7, 0, 0\]"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(model: onnx.ModelProto, words: str) -> None:
    with pytest.raises(ModelError, match=rf"op 'Split' \(node 'parts'\): .*{words}"):
        compile_model(model)


def convolution(channels: int, kernel: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
    )


class Shuffled(nn.Module):
    """ShuffleNet's unit of stride 1: half of the channels pass, half are convolved, then mixed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.one, self.depth = convolution(half, 1), convolution(half, 3, groups=half)
        self.other = convolution(half, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, branch = x.chunk(2, 1)
        branch = torch.relu(self.one(branch))
        branch = torch.relu(self.other(self.depth(branch)))
        both = torch.cat([kept, branch], 1)
        batch, channels, height, width = both.shape
        pairs = both.view(batch, 2, channels // 2, height, width)
        return pairs.transpose(1, 2).reshape(batch, channels, height, width)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Shuffled(8), Shuffled(8))
        self.last = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.blocks(x).mean((2, 3)))


def by_hand(net: Net) -> onnx.ModelProto:
    """The graph as torch's exporters write it: Split, and a shuffle by Reshape and Transpose."""
    nodes, constants, last = [], {}, "x"

    def add(op: str, inputs: list[str], outputs: list[str], **attributes: object) -> str:
        name = f"{op} {len(nodes)}"
        nodes.append(helper.make_node(op, inputs, outputs, name=name, **attributes))
        return outputs[0]

    def constant(value: object) -> str:
        name = f"c{len(constants)}"
        constants[name] = np.asarray(value)
        return name

    def convolved(x: str, layer: nn.Sequential) -> str:
        conv, norm = layer
        weights = [w.detach().numpy() for w in (norm.weight, norm.bias)]
        names = [constant(w) for w in (*weights, norm.running_mean, norm.running_var)]
        pads, groups = [conv.padding[0]] * 4, conv.groups
        inputs = [x, constant(conv.weight.detach().numpy())]
        out = add("Conv", inputs, [f"v{len(nodes)}"], pads=pads, group=groups)
        return add("BatchNormalization", [out, *names], [f"n{len(nodes)}"])

    for i, block in enumerate(net.blocks):
        kept = add("Split", [last, constant([4, 4])], [f"kept{i}", f"branch{i}"], axis=1)
        out = add("Relu", [convolved(f"branch{i}", block.one)], [f"r{i}"])
        out = convolved(convolved(out, block.depth), block.other)
        out = add("Relu", [out], [f"s{i}"])
        out = add("Concat", [kept, out], [f"both{i}"], axis=1)
        out = add("Reshape", [out, constant([-1, 2, 4, 6, 6])], [f"pairs{i}"])
        out = add("Transpose", [out], [f"turned{i}"], perm=[0, 2, 1, 3, 4])
        last = add("Reshape", [out, constant([-1, 8, 6, 6])], [f"mixed{i}"])
    last = add("ReduceMean", [last], ["mean"], axes=[2, 3], keepdims=0)
    weights = [w.detach().numpy() for w in (net.last.weight, net.last.bias)]
    add("Gemm", [last, *map(constant, weights)], ["y"], transB=1)
    return graph(nodes, constants, (8, 6, 6))


def converted(net: Net) -> onnx.ModelProto:
    return converters.convert(net, input_shape=(8, 6, 6)).onnx


@pytest.mark.parametrize("model_of", [by_hand, converted])
@pytest.mark.filterwarnings("ignore")
def test_a_block_of_split_convolution_concat_and_shuffle_gives_torchs_logits(
    model_of: object,
) -> None:
    torch.manual_seed(6)
    net = Net().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2.0)
    x = uniform((4, 8, 6, 6), -2, 2)
    with torch.no_grad():
        meant = net(torch.from_numpy(x.astype(np.float32))).numpy()
    with Session(model_of(net), 3, input_range=(-2, 2)) as session:  # type: ignore[operator]
        (got,) = session.query(x)
        assert not session.program.guards
    assert np.abs(got - meant).max() < 0.005 * np.ptp(meant)
