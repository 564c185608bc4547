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
from converters.keras_arguments import plain
from converters.network import Arguments, Config

OPERATION_LAYERS = frozenset({"TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer"})
_KERAS_MODULES = ("keras.src.ops", "keras.ops", "keras.src.activations")


@dataclass(frozen=True)
class Spec:
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


def _keras3() -> dict[str, Spec]:
    specs = {_camel(name): Spec(name, ("x1", "x2")) for name in _BINARY}
    specs |= {_camel(name): Spec(name, ("x",)) for name in _PLAIN}
    specs |= {_camel(name): Spec(name, ("x", "axis", "keepdims")) for name in _REDUCTIONS}
    specs["TrueDivide"] = specs["Divide"]
    specs["Abs"] = specs["Absolute"]
    specs["HardSwish"], specs["Swish"] = specs["HardSilu"], specs["Silu"]
    specs["StopGradient"] = specs["Identity"]
    return specs | {
        "ReLU": Spec("relu_layer", ("x",)),
        "Elu": Spec("elu", ("x", "alpha")),
        "Celu": Spec("celu", ("x", "alpha")),
        "Gelu": Spec("gelu", ("x", "approximate"), fixed={"approximate": True}),
        "LeakyRelu": Spec("leaky_relu", ("x", "negative_slope"), fixed={"negative_slope": 0.2}),
        "Softmax": Spec("softmax", ("x", "axis")),
        "LogSoftmax": Spec("log_softmax", ("x", "axis")),
        "Cast": Spec("cast", ("x", "dtype")),
        "Clip": Spec("clip", ("x", "x_min", "x_max")),
        "Concatenate": Spec("concatenate", ("xs", "axis")),
        "Stack": Spec("stack", ("xs", "axis"), {"x": "xs"}),
        "Reshape": Spec("reshape", ("x", "newshape"), {"shape": "newshape"}),
        "Ravel": Spec("reshape", ("x",), fixed={"newshape": [-1]}),
        "ExpandDims": Spec("expand_dims", ("x", "axis")),
        "Squeeze": Spec("squeeze", ("x", "axis")),
        "Transpose": Spec("transpose", ("x", "axes")),
        "Swapaxes": Spec("swapaxes", ("x", "axis1", "axis2")),
        "Moveaxis": Spec("moveaxis", ("x", "source", "destination")),
        "Flip": Spec("flip", ("x", "axis")),
        "Roll": Spec("roll", ("x", "shift", "axis")),
        "Repeat": Spec("repeat", ("x", "repeats", "axis")),
        "Tile": Spec("tile", ("x", "repeats")),
        "Take": Spec("take", ("x", "indices", "axis")),
        "GetItem": Spec("getitem", ("x", "key")),
        "Split": Spec("split", ("x", "indices_or_sections", "axis")),
        "Pad": Spec("pad", ("x", "constant_values")),
        "Matmul": Spec("matmul", ("x1", "x2")),
        "Dot": Spec("matmul", ("x1", "x2")),
        "Average": Spec("mean", ("x", "weights", "axis")),
    }


_PAIR = {"x": "x1", "y": "x2"}
_TENSOR = {"features": "x", "logits": "x", "input": "x", "input_tensor": "x",
           "tensor": "x", "a": "x", "t": "x"}  # fmt: skip
"""What TensorFlow calls the arguments that are x1 and x2, or x, here."""


