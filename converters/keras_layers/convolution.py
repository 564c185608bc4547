"""Convolutions. Keras' kernels are (*spatial, in, out), ONNX's (out, in, *spatial)."""

from __future__ import annotations

import numpy as np

from converters.errors import ConversionError
from converters.graph import Graph, Value
from converters.keras_layers import settings
from converters.keras_layers.activations import activate
from converters.keras_layers.core import kernel_and_bias, only, weight
from converters.keras_layers.registry import keras_layer
from converters.keras_layers.window import Window, channel_axis, spatial_axes
from converters.network import Layer


@keras_layer("Conv1D", "Conv2D", weights=kernel_and_bias)
def conv(graph: Graph, layer: Layer, inputs: list[Value], keras: tuple[int, int]) -> Value:
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


class _Sliding:
    """What the convolutions share: where the window goes and how the node is emitted."""

    def __init__(self, value: Value, layer: Layer) -> None:
        config = layer.config
        rank = 1 if layer.class_name.endswith("1D") else 2
        self.data_format = settings.data_format(config)
        self.axes = spatial_axes(value, rank, self.data_format)
        self.channels = value.shape[channel_axis(value, self.data_format)]
        modes = ("valid", "same", "causal") if rank == 1 else ("valid", "same")
        self.window = Window.of(
            [value.shape[axis] for axis in self.axes],
            settings.integers(config, "kernel_size", rank),
            settings.integers(config, "strides", rank, 1),
            settings.integers(config, "dilation_rate", rank, 1),
            settings.choice(config, "padding", "valid", *modes),
        )

    def apply(
        self,
        graph: Graph,
        value: Value,
        kernel: np.ndarray,
        groups: int,
        bias: np.ndarray | None,
        names: tuple[str, str] = ("kernel", "bias"),
    ) -> Value:
        """Emits the Conv of `value` with `kernel`: float32[out, in / groups, *spatial]."""
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
