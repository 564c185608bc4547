"""ONNX graphs of any opset as plain graphs of opset 17 with a free batch axis.

1. Shape arithmetic goes: x.view(x.size(0), -1) is exported as Shape, Gather, Unsqueeze, Concat,
   Reshape. All that follows from shapes alone is computed, for two sizes of the batch; what is
   the same for both is a constant, and what is not is the batch's size.
2. Every node is replaced by what it is in opset 17 (`onnx_opsets`).
3. What nobody reads is dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx
from onnx import helper, numpy_helper
from onnx.inliner import inline_local_functions

from converters.errors import ConversionError
from converters.onnx_batch import check_batch_first, free_batch, unfix_batch, without_batch
from converters.onnx_folding import BATCHES, fold, inferred, opset_of, small
from converters.onnx_ml import as_floats
from converters.onnx_nodes import (
    IR_VERSION,
    OPSET,
    Nodes,
    attributes_of,
    needed,
    refusal,
    to_initializer,
)
from converters.onnx_opsets import Scope, has_rule, rewritten
from converters.onnx_reasons import REMEDIES

OLDEST = 7


def rewrite(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` in opset 17, without shape arithmetic; inputs' batch axes are free ("N").

    Raises: ConversionError for operators and opsets that cannot be read.
    """
    as_floats(model)
    version = opset_of(model)
    if version < OLDEST:
        raise ConversionError(
            f"opset {version} is too old; export the model again with opset {OPSET}"
        )
    if model.functions:
        model = inline_local_functions(model)
    _without_learners(model, version)
    inputs = _true_inputs(model)
    kept = unfix_batch(model, inputs)
    symbolic = fold(model, [value.name for value in inputs])
    # What was folded, such as the ends of a chunk, tells shapes, which tell of more reshapes.
    while (more := unfix_batch(model, inputs, kept)) > kept or _inline_branches(model):
        kept = more
        symbolic = fold(model, [value.name for value in inputs])
    scope = Scope(version, {t.name: numpy_helper.to_array(t) for t in small(model)})
    shapes, types = inferred(model, inputs, BATCHES[0])
    scope.shapes, scope.types = shapes, types
    scope.makers = {name: node for node in model.graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in needed(model.graph.node, [o.name for o in model.graph.output]):
        if all(name in symbolic for name in node.output if name):
            continue
        for name in node.input:
            if name in symbolic:
                node = without_batch(scope, node, symbolic, shapes)
        nodes += rewritten(scope, node) if has_rule(node) else [node]
    _rebuild(model, nodes, scope)
    check_batch_first(model, inputs)
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
    """Put the branch that is taken for an If of a known condition; return whether there was one.

    torch writes one for x.squeeze(axis) where it does not know the axis' length.
    """
    known = {t.name: numpy_helper.to_array(t) for t in small(model)}
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


def _without_learners(model: onnx.ModelProto, version: int) -> None:
    """Put plain nodes for scikit-learn's: nothing is inferred of their shapes."""
    graph = model.graph
    if all(node.domain in ("", "ai.onnx") for node in graph.node):
        return
    scope = Scope(version, {t.name: numpy_helper.to_array(t) for t in small(model)})
    scope.makers = {name: node for node in graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in needed(graph.node, [o.name for o in graph.output]):
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


def _rebuild(model: onnx.ModelProto, nodes: list[onnx.NodeProto], scope: Scope) -> None:
    """Put the nodes and their constants into the model, as opset 17."""
    graph = model.graph
    outputs = [o.name for o in graph.output]
    fixed = {v.name for v in [*graph.input, *graph.initializer]} | set(scope.constants)
    nodes = _without_last_copies(needed(nodes, outputs), outputs, fixed)
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


def _without_last_copies(nodes: Nodes, outputs: Sequence[str], fixed: Collection[str]) -> Nodes:
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