def _functions_of_many_names() -> dict[str, Spec]:
    """TensorFlow's functions that several modules of it have."""
    specs: dict[str, Spec] = {}
    names = {
        "add": "add", "subtract": "subtract", "multiply": "multiply", "divide": "divide",
        "truediv": "divide", "maximum": "maximum", "minimum": "minimum", "pow": "power",
    }  # fmt: skip
    for name, operation in names.items():
        for prefix in ("math.", "", "__operators__."):
            specs[prefix + name] = Spec(operation, ("x1", "x2"), _PAIR)
    for name in ("sub", "mul", "div"):
        operation = {"sub": "subtract", "mul": "multiply", "div": "divide"}[name]
        specs[f"__operators__.{name}"] = Spec(operation, ("x1", "x2"), _PAIR)
    for name in _FUNCTIONS_OF_ONE:
        specs[name] = Spec(name.rsplit(".", 1)[-1], ("x",), _TENSOR)
    specs["math.abs"] = specs["abs"] = Spec("absolute", ("x",), _TENSOR)
    specs["__operators__.neg"] = specs["math.negative"]
    specs["nn.swish"] = specs["nn.silu"]
    specs["stop_gradient"] = specs["identity"]
    for name in _REDUCTIONS:
        for prefix in ("math.reduce_", "reduce_"):
            others = {**_TENSOR, "keep_dims": "keepdims"}
            specs[prefix + name] = Spec(name, ("x", "axis", "keepdims"), others)
    for prefix in ("", "compat.v1."):
        specs[f"{prefix}transpose"] = Spec("transpose", ("x", "axes"), {"a": "x", "perm": "axes"})
        specs[f"{prefix}squeeze"] = Spec("squeeze", ("x", "axis"), _TENSOR)
        specs[f"{prefix}expand_dims"] = Spec("expand_dims", ("x", "axis"), _TENSOR)
        specs[f"{prefix}concat"] = Spec("concatenate", ("xs", "axis"), {"values": "xs"})
    return specs


def _functions() -> dict[str, Spec]:
    """TensorFlow's functions, by their public names."""
    shape = {**_TENSOR, "shape": "newshape"}
    pads = {**_TENSOR, "paddings": "pad_width"}
    bounds = {**_TENSOR, "clip_value_min": "x_min", "clip_value_max": "x_max"}
    matrices = {"a": "x1", "b": "x2"}
    return _functions_of_many_names() | {
        "nn.elu": Spec("elu", ("x",), _TENSOR),
        "nn.gelu": Spec("gelu", ("x", "approximate"), _TENSOR),
        "nn.leaky_relu": Spec(
            "leaky_relu", ("x", "negative_slope"), {**_TENSOR, "alpha": "negative_slope"},
            {"negative_slope": 0.2},
        ),
        "nn.softmax": Spec("softmax", ("x", "axis"), _TENSOR),
        "nn.log_softmax": Spec("log_softmax", ("x", "axis"), _TENSOR),
        "nn.bias_add": Spec("add", ("x1", "x2"), {"value": "x1", "bias": "x2"}),
        "math.add_n": Spec("add_n", ("xs",), {"inputs": "xs"}),
        "add_n": Spec("add_n", ("xs",), {"inputs": "xs"}),
        "math.squared_difference": Spec("squared_difference", ("x1", "x2"), _PAIR),
        "cast": Spec("cast", ("x", "dtype"), _TENSOR),
        "clip_by_value": Spec("clip", ("x", "x_min", "x_max"), bounds),
        "stack": Spec("stack", ("xs", "axis"), {"values": "xs"}, {"axis": 0}),
        "reshape": Spec("reshape", ("x", "newshape"), shape),
        "reverse": Spec("flip", ("x", "axis"), _TENSOR),
        "roll": Spec("roll", ("x", "shift", "axis"), _TENSOR),
        "repeat": Spec("repeat", ("x", "repeats", "axis"), _TENSOR),
        "tile": Spec("tile", ("x", "repeats"), {**_TENSOR, "multiples": "repeats"}),
        "gather": Spec("take", ("x", "indices", "validate_indices", "axis"),
                       {"params": "x"}, {"axis": 0}),
        "split": Spec("split", ("x", "indices_or_sections", "axis"),
                      {"value": "x", "num_or_size_splits": "sizes"}, {"axis": 0}),
        "pad": Spec("pad", ("x", "pad_width", "mode", "constant_values"), pads),
        "matmul": Spec("matmul", ("x1", "x2"), matrices),
        "linalg.matmul": Spec("matmul", ("x1", "x2"), matrices),
        "nn.depth_to_space": Spec("depth_to_space", ("x", "block_size"), _TENSOR),
        "nn.space_to_depth": Spec("space_to_depth", ("x", "block_size"), _TENSOR),
        "__operators__.getitem": Spec(
            "getitem", ("x", "key"), {**_TENSOR, "slice_spec": "key"}
        ),
    }  # fmt: skip


