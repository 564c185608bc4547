"""scikit-learn's operators: scalers, linear models, their scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from converters.onnx_nodes import Nodes, attributes_of, make, refusal
from converters.onnx_opsets.rules import LEARNERS, Scope, rule


@rule(f"{LEARNERS}:Scaler")
def scaler(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """(x - offset) * scale."""
    offset = np.array(attributes.get("offset", [0.0]), np.float32)
    scale = np.array(attributes.get("scale", [1.0]), np.float32)
    moved = s.name("moved")
    return [
        make("Sub", [node.input[0], s.add(offset)], moved, node),
        make("Mul", [moved, s.add(scale)], node.output[0], node),
    ]


@rule(f"{LEARNERS}:LinearRegressor")
def linear_regressor(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """x W + b."""
    if attributes.get("post_transform", "NONE") != "NONE":
        raise refusal(node, "its post_transform is not supported")
    return [_gemm(s, node, attributes, int(attributes.get("targets", 1)), node.output[0])]


@rule(f"{LEARNERS}:LinearClassifier")
def linear_classifier(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Scores, one per class; the label that comes with them is left out."""
    labels = attributes.get("classlabels_ints") or attributes.get("classlabels_strings") or []
    ops = {"NONE": "Identity", "SOFTMAX": "Softmax", "LOGISTIC": "Sigmoid"}
    kind = attributes.get("post_transform", "NONE")
    rows = len(attributes.get("intercepts", labels))
    if kind == "LOGISTIC" and (rows, len(labels)) == (1, 2):
        return _two_classes(s, node, attributes)
    if kind not in ops or rows != len(labels):
        raise refusal(node, f"post_transform {kind} of {rows} scores is not supported")
    scores = s.name("scores")
    axis = {"axis": 1} if kind == "SOFTMAX" else {}
    last = make(ops[kind], [scores], node.output[1], node, **axis)
    return [_gemm(s, node, attributes, rows, scores), last]


def _two_classes(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """One score for two classes: the probability p of the second, and 1 - p."""
    scores, first, second = s.name("scores"), s.name("first"), s.name("second")
    return [
        _gemm(s, node, attributes, 1, scores),
        make("Sigmoid", [scores], second, node),
        make("Sub", [s.add(np.float32(1)), second], first, node),
        make("Concat", [first, second], node.output[1], node, axis=1),
    ]


@rule(f"{LEARNERS}:Normalizer")
def normalizer(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Shares of the sum, of scores whose sum is 1 already: nothing."""
    maker = s.makers.get(node.input[0])
    learned = maker is not None and maker.op_type == "LinearClassifier"
    if attributes.get("norm") == "L1" and maker is not None and _sums_to_one(maker):
        return [make("Identity", node.input, node.output[0], node)]
    if learned:
        raise refusal(
            node,
            "probabilities of one class against the rest, which it divides by their sum, are not "
            "supported; train a multinomial model, or export the raw scores",
        )
    raise refusal(node, "scale each sample before the query, and export the model without it")


def _sums_to_one(maker: onnx.NodeProto) -> bool:
    """Whether scores are known to add up to 1: by a softmax, or as p and 1 - p."""
    if maker.op_type != "LinearClassifier":
        return maker.op_type == "Softmax"
    attributes = attributes_of(maker)
    kind = attributes.get("post_transform", "NONE")
    kernel = np.array(attributes.get("coefficients", []), np.float32)
    bias = np.array(attributes.get("intercepts", []), np.float32)
    if kind != "LOGISTIC" or bias.size == 1:
        return bool(kind in ("SOFTMAX", "LOGISTIC"))
    first, second = kernel[: kernel.size // 2], kernel[kernel.size // 2 :]
    return bool(bias.size == 2 and np.array_equal(first, -second) and bias[0] == -bias[1])


@rule(f"{LEARNERS}:ArrayFeatureExtractor")
def feature_extractor(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Some of the columns."""
    places = s.constant(node, 1)
    if places is None:
        raise refusal(node, "it does not say which columns it takes")
    columns = s.add(places.astype(np.int64).ravel())
    return [make("Gather", [node.input[0], columns], node.output[0], node, axis=1)]


@rule(f"{LEARNERS}:FeatureVectorizer")
def feature_vectorizer(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """All columns of all inputs, side by side."""
    return [make("Concat", node.input, node.output[0], node, axis=1)]


def _gemm(
    s: Scope, node: onnx.NodeProto, attributes: dict[str, Any], rows: int, output: str
) -> onnx.NodeProto:
    weight = np.array(attributes["coefficients"], np.float32).reshape(rows, -1)
    bias = np.array(attributes.get("intercepts") or [0.0] * rows, np.float32)
    return make("Gemm", [node.input[0], s.add(weight), s.add(bias)], output, node, transB=1)
