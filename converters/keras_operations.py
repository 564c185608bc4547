"""The operations that Keras writes as layers: `x + y`, `x[:, ::2]`, `keras.ops.mean`, `tf.concat`.

Keras 3 writes each as a class of its own (module keras.src.ops), tf.keras from 2.4 on as a
TFOpLambda or SlicingOpLambda that names a function, tf.keras 2.0 to 2.3 as a TensorFlowOpLayer
that holds a node of TensorFlow's graph. Here all become one list of names with one list of
arguments each; `keras_layers.operations` says what they compute.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

from converters.errors import ConversionError
from converters.keras_arguments import Arguments, plain

Config = dict[str, Any]

OPERATION_LAYERS = frozenset({"TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer"})
_KERAS_MODULES = ("keras.src.ops", "keras.ops", "keras.src.activations")


@dataclass(frozen=True)
class Call:
    """How one operation is written: which operation, and what its arguments are called.

    parameters: the arguments by place. others: arguments by another name than here.
    fixed: arguments that the name implies.
    """

    operation: str
    parameters: tuple[str, ...]
    others: dict[str, str] = field(default_factory=dict)
    fixed: Config = field(default_factory=dict)


_BINARY = ("add", "subtract", "multiply", "divide", "maximum", "minimum", "power")
_PLAIN = (
    "relu", "relu6", "selu", "sigmoid", "tanh", "hard_tanh", "softplus", "softsign", "silu",
    "hard_silu", "mish", "exp", "log", "sqrt", "rsqrt", "reciprocal", "square", "absolute",
    "negative", "erf", "hard_sigmoid", "identity",
)  # fmt: skip
_FUNCTIONS_OF_ONE = (
    "nn.relu", "nn.relu6", "nn.selu", "nn.silu", "nn.softplus", "nn.softsign", "nn.sigmoid",
    "nn.tanh", "math.sigmoid", "math.tanh", "math.softplus", "math.exp", "math.log", "math.sqrt",
    "math.rsqrt", "math.reciprocal", "math.square", "math.negative", "math.erf", "sigmoid",
    "tanh", "exp", "sqrt", "square", "negative", "identity", "math.softsign",
)  # fmt: skip
_REDUCTIONS = ("mean", "sum", "max", "min")


def _keras3() -> dict[str, Call]:
    calls = {_camel(name): Call(name, ("x1", "x2")) for name in _BINARY}
    calls |= {_camel(name): Call(name, ("x",)) for name in _PLAIN}
    calls |= {_camel(name): Call(name, ("x", "axis", "keepdims")) for name in _REDUCTIONS}
    calls["TrueDivide"] = calls["Divide"]
    calls["Abs"] = calls["Absolute"]
    calls["HardSwish"], calls["Swish"] = calls["HardSilu"], calls["Silu"]
    calls["StopGradient"] = calls["Identity"]
    return calls | {
        "ReLU": Call("relu_layer", ("x",)),
        "Elu": Call("elu", ("x", "alpha")),
        "Celu": Call("celu", ("x", "alpha")),
        "Gelu": Call("gelu", ("x", "approximate"), fixed={"approximate": True}),
        "LeakyRelu": Call("leaky_relu", ("x", "negative_slope"), fixed={"negative_slope": 0.2}),
        "Softmax": Call("softmax", ("x", "axis")),
        "LogSoftmax": Call("log_softmax", ("x", "axis")),
        "Cast": Call("cast", ("x", "dtype")),
        "Clip": Call("clip", ("x", "x_min", "x_max")),
        "Concatenate": Call("concatenate", ("xs", "axis")),
        "Stack": Call("stack", ("xs", "axis"), {"x": "xs"}),
        "Reshape": Call("reshape", ("x", "newshape"), {"shape": "newshape"}),
        "Ravel": Call("reshape", ("x",), fixed={"newshape": [-1]}),
        "ExpandDims": Call("expand_dims", ("x", "axis")),
        "Squeeze": Call("squeeze", ("x", "axis")),
        "Transpose": Call("transpose", ("x", "axes")),
        "Swapaxes": Call("swapaxes", ("x", "axis1", "axis2")),
        "Moveaxis": Call("moveaxis", ("x", "source", "destination")),
        "Flip": Call("flip", ("x", "axis")),
        "Roll": Call("roll", ("x", "shift", "axis")),
        "Repeat": Call("repeat", ("x", "repeats", "axis")),
        "Tile": Call("tile", ("x", "repeats")),
        "Take": Call("take", ("x", "indices", "axis")),
        "GetItem": Call("getitem", ("x", "key")),
        "Split": Call("split", ("x", "indices_or_sections", "axis")),
        "Pad": Call("pad", ("x", "constant_values")),
        "Matmul": Call("matmul", ("x1", "x2")),
        "Dot": Call("matmul", ("x1", "x2")),
        "Average": Call("mean", ("x", "weights", "axis")),
    }


def _functions() -> dict[str, Call]:
    """TensorFlow's functions, by their public names."""
    calls: dict[str, Call] = {}
    pair = {"x": "x1", "y": "x2"}
    names = {
        "add": "add", "subtract": "subtract", "multiply": "multiply", "divide": "divide",
        "truediv": "divide", "maximum": "maximum", "minimum": "minimum", "pow": "power",
    }  # fmt: skip
    for name, operation in names.items():
        for prefix in ("math.", "", "__operators__."):
            calls[prefix + name] = Call(operation, ("x1", "x2"), pair)
    for name in ("sub", "mul", "div"):
        operation = {"sub": "subtract", "mul": "multiply", "div": "divide"}[name]
        calls[f"__operators__.{name}"] = Call(operation, ("x1", "x2"), pair)
    renamed = {"features": "x", "logits": "x", "input": "x", "input_tensor": "x",
               "tensor": "x", "a": "x", "t": "x"}  # fmt: skip
    for name in _FUNCTIONS_OF_ONE:
        calls[name] = Call(name.rsplit(".", 1)[-1], ("x",), renamed)
    calls["math.abs"] = calls["abs"] = Call("absolute", ("x",), renamed)
    calls["__operators__.neg"] = calls["math.negative"]
    calls["nn.swish"] = calls["nn.silu"]
    calls["stop_gradient"] = calls["identity"]
    for name in _REDUCTIONS:
        for prefix in ("math.reduce_", "reduce_"):
            others = {**renamed, "keep_dims": "keepdims"}
            calls[prefix + name] = Call(name, ("x", "axis", "keepdims"), others)
    for prefix in ("", "compat.v1."):
        calls[f"{prefix}transpose"] = Call("transpose", ("x", "axes"), {"a": "x", "perm": "axes"})
        calls[f"{prefix}squeeze"] = Call("squeeze", ("x", "axis"), renamed)
        calls[f"{prefix}expand_dims"] = Call("expand_dims", ("x", "axis"), renamed)
        calls[f"{prefix}concat"] = Call("concatenate", ("xs", "axis"), {"values": "xs"})
    shape = {**renamed, "shape": "newshape"}
    pads = {**renamed, "paddings": "pad_width"}
    bounds = {**renamed, "clip_value_min": "x_min", "clip_value_max": "x_max"}
    matrices = {"a": "x1", "b": "x2"}
    return calls | {
        "nn.elu": Call("elu", ("x",), renamed),
        "nn.gelu": Call("gelu", ("x", "approximate"), renamed),
        "nn.leaky_relu": Call(
            "leaky_relu", ("x", "negative_slope"), {**renamed, "alpha": "negative_slope"},
            {"negative_slope": 0.2},
        ),
        "nn.softmax": Call("softmax", ("x", "axis"), renamed),
        "nn.log_softmax": Call("log_softmax", ("x", "axis"), renamed),
        "nn.bias_add": Call("add", ("x1", "x2"), {"value": "x1", "bias": "x2"}),
        "math.add_n": Call("add_n", ("xs",), {"inputs": "xs"}),
        "add_n": Call("add_n", ("xs",), {"inputs": "xs"}),
        "math.squared_difference": Call("squared_difference", ("x1", "x2"), pair),
        "cast": Call("cast", ("x", "dtype"), renamed),
        "clip_by_value": Call("clip", ("x", "x_min", "x_max"), bounds),
        "stack": Call("stack", ("xs", "axis"), {"values": "xs"}, {"axis": 0}),
        "reshape": Call("reshape", ("x", "newshape"), shape),
        "reverse": Call("flip", ("x", "axis"), renamed),
        "roll": Call("roll", ("x", "shift", "axis"), renamed),
        "repeat": Call("repeat", ("x", "repeats", "axis"), renamed),
        "tile": Call("tile", ("x", "repeats"), {**renamed, "multiples": "repeats"}),
        "gather": Call("take", ("x", "indices", "validate_indices", "axis"),
                       {"params": "x"}, {"axis": 0}),
        "split": Call("split", ("x", "indices_or_sections", "axis"),
                      {"value": "x", "num_or_size_splits": "sizes"}, {"axis": 0}),
        "pad": Call("pad", ("x", "pad_width", "mode", "constant_values"), pads),
        "matmul": Call("matmul", ("x1", "x2"), matrices),
        "linalg.matmul": Call("matmul", ("x1", "x2"), matrices),
        "nn.depth_to_space": Call("depth_to_space", ("x", "block_size"), renamed),
        "nn.space_to_depth": Call("space_to_depth", ("x", "block_size"), renamed),
        "__operators__.getitem": Call(
            "getitem", ("x", "key"), {**renamed, "slice_spec": "key"}
        ),
    }  # fmt: skip


