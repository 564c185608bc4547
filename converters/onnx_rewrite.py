"""ONNX graphs of any opset as plain graphs of opset 17 with a free batch axis.

1. Shape arithmetic goes: x.view(x.size(0), -1) is exported as Shape, Gather, Unsqueeze, Concat,
   Reshape. All that follows from shapes alone is computed, for two sizes of the batch; what is
   the same for both is a constant, and what is not is the batch's size.
2. Every node is replaced by what it is in opset 17 (`onnx_opsets`).
3. What nobody reads is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator

from converters import onnx_bounds as _onnx_bounds  # noqa: F401, for its rules
from converters.errors import ConversionError
from converters.onnx_ml import REMEDIES, as_floats, has_rule, rewritten, without_last_copies
from converters.onnx_ops import OPERATORS
from converters.onnx_opsets import (
    RULES,
    Array,
    Scope,
    attributes_of,
    make,
    refusal,
    to_initializer,
)
from converters.onnx_reasons import reason

OPSET = 17
IR_VERSION = 8  # the one that opset 17 came with
OLDEST = 7
BATCHES = (7, 11)
"""Sizes that no axis is likely to have, and that do not divide each other."""
MAX_FOLDED = 1 << 16
"""Elements of what is computed here; larger constants are weights, and stay nodes."""


def rewrite(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` in opset 17, without shape arithmetic; inputs' batch axes are free ("N").

    Raises: ConversionError for operators and opsets that cannot be read.
    """
    as_floats(model)
    version = _version(model)
    if version < OLDEST:
        raise ConversionError(
            f"opset {version} is too old; export the model again with opset {OPSET}"
        )
    if model.functions:
        model = inline_local_functions(model)
    _without_learners(model, version)
    inputs = _true_inputs(model)
    _unfix_batch(model, list(inputs))
    symbolic = _fold(model, [value.name for value in inputs])
    while _inline_branches(model):
        symbolic = _fold(model, [value.name for value in inputs])
    scope = Scope(version, {t.name: numpy_helper.to_array(t) for t in _small(model)})
    shapes, types = _inferred(model, inputs, BATCHES[0])
    scope.shapes, scope.types = shapes, types
    scope.makers = {name: node for node in model.graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in _needed(model.graph.node, [o.name for o in model.graph.output]):
        if all(name in symbolic for name in node.output if name):
            continue
        for name in node.input:
            if name in symbolic:
                node = _without_batch(scope, node, symbolic, shapes)
        nodes += rewritten(scope, node) if has_rule(node) else [node]
    _rebuild(model, nodes, scope)
    _check_batch_first(model, inputs)
    for value in inputs:
        free_batch(value)
    for value in model.graph.output:
        free_batch(value)
    return model


def _true_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs, constants not among them, which were listed there before IR version 4."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in inputs]
    del model.graph.input[:]
    model.graph.input.extend(copies)
    model.ir_version = max(model.ir_version, IR_VERSION)
    return list(model.graph.input)


def _inline_branches(model: onnx.ModelProto) -> bool:
    """Puts the branch that is taken for an If of a known condition; whether there was one.

    torch writes one for x.squeeze(axis) where it does not know the axis' length.
    """
    known = {t.name: numpy_helper.to_array(t) for t in _small(model)}
    nodes: list[onnx.NodeProto] = []
    found = False
    for node in model.graph.node:
        if node.op_type != "If" or node.input[0] not in known:
            nodes.append(node)
            continue
        found = True
        taken = "then_branch" if bool(known[node.input[0]].item()) else "else_branch"
        branch = attributes_of(node)[taken]
        model.graph.initializer.extend(branch.initializer)
        nodes.extend(branch.node)
        for inner, outer in zip(branch.output, node.output, strict=True):
            nodes.append(helper.make_node("Identity", [inner.name], [outer], name=node.name))
    if found:
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del model.graph.node[:]
        model.graph.node.extend(copies)
    return found


def _check_batch_first(model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto]) -> None:
    """Refuses outputs whose first axis is not the samples of the batch."""
    one, other = (_inferred(model, inputs, batch)[0] for batch in BATCHES)
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


