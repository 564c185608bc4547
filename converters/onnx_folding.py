"""What follows from shapes and constants alone, computed before anything is served.

x.view(x.size(0), -1) is exported as Shape, Gather, Unsqueeze, Concat, Reshape. Such arithmetic is
done for two sizes of the batch: what is the same for both is a constant, and what is not depends
on the batch's size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from converters.errors import ConversionError
from converters.onnx_nodes import OPSET, Array, attributes_of, refusal, to_initializer

BATCHES = (7, 11)
"""Sizes that no axis is likely to have, and that do not divide each other."""
MAX_FOLDED = 1 << 16
"""Elements of what is computed here; larger constants are weights, and stay nodes."""


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX' own operators that the model is written in."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), OPSET)


def small(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return the initializers that may be bounds, axes, sizes and the like."""
    return [t for t in model.graph.initializer if np.prod(t.dims, dtype=np.int64) <= MAX_FOLDED]


def inferred(
    model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto], batch: int
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Return every shape that is known once the batch has a size, and every type."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    names = {value.name for value in inputs}
    for value in light.graph.input:
        if value.name in names and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = batch
    del light.graph.value_info[:]
    for value in light.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        light = onnx.shape_inference.infer_shapes(light, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ConversionError(f"the shapes in the model contradict each other: {error}") from None
    shapes, types = {}, {}
    for value in [*light.graph.input, *light.graph.value_info, *light.graph.output]:
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        dims = [d.dim_value for d in tensor.shape.dim]
        if tensor.HasField("shape") and all(d > 0 for d in dims):
            shapes[value.name] = dims
    for stored in light.graph.initializer:
        shapes[stored.name], types[stored.name] = list(stored.dims), stored.data_type
    return shapes, types


def fold(model: onnx.ModelProto, inputs: Sequence[str]) -> dict[str, tuple[Array, Array]]:
    """Compute what follows from shapes and constants; return what depends on the batch's size.

    Its values are those for the two sizes in BATCHES. Everything else that was computed becomes
    an initializer.
    """
    symbolic: dict[str, tuple[Array, Array]] = {}
    values = [v for v in model.graph.input if v.name in inputs]
    for _ in range(8):
        known = [computed(model, values, batch) for batch in BATCHES]
        constant, symbolic, fresh = {}, {}, False
        for name in known[0].keys() & known[1].keys():
            one, other = known[0][name], known[1][name]
            if one.shape == other.shape and np.array_equal(one, other):
                constant[name] = one
            else:
                symbolic[name] = (one, other)
        kept = []
        for node in model.graph.node:
            done = bool(node.output) and all(n in constant for n in node.output if n)
            fresh |= done
            if not done:
                kept.append(node)
            else:
                for name in filter(None, node.output):
                    model.graph.initializer.append(to_initializer(name, constant[name]))
        if not fresh:
            break
        del model.graph.node[:]
        model.graph.node.extend(kept)
    return symbolic


def computed(
    model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto], batch: int
) -> dict[str, Array]:
    """Return the outputs of all nodes that depend on constants and shapes only."""
    shapes, _ = inferred(model, inputs, batch)
    stored = {t.name: numpy_helper.to_array(t) for t in small(model)}
    found: dict[str, Array] = {}
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or not node.output:
            continue
        known = {**stored, **found}
        if node.op_type in ("Shape", "Size"):
            if node.input[0] not in shapes:
                continue
            shape = np.array(shapes[node.input[0]], np.int64)
            attributes = attributes_of(node)
            cut = shape[attributes.get("start", 0) : attributes.get("end", len(shape))]
            found[node.output[0]] = cut if node.op_type == "Shape" else np.int64(shape.prod())  # type: ignore[assignment]
            continue
        if not all(name in known for name in node.input if name):
            continue
        if node.op_type.startswith("Random") or any(a.HasField("g") for a in node.attribute):
            continue
        if _grows(node, known):
            continue
        try:
            results = _evaluate(node, known, opset_of(model))
        except Exception as error:
            raise refusal(node, f"it cannot be computed ({error})") from None
        if all(result.size <= MAX_FOLDED for result in results):
            found.update(zip(node.output, results, strict=True))
    return found


def _grows(node: onnx.NodeProto, known: dict[str, Array]) -> bool:
    """Whether an operator that makes arrays out of sizes would make one that is too large."""
    given = [known[name] for name in node.input if name]
    if node.op_type in ("ConstantOfShape", "Expand"):
        sizes = given[-1]
    elif node.op_type == "Tile":
        sizes = np.array([given[0].size, *given[1].ravel()])
    elif node.op_type == "Range":
        start, stop, step = (float(value.item()) for value in given)
        return not abs(step) * MAX_FOLDED >= abs(stop - start)
    else:
        return node.op_type in ("Pad", "Resize", "Upsample", "OneHot")  # never of shapes
    return math.prod(max(1, int(n)) for n in sizes.ravel().tolist()) > MAX_FOLDED


def _evaluate(node: onnx.NodeProto, known: dict[str, Array], version: int) -> list[Array]:
    """The node's outputs, as its own opset has it."""
    feeds = {name: known[name] for name in node.input if name}
    graph = helper.make_graph(
        [node],
        "one node",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in feeds.items()
        ],
        [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in node.output if n],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
    values: Any = ReferenceEvaluator(model).run(None, feeds)
    return [np.asarray(value) for value in values]
