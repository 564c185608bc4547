"""ONNX to the subset of ONNX that CrypTen imports, split into public graph and secrets.

CrypTen's importer reads some attributes wrongly rather than refusing them (it takes one
padding number for all sides, one kernel size for both axes), so every node is checked and
rewritten here, and what it cannot do is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from privserve.activations import CLIENT_ACTIVATIONS, NORMALISING
from privserve.errors import ModelError


@dataclass
class CryptenGraph:
    """A model in CrypTen's terms."""

    public: onnx.ModelProto
    """The graph; its secret initializers are all zeros."""
    secrets: dict[str, NDArray[np.float64]]
    """The weights, by initializer name."""
    activation: dict[str, Any] | None
    """What the client applies to the joined answer: {"op", "axis"} or None."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)


def lower(model: onnx.ModelProto) -> CryptenGraph:
    """Rewrite `model` (opset 13+, checked) for CrypTen's importer.

    Raises ModelError naming the op and the node that CrypTen cannot run.
    """
    return _Lowering(model).run()


class _Lowering:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.secrets: dict[str, NDArray[np.float64]] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.renamed: dict[str, str] = {}
        self.shapes = _shapes(model)

    def run(self) -> CryptenGraph:
        graph = self.model.graph
        inputs = [i for i in graph.input if i.name not in self.constants]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise ModelError(
                "the crypten engine serves models with one input and one output; this one has "
                f"{len(inputs)} and {len(graph.output)}; use --engine ottt"
            )
        body, activation = strip_activation(list(graph.node), graph.output[0].name)
        output = graph.output[0].name if activation is None else activation.pop("input")
        for node in body:
            handler = HANDLERS.get(node.op_type)
            if handler is None:
                raise self.refusal(node, "CrypTen has no such op")
            handler(self, node)
        output = self.renamed.get(output, output)
        if not any(output in node.output for node in self.nodes):
            raise ModelError("the model computes nothing between its input and its output")
        zeros = [
            numpy_helper.from_array(np.zeros(value.shape, np.float32), name)
            for name, value in self.secrets.items()
        ]
        value = onnx.ValueInfoProto()
        value.CopyFrom(graph.output[0])
        value.name = output
        public = helper.make_model(
            helper.make_graph(self.nodes, "privserve", inputs, [value], zeros),
            opset_imports=[helper.make_opsetid("", 17)],
        )
        return CryptenGraph(public, self.secrets, activation)

    def refusal(self, node: onnx.NodeProto, why: str) -> ModelError:
        name = node.name or (node.output[0] if node.output else "")
        return ModelError(
            f"the crypten engine cannot run {node.op_type} (node '{name}'): {why}; "
            "use --engine ottt, or change that layer"
        )

    def fixed_shape(self, node: onnx.NodeProto, value: str) -> list[int]:
        """Return the shape of `value` without its batch axis."""
        shape = self.shapes.get(value)
        if not shape or not all(shape):
            raise self.refusal(node, f"the shape of '{value}' is not fixed")
        return shape

    def name(self, value: str) -> str:
        return self.renamed.get(value, value)

    def secret(self, node: onnx.NodeProto, index: int) -> NDArray[np.float64]:
        """Return the constant weight at input `index`."""
        if node.input[index] not in self.constants:
            raise self.refusal(node, "its weights are not constants in the file")
        return np.asarray(self.constants[node.input[index]], dtype=np.float64)

    def add_secret(self, name: str, value: NDArray[np.float64]) -> str:
        """Register a secret initializer under a name that is still free, and return it."""
        unique, count = name, 1
        while unique in self.secrets and not np.array_equal(self.secrets[unique], value):
            unique, count = f"{name}_{count}", count + 1
        self.secrets[unique] = value
        return unique

    def emit(self, op: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))


def strip_activation(
    nodes: list[onnx.NodeProto], output: str
) -> tuple[list[onnx.NodeProto], dict[str, Any] | None]:
    """Cut a trailing softmax or the like off: (other nodes, {"op", "axis", "input"} or None).

    The client applies it to the joined logits, so it is not computed on shares.
    """
    last = next((n for n in nodes if output in n.output), None)
    if last is None or last.op_type not in CLIENT_ACTIVATIONS:
        return nodes, None
    if any(last.output[0] in n.input for n in nodes):
        return nodes, None
    activation: dict[str, Any] = {"op": last.op_type, "input": last.input[0]}
    if last.op_type in NORMALISING:
        activation["axis"] = attributes_of(last).get("axis", -1)
    return [n for n in nodes if n is not last], activation


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _convolution(low: _Lowering, node: onnx.NodeProto) -> None:
    attributes = attributes_of(node)
    weight = low.secret(node, 1)
    dims = weight.ndim - 2
    if dims not in (1, 2):
        raise low.refusal(node, f"it convolves over {dims} axes; 1 and 2 are possible")
    pads = _pads(low, node, attributes, dims)
    source = low.name(node.input[0])
    if pads[:dims] != pads[dims:]:
        source = _pad(low, node, source, pads)
        pads = [0] * (2 * dims)
    inputs = [source, low.add_secret(node.input[1], weight)]
    if len(node.input) > 2 and node.input[2]:
        inputs.append(low.add_secret(node.input[2], low.secret(node, 2)))
    # CrypTen takes every second entry of `pads` as the padding of one axis.
    paired = [p for begin in pads[:dims] for p in (begin, begin)]
    low.emit(
        "Conv",
        inputs,
        node.output[0],
        strides=attributes.get("strides", [1] * dims),
        pads=paired,
        dilations=attributes.get("dilations", [1] * dims),
        group=attributes.get("group", 1),
        kernel_shape=list(weight.shape[2:]),
    )


def _pad(low: _Lowering, node: onnx.NodeProto, source: str, pads: list[int]) -> str:
    """Zero-pad explicitly, where the sides differ."""
    dims = len(pads) // 2
    target = f"{node.output[0]}_padded"
    full = [0, 0, *pads[:dims], 0, 0, *pads[dims:]]
    low.emit("Pad", [source], target, pads=full, mode="constant", value=0.0)
    return target


def _pads(low: _Lowering, node: onnx.NodeProto, attributes: dict[str, Any], dims: int) -> list[int]:
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise low.refusal(node, "its padding is automatic; export it with explicit pads")
    return list(attributes.get("pads", [0] * (2 * dims)))


def _pool(low: _Lowering, node: onnx.NodeProto) -> None:
    attributes = attributes_of(node)
    kernel = list(attributes["kernel_shape"])
    strides = list(attributes.get("strides", [1] * len(kernel)))
    if len(kernel) != 2 or kernel[0] != kernel[1] or strides[0] != strides[1]:
        raise low.refusal(node, f"it pools squares only, not {kernel} with strides {strides}")
    if any(_pads(low, node, attributes, 2)) or attributes.get("ceil_mode", 0):
        raise low.refusal(node, "it pools without padding only")
    if attributes.get("dilations", [1, 1]) != [1, 1]:
        raise low.refusal(node, "it pools without dilation only")
    low.emit(
        node.op_type,
        [low.name(node.input[0])],
        node.output[0],
        kernel_shape=kernel,
        strides=strides,
        pads=[0, 0, 0, 0],
    )


def _gemm(low: _Lowering, node: onnx.NodeProto) -> None:
    """x W + b as MatMul and Add: CrypTen's Gemm multiplies by alpha = 1 in fixed point."""
    attributes = attributes_of(node)
    if attributes.get("transA", 0):
        raise low.refusal(node, "it transposes its input")
    weight = low.secret(node, 1) * attributes.get("alpha", 1.0)
    if attributes.get("transB", 0):
        weight = weight.T
    has_bias = len(node.input) > 2 and node.input[2] != ""
    product = f"{node.output[0]}_product" if has_bias else node.output[0]
    name = low.add_secret(node.input[1], np.ascontiguousarray(weight))
    low.emit("MatMul", [low.name(node.input[0]), name], product)
    if has_bias:
        bias = low.secret(node, 2) * attributes.get("beta", 1.0)
        low.emit("Add", [product, low.add_secret(node.input[2], bias)], node.output[0])


