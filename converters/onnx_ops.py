"""What each ONNX operator does, as a small torch function with ONNX's exact meaning.

An operator's function takes the node's attributes and its input tensors (None for an
optional input that is absent) and returns the output tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from converters.errors import ConversionError

Attributes = dict[str, Any]
Operator = Callable[..., Tensor]

OPERATORS: dict[str, Operator] = {}


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Registers a function as the meaning of ONNX operators."""

    def register(function: Operator) -> Operator:
        for name in names:
            OPERATORS[name] = function
        return function

    return register


def _elementwise(function: Callable[..., Tensor]) -> Operator:
    return lambda attributes, *tensors: function(*tensors)


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
for _name, _function in _ELEMENTWISE.items():
    OPERATORS[_name] = _elementwise(_function)


# --- arithmetic ------------------------------------------------------------------------


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


# --- activations -----------------------------------------------------------------------


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


# --- sliding windows -------------------------------------------------------------------


def _pads(attributes: Attributes, x: Tensor, kernel: Sequence[int]) -> list[int]:
    """Padding as (begin of each axis, end of each axis)."""
    rank = x.ndim - 2
    mode = attributes.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        return list(attributes.get("pads", [0] * 2 * rank)) if mode == "NOTSET" else [0] * 2 * rank
    begin, end = [], []
    for i in range(rank):
        stride = attributes.get("strides", [1] * rank)[i]
        reach = (kernel[i] - 1) * attributes.get("dilations", [1] * rank)[i] + 1
        length = x.shape[2 + i]
        total = max((-(-length // stride) - 1) * stride + reach - length, 0)
        small = total // 2
        begin.append(small if mode == "SAME_UPPER" else total - small)
        end.append(total - small if mode == "SAME_UPPER" else small)
    return begin + end


def _padded(x: Tensor, pads: Sequence[int], fill: float = 0.0) -> Tensor:
    rank = len(pads) // 2
    if not any(pads):
        return x
    # torch wants the last axis first, each as (begin, end)
    flat = [n for i in reversed(range(rank)) for n in (pads[i], pads[rank + i])]
    return F.pad(x, flat, value=fill)


@operator("Conv")
def conv(attributes: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """x: (B, C, *spatial), w: (out, C / group, *kernel)."""
    rank = x.ndim - 2
    pads = _pads(attributes, x, w.shape[2:])
    symmetric = pads[:rank] == pads[rank:]
    x = x if symmetric else _padded(x, pads)
    convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    result: Tensor = convolve(
        x, w, b,
        stride=attributes.get("strides", 1),
        padding=pads[:rank] if symmetric else 0,
        dilation=attributes.get("dilations", 1),
        groups=attributes.get("group", 1),
    )  # fmt: skip
    return result


@operator("ConvTranspose")
def conv_transpose(attributes: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """x: (B, C, *spatial), w: (C, out / group, *kernel)."""
    rank = x.ndim - 2
    if attributes.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in attributes:
        raise ConversionError("ConvTranspose is supported with explicit pads only")
    pads = attributes.get("pads", [0] * 2 * rank)
    extra = attributes.get("output_padding", [0] * rank)
    transpose: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    result: Tensor = transpose(
        x, w, None,
        stride=attributes.get("strides", 1),
        groups=attributes.get("group", 1),
        dilation=attributes.get("dilations", 1),
    )  # fmt: skip
    # The full result, then cut by `pads` and filled up by `output_padding`.
    result = _padded(result, [-n for n in pads[:rank]] + [
        e - n for e, n in zip(extra, pads[rank:], strict=True)
    ])  # fmt: skip
    return result if b is None else result + b.reshape(-1, *[1] * rank)


@operator("MaxPool")
def max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    """The largest element of each window; padding never wins."""
    kernel = attributes["kernel_shape"]
    rank = len(kernel)
    x = _padded(x, _pool_pads(attributes, x), -math.inf)
    pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    result: Tensor = pool(
        x, kernel, attributes.get("strides", 1), 0, attributes.get("dilations", 1)
    )
    return result


@operator("AveragePool")
def average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    """The mean of each window, with the padding counted or left out."""
    kernel = attributes["kernel_shape"]
    rank = len(kernel)
    strides = attributes.get("strides", [1] * rank)
    pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    explicit = _pads(attributes, x, kernel)
    pads = _pool_pads(attributes, x)
    result: Tensor = pool(_padded(x, pads), kernel, strides)
    if not any(pads):
        return result
    # What counts as an element: the input, and with count_include_pad its stated padding,
    # but never what ceil_mode adds beyond.
    counted = torch.ones_like(x[:1, :1])
    if attributes.get("count_include_pad", 0):
        counted = _padded(counted, explicit, 1.0)
        pads = [total - stated for total, stated in zip(pads, explicit, strict=True)]
    share: Tensor = pool(_padded(counted, pads), kernel, strides)
    return result / share


def _pool_pads(attributes: Attributes, x: Tensor) -> list[int]:
    """The padding, with what ceil_mode adds at the end of each axis."""
    kernel = attributes["kernel_shape"]
    rank = len(kernel)
    pads = _pads(attributes, x, kernel)
    if attributes.get("ceil_mode", 0):
        for i in range(rank):
            stride = attributes.get("strides", [1] * rank)[i]
            reach = (kernel[i] - 1) * attributes.get("dilations", [1] * rank)[i] + 1
            rest = (x.shape[2 + i] + pads[i] + pads[rank + i] - reach) % stride
            # A last window that would begin in the padding at the end is not taken.
            start = x.shape[2 + i] + pads[i] + pads[rank + i] - reach - rest + stride
            if rest and start < x.shape[2 + i] + pads[i]:
                pads[rank + i] += stride - rest
    return pads


@operator("GlobalAveragePool", "GlobalMaxPool")
def global_pool(attributes: Attributes, x: Tensor) -> Tensor:
    """(B, C, *spatial) -> (B, C, 1, ...)."""
    axes = list(range(2, x.ndim))
    if attributes["op"] == "GlobalMaxPool":
        return x.amax(axes, keepdim=True)
    return x.mean(axes, keepdim=True)


@operator("BatchNormalization")
def batch_normalization(
    attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    """Inference: (x - mean) / sqrt(var + epsilon) * scale + bias, along axis 1."""
    epsilon = attributes.get("epsilon", 1e-5)
    return F.batch_norm(x, mean, var, scale, bias, training=False, eps=epsilon)


# --- shapes ----------------------------------------------------------------------------


@operator("Flatten")
def flatten(attributes: Attributes, x: Tensor) -> Tensor:
    """Two axes: all before `axis`, and the rest."""
    axis = attributes.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    if axis == 1:
        return x.flatten(1) if x.ndim > 1 else x.reshape(-1, 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


@operator("Reshape")
def reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    """0 keeps an axis, -1 takes what is left."""
    wanted = [int(n) for n in shape.tolist()]
    if not attributes.get("allowzero", 0):
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(wanted)


@operator("Transpose")
def transpose(attributes: Attributes, x: Tensor) -> Tensor:
    """Reorders the axes."""
    return x.permute(attributes.get("perm") or list(range(x.ndim))[::-1])


@operator("Concat")
def concat(attributes: Attributes, *tensors: Tensor) -> Tensor:
    """Joins along one axis."""
    return torch.cat(tensors, attributes["axis"])


@operator("Gather")
def gather(attributes: Attributes, x: Tensor, places: Tensor) -> Tensor:
    """Picks elements along one axis."""
    axis = attributes.get("axis", 0) % x.ndim
    picked = x.index_select(axis, places.reshape(-1) % x.shape[axis])
    return picked.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


@operator("Squeeze")
def squeeze(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Drops axes of length 1."""
    if axes is None:
        return x.squeeze()
    return x.squeeze([int(n) for n in axes.tolist()])


@operator("Unsqueeze")
def unsqueeze(attributes: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    """Adds axes of length 1."""
    rank = x.ndim + axes.numel()
    for axis in sorted(int(n) % rank for n in axes.reshape(-1).tolist()):
        x = x.unsqueeze(axis)
    return x


@operator("Tile")
def tile(attributes: Attributes, x: Tensor, repeats: Tensor) -> Tensor:
    """Repeats along each axis."""
    return x.repeat([int(n) for n in repeats.tolist()])


@operator("Expand")
def expand(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    """Broadcasts against a shape."""
    wanted = [int(n) for n in shape.tolist()]
    rank = max(x.ndim, len(wanted))
    x = x.reshape(*[1] * (rank - x.ndim), *x.shape)
    wanted = [1] * (rank - len(wanted)) + wanted
    return x.expand([h if w == 1 else w for h, w in zip(x.shape, wanted, strict=True)])


@operator("Slice")
def slice_(
    attributes: Attributes,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Cuts ranges out of axes; a negative step turns around."""
    numbers = range(starts.numel()) if axes is None else axes.tolist()
    pace = [1] * starts.numel() if steps is None else steps.tolist()
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), numbers, pace, strict=True):
        places = range(*slice(start, end, step).indices(x.shape[axis]))
        if step > 0:
            index = [slice(None)] * x.ndim
            index[axis] = slice(places.start, places.stop, step)
            x = x[tuple(index)]
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x


@operator("Pad")
def pad(
    attributes: Attributes,
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    """Adds constants around."""
    if attributes.get("mode", "constant") != "constant":
        raise ConversionError("Pad is supported with constants only")
    rank = x.ndim
    given = [int(n) for n in pads.tolist()]
    if axes is not None:
        full = [0] * 2 * rank
        for i, axis in enumerate(axes.tolist()):
            full[axis % rank] = given[i]
            full[axis % rank + rank] = given[i + axes.numel()]
        given = full
    return _padded(x, given, 0.0 if value is None else float(value))


@operator("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
def reduce(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Reduces over axes, given as an attribute or (newer opsets) as an input."""
    listed = attributes.get("axes") if axes is None else [int(n) for n in axes.tolist()]
    over = listed if listed else list(range(x.ndim))
    keep = bool(attributes.get("keepdims", 1))
    name = attributes["op"]
    if name == "ReduceMean":
        return x.mean(over, keepdim=keep)
    if name == "ReduceSum":
        return x.sum(over, keepdim=keep)
    return x.amax(over, keepdim=keep) if name == "ReduceMax" else x.amin(over, keepdim=keep)


@operator("Resize")
def resize(
    attributes: Attributes,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Nearest or linear, one axis after the other."""
    mode = attributes.get("mode", "nearest")
    if mode not in ("nearest", "linear") or attributes.get("antialias", 0):
        raise ConversionError(f"Resize with mode {mode!r} or antialiasing is not supported")
    for axis in range(x.ndim):
        old = x.shape[axis]
        if sizes is not None:
            new = int(sizes[axis])
            scale = new / old
        elif scales is not None:
            scale = float(scales[axis])
            new = math.floor(old * scale)
        else:
            raise ConversionError("Resize without scales or sizes is not supported")
        if scale != 1:
            x = _resized(attributes, x, axis, new, scale)
    return x


def _resized(attributes: Attributes, x: Tensor, axis: int, new: int, scale: float) -> Tensor:
    """`x` with `axis` resized to `new` elements."""
    old = x.shape[axis]
    rule = attributes.get("coordinate_transformation_mode", "half_pixel")
    place = torch.arange(new, dtype=torch.float64)
    if rule == "asymmetric":
        place = place / scale
    elif rule == "align_corners":
        place = place * ((old - 1) / (new - 1)) if new > 1 else place
    elif rule == "half_pixel" or (rule == "pytorch_half_pixel" and new > 1):
        place = (place + 0.5) / scale - 0.5
    elif rule == "pytorch_half_pixel":
        place = torch.zeros(1, dtype=torch.float64)
    else:
        raise ConversionError(f"Resize with coordinates {rule!r} is not supported")
    if attributes.get("mode", "nearest") == "nearest":
        rounding = attributes.get("nearest_mode", "round_prefer_floor")
        rounded: dict[str, Callable[[Tensor], Tensor]] = {
            "floor": torch.floor,
            "ceil": torch.ceil,
            "round_prefer_floor": lambda t: torch.ceil(t - 0.5),
            "round_prefer_ceil": lambda t: torch.floor(t + 0.5),
        }
        nearest = rounded[rounding](place).long()
        return x.index_select(axis, nearest.clamp(0, old - 1))
    low = torch.floor(place)
    shape = [new if i == axis else 1 for i in range(x.ndim)]
    share = (place - low).to(x.dtype).reshape(shape)
    below = x.index_select(axis, low.long().clamp(0, old - 1))
    above = x.index_select(axis, (low.long() + 1).clamp(0, old - 1))
    return below + (above - below) * share
