"""The batch axis: free from input to output, whatever a model was exported for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from converters.errors import ConversionError
from converters.onnx_folding import BATCHES, computed, inferred, small
from converters.onnx_nodes import Array, attributes_of, make, refusal, to_initializer
from converters.onnx_ops import OPERATORS
from converters.onnx_opsets import RULES, Scope
from converters.onnx_reasons import reason


def free_batch(value: onnx.ValueInfoProto) -> None:
    """Free the batch axis: a model that was exported for one sample serves batches as well."""
    dims = value.type.tensor_type.shape.dim
    if not dims:
        raise ConversionError(f"{value.name!r} has no batch axis")
    dims[0].dim_param = "N"


def unfix_batch(
    model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto], number: int = 0
) -> int:
    """Make reshapes to the batch's size that the model was exported for keep the batch instead.

    number: how many were changed before. Returns how many are by now.
    """
    sizes = {v.type.tensor_type.shape.dim[0].dim_value for v in inputs if _dims(v)}
    if len(sizes) != 1 or not (size := sizes.pop()):
        return number
    while (more := _keep_batch(model, inputs, size, number)) > number:
        number = more  # behind a reshape that is new, more shapes may be known
    return number


def _keep_batch(
    model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto], size: int, number: int
) -> int:
    """Pass over all reshapes once; return `number` plus how many were changed."""
    shapes, _ = inferred(model, inputs, size)
    constants = {t.name: numpy_helper.to_array(t) for t in small(model)}
    constants |= computed(model, inputs, size)
    for node in model.graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        target, shape = constants[node.input[1]], shapes.get(node.input[0])
        zeros = 0 in target[1:] and attributes_of(node).get("allowzero", 0)
        if not shape or not target.size or not target[0] == size == shape[0] or zeros:
            continue
        name = f"converters/batch/{number}"
        number += 1
        model.graph.initializer.append(to_initializer(name, np.array([0, *target[1:]], np.int64)))
        node.input[1] = name
        kept = [a for a in node.attribute if a.name != "allowzero"]
        del node.attribute[:]
        node.attribute.extend(kept)
    return number


def without_batch(
    scope: Scope,
    node: onnx.NodeProto,
    symbolic: dict[str, tuple[Array, Array]],
    shapes: dict[str, list[int]],
) -> onnx.NodeProto:
    """Return the node with what it reads of the batch's size replaced: 0 or -1 of a Reshape."""
    across = refusal(
        node,
        "it computes with the number of samples in the batch, which an answer must not depend on; "
        "reshape by sizes of a sample (x.flatten(1), x.view(x.size(0), -1))",
    )
    if node.op_type not in OPERATORS and node.op_type not in RULES:
        raise refusal(node, reason(node.op_type))
    if node.op_type == "Resize" and len(node.input) > 3 and node.input[3] in symbolic:
        # Its rule looks at the sizes of a sample only.
        sizes = scope.add(symbolic[node.input[3]][0])
        changed = make("Resize", [node.input[0], "", "", sizes], node.output[0], node)
        changed.attribute.extend(node.attribute)
        return changed
    if node.op_type not in ("Reshape", "Expand") or list(node.input)[1] not in symbolic:
        raise across
    one, other = symbolic[node.input[1]]
    if one.shape != other.shape or one.ndim != 1 or list(np.flatnonzero(one != other)) != [0]:
        raise across
    target = one.copy()
    if node.op_type == "Expand":
        shape = shapes.get(node.input[0], [])
        if len(shape) != len(target) or shape[0] != BATCHES[0] or one[0] != BATCHES[0]:
            raise across
        target[0] = 1
    elif (one[0], other[0]) == BATCHES and shapes.get(node.input[0], [0])[0] == BATCHES[0]:
        target[0] = 0
    elif -1 not in target[1:]:
        target[0] = -1
    else:
        raise across
    return make(node.op_type, [node.input[0], scope.add(target)], node.output[0], node)


def check_batch_first(model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto]) -> None:
    """Refuse outputs whose first axis is not the samples of the batch."""
    one, other = (inferred(model, inputs, batch)[0] for batch in BATCHES)
    for output in model.graph.output:
        shapes = one.get(output.name), other.get(output.name)
        if None in shapes:
            if all(all(d.dim_value > 0 for d in _dims(value)[1:]) for value in inputs):
                raise ConversionError(
                    f"the shape of the output {output.name!r} cannot be inferred for a batch of "
                    "any size; export the model with a free batch axis (dynamic_axes, or "
                    "dynamic_shapes of the newer exporter)"
                )
            continue
        firsts = tuple(shape[0] if shape else 1 for shape in shapes if shape is not None)
        rests = [shape[1:] for shape in shapes if shape]
        if firsts != BATCHES or rests[0] != rests[1]:
            raise ConversionError(
                f"the output {output.name!r} has no row of its own for each sample (its shape is "
                f"{shapes[0]} for {BATCHES[0]} samples); export the model with a free batch axis "
                "that stays first, from input to output"
            )


def _dims(value: onnx.ValueInfoProto) -> Sequence[Any]:
    return list(value.type.tensor_type.shape.dim)
