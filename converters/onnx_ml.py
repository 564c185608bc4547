"""What scikit-learn's exporter adds to ONNX: scalers, linear models, labels and dictionaries.

A class label is the largest of the scores, and a dictionary of probabilities (ZipMap) says
nothing that the array in it does not. Neither can be computed on shares, so both are left out
of what is served, and a note says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from converters.errors import ConversionError
from converters.onnx_opsets import RULES, Nodes, Scope, attributes_of, make, refusal, rule

DOMAIN = "ai.onnx.ml"
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
NUMBERS = (*FLOATS, TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8)


def served_outputs(model: onnx.ModelProto) -> list[str]:
    """Leave labels out and take arrays out of dictionaries, in place; notes for people."""
    graph, notes = model.graph, []
    kept = []
    for output in graph.output:
        maker = next((node for node in graph.node if output.name in node.output), None)
        if maker is not None and maker.op_type == "ZipMap":
            labels = attributes_of(maker)
            classes = labels.get("classlabels_int64s") or labels.get("classlabels_strings") or []
            named = ", ".join(c.decode() if isinstance(c, bytes) else str(c) for c in classes)
            array = helper.make_node("Identity", maker.input, maker.output, name=maker.name)
            maker.CopyFrom(array)
            shape: list[str | int | None] = ["N", len(classes)]
            kept.append(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, shape))
            notes.append(f"output {output.name!r} is an array here; its columns are {named}")
        elif output.type.tensor_type.elem_type in FLOATS:
            kept.append(output)
        else:
            notes.append(
                f"output {output.name!r} (class labels) is left out: the label is where the "
                "scores are largest"
            )
    if not kept:
        raise ConversionError(
            "the model has labels for outputs and no scores; export it with its probabilities"
        )
    kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
    del graph.output[:]
    graph.output.extend(kept)
    return notes


def as_floats(model: onnx.ModelProto) -> None:
    """Inputs of any number type as float32, which is what is computed with; in place."""
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in [*model.graph.input, *model.graph.output]:
        tensor = value.type.tensor_type
        if value.name not in stored and tensor.elem_type in NUMBERS:
            tensor.elem_type = TensorProto.FLOAT
    for constant in model.graph.initializer:
        if constant.data_type in FLOATS and constant.data_type != TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(constant).astype(np.float32)
            constant.CopyFrom(onnx.numpy_helper.from_array(array, constant.name))


def has_rule(node: onnx.NodeProto) -> bool:
    """Whether `onnx_opsets` or this module says what the node is in opset 17."""
    own = f"{DOMAIN}:{node.op_type}"
    return own in RULES if node.domain == DOMAIN else node.op_type in RULES


def rewritten(scope: Scope, node: onnx.NodeProto) -> Nodes:
    """The node as nodes of opset 17."""
    name = f"{DOMAIN}:{node.op_type}" if node.domain == DOMAIN else node.op_type
    return RULES[name](scope, node, attributes_of(node))


@rule(f"{DOMAIN}:Scaler")
def scaler(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """(x - offset) * scale."""
    offset = np.array(attributes.get("offset", [0.0]), np.float32)
    scale = np.array(attributes.get("scale", [1.0]), np.float32)
    moved = s.name("moved")
    return [
        make("Sub", [node.input[0], s.add(offset)], moved, node),
        make("Mul", [moved, s.add(scale)], node.output[0], node),
    ]


@rule(f"{DOMAIN}:LinearRegressor")
def linear_regressor(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """x W + b."""
    if attributes.get("post_transform", b"NONE") != b"NONE":
        raise refusal(node, "its post_transform is not supported")
    return [_gemm(s, node, attributes, int(attributes.get("targets", 1)), node.output[0])]


@rule(f"{DOMAIN}:LinearClassifier")
def linear_classifier(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Scores, one per class; the label that comes with them is left out."""
    labels = attributes.get("classlabels_ints") or attributes.get("classlabels_strings") or []
    ops = {b"NONE": "Identity", b"SOFTMAX": "Softmax", b"LOGISTIC": "Sigmoid"}
    op = ops.get(attributes.get("post_transform", b"NONE"))
    rows = len(attributes.get("intercepts", labels))
    if op is None or rows != len(labels):
        raise refusal(node, "its post_transform, or one score for two classes, is not supported")
    scores = s.name("scores")
    last = make(op, [scores], node.output[1], node)
    if op == "Softmax":
        last.attribute.append(helper.make_attribute("axis", 1))
    return [_gemm(s, node, attributes, rows, scores), last]


def _gemm(
    s: Scope, node: onnx.NodeProto, attributes: dict[str, Any], rows: int, output: str
) -> onnx.NodeProto:
    weight = np.array(attributes["coefficients"], np.float32).reshape(rows, -1)
    bias = np.array(attributes.get("intercepts") or [0.0] * rows, np.float32)
    return make("Gemm", [node.input[0], s.add(weight), s.add(bias)], output, node, transB=1)
