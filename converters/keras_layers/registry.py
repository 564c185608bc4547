"""Which function converts which Keras layer class, and which weights it has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from converters.errors import ConversionError
from converters.graph import Graph, Symbol
from converters.network import Config, Layer
from converters.registry import enter

Emit = Callable[[Graph, Layer, list[Symbol], tuple[int, int]], Symbol]
Roles = Callable[[Config], Sequence[str]]

LAYERS: dict[str, LayerKind] = {}


@dataclass(frozen=True)
class LayerKind:
    """One Keras layer class: how it is emitted, the roles of its weights in file order.

    family: the module that holds it, for the support table.
    summary: what is supported, in a few words.
    """

    emit: Emit
    roles: Roles
    family: str
    summary: str


def keras_layer(*class_names: str, weights: Roles | Sequence[str] = ()) -> Callable[[Emit], Emit]:
    """Register the decorated function for Keras layer classes of these names.

    The function gets the graph, the layer, its input values and the Keras version
    (major, minor) of the file, and returns the layer's output value. The first
    paragraph of its docstring goes into docs/keras.md.
    """
    roles: Roles = weights if callable(weights) else lambda config: weights

    def register(emit: Emit) -> Emit:
        summary = " ".join((inspect.getdoc(emit) or "").split("\n\n")[0].split())
        family = emit.__module__.rsplit(".", 1)[-1]
        enter(LAYERS, class_names, LayerKind(emit, roles, family, summary))
        return emit

    return register


def kind_of(layer: Layer) -> LayerKind:
    """Return the kind of a layer, or raise the ConversionError that says what to do."""
    if layer.operation is not None:
        return OPERATION
    kind = LAYERS.get(layer.class_name)
    if kind is None:
        raise ConversionError(f"{layer.place}: {_why_not(layer.class_name)}")
    return kind


def _why_not(class_name: str) -> str:
    if class_name == "Lambda":
        return (
            "Lambda layers hold code, which is never run from a file; replace it by Keras layers "
            "(Rescaling, Reshape, Activation, ...)"
        )
    if class_name in _RECURRENT:
        return "recurrent layers are not supported; use Conv1D and pooling over time instead"
    if "Attention" in class_name:
        return "attention is not supported; use convolutions and pooling instead"
    return "this class is not supported; docs/keras.md lists the classes that are"


def _no_layer(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    raise ConversionError("an operation was called as a layer")


OPERATION = LayerKind(_no_layer, lambda config: (), "operations", "")
"""What operations are as layers: without weights. `operations.operate` emits them."""

_RECURRENT = frozenset(
    {"RNN", "SimpleRNN", "LSTM", "GRU", "Bidirectional", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D",
     "CuDNNLSTM", "CuDNNGRU", "StackedRNNCells", "LSTMCell", "GRUCell", "SimpleRNNCell"}
)  # fmt: skip
