"""Activations that have settings, and those along an axis."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from converters.onnx_ops.registry import Attributes, operator


@operator("LeakyRelu")
def leaky_relu(attributes: Attributes, x: Tensor) -> Tensor:
    """x above 0, alpha x below."""
    return F.leaky_relu(x, attributes.get("alpha", 0.01))


@operator("PRelu")
def prelu(attributes: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    """x above 0, slope x below."""
    return torch.where(x < 0, x * slope, x)


@operator("ThresholdedRelu")
def thresholded_relu(attributes: Attributes, x: Tensor) -> Tensor:
    """x above alpha, else 0."""
    return torch.where(x > attributes.get("alpha", 1.0), x, torch.zeros_like(x))


@operator("Elu")
def elu(attributes: Attributes, x: Tensor) -> Tensor:
    """x above 0, alpha (e^x - 1) below."""
    return F.elu(x, attributes.get("alpha", 1.0))


@operator("Celu")
def celu(attributes: Attributes, x: Tensor) -> Tensor:
    """x above 0, alpha (e^(x / alpha) - 1) below."""
    return F.celu(x, attributes.get("alpha", 1.0))


@operator("HardSigmoid")
def hard_sigmoid(attributes: Attributes, x: Tensor) -> Tensor:
    """alpha x + beta within [0, 1]."""
    return torch.clamp(attributes.get("alpha", 0.2) * x + attributes.get("beta", 0.5), 0, 1)


@operator("HardSwish")
def hard_swish(attributes: Attributes, x: Tensor) -> Tensor:
    """x times the hard sigmoid of slope 1/6."""
    return F.hardswish(x)


@operator("Softplus")
def softplus(attributes: Attributes, x: Tensor) -> Tensor:
    """log(1 + e^x), without overflow."""
    return torch.logaddexp(x, torch.zeros_like(x))


@operator("Softmax")
def softmax(attributes: Attributes, x: Tensor) -> Tensor:
    """Softmax along one axis."""
    return torch.softmax(x, attributes.get("axis", -1))


@operator("LogSoftmax")
def log_softmax(attributes: Attributes, x: Tensor) -> Tensor:
    """log of the softmax along one axis."""
    return torch.log_softmax(x, attributes.get("axis", -1))
