"""What scikit-learn's exporter adds to ONNX: scalers, linear models, labels and dictionaries.

A class label is the largest of the scores, and a dictionary of probabilities (ZipMap) says
nothing that the array in it does not. Neither can be computed on shares, so both are left out
of what is served, and a note says so.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from converters.errors import ConversionError
from converters.onnx_opsets import RULES, Nodes, Scope, attributes_of, make, refusal, rule

DOMAIN = "ai.onnx.ml"
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
LONGEST_WAY = 32
"""Nodes between scores and their labels, at the most."""
_TO_LABELS = frozenset(
    {"ArgMax", "TopK", "ArrayFeatureExtractor", "LabelEncoder", "Cast", "Reshape", "Squeeze",
     "Unsqueeze", "Flatten", "Identity", "Gather"}
)  # fmt: skip
_TREES = "decision trees are not supported; use a linear model or an MLP"
_VECTORS = "support vector machines are not supported; use a linear model or an MLP"
_ENCODE = "encode categories before the query, and export the model without it"
REMEDIES = {
    "TreeEnsemble": _TREES,
    "TreeEnsembleClassifier": _TREES,
    "TreeEnsembleRegressor": _TREES,
    "SVMClassifier": _VECTORS,
    "SVMRegressor": _VECTORS,
    "Imputer": "fill missing values before the query, and export the model without it",
    "OneHotEncoder": _ENCODE,
    "LabelEncoder": _ENCODE,
    "CategoryMapper": _ENCODE,
    "DictVectorizer": _ENCODE,
    "Binarizer": "compare with the threshold before the query, and export the model without it",
}
"""Why an operator of scikit-learn is not served, and what to do."""
NUMBERS = (*FLOATS, TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8)


def served_outputs(model: onnx.ModelProto) -> list[str]:
    """Leave labels out and take arrays out of dictionaries, in place; notes for people."""
    graph, notes = model.graph, []
    kept = []
    makers = {name: node for node in graph.node for name in node.output}
    for output in graph.output:
        maker = makers.get(output.name)
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
        scores = next(filter(None, (_scores_behind(o.name, makers) for o in graph.output)), None)
        if scores is None:
            raise ConversionError(
                "the model has labels for outputs and no scores; export it with its probabilities"
            )
        kept.append(helper.make_tensor_value_info(scores, TensorProto.FLOAT, ["N", None]))
        notes.append(f"the scores that the labels come from are served in their place: {scores!r}")
    kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
    del graph.output[:]
    graph.output.extend(kept)
    return notes


def _scores_behind(name: str, makers: dict[str, onnx.NodeProto]) -> str | None:
    """The floats whose largest is the label `name`; None where it comes from something else."""
    for _ in range(LONGEST_WAY):
        maker = makers.get(name)
        if maker is None or maker.op_type not in _TO_LABELS:
            return None
        if maker.op_type in ("ArgMax", "TopK"):
            return str(maker.input[0]) if maker.input[0] in makers else None
        # Of (classes, places) the places are computed.
        computed = [source for source in maker.input if source in makers]
        if not computed:
            return None
        name = computed[-1]
    return None


def as_floats(model: onnx.ModelProto) -> None:
    """Inputs of any number type as float32, which is what is computed with; in place."""
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in [*model.graph.input, *model.graph.output]:
        tensor = value.type.tensor_type
        if value.name not in stored and tensor.elem_type in NUMBERS:
            tensor.elem_type = TensorProto.FLOAT
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    for constant in [*model.graph.initializer, *(a.t for a in attributes if a.HasField("t"))]:
        if constant.data_type in FLOATS and constant.data_type != TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(constant).astype(np.float32)
            constant.CopyFrom(onnx.numpy_helper.from_array(array, constant.name))
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "Cast" else ():
            if attribute.name == "to" and attribute.i in FLOATS:
                attribute.i = TensorProto.FLOAT


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
    kind = attributes.get("post_transform", b"NONE")
    rows = len(attributes.get("intercepts", labels))
    if kind == b"LOGISTIC" and (rows, len(labels)) == (1, 2):
        return _two_classes(s, node, attributes)
    if kind not in ops or rows != len(labels):
        raise refusal(node, f"post_transform {kind.decode()} of {rows} scores is not supported")
    scores = s.name("scores")
    last = make(ops[kind], [scores], node.output[1], node)
    if kind == b"SOFTMAX":
        last.attribute.append(helper.make_attribute("axis", 1))
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


@rule(f"{DOMAIN}:Normalizer")
def normalizer(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Shares of the sum, of scores whose sum is 1 already: nothing."""
    maker = s.makers.get(node.input[0])
    learned = maker is not None and maker.op_type == "LinearClassifier"
    if attributes.get("norm") == b"L1" and maker is not None and _sums_to_one(maker):
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
    kind = attributes.get("post_transform", b"NONE")
    kernel = np.array(attributes.get("coefficients", []), np.float32)
    bias = np.array(attributes.get("intercepts", []), np.float32)
    if kind != b"LOGISTIC" or bias.size == 1:
        return bool(kind in (b"SOFTMAX", b"LOGISTIC"))
    first, second = kernel[: kernel.size // 2], kernel[kernel.size // 2 :]
    return bool(bias.size == 2 and np.array_equal(first, -second) and bias[0] == -bias[1])


@rule(f"{DOMAIN}:ArrayFeatureExtractor")
def feature_extractor(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Some of the columns."""
    places = s.constant(node, 1)
    if places is None:
        raise refusal(node, "it does not say which columns it takes")
    columns = s.add(places.astype(np.int64).ravel())
    return [make("Gather", [node.input[0], columns], node.output[0], node, axis=1)]


@rule(f"{DOMAIN}:FeatureVectorizer")
def feature_vectorizer(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """All columns of all inputs, side by side."""
    return [make("Concat", node.input, node.output[0], node, axis=1)]


def _gemm(
    s: Scope, node: onnx.NodeProto, attributes: dict[str, Any], rows: int, output: str
) -> onnx.NodeProto:
    weight = np.array(attributes["coefficients"], np.float32).reshape(rows, -1)
    bias = np.array(attributes.get("intercepts") or [0.0] * rows, np.float32)
    return make("Gemm", [node.input[0], s.add(weight), s.add(bias)], output, node, transB=1)


def without_last_copies(nodes: Nodes, outputs: Sequence[str], fixed: Collection[str]) -> Nodes:
    """The nodes without copies at the outputs, so that a last softmax is the last node.

    fixed: names that must stay what they are: inputs and constants.
    """
    for name in outputs:
        last = next((node for node in nodes if name in node.output), None)
        while last is not None and last.op_type == "Identity":
            source = last.input[0]
            maker = next((node for node in nodes if source in node.output), None)
            if maker is None or source in outputs or source in fixed:
                break
            nodes = [node for node in nodes if node is not last]
            for node in nodes:
                for tensors in (node.input, node.output):
                    for i, tensor in enumerate(tensors):
                        tensors[i] = name if tensor == source else tensor
            last = maker
    return nodes