def _without_learners(model: onnx.ModelProto, version: int) -> None:
    """Put plain nodes for scikit-learn's: nothing is inferred of their shapes."""
    graph = model.graph
    if all(node.domain in ("", "ai.onnx") for node in graph.node):
        return
    scope = Scope(version, {t.name: numpy_helper.to_array(t) for t in _small(model)})
    scope.makers = {name: node for node in graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in _needed(graph.node, [o.name for o in graph.output]):
        foreign = node.domain not in ("", "ai.onnx")
        if foreign and not has_rule(node):
            other = f"this operator of the domain {node.domain!r} is not supported"
            raise refusal(node, REMEDIES.get(node.op_type, other))
        nodes += rewritten(scope, node) if foreign else [node]
    del graph.node[:]
    graph.node.extend(nodes)
    stored = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(
        to_initializer(n, a) for n, a in scope.constants.items() if n not in stored
    )


def free_batch(value: onnx.ValueInfoProto) -> None:
    """A model that was exported for one sample serves batches as well."""
    dims = value.type.tensor_type.shape.dim
    if not dims:
        raise ConversionError(f"{value.name!r} has no batch axis")
    dims[0].dim_param = "N"


def _small(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Initializers that may be bounds, axes, sizes and the like."""
    return [t for t in model.graph.initializer if np.prod(t.dims, dtype=np.int64) <= MAX_FOLDED]


def _inferred(
    model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto], batch: int
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Every shape that is known once the batch has a size, and every type."""
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


def _unfix_batch(model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto]) -> None:
    """Reshapes to a batch of the size that the model was exported for keep the batch instead."""
    sizes = {v.type.tensor_type.shape.dim[0].dim_value for v in inputs if _dims(v)}
    if len(sizes) != 1 or not (size := sizes.pop()):
        return
    fixed = 0
    while (more := _keep_batch(model, inputs, size, fixed)) > fixed:
        fixed = more  # behind a reshape that is new, more shapes may be known


def _keep_batch(
    model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto], size: int, number: int
) -> int:
    """One pass over all reshapes; returns `number` and how many were changed."""
    shapes, _ = _inferred(model, inputs, size)
    constants = {t.name: numpy_helper.to_array(t) for t in _small(model)}
    constants |= _computed(model, inputs, size)
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


def _dims(value: onnx.ValueInfoProto) -> Sequence[Any]:
    return list(value.type.tensor_type.shape.dim)


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


def _version(model: onnx.ModelProto) -> int:
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), OPSET)


def _fold(model: onnx.ModelProto, inputs: Sequence[str]) -> dict[str, tuple[Array, Array]]:
    """Compute what follows from shapes and constants; returns what depends on the batch's size.

    Its values are those for the two sizes in BATCHES. Everything else that was computed becomes
    an initializer.
    """
    symbolic: dict[str, tuple[Array, Array]] = {}
    values = [v for v in model.graph.input if v.name in inputs]
    for _ in range(8):
        known = [_computed(model, values, batch) for batch in BATCHES]
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


def _computed(
    model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto], batch: int
) -> dict[str, Array]:
    """The outputs of all nodes that depend on constants and shapes only."""
    shapes, _ = _inferred(model, inputs, batch)
    stored = {t.name: numpy_helper.to_array(t) for t in _small(model)}
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
            results = _evaluate(node, known, _version(model))
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


def _without_batch(
    scope: Scope,
    node: onnx.NodeProto,
    symbolic: dict[str, tuple[Array, Array]],
    shapes: dict[str, list[int]],
) -> onnx.NodeProto:
    """The node with what it reads of the batch's size replaced: 0 or -1 of a Reshape."""
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


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that something reads, in their order, without outputs that nothing does."""
    wanted = set(outputs)
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if wanted.isdisjoint(node.output):
            continue
        wanted.update(filter(None, node.input))
        kept.append(node)
    return kept[::-1]


def _rebuild(model: onnx.ModelProto, nodes: list[onnx.NodeProto], scope: Scope) -> None:
    """Put the nodes and their constants into the model, as opset 17."""
    graph = model.graph
    outputs = [o.name for o in graph.output]
    fixed = {v.name for v in [*graph.input, *graph.initializer]} | set(scope.constants)
    nodes = without_last_copies(_needed(nodes, outputs), outputs, fixed)
    read = {name for node in nodes for name in node.input}
    read |= {o.name for o in graph.output}
    stored = {t.name for t in graph.initializer}
    kept = [t for t in graph.initializer if t.name in read]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for name, array in scope.constants.items():
        if name in read and name not in stored:
            graph.initializer.append(to_initializer(name, array))
    del graph.value_info[:]
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("", OPSET)])
    model.ir_version = min(model.ir_version, 10)
