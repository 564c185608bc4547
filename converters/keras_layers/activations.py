"""Activations, as layers of their own and as the `activation=` of others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.errors import ConversionError
from converters.graph import Graph, Symbol
from converters.keras_layers import settings
from converters.keras_layers.registry import keras_layer
from converters.network import Config, Layer

Function = Callable[[Graph, Symbol], Symbol]

INSIDE = "activation/"
"""Begins the roles of weights that belong to a layer in a layer's `activation`."""


def _simple(op: str, **attributes: Any) -> Function:
    return lambda graph, value: graph.unary(op, value, **attributes)


def _times(gate: Function) -> Function:
    """x * gate(x)."""

    def function(graph: Graph, value: Symbol) -> Symbol:
        gated = gate(graph, value)
        return replace(value, name=graph.emit("Mul", [value.name, gated.name]))

    return function


def clip(graph: Graph, value: Symbol, low: float | None, high: float | None) -> Symbol:
    """Clip to [low, high]; None leaves that side open."""
    bounds = [
        "" if bound is None else graph.constant(np.array(bound, np.float32), name)
        for bound, name in ((low, "low"), (high, "high"))
    ]
    name = graph.emit("Clip", [value.name, *bounds] if bounds[1] else [value.name, bounds[0]])
    return replace(value, name=name)


def softmax(graph: Graph, value: Symbol, axis: int = -1, op: str = "Softmax") -> Symbol:
    """Return Softmax or LogSoftmax along `axis` of Keras' shape (no batch, may be negative)."""
    value = graph.natural(value)
    return graph.unary(op, value, axis=axis % len(value.shape) + 1)


def gelu(graph: Graph, value: Symbol) -> Symbol:
    """Return x * (1 + erf(x / sqrt 2)) / 2, the exact form."""
    inner = graph.with_constant("Mul", value, np.array(math.sqrt(0.5), np.float32), "sqrt_half")
    one_more = graph.with_constant("Add", graph.unary("Erf", inner), np.array(1, np.float32), "one")
    half = graph.with_constant("Mul", value, np.array(0.5, np.float32), "half")
    return replace(value, name=graph.emit("Mul", [half.name, one_more.name]))


def mish(graph: Graph, value: Symbol) -> Symbol:
    """Return x * tanh(softplus(x))."""
    gate = graph.unary("Tanh", graph.unary("Softplus", value))
    return replace(value, name=graph.emit("Mul", [value.name, gate.name]))


def _hard_sigmoid(slope: float) -> Function:
    return _simple("HardSigmoid", alpha=slope, beta=0.5)


_SILU = _times(_simple("Sigmoid"))
FUNCTIONS: dict[str, Function] = {
    "linear": lambda graph, value: value,
    "relu": _simple("Relu"),
    "relu6": lambda graph, value: clip(graph, value, 0.0, 6.0),
    "leaky_relu": _simple("LeakyRelu", alpha=0.2),
    "elu": _simple("Elu", alpha=1.0),
    "selu": _simple("Selu"),
    "celu": _simple("Celu", alpha=1.0),
    "sigmoid": _simple("Sigmoid"),
    "tanh": _simple("Tanh"),
    "hard_tanh": lambda graph, value: clip(graph, value, -1.0, 1.0),
    "softplus": _simple("Softplus"),
    "softsign": _simple("Softsign"),
    "exponential": _simple("Exp"),
    "swish": _SILU,
    "silu": _SILU,
    "gelu": gelu,
    "mish": mish,
    "softmax": softmax,
    "log_softmax": lambda graph, value: softmax(graph, value, op="LogSoftmax"),
    # Keras 3 changed the slope from 0.2 to 1/6; `function_named` picks by version.
    "hard_sigmoid": _hard_sigmoid(1 / 6),
    "hard_silu": _times(_hard_sigmoid(1 / 6)),
    "hard_swish": _times(_hard_sigmoid(1 / 6)),
}


def function_named(name: str, keras: tuple[int, int]) -> Function:
    """Return the activation function that a Keras of version `keras` calls `name`."""
    if name == "hard_sigmoid" and keras[0] < 3:
        return _hard_sigmoid(0.2)
    if name not in FUNCTIONS:
        raise ConversionError(
            f"the activation {name!r} is not supported; use one of {', '.join(sorted(FUNCTIONS))}"
        )
    return FUNCTIONS[name]


def activate(graph: Graph, layer: Layer, value: Symbol, keras: tuple[int, int]) -> Symbol:
    """Apply the layer's `activation` setting to its result."""
    own = {
        role.removeprefix(INSIDE): array
        for role, array in layer.weights.items()
        if role.startswith(INSIDE)
    }
    return apply(graph, layer.config.get("activation"), value, keras, own)