def _matmul(low: _Lowering, node: onnx.NodeProto) -> None:
    weight = low.add_secret(node.input[1], low.secret(node, 1))
    low.emit("MatMul", [low.name(node.input[0]), weight], node.output[0])


def _elementwise(low: _Lowering, node: onnx.NodeProto) -> None:
    """Add, Sub, Mul of two branches, or of a branch and a secret vector."""
    inputs = [
        low.add_secret(name, low.secret(node, index)) if name in low.constants else low.name(name)
        for index, name in enumerate(node.input)
    ]
    if node.op_type == "Sub" and inputs[0] in low.secrets:
        raise low.refusal(node, "it subtracts from a constant")
    if inputs[0] in low.secrets:
        inputs.reverse()
    low.emit(node.op_type, inputs, node.output[0])


def _batch_normalization(low: _Lowering, node: onnx.NodeProto) -> None:
    """y = x a + b with a, b known to the owner: two secret vectors along axis 1."""
    scale, offset, mean, variance = (low.secret(node, i) for i in range(1, 5))
    factor = scale / np.sqrt(variance + attributes_of(node).get("epsilon", 1e-5))
    shape = (1, -1, *([1] * (len(low.fixed_shape(node, node.input[0])) - 1)))
    a = low.add_secret(f"{node.output[0]}_scale", factor.reshape(shape))
    b = low.add_secret(f"{node.output[0]}_offset", (offset - mean * factor).reshape(shape))
    scaled = f"{node.output[0]}_scaled"
    low.emit("Mul", [low.name(node.input[0]), a], scaled)
    low.emit("Add", [scaled, b], node.output[0])


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Every value's shape without its batch axis, by inference; 0 where it is not fixed."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        info.name: [d.dim_value for d in info.type.tensor_type.shape.dim][1:]
        for info in [*graph.input, *graph.value_info, *graph.output]
    }


