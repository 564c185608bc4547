"""What a layer is called with, read from its inbound nodes, in each way that Keras wrote them.

Most layers are called on tensors alone. Operations (`x + y`, `x[:, 1:]`, `tf.nn.relu(x)`)
are called with numbers, arrays and slices too, by place or by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from converters.errors import ConversionError
from converters.network import Arguments, Ref

CONSTANT = "_CONSTANT_VALUE"  # stands where Keras 2 writes a layer's name
_MAX_DEPTH = 32


def of_operation(node: object, place: str) -> Arguments:
    """Return the arguments of an operation's call; `place` names it in errors."""
    try:
        if isinstance(node, dict | list):
            found = _keras3(node) if isinstance(node, dict) else _keras2(node)
            if not found.tensors:
                raise ConversionError("it is called on no tensor")
            return found
    except RecursionError:
        raise ConversionError(f"{place}: its inbound_nodes are nested too deeply") from None
    except ConversionError as error:
        raise error.at(place) from None
    raise ConversionError(f"{place}: its inbound_nodes are malformed")


def of_layer(node: object, place: str) -> list[Ref]:
    """Return the tensors of a layer's call; refuse anything but training= and mask= besides."""
    if isinstance(node, dict):
        kwargs = node.get("kwargs") or {}
        extra = {k for k, v in kwargs.items() if k not in ("training", "mask") and v is not None}
        _refuse_extra(extra, place)
        return list(_keras_tensors(node.get("args"), place))
    if isinstance(node, list) and len(node) == 4 and isinstance(node[0], str):
        node = [node]
    refs = []
    for item in node if isinstance(node, list) else [None]:
        if not isinstance(item, list) or len(item) < 3:
            raise ConversionError(f"{place}: its inbound_nodes are malformed")
        if len(item) > 3 and isinstance(item[3], dict):
            _refuse_extra(set(item[3]) - {"training", "mask"}, place)
        refs.append(as_ref(item))
    return refs


def _refuse_extra(names: Iterable[str], place: str) -> None:
    for name in sorted(names):
        raise ConversionError(f"{place}: it is called with the argument {name!r}, "
                              "which is not supported")  # fmt: skip


def _keras_tensors(value: object, place: str) -> Iterator[Ref]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _keras_tensors(item, place)
    elif isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        yield _tensor_ref(value)
    elif isinstance(value, dict) and value.get("class_name") == "__tuple__":
        yield from _keras_tensors(value.get("items"), place)
    else:
        raise ConversionError(
            f"{place}: it is called on something that is not a tensor; if it is an operation, "
            "it is not among those that docs/keras.md lists"
        )


def as_ref(value: object) -> Ref:
    """Return a reference to a layer's output: [layer, call, output, ...]."""
    if isinstance(value, list | tuple) and len(value) >= 3:
        name, call, output = value[:3]
        if isinstance(name, str) and type(call) is int and type(output) is int:
            return name, call, output
    raise ConversionError("a reference to a layer's output is malformed")


def _tensor_ref(value: dict[str, Any]) -> Ref:
    config = value.get("config")
    return as_ref(config.get("keras_history") if isinstance(config, dict) else None)


def plain(value: object) -> Any:
    """Return what Keras wrote as dictionaries: numbers, lists, arrays and slices."""
    return _decoded(value, Arguments(), False)


# --- Keras 3: {"args": [...], "kwargs": {...}} -------------------------------------------


def _keras3(node: dict[str, Any]) -> Arguments:
    arguments = Arguments()
    args, kwargs = node.get("args") or [], node.get("kwargs") or {}
    if not isinstance(args, list | tuple) or not isinstance(kwargs, dict):
        raise ConversionError("its inbound_nodes are malformed")
    arguments.positional = [_decoded(value, arguments, False) for value in args]
    arguments.named = {str(k): _decoded(v, arguments, False) for k, v in kwargs.items()}
    return arguments


# --- Keras 2: [layer, call, output, {named}] or a list of such ---------------------------


def _keras2(node: list[Any]) -> Arguments:
    arguments = Arguments()
    if node and isinstance(node[0], str):
        first, named = _entry(node, arguments)
    else:
        entries = [_entry(item, arguments) for item in node]
        named = entries[0][1] if entries else {}
        first = [value for value, _ in entries]
        # TensorFlow 2.4 wrapped a single tensor as well.
        first = first[0] if len(first) == 1 else first
    arguments.positional = [first]
    arguments.named = {str(k): _decoded(v, arguments, True) for k, v in named.items()}
    return arguments


def _entry(item: object, arguments: Arguments) -> tuple[Any, dict[str, Any]]:
    if not isinstance(item, list) or len(item) < 3:
        raise ConversionError("its inbound_nodes are malformed")
    named = item[3] if len(item) > 3 and isinstance(item[3], dict) else {}
    if item[0] == CONSTANT:
        return _decoded(item[2], arguments, True), named
    return arguments.add(as_ref(item)), named


# --- values ------------------------------------------------------------------------------


def _decoded(value: object, arguments: Arguments, is_keras2: bool, depth: int = 0) -> Any:
    """One argument. In Keras 2, a list [name, number, number] is a tensor."""
    if depth > _MAX_DEPTH:
        raise ConversionError("its arguments are nested too deeply")
    if isinstance(value, list | tuple):
        if is_keras2 and len(value) == 3 and isinstance(value[0], str):
            return arguments.add(as_ref(value))
        return [_decoded(item, arguments, is_keras2, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("class_name")
    config = value.get("config")
    if kind == "__keras_tensor__":
        return arguments.add(_tensor_ref(value))
    if kind == "__ellipsis__":
        return Ellipsis
    if kind == "__tuple__":
        items = value.get("items", config)
        return _decoded(items or [], arguments, is_keras2, depth + 1)
    if kind in ("__numpy__", "__tensor__") and isinstance(config, dict):
        return _array(config.get("value"))
    if value.get("type") == "ndarray":  # Keras 2
        return _array(value.get("value"))
    if kind in ("__slice__", "slice") and isinstance(config, dict):
        return _slice(config, arguments, is_keras2, depth)
    if set(value) == {"start", "stop", "step"}:  # Keras 2
        return _slice(value, arguments, is_keras2, depth)
    raise ConversionError(f"one of its arguments is a {kind or 'dictionary'}, which is unknown")


def _slice(ends: dict[str, Any], arguments: Arguments, is_keras2: bool, depth: int) -> slice:
    parts = [
        _decoded(ends.get(key), arguments, is_keras2, depth + 1)
        for key in ("start", "stop", "step")
    ]
    return slice(*parts)


def _array(value: object) -> np.ndarray[Any, Any]:
    try:
        array = np.array(value, np.float64)
    except (TypeError, ValueError):
        raise ConversionError("one of its arguments is not an array of numbers") from None
    if not np.isfinite(array).all():
        raise ConversionError("one of its arguments holds numbers that are not finite")
    return array
