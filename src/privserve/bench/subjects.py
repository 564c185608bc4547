"""The networks that `privserve.bench` measures, and what they compute in plaintext."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privserve.prg import Prg
from privserve.samples import DIGITS


@dataclass
class Subject:
    """A model to measure: how to prepare it, its float logits, sample inputs."""

    name: str
    converted: Any
    inputs: NDArray[np.float64]
    input_range: tuple[float, float] | None = None

    def batch(self, size: int) -> NDArray[np.float64]:
        """Return `size` inputs, repeating the samples as needed."""
        return np.resize(self.inputs, (size, *self.inputs.shape[1:]))

    def logits(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what the float model computes before its final activation."""
        import torch

        from converters.onnx_model import OnnxModule

        if not hasattr(self, "_module"):
            self._module = OnnxModule(without_activation(self.converted.onnx))
        with torch.no_grad():
            output = self._module(torch.from_numpy(x.astype(np.float32)))
        result: NDArray[np.float64] = np.asarray(output.numpy(), dtype=np.float64)
        return result


def without_activation(model: Any) -> Any:
    """Return the ONNX model up to its logits."""
    import onnx

    from privserve.engines.crypten.graph import strip_activation

    nodes, activation = strip_activation(list(model.graph.node), model.graph.output[0].name)
    if activation is None:
        return model
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    del cut.graph.node[:]
    cut.graph.node.extend(nodes)
    cut.graph.output[0].name = activation["input"]
    return cut


def sample_digits() -> NDArray[np.float64]:
    """Return the sample digits, (N, 28, 28, 1) in [0, 1]."""
    with np.load(DIGITS, allow_pickle=False) as samples:
        images = samples["images"]
    scale = 255.0 if images.dtype.kind in "iu" else 1.0
    return np.asarray(images, dtype=np.float64).reshape(-1, 28, 28, 1) / scale


def digits_subject(path: Path) -> Subject:
    """Return the sample model, or another model of the same input."""
    import converters

    return Subject(path.stem, converters.convert(path), sample_digits(), input_range=(0.0, 1.0))


def wide_subject(factor: int) -> Subject:
    """Return the tutorial's network with `factor` times the channels, random weights."""
    from torch import nn

    import converters

    a, b, c = 10 * factor, 32 * factor, 64 * factor
    layers: list[nn.Module] = []
    for before, after in ((1, a), (a, b), (b, c)):
        layers += [nn.Conv2d(before, after, 3), nn.AvgPool2d(2), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(c, 10))
    images = sample_digits().transpose(0, 3, 1, 2)
    converted = converters.convert(net, input_shape=(1, 28, 28))
    return Subject(f"tutorial x{factor}", converted, np.ascontiguousarray(images), (0.0, 1.0))


def resnet_subject() -> Subject:
    """Return CIFAR ResNet-20 with random weights, on random pictures."""
    import torch
    from torch import nn

    import converters

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(before, after, 3, stride, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.Conv2d(after, after, 3, 1, 1, bias=False),
                nn.BatchNorm2d(after),
            )
            self.skip: nn.Module = nn.Identity()
            if stride != 1 or before != after:
                conv = nn.Conv2d(before, after, 1, stride, bias=False)
                self.skip = nn.Sequential(conv, nn.BatchNorm2d(after))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.body(x) + self.skip(x))

    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    width = 16
    for after, stride in ((16, 1), (32, 2), (64, 2)):
        for block in range(3):
            layers.append(Block(width, after, stride if block == 0 else 1))
            width = after
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()
    pictures = Prg().uint8((8, 3, 32, 32)) / 255.0
    converted = converters.convert(net, input_shape=(3, 32, 32))
    return Subject("ResNet-20", converted, pictures, input_range=(0.0, 1.0))