def _keep(low: _Lowering, node: onnx.NodeProto) -> None:
    attributes = attributes_of(node)
    if node.op_type == "Transpose" and "perm" not in attributes:
        raise low.refusal(node, "its permutation is not given")
    inputs = [low.name(name) for name in node.input]
    low.emit(node.op_type, inputs, node.output[0], **attributes)


def _reshape(low: _Lowering, node: onnx.NodeProto) -> None:
    """Flatten and Reshape, the batch axis left free.

    CrypTen's Flatten takes a view, which a permuted tensor does not offer.
    """
    shape = [-1, *low.fixed_shape(node, node.output[0])]
    low.emit("Reshape", [low.name(node.input[0])], node.output[0], shape=shape)


def _identity(low: _Lowering, node: onnx.NodeProto) -> None:
    low.renamed[node.output[0]] = low.name(node.input[0])


def _constant(low: _Lowering, node: onnx.NodeProto) -> None:
    value = attributes_of(node).get("value")
    if not isinstance(value, TensorProto):
        raise low.refusal(node, "it is not a tensor")
    low.constants[node.output[0]] = numpy_helper.to_array(value)


def _hard_swish(low: _Lowering, node: onnx.NodeProto) -> None:
    """x (relu(x + 3) - relu(x - 3)) / 6."""
    x, out = low.name(node.input[0]), node.output[0]
    for name, shift in (("above", 3.0), ("over", -3.0)):
        constant = low.add_secret(f"{out}_{name}_shift", np.array([shift]))
        low.emit("Add", [x, constant], f"{out}_{name}_in")
        low.emit("Relu", [f"{out}_{name}_in"], f"{out}_{name}")
    low.emit("Sub", [f"{out}_above", f"{out}_over"], f"{out}_gate")
    sixth = low.add_secret(f"{out}_sixth", np.array([1 / 6]))
    low.emit("Mul", [f"{out}_gate", sixth], f"{out}_scaled")
    low.emit("Mul", [x, f"{out}_scaled"], out)


HANDLERS: dict[str, Callable[[_Lowering, onnx.NodeProto], None]] = {
    "Add": _elementwise,
    "AveragePool": _pool,
    "BatchNormalization": _batch_normalization,
    "Concat": _keep,
    "Constant": _constant,
    "Conv": _convolution,
    "Dropout": _identity,
    "Flatten": _reshape,
    "Gemm": _gemm,
    "GlobalAveragePool": _keep,
    "HardSwish": _hard_swish,
    "Identity": _identity,
    "MatMul": _matmul,
    "MaxPool": _pool,
    "Mul": _elementwise,
    "Relu": _keep,
    "Reshape": _reshape,
    "Sub": _elementwise,
    "Transpose": _keep,
}
