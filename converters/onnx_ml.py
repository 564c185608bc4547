"""What scikit-learn's exporter adds to ONNX: scalers, linear models, labels and dictionaries.

A class label is the largest of the scores, and a dictionary of probabilities (ZipMap) says
nothing that the array in it does not. Neither can be computed on shares, so both are left out
of what is served, and a note says so.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from converters.errors import ConversionError
from converters.onnx_nodes import attributes_of

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
LONGEST_WAY = 32
"""Nodes between scores and their labels, at the most."""
_TO_LABELS = frozenset(
    {"ArgMax", "TopK", "ArrayFeatureExtractor", "LabelEncoder", "Cast", "Reshape", "Squeeze",
     "Unsqueeze", "Flatten", "Identity", "Gather"}
)  # fmt: skip
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
            named = ", ".join(str(c) for c in classes)
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
    """Take inputs of any number type as float32, which is what is computed with; in place."""
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