def weights_inside(config: Config) -> tuple[str, ...]:
    """Return the roles of weights that a layer has by its `activation`: those of a PReLU."""
    activation = config.get("activation")
    is_prelu = isinstance(activation, dict) and activation.get("class_name") == "PReLU"
    return (f"{INSIDE}alpha",) if is_prelu else ()


def apply(
    graph: Graph,
    activation: object,
    value: Symbol,
    keras: tuple[int, int],
    weights: dict[str, NDArray[np.generic]],
) -> Symbol:
    """Apply an activation as Keras writes it down: None, a name, or a serialized object."""
    if activation is None:
        return value
    if isinstance(activation, str):
        return function_named(activation, keras)(graph, value)
    if isinstance(activation, dict):
        registered = str(activation.get("registered_name") or "")
        class_name, config = str(activation.get("class_name")), activation.get("config")
        if ">" not in registered:
            if class_name == "function" and isinstance(config, str):
                return function_named(config, keras)(graph, value)
            if class_name in _AS_LAYERS and isinstance(config, dict):
                inner = Layer(str(config.get("name")), class_name, config, weights)
                return _AS_LAYERS[class_name](graph, inner, [value], keras)
            if class_name in FUNCTIONS:
                return function_named(class_name, keras)(graph, value)
        raise ConversionError(
            f"the activation {registered or class_name!r} is not one of Keras' own; "
            f"use one of {', '.join(sorted(FUNCTIONS))}"
        )
    raise ConversionError(f"the activation {activation!r} is malformed")


@keras_layer("Activation")
def activation(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """Every function of the activation table."""
    return activate(graph, layer, inputs[0], keras)


@keras_layer("ReLU")
def relu(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """max_value, negative_slope, threshold."""
    value, config = inputs[0], layer.config
    high = None if config.get("max_value") is None else settings.number(config, "max_value")
    slope = _optional(config, "negative_slope", 0.0)
    threshold = _optional(config, "threshold", 0.0)
    if threshold:
        return _thresholded(graph, value, high, slope, threshold)
    if slope:
        value = graph.unary("LeakyRelu", value, alpha=slope)
        return value if high is None else clip(graph, value, None, high)
    return graph.unary("Relu", value) if high is None else clip(graph, value, 0.0, high)


def _thresholded(
    graph: Graph, value: Symbol, high: float | None, slope: float, threshold: float
) -> Symbol:
    """x where x > threshold, slope * (x - threshold) elsewhere, and at most `high`."""
    # ThresholdedRelu is 0 up to its alpha also when that is negative, as Keras is.
    above = graph.unary("ThresholdedRelu", value, alpha=threshold)
    if high is not None:
        above = clip(graph, above, None, high)
    if not slope:
        return above
    below = graph.with_constant("Sub", value, np.array(threshold, np.float32), "threshold")
    below = clip(graph, below, None, 0.0)
    below = graph.with_constant("Mul", below, np.array(slope, np.float32), "slope")
    return replace(value, name=graph.emit("Add", [above.name, below.name]))


@keras_layer("LeakyReLU")
def leaky_relu(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """alpha / negative_slope."""
    key = "negative_slope" if "negative_slope" in layer.config else "alpha"
    return graph.unary("LeakyRelu", inputs[0], alpha=settings.number(layer.config, key, 0.3))


@keras_layer("ELU")
def elu(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """alpha."""
    return graph.unary("Elu", inputs[0], alpha=settings.number(layer.config, "alpha", 1.0))


@keras_layer("ThresholdedReLU")
def thresholded_relu(
    graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]
) -> Symbol:
    """theta."""
    theta = settings.number(layer.config, "theta", 1.0)
    return graph.unary("ThresholdedRelu", inputs[0], alpha=theta)


@keras_layer("Softmax")
def softmax_layer(
    graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]
) -> Symbol:
    """A single axis."""
    value = inputs[0]
    return softmax(graph, value, settings.axis(layer.config, "axis", len(value.shape)))


@keras_layer("PReLU", weights=("alpha",))
def prelu(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """shared_axes."""
    value, alpha = inputs[0], layer.weights["alpha"]
    try:
        np.broadcast_to(alpha, value.shape)
    except ValueError:
        raise ConversionError(
            f"its alpha has shape {alpha.shape}, which does not fit its input {value.shape}"
        ) from None
    return graph.with_constant("PRelu", value, alpha, "alpha")


def _optional(config: Config, key: str, default: float) -> float:
    """A number that Keras may also write as null."""
    return default if config.get(key) is None else settings.number(config, key)


# The layers that may stand as `activation=` of another layer.
_AS_LAYERS = {
    "ReLU": relu,
    "LeakyReLU": leaky_relu,
    "ELU": elu,
    "Softmax": softmax_layer,
    "ThresholdedReLU": thresholded_relu,
    "PReLU": prelu,
}
