"""Dense, and the layers that do nothing at inference."""

from __future__ import annotations

import numpy as np

from converters.errors import ConversionError
from converters.graph import Graph, Symbol
from converters.keras_layers import settings
from converters.keras_layers.activations import activate
from converters.keras_layers.registry import keras_layer
from converters.network import Config, Layer


def kernel_and_bias(config: Config) -> tuple[str, ...]:
    """Return the weights of Dense and of the plain convolutions."""
    return ("kernel", "bias") if config.get("use_bias", True) else ("kernel",)


@keras_layer(
    "Dropout", "SpatialDropout1D", "SpatialDropout2D", "GaussianDropout", "GaussianNoise",
    "AlphaDropout", "ActivityRegularization", "RandomFlip", "RandomRotation", "RandomZoom",
    "RandomTranslation", "RandomContrast", "RandomBrightness", "RandomHeight", "RandomWidth",
)  # fmt: skip
def identity(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """Left out: the identity at inference."""
    return only(inputs)


@keras_layer("InputLayer")
def input_layer(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """The model's input; sizes left open are given at conversion."""
    return only(inputs)


@keras_layer("Dense", weights=kernel_and_bias)
def dense(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """Any rank, any activation.

    On (features,) it is a Gemm; if a Flatten left the features in another order than
    Keras', the kernel's rows are permuted to match. On (..., features) it is a
    convolution with a kernel of one element, which needs no other layout than the
    convolutions around it.
    """
    value = only(inputs)
    kernel = weight(layer, "kernel", (value.shape[-1], settings.integer(layer.config, "units")))
    bias = weight(layer, "bias", kernel.shape[1:]) if "bias" in layer.weights else None
    return activate(graph, layer, pointwise(graph, value, kernel, bias), keras)


def pointwise(graph: Graph, value: Symbol, kernel: np.ndarray, bias: np.ndarray | None) -> Symbol:
    """Multiply the last axis by a matrix; float32[..., in] -> [..., out]."""
    if len(value.shape) == 1:
        units = kernel.shape[1]
        value = graph.flat(value)
        if value.order is not None:
            kernel = kernel[value.order]
        operands = [value.name, graph.constant(kernel, "kernel")]
        if bias is not None:
            operands.append(graph.constant(bias, "bias"))
        return graph.value(graph.emit("Gemm", operands), (units,))
    if len(value.shape) > 3:
        raise ConversionError("Dense on inputs of more than four axes is not supported")
    spatial = len(value.shape) - 1
    value = graph.channels_first(value)
    units = kernel.shape[1]
    kernel = kernel.T.reshape(units, -1, *[1] * spatial)
    operands = [value.name, graph.constant(kernel, "kernel")]
    if bias is not None:
        operands.append(graph.constant(bias, "bias"))
    name = graph.emit("Conv", operands, kernel_shape=[1] * spatial)
    return graph.value(name, (*value.shape[:-1], units), value.axes)


def only(inputs: list[Symbol]) -> Symbol:
    """Return the single input of a layer that takes one."""
    if len(inputs) != 1:
        raise ConversionError(f"it is called on {len(inputs)} tensors instead of one")
    return inputs[0]


def weight(layer: Layer, role: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the layer's weight `role`, which must have the shape that its settings ask for."""
    array = layer.weights[role]
    if array.shape != shape:
        raise ConversionError(
            f"its {role} has shape {array.shape}, but its settings and input ask for {shape}; "
            "the weights and the architecture do not belong together"
        )
    return array