def _nodes() -> dict[str, Call]:
    """TensorFlow's graph operations."""
    calls = {
        name: Call(operation, ("x1", "x2"))
        for name, operation in {
            "Add": "add", "AddV2": "add", "BiasAdd": "add", "Sub": "subtract", "Mul": "multiply",
            "RealDiv": "divide", "Maximum": "maximum", "Minimum": "minimum", "Pow": "power",
            "SquaredDifference": "squared_difference", "MatMul": "matmul",
        }.items()
    }  # fmt: skip
    unary = ("Relu", "Relu6", "Elu", "Selu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Exp",
             "Log", "Sqrt", "Rsqrt", "Reciprocal", "Square", "Erf", "Identity")  # fmt: skip
    calls |= {name: Call(name.lower(), ("x",)) for name in unary}
    calls |= {name: Call(name.lower(), ("x", "axis"), {"keep_dims": "keepdims"})
              for name in ("Mean", "Sum", "Max", "Min")}  # fmt: skip
    return calls | {
        "Abs": Call("absolute", ("x",)),
        "Neg": Call("negative", ("x",)),
        "Softmax": Call("softmax", ("x",)),
        "LeakyRelu": Call("leaky_relu", ("x",), {"alpha": "negative_slope"}),
        "Cast": Call("cast", ("x",), {"DstT": "dtype"}),
        "Reshape": Call("reshape", ("x", "newshape")),
        "ExpandDims": Call("expand_dims", ("x", "axis")),
        "Squeeze": Call("squeeze", ("x",), {"squeeze_dims": "axis"}),
        "Transpose": Call("transpose", ("x", "axes")),
        "Pad": Call("pad", ("x", "pad_width")),
        "PadV2": Call("pad", ("x", "pad_width", "constant_values")),
        "MirrorPad": Call("pad", ("x", "pad_width")),
        "Tile": Call("tile", ("x", "repeats")),
        "ConcatV2": Call("concatenate", ("xs", "axis")),
        "AddN": Call("add_n", ("xs",)),
        "DepthToSpace": Call("depth_to_space", ("x", "block_size")),
        "SpaceToDepth": Call("space_to_depth", ("x", "block_size")),
        "StridedSlice": Call("strided_slice", ("x", "begin", "end", "strides")),
    }


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


