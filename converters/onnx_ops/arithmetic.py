"""Sums, products, functions of each element, reductions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from converters.onnx_ops.registry import Attributes, operator

_ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Pow": torch.pow,
    "MatMul": torch.matmul,
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Erf": torch.erf,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Relu": torch.relu,
    "Selu": F.selu,
    "Softsign": F.softsign,
    "Identity": lambda x: x,
}


def _elementwise(
    function: Callable[..., Tensor], attributes: Attributes, *tensors: Tensor
) -> Tensor:
    return function(*tensors)


for _name, _function in _ELEMENTWISE.items():
    operator(_name)(partial(_elementwise, _function))


@operator("Div")
def div(attributes: Attributes, a: Tensor, b: Tensor) -> Tensor:
    """Division; whole numbers are truncated towards zero, as ONNX wants."""
    if a.is_floating_point():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


@operator("Max", "Min", "Sum", "Mean")
def variadic(attributes: Attributes, *tensors: Tensor) -> Tensor:
    """Elementwise over any number of tensors; the operator's name is in `attributes`."""
    result = tensors[0]
    pairwise = {"Max": torch.maximum, "Min": torch.minimum}.get(attributes["op"], torch.add)
    for tensor in tensors[1:]:
        result = pairwise(result, tensor)
    return result / len(tensors) if attributes["op"] == "Mean" else result


@operator("Gemm")
def gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha * a' @ b' + beta * c."""
    a = a.mT if attributes.get("transA") else a
    b = b.mT if attributes.get("transB") else b
    result = a @ b * attributes["alpha"] if attributes.get("alpha", 1.0) != 1 else a @ b
    return result if c is None else result + c * attributes.get("beta", 1.0)


@operator("Clip")
def clip(
    attributes: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None
) -> Tensor:
    """x within [low, high]."""
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


@operator("BatchNormalization")
def batch_normalization(
    attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    """Inference: (x - mean) / sqrt(var + epsilon) * scale + bias, along axis 1."""
    epsilon = attributes.get("epsilon", 1e-5)
    return F.batch_norm(x, mean, var, scale, bias, training=False, eps=epsilon)


@operator("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
def reduce(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Reduce over axes, given as an attribute or (newer opsets) as an input."""
    listed = attributes.get("axes") if axes is None else [int(n) for n in axes.tolist()]
    over = listed if listed else list(range(x.ndim))
    keep = bool(attributes.get("keepdims", 1))
    name = attributes["op"]
    if name == "ReduceMean":
        return x.mean(over, keepdim=keep)
    if name == "ReduceSum":
        return x.sum(over, keepdim=keep)
    return x.amax(over, keepdim=keep) if name == "ReduceMax" else x.amin(over, keepdim=keep)
