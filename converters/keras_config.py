"""Reads the configuration of a Keras model, of any generation, into a `Network`.

Keras has written its configuration in four ways since version 1; whatever wrote the file, the
result is one plain graph of calls, in an order that they can run in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from converters.errors import ConversionError
from converters.keras1 import from_keras1
from converters.keras_arguments import as_ref, of_layer, of_operation
from converters.keras_operations import OPERATION_LAYERS, is_keras3_operation, operation_of
from converters.network import Arguments, Call, Config, Layer, Network, Ref

MAX_LAYERS = 10_000
MAX_DEPTH = 16  # models in models

MODEL_CLASSES = frozenset({"Sequential", "Model", "Functional"})
# Where Keras' own layers say that they come from; anything else is somebody's own class.
KERAS_MODULES = ("keras.layers", "keras.models", "keras.engine", "keras.src.layers",
                 "keras.src.models", "keras.src.engine", "tensorflow.keras",
                 "tf_keras.src.layers", "tf_keras.src.models", "tf_keras.src.engine",
                 "tf_keras.layers", "tf_keras.models", "keras.src.applications")  # fmt: skip


def read_network(config: object, keras: tuple[int, int], depth: int = 0) -> Network:
    """Return a Keras model configuration as a Network.

    config: {"class_name": "Sequential" | "Model" | "Functional", "config": ...}.

    Raises: ConversionError where the configuration is not one that Keras writes.
    """
    if depth > MAX_DEPTH:
        raise ConversionError(f"models are nested more than {MAX_DEPTH} deep")
    outer = as_dict(config, "the model's configuration")
    class_name = str(outer.get("class_name"))
    inner = outer.get("config")
    if isinstance(inner, list):  # before Keras 2.2.3 a Sequential was a bare list of layers
        inner = {"name": "sequential", "layers": inner}
    inner = as_dict(inner, "the model's configuration")
    if class_name not in MODEL_CLASSES:
        raise ConversionError(
            f"the model is of class {class_name!r}; only Sequential and functional models carry "
            "their structure in the file, so rebuild it as one of these and save it again"
        )
    entries = inner.get("layers")
    if not isinstance(entries, list) or not entries:
        raise ConversionError(f"the model {class_name!r} has no layers")
    if len(entries) > MAX_LAYERS:
        raise ConversionError(f"the model has more than {MAX_LAYERS} layers")
    layers = [_read_layer(entry, keras, depth) for entry in entries]
    name = str(inner.get("name") or class_name.lower())
    names = [layer.name for layer in layers]
    if len(set(names)) != len(names):
        raise ConversionError(f"two layers of {name!r} have the same name")
    if class_name == "Sequential":
        return _sequential(name, inner, outer, layers, keras)
    return _functional(name, inner, entries, layers, keras)


def as_dict(value: object, what: str) -> Config:
    """Return `value` if it is a dictionary, else raise a ConversionError that names `what`."""
    if not isinstance(value, dict):
        raise ConversionError(f"{what} is malformed: a dictionary is missing")
    return value


def input_shape_of(layer: Layer) -> list[int | None] | None:
    """Return the shape, without the batch, that a layer's own settings declare for its input."""
    config = layer.config
    if layer.network is not None:
        first = layer.network.layers[0]
        return input_shape_of(first)
    for key in ("batch_shape", "batch_input_shape", "input_shape", "shape"):
        shape = config.get(key)
        if isinstance(shape, dict):  # tuples under {"class_name": "__tuple__", "items": [...]}
            shape = shape.get("items")
        if isinstance(shape, list | tuple):
            shape = list(shape[1:] if key.startswith("batch") else shape)
            if not all(n is None or (type(n) is int and n > 0) for n in shape):
                raise ConversionError(f"{layer.place}: the input shape {shape} is malformed")
            return shape
    return None


def _read_layer(entry: object, keras: tuple[int, int], depth: int) -> Layer:
    entry = as_dict(entry, "a layer's configuration")
    class_name = str(entry.get("class_name"))
    config = entry.get("config")
    if class_name in MODEL_CLASSES:
        inner_name = config.get("name") if isinstance(config, dict) else None
        name = str(entry.get("name") or inner_name or class_name.lower())
        try:
            network = read_network(entry, keras, depth + 1)
        except ConversionError as error:
            raise error.at(f"layer {name!r} ({class_name})") from None
        return Layer(name, class_name, {}, network=network)
    config = as_dict(config, f"the configuration of a layer of class {class_name!r}")
    layer = Layer(str(entry.get("name") or config.get("name")), class_name, config)
    if class_name in OPERATION_LAYERS or is_keras3_operation(entry, config, keras):
        layer.operation, layer.class_name, layer.config = operation_of(class_name, config)
        return layer
    module = entry.get("module") or "keras.layers"
    registered = entry.get("registered_name")
    own_class = (registered and registered != class_name) or ">" in class_name
    if own_class or not str(module).startswith(KERAS_MODULES):
        raise ConversionError(
            f"{layer.place}: not one of Keras' own layers (it comes from {module!r}), and code "
            "from files is never run; rebuild the model from Keras' layers"
        )
    if keras[0] == 1:
        layer.class_name, layer.config = from_keras1(class_name, config)
    return layer