CALLS: dict[str, dict[str, Call]] = {"ops": _keras3(), "tf": _functions(), "node": _nodes()}


def is_keras3_operation(entry: Config, config: Config, keras: tuple[int, int]) -> bool:
    """Whether a layer's entry is an operation of Keras 3.

    HDF5 files leave the module out; but every layer there says whether it is trained.
    """
    registered = str(entry.get("registered_name") or "")
    if keras[0] < 3 or ">" in registered:
        return False
    if "module" in entry:
        return str(entry["module"]).startswith(_KERAS_MODULES)
    return "trainable" not in config and str(entry.get("class_name")) in CALLS["ops"]


def operation_of(class_name: str, config: Config) -> tuple[str, str, Config]:
    """An operation's name in here, its name for people, and its settings."""
    if class_name in ("TFOpLambda", "SlicingOpLambda"):
        function = str(config.get("function", class_name))
        return f"tf:{function}", f"tf.{function}" if function != class_name else class_name, {}
    if class_name == "TensorFlowOpLayer":
        node = config.get("node_def")
        if isinstance(node, str):
            try:
                node = json.loads(node)
            except ValueError:
                node = None
        name = str(node.get("op")) if isinstance(node, dict) else class_name
        about = class_name if name == class_name else f"TensorFlow's {name}"
        return f"node:{name}", about, {**config, "node_def": node}
    settings = {k: v for k, v in config.items() if k not in ("name", "dtype") or (
        k == "dtype" and class_name == "Cast")}  # fmt: skip
    return f"ops:{class_name}", f"ops.{class_name}", settings


