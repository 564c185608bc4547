"""A Keras network with its weights, as an ONNX model and the rows of a layer table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from converters.errors import ConversionError
from converters.graph import Graph, Symbol
from converters.keras_config import input_shape_of
from converters.keras_layers import kind_of
from converters.keras_layers.operations import operate
from converters.network import Call, Layer, Network, Ref
from converters.translated import LayerRow, Tensor, Translated


def translate(
    network: Network,
    metadata: dict[str, str],
    input_shapes: Sequence[Sequence[int]] | None = None,
) -> Translated:
    """Return the network as an ONNX model. Take the weights out of `network` as it goes.

    input_shapes: one shape per input, without the batch, for models that leave sizes
        open (a convolution on images of any size) or that declare none.

    Raises: ConversionError that names the layer.
    """
    walk = _Walk(Graph())
    shapes = _input_shapes(network, input_shapes)
    values = [
        walk.graph.input(ref[0], shape) for ref, shape in zip(network.inputs, shapes, strict=True)
    ]
    inputs = tuple(Tensor(value.name, (None, *value.shape)) for value in values)
    results = walk.run(network, values, "")
    for ref, value in zip(network.outputs, results, strict=True):
        walk.graph.output(value, ref[0])
    outputs = walk.graph.outputs
    _forget_weights(network)
    model = walk.graph.model(metadata)
    nodes: dict[str, list[str]] = {}
    for node in model.graph.node:
        nodes.setdefault(node.name.rsplit("/", 1)[0], []).append(node.name)
    rows = tuple(
        LayerRow(name, layer.class_name, (None, *shape), count, tuple(nodes.get(name, ())))
        for name, (layer, shape, count) in walk.rows.items()
    )
    return Translated(
        model, inputs, tuple(Tensor(name, (None, *shape)) for name, shape in outputs), rows
    )


def _forget_weights(network: Network) -> None:
    """Free the weights, which the graph has copies of."""
    for layer in network.layers:
        layer.weights.clear()
        if layer.network is not None:
            _forget_weights(layer.network)


class _Walk:
    """Emits calls in order, into models in models, and notes the rows of the table."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.rows: dict[str, tuple[Layer, tuple[int, ...], int]] = {}

    def run(self, network: Network, inputs: list[Symbol], prefix: str) -> list[Symbol]:
        """Return the values of the network's outputs when it is called on `inputs`."""
        if len(inputs) != len(network.inputs):
            raise ConversionError(
                f"it is called on {len(inputs)} tensors but has {len(network.inputs)} inputs"
            )
        values: dict[Ref, Symbol] = dict(zip(network.inputs, inputs, strict=True))
        for layer in network.layers:
            if layer.class_name == "InputLayer" and (layer.name, 0, 0) in values:
                self._note(prefix, layer, values[layer.name, 0, 0])
        for call in network.calls:
            layer = call.layer
            try:
                arguments = [values[ref] for ref in call.inputs]
            except KeyError as error:
                raise ConversionError(
                    f"{layer.place}: it uses {error.args[0]}, which does not exist"
                ) from None
            try:
                results = self._call(call, arguments, network.keras, prefix)
            except ConversionError as error:
                raise error.at(layer.place) from None
            for i, result in enumerate(results):
                values[layer.name, call.number, i] = result
        try:
            return [values[ref] for ref in network.outputs]
        except KeyError as error:
            raise ConversionError(f"the output {error.args[0]} does not exist") from None

    def _call(
        self, call: Call, arguments: list[Symbol], keras: tuple[int, int], prefix: str
    ) -> list[Symbol]:
        layer = call.layer
        if layer.network is not None:
            return self.run(layer.network, arguments, f"{prefix}{layer.name}/")
        self.graph.scope = f"{prefix}{layer.name}"
        if layer.operation is not None and call.arguments is not None:
            results = operate(self.graph, layer, call.arguments, arguments)
            self._note(prefix, layer, results[0])
            return results
        result = kind_of(layer).emit(self.graph, layer, arguments, keras)
        self._note(prefix, layer, result)
        return [result]

    def _note(self, prefix: str, layer: Layer, value: Symbol) -> None:
        count = sum(array.size for array in layer.weights.values())
        self.rows.setdefault(f"{prefix}{layer.name}", (layer, value.shape, count))


def _input_shapes(network: Network, given: Sequence[Sequence[int]] | None) -> list[tuple[int, ...]]:
    layers = {layer.name: layer for layer in network.layers}
    if given is not None and len(given) != len(network.inputs):
        raise ConversionError(
            f"input_shape names {len(given)} inputs but the model has {len(network.inputs)}"
        )
    shapes = []
    for i, ref in enumerate(network.inputs):
        layer = layers.get(ref[0])
        if layer is None:
            raise ConversionError(f"the input {ref[0]!r} does not exist")
        declared = input_shape_of(layer)
        wanted = list(given[i]) if given is not None else declared
        if wanted is None or any(n is None for n in wanted):
            raise ConversionError(
                f"the input {ref[0]!r} leaves its shape open "
                f"({'unknown' if declared is None else tuple(declared)}); "
                "give input_shape (--input-shape), for example 28,28,1"
            )
        fits = declared is None or (
            len(declared) == len(wanted)
            and all(d in (None, w) for d, w in zip(declared, wanted, strict=True))
        )
        if not fits:
            raise ConversionError(
                f"the input {ref[0]!r} has shape {tuple(declared or ())}, which the given shape "
                f"{tuple(wanted)} does not fit"
            )
        shapes.append(tuple(int(n) for n in wanted if n is not None))
        if not shapes[-1] or math.prod(shapes[-1]) < 1:
            raise ConversionError(f"the input {ref[0]!r} has no elements per sample")
    return shapes