def _sequential(
    name: str, inner: Config, outer: Config, layers: list[Layer], keras: tuple[int, int]
) -> Network:
    if layers[0].class_name != "InputLayer":
        shape = input_shape_of(layers[0])
        build = outer.get("build_config")
        built = inner.get("build_input_shape") or (build or {}).get("input_shape")
        if shape is None and isinstance(built, list):
            shape = built[1:]
        config = {} if shape is None else {"batch_shape": [None, *shape]}
        layers.insert(0, Layer(f"{layers[0].name}_input", "InputLayer", config))
    calls = []
    for before, layer in pairwise(layers):
        arguments = Arguments()
        arguments.positional.append(arguments.add((before.name, 0, 0)))
        is_operation = layer.operation is not None
        calls.append(
            Call(layer, 0, arguments.tensors, arguments=arguments if is_operation else None)
        )
    first, last = layers[0], layers[-1]
    return Network(name, layers, calls, [(first.name, 0, 0)], [(last.name, 0, 0)], keras)


def _functional(
    name: str, inner: Config, entries: list[Any], layers: list[Layer], keras: tuple[int, int]
) -> Network:
    waiting = []
    for entry, layer in zip(entries, layers, strict=True):
        nodes = entry.get("inbound_nodes")
        if not isinstance(nodes, list):
            raise ConversionError(f"{layer.place}: its inbound_nodes are missing")
        for number, node in enumerate(nodes):
            arguments = None if layer.operation is None else of_operation(node, layer.place)
            refs = of_layer(node, layer.place) if arguments is None else arguments.tensors
            waiting.append(Call(layer, number, list(refs), isinstance(node, dict), arguments))
    inputs = list(_refs(inner.get("input_layers")))
    outputs = list(_refs(inner.get("output_layers")))
    if not inputs or not outputs:
        raise ConversionError(f"the model {name!r} has no input or no output")
    _count_from_zero(layers, waiting, outputs)
    return Network(name, layers, _in_order(waiting, inputs), inputs, outputs, keras)


def _refs(value: object) -> Iterable[Ref]:
    """The tensors in an input_layers / output_layers entry: one, a list, or a dictionary."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _refs(item)
    elif isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
        yield as_ref(value)
    elif isinstance(value, list):
        for item in value:
            yield from _refs(item)
    else:
        raise ConversionError("the model's inputs or outputs are malformed")


def _count_from_zero(layers: list[Layer], calls: list[Call], outputs: list[Ref]) -> None:
    """Make all references count the calls of nested models from 0.

    A nested functional model has a call of its own, number 0, that is not in the file.
    Keras 3 counts it in the model's outputs but not in its calls; all before it counted
    it in both, and also for a Sequential that knew its input. Every call in a file is
    used by someone, so in those files the lowest number in use tells.
    """
    nested = {layer.name: layer.class_name for layer in layers if layer.network is not None}
    first = dict.fromkeys(nested, 0)
    if any(call.is_keras3 for call in calls):
        first |= {name: 1 for name, kind in nested.items() if kind != "Sequential"}
    else:
        refs = [ref for call in calls for ref in call.inputs] + outputs
        for name in nested:
            first[name] = min((number for user, number, _ in refs if user == name), default=0)
        for call in calls:
            call.inputs = [_shifted(ref, first) for ref in call.inputs]
    outputs[:] = [_shifted(ref, first) for ref in outputs]


def _shifted(ref: Ref, first: dict[str, int]) -> Ref:
    return ref[0], ref[1] - first.get(ref[0], 0), ref[2]


def _in_order(waiting: list[Call], inputs: list[Ref]) -> list[Call]:
    """The calls sorted so that each comes after those it needs (Kahn's algorithm)."""
    users: dict[tuple[str, int], list[int]] = {}
    missing = []
    for i, call in enumerate(waiting):
        sources = {ref[:2] for ref in call.inputs}
        missing.append(len(sources))
        for source in sources:
            users.setdefault(source, []).append(i)
    ready = deque(ref[:2] for ref in inputs)
    ordered: list[Call] = []
    done = set(ready)
    while ready:
        for i in users.get(ready.popleft(), []):
            missing[i] -= 1
            source = (waiting[i].layer.name, waiting[i].number)
            if missing[i] == 0 and source not in done:
                ordered.append(waiting[i])
                done.add(source)
                ready.append(source)
    stuck = next((c for c in waiting if (c.layer.name, c.number) not in done), None)
    if stuck is not None:
        raise ConversionError(
            f"{stuck.layer.place}: its inputs lead round in a circle or to no input of the model"
        )
    return ordered
