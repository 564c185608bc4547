"""Operations that Keras files hold as layers: `x + y`, `x[:, 1:]`, `keras.ops.mean(x)`.

Keras 3 writes an operation under its class (`Add` of module keras.src.ops.numpy), tf.keras as a
`TFOpLambda` or `SlicingOpLambda` with the name of a TensorFlow function. Either is read here as
a layer of class "Operation" whose configuration says which function it is and what it is called
with: tensors as `Slot`s, everything else as plain Python values. Nothing is executed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from converters.errors import ConversionError

Config = dict[str, Any]
Ref = tuple[str, int, int]
MakeRef = Callable[[object], Ref]

KERAS3_MODULES = ("keras.src.ops", "keras.ops")
TF_CLASSES = frozenset({"TFOpLambda", "SlicingOpLambda"})
MAX_CONSTANT = 1 << 20  # elements; a larger one is a weight, and belongs into a layer

_TF_NAMES = {
    "truediv": "divide",
    "div": "divide",
    "div_no_nan": "divide",
    "realdiv": "divide",
    "pow": "power",
    "neg": "negative",
    "concat": "concatenate",
    "reduce_mean": "mean",
    "reduce_sum": "sum",
    "reduce_max": "max",
    "reduce_min": "min",
    "clip_by_value": "clip",
    "swish": "silu",
    "sub": "subtract",
    "mul": "multiply",
    "convert_to_tensor": "identity",
    "stop_gradient": "identity",
    "cast": "identity",
}
_KERAS_NAMES = {
    "truedivide": "divide",
    "absolute": "abs",
    "amax": "max",
    "amin": "min",
    "cast": "identity",
    "getitem": "getitem",
    "expanddims": "expand_dims",
    "leakyrelu": "leaky_relu",
    "hardsigmoid": "hard_sigmoid",
    "hardsilu": "hard_silu",
    "hardtanh": "hard_tanh",
    "logsoftmax": "log_softmax",
    "exponential": "exp",
}


@dataclass(frozen=True)
class Slot:
    """Stands for the tensor of this number among those that a call is made on."""

    number: int


@dataclass
class Arguments:
    """What an operation is called with, and the tensors among it."""

    positional: list[Any] = field(default_factory=list)
    named: dict[str, Any] = field(default_factory=dict)
    refs: list[Ref] = field(default_factory=list)

    def slot(self, ref: Ref) -> Slot:
        """The place of one more tensor."""
        self.refs.append(ref)
        return Slot(len(self.refs) - 1)


def operation_of(class_name: str, config: Config, module: str, nodes: object) -> str | None:
    """The operation that a file's layer is, by our name; None where it is a layer proper.

    In HDF5 no module is written, and `Add` is a layer too: a layer says whether it can be
    trained, an operation does not. nodes: its calls, in Keras 3's way for an operation.
    """
    if class_name in TF_CLASSES:
        function = str(config.get("function") or f"({class_name} without a name)")
        name = function.rsplit(".", 1)[-1]
        return _TF_NAMES.get(name, name)
    by_keras3 = isinstance(nodes, list) and bool(nodes) and isinstance(nodes[0], dict)
    settings = {"trainable", "dtype"} if class_name != "Cast" else {"trainable"}
    own = module.startswith("keras.layers") and settings.isdisjoint(config)
    if module.startswith(KERAS3_MODULES) or (by_keras3 and own and class_name != "InputLayer"):
        name = class_name.lower()
        return _KERAS_NAMES.get(name, name)
    return None


def read_arguments(node: object, make_ref: MakeRef, place: str) -> Arguments:
    """What one call is made with, from either way of writing it down."""
    found = Arguments()
    if isinstance(node, dict):
        args = node.get("args")
        if not isinstance(args, list):
            raise ConversionError(f"{place}: its inbound_nodes are malformed")
        found.positional = [_plain(a, found, make_ref, place) for a in args]
        kwargs = node.get("kwargs") or {}
        found.named = {str(k): _plain(v, found, make_ref, place) for k, v in kwargs.items()}
        return found
    if isinstance(node, list) and len(node) == 4 and isinstance(node[0], str):
        node = [node]
    if not isinstance(node, list) or not node:
        raise ConversionError(f"{place}: its inbound_nodes are malformed")
    firsts = []
    for item in node:
        if not isinstance(item, list) or len(item) < 3:
            raise ConversionError(f"{place}: its inbound_nodes are malformed")
        if item[0] == "_CONSTANT_VALUE":
            firsts.append(_tf_plain(item[2], found, make_ref, place))
        else:
            firsts.append(found.slot(make_ref(item)))
        if len(item) > 3 and isinstance(item[3], dict) and not found.named:
            found.named = {str(k): _tf_plain(v, found, make_ref, place) for k, v in item[3].items()}
    found.positional = [firsts[0] if len(firsts) == 1 else firsts]
    return found


def _plain(value: object, found: Arguments, make_ref: MakeRef, place: str) -> Any:
    """A value as Keras 3 writes it."""
    if isinstance(value, list | tuple):
        return [_plain(item, found, make_ref, place) for item in value]
    if not isinstance(value, dict):
        return value
    kind, config = value.get("class_name"), value.get("config")
    if kind == "__keras_tensor__" and isinstance(config, dict):
        return found.slot(make_ref(config.get("keras_history")))
    if kind == "__slice__" and isinstance(config, dict):
        return slice(*(config.get(key) for key in ("start", "stop", "step")))
    if kind == "__tuple__":
        items = value.get("items", config)
        return tuple(_plain(item, found, make_ref, place) for item in items or [])
    if kind == "__ellipsis__":
        return Ellipsis
    if kind in ("__numpy__", "__tensor__") and isinstance(config, dict):
        return _constant(config.get("value"), place)
    raise ConversionError(f"{place}: it is called with a {kind!r}, which is not supported")


def _tf_plain(value: object, found: Arguments, make_ref: MakeRef, place: str) -> Any:
    """A value as tf.keras writes it: tensors are [layer, call, output]."""
    if isinstance(value, list):
        if len(value) == 3 and isinstance(value[0], str) and all(type(n) is int for n in value[1:]):
            return found.slot(make_ref(value))
        return [_tf_plain(item, found, make_ref, place) for item in value]
    if isinstance(value, dict) and set(value) == {"start", "stop", "step"}:
        return slice(*(value[key] for key in ("start", "stop", "step")))
    if isinstance(value, dict) and value.get("class_name") == "__tuple__":
        return tuple(_tf_plain(v, found, make_ref, place) for v in value.get("items") or [])
    if isinstance(value, dict):
        raise ConversionError(f"{place}: it is called with {sorted(value)}, which is not supported")
    return value


def _constant(value: object, place: str) -> Any:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or array.size > MAX_CONSTANT:
        raise ConversionError(f"{place}: it is called with a constant that is not numbers")
    return array