def _nodes() -> dict[str, Spec]:
    """TensorFlow's graph operations."""
    specs = {
        name: Spec(operation, ("x1", "x2"))
        for name, operation in {
            "Add": "add", "AddV2": "add", "BiasAdd": "add", "Sub": "subtract", "Mul": "multiply",
            "RealDiv": "divide", "Maximum": "maximum", "Minimum": "minimum", "Pow": "power",
            "SquaredDifference": "squared_difference", "MatMul": "matmul",
        }.items()
    }  # fmt: skip
    unary = ("Relu", "Relu6", "Elu", "Selu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Exp",
             "Log", "Sqrt", "Rsqrt", "Reciprocal", "Square", "Erf", "Identity")  # fmt: skip
    specs |= {name: Spec(name.lower(), ("x",)) for name in unary}
    specs |= {name: Spec(name.lower(), ("x", "axis"), {"keep_dims": "keepdims"})
              for name in ("Mean", "Sum", "Max", "Min")}  # fmt: skip
    return specs | {
        "Abs": Spec("absolute", ("x",)),
        "Neg": Spec("negative", ("x",)),
        "Softmax": Spec("softmax", ("x",)),
        "LeakyRelu": Spec("leaky_relu", ("x",), {"alpha": "negative_slope"}),
        "Cast": Spec("cast", ("x",), {"DstT": "dtype"}),
        "Reshape": Spec("reshape", ("x", "newshape")),
        "ExpandDims": Spec("expand_dims", ("x", "axis")),
        "Squeeze": Spec("squeeze", ("x",), {"squeeze_dims": "axis"}),
        "Transpose": Spec("transpose", ("x", "axes")),
        "Pad": Spec("pad", ("x", "pad_width")),
        "PadV2": Spec("pad", ("x", "pad_width", "constant_values")),
        "MirrorPad": Spec("pad", ("x", "pad_width")),
        "Tile": Spec("tile", ("x", "repeats")),
        "ConcatV2": Spec("concatenate", ("xs", "axis")),
        "AddN": Spec("add_n", ("xs",)),
        "Split": Spec("split", ("axis", "x"), {"num_split": "indices_or_sections"}),
        "SplitV": Spec("split", ("x", "sizes", "axis")),
        "DepthToSpace": Spec("depth_to_space", ("x", "block_size")),
        "SpaceToDepth": Spec("space_to_depth", ("x", "block_size")),
        "StridedSlice": Spec("strided_slice", ("x", "begin", "end", "strides")),
    }


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


SPECS: dict[str, dict[str, Spec]] = {"ops": _keras3(), "tf": _functions(), "node": _nodes()}


def is_keras3_operation(entry: Config, config: Config, keras: tuple[int, int]) -> bool:
    """Return whether a layer's entry is an operation of Keras 3.

    HDF5 files leave the module out; but every layer there says whether it is trained.
    """
    registered = str(entry.get("registered_name") or "")
    if keras[0] < 3 or ">" in registered:
        return False
    if "module" in entry:
        return str(entry["module"]).startswith(_KERAS_MODULES)
    return "trainable" not in config and str(entry.get("class_name")) in SPECS["ops"]


def operation_of(class_name: str, config: Config) -> tuple[str, str, Config]:
    """Return an operation's name in here, its name for people, and its settings."""
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
    """Return the operation that a layer stands for, and by name the arguments that are given.

    Raises ConversionError for an unknown operation, or arguments that it does not take.
    """
    family, name = operation.split(":", 1)
    call = SPECS[family].get(name)
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


_ATTRIBUTES = ("keep_dims", "alpha", "squeeze_dims", "mode", "DstT", "block_size", "num_split",
               "begin_mask", "end_mask", "shrink_axis_mask", "ellipsis_mask",
               "new_axis_mask")  # fmt: skip


def _attribute(value: Config) -> Any:
    if "list" in value:
        return [int(n) for n in (value["list"] or {}).get("i", [])]
    if "s" in value:  # bytes, in base 64
        return base64.b64decode(str(value["s"])).decode(errors="replace")
    for kind, read in (("f", float), ("i", int), ("b", bool), ("type", str)):
        if kind in value:
            return read(value[kind])
    return None
