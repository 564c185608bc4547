"""Convolutions. Keras' kernels are (*spatial, in, out), ONNX's (out, in, *spatial)."""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.errors import ConversionError
from converters.graph import Graph, Symbol
from converters.keras_layers import settings
from converters.keras_layers.activations import activate
from converters.keras_layers.core import kernel_and_bias, only, weight
from converters.keras_layers.registry import keras_layer
from converters.keras_layers.window import Window, channel_axis, spatial_axes
from converters.network import Config, Layer


@keras_layer("Conv1D", "Conv2D", weights=kernel_and_bias)
def conv(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """valid, same and (Conv1D) causal padding, strides, dilation, groups, both data formats."""
    value, config = only(inputs), layer.config
    sliding = _Sliding(value, layer)
    filters = settings.integer(config, "filters")
    groups = settings.integer(config, "groups", 1)
    channels = sliding.channels
    if channels % groups or filters % groups:
        raise ConversionError(f"{groups} groups do not divide {channels} or {filters} channels")
    kernel = weight(layer, "kernel", (*sliding.window.kernel, channels // groups, filters))
    out = sliding.apply(graph, value, _out_first(kernel), groups, layer.weights.get("bias"))
    return activate(graph, layer, out, keras)


def _depthwise_weights(config: Config) -> tuple[str, ...]:
    return ("depthwise_kernel", *kernel_and_bias(config)[1:])


@keras_layer("DepthwiseConv1D", "DepthwiseConv2D", weights=_depthwise_weights)
def depthwise(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """depth_multiplier and all options of Conv."""
    value = only(inputs)
    sliding = _Sliding(value, layer)
    kernel = _depthwise_kernel(layer, sliding)
    bias = layer.weights.get("bias")
    names = ("depthwise_kernel", "bias")
    out = sliding.apply(graph, value, kernel, sliding.channels, bias, names)
    return activate(graph, layer, out, keras)


def _separable_weights(config: Config) -> tuple[str, ...]:
    return ("depthwise_kernel", "pointwise_kernel", *kernel_and_bias(config)[1:])


@keras_layer("SeparableConv1D", "SeparableConv2D", weights=_separable_weights)
def separable(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """depth_multiplier and all options of Conv."""
    value = only(inputs)
    sliding = _Sliding(value, layer)
    kernel = _depthwise_kernel(layer, sliding)
    names = ("depthwise_kernel", "bias")
    out = sliding.apply(graph, value, kernel, sliding.channels, None, names)
    filters = settings.integer(layer.config, "filters")
    ones = (1,) * len(sliding.axes)
    pointwise = weight(layer, "pointwise_kernel", (*ones, kernel.shape[0], filters))
    second = _Sliding(out, layer, pointwise=True)
    names = ("pointwise_kernel", "bias")
    bias = layer.weights.get("bias")
    out = second.apply(graph, out, _out_first(pointwise), 1, bias, names)
    return activate(graph, layer, out, keras)


def _depthwise_kernel(layer: Layer, sliding: _Sliding) -> np.ndarray:
    """Keras' (*kernel, channels, multiplier) -> (channels * multiplier, 1, *kernel)."""
    multiplier = settings.integer(layer.config, "depth_multiplier", 1)
    shape = (*sliding.window.kernel, sliding.channels, multiplier)
    kernel = weight(layer, "depthwise_kernel", shape)
    return _out_first(kernel.reshape(*sliding.window.kernel, 1, -1))


@keras_layer("Conv1DTranspose", "Conv2DTranspose", weights=kernel_and_bias)
def transposed(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """valid and same padding, strides, dilation, output_padding, both data formats."""
    value, config = only(inputs), layer.config
    rank = 1 if layer.class_name.startswith("Conv1D") else 2
    data_format = settings.data_format(config)
    axes = spatial_axes(value, rank, data_format)
    sizes = settings.integers(config, "kernel_size", rank)
    strides = settings.integers(config, "strides", rank, 1)
    dilations = settings.integers(config, "dilation_rate", rank, 1)
    mode = settings.choice(config, "padding", "valid", "valid", "same")
    if settings.integer(config, "groups", 1) != 1:
        raise ConversionError("groups are not supported here")
    extra: tuple[int | None, ...] = (None,) * rank
    if config.get("output_padding") is not None:
        extra = settings.integers(config, "output_padding", rank, least=0)
    filters = settings.integer(config, "filters")
    channel = channel_axis(value, data_format)
    kernel = weight(layer, "kernel", (*sizes, filters, value.shape[channel]))

    shape = list(value.shape)
    shape[channel] = filters
    begins, ends, fills = [], [], []
    for axis, size, stride, dilation, more in zip(
        axes, sizes, strides, dilations, extra, strict=True
    ):
        reach = (size - 1) * dilation + 1
        full = (value.shape[axis] - 1) * stride + reach
        if more is not None:
            shape[axis] = full + more - (2 * (size // 2) if mode == "same" else 0)
        elif mode == "same":
            shape[axis] = value.shape[axis] * stride
        else:
            shape[axis] = full + max(stride - reach, 0)
        # TensorFlow cuts what is too much as it pads: the odd element at the end.
        cut = max(full - shape[axis], 0)
        begins.append(cut // 2)
        ends.append(cut - cut // 2)
        fills.append(max(shape[axis] - full, 0))
    result = graph.value("", shape)
    value = graph.channels_first(value, data_format)
    operands = [value.name, graph.constant(_out_first(kernel), "kernel")]
    if "bias" in layer.weights:
        operands.append(graph.constant(weight(layer, "bias", (filters,)), "bias"))
    attributes: dict[str, Any] = {"kernel_shape": sizes, "strides": strides}
    attributes |= {"pads": begins + ends} if any(begins + ends) else {}
    attributes |= {"dilations": dilations} if any(n != 1 for n in dilations) else {}
    attributes |= {"output_padding": fills} if any(fills) else {}
    name = graph.emit("ConvTranspose", operands, **attributes)
    out = graph.value(name, result.shape, value.axes)
    return activate(graph, layer, out, keras)


class _Sliding:
    """What the convolutions share: where the window goes and how the node is emitted."""

    def __init__(self, value: Symbol, layer: Layer, pointwise: bool = False) -> None:
        config: Config = {} if pointwise else layer.config
        rank = 1 if layer.class_name.endswith("1D") else 2
        self.data_format = settings.data_format(layer.config)
        self.axes = spatial_axes(value, rank, self.data_format)
        self.channels = value.shape[channel_axis(value, self.data_format)]
        modes = ("valid", "same", "causal") if rank == 1 else ("valid", "same")
        self.window = Window.of(
            [value.shape[axis] for axis in self.axes],
            settings.integers(config, "kernel_size", rank, 1 if pointwise else None),
            settings.integers(config, "strides", rank, 1),
            settings.integers(config, "dilation_rate", rank, 1),
            settings.choice(config, "padding", "valid", *modes),
        )

    def apply(
        self,
        graph: Graph,
        value: Symbol,
        kernel: np.ndarray,
        groups: int,
        bias: np.ndarray | None,
        names: tuple[str, str] = ("kernel", "bias"),
    ) -> Symbol:
        """Emit the Conv of `value` with `kernel`: float32[out, in / groups, *spatial]."""
        value = graph.channels_first(value, self.data_format)
        operands = [value.name, graph.constant(kernel, names[0])]
        if bias is not None:
            if bias.shape != kernel.shape[:1]:
                raise ConversionError(f"its bias of shape {bias.shape} does not fit its kernel")
            operands.append(graph.constant(bias, names[1]))
        attributes = self.window.attributes()
        if groups != 1:
            attributes["group"] = groups
        shape = list(value.shape)
        for axis, length in zip(self.axes, self.window.output, strict=True):
            shape[axis] = length
        shape[channel_axis(value, self.data_format)] = kernel.shape[0]
        return graph.value(graph.emit("Conv", operands, **attributes), shape, value.axes)


def _out_first(kernel: np.ndarray) -> np.ndarray:
    """(*spatial, in, out) -> (out, in, *spatial)."""
    return kernel.transpose(kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2))