def bind(operation: str, config: Config, arguments: Arguments) -> tuple[str, Config]:
    """The operation that a layer stands for and its arguments by name, without those not given.

    Raises ConversionError for an unknown operation, or arguments that it does not take.
    """
    family, name = operation.split(":", 1)
    call = CALLS[family].get(name)
    if call is None:
        raise ConversionError(
            "this operation is not supported; docs/keras.md lists the operations that are, or use "
            "a Keras layer instead (Add, Multiply, Rescaling, Reshape, ...)"
        )
    positional, named = list(arguments.positional), dict(arguments.named)
    if family != "node":
        given = {key: plain(value) for key, value in config.items()}
    else:
        positional, named, given = _node_arguments(config, arguments)
        if call.parameters[0] == "xs":
            cut = len(positional) + 1 - len(call.parameters)
            positional = [positional[:cut], *positional[cut:]]
    if len(positional) > len(call.parameters):
        raise ConversionError(f"it is called with {len(positional)} arguments")
    bound = {**call.fixed, **{call.others.get(k, k): v for k, v in given.items()}}
    bound |= dict(zip(call.parameters, positional, strict=False))
    bound |= {call.others.get(k, k): v for k, v in named.items() if k != "name"}
    return call.operation, {k: v for k, v in bound.items() if v is not None or k == "key"}


def _node_arguments(config: Config, arguments: Arguments) -> tuple[list[Any], Config, Config]:
    """Inputs in order, the constants among them; attributes by name."""
    constants = config.get("constants") or {}
    if not isinstance(constants, dict) or not isinstance(config.get("node_def"), dict):
        raise ConversionError("its node_def is malformed; save the model with a newer TensorFlow")
    first = arguments.positional[0] if arguments.positional else []
    tensors = list(first) if isinstance(first, list) else [first]
    placed = {int(k): plain(v) for k, v in constants.items()}
    inputs: list[Any] = []
    while tensors or len(inputs) in placed:
        inputs.append(placed[len(inputs)] if len(inputs) in placed else tensors.pop(0))
    attributes = {}
    for key, value in (config["node_def"].get("attr") or {}).items():
        if isinstance(value, dict) and key in _ATTRIBUTES:
            attributes[key] = _attribute(value)
    return inputs, {}, attributes


_ATTRIBUTES = ("keep_dims", "alpha", "squeeze_dims", "mode", "DstT", "block_size", "begin_mask",
               "end_mask", "shrink_axis_mask", "ellipsis_mask", "new_axis_mask")  # fmt: skip


def _attribute(value: Config) -> Any:
    if "list" in value:
        return [int(n) for n in (value["list"] or {}).get("i", [])]
    if "s" in value:  # bytes, in base 64
        return base64.b64decode(str(value["s"])).decode(errors="replace")
    for kind, read in (("f", float), ("i", int), ("b", bool), ("type", str)):
        if kind in value:
            return read(value[kind])
    return None
