"""Which engines can run which layers of a converted model: found by trying each by itself.

A layer is cut out of the ONNX graph, its inputs are replaced by values of the same shapes in
[-1, 1], and each engine is asked to compile the piece. So the answer is about operations and
their settings. Whether the ranges of a whole model fit depends on the input range as well;
`privserve.launch --dry-run` tells.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from privserve.activations import CLIENT_ACTIVATIONS
from privserve.engines import ENGINES, load_engine
from privserve.errors import ModelError

SOURCE = "privserve/source"  # no tensor of a model is called so


class Support:
    """What each engine can run of one model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """model: checked, opset 17."""
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self._opsets = model.opset_import
        self._nodes = list(graph.node)
        self._outputs = {value.name for value in graph.output}
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._inputs = [v.name for v in graph.input if v.name not in self._initializers]
        self._shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
            for value in [*graph.input, *graph.value_info, *graph.output]
        }
        # Nodes that depend on no input, by what they compute: they go where they are needed.
        self._constant: dict[str, onnx.NodeProto] = {}
        for node in self._nodes:
            if all(not n or n in self._initializers or n in self._constant for n in node.input):
                self._constant.update(dict.fromkeys(node.output, node))
        readers = {name for node in self._nodes for name in node.input}
        self.client_nodes = {
            node.name
            for node in self._nodes
            if node.op_type in CLIENT_ACTIVATIONS
            and node.output[0] in self._outputs - readers
            and node.output[0] not in self._constant
        }
        """The names of the final activations, which the client applies to the joined answer."""

    def engines(self, names: Collection[str]) -> list[str] | None:
        """Return the engines that can run the nodes of these names; None: nothing to run."""
        nodes = [
            node
            for node in self._nodes
            if node.name in names
            and node.name not in self.client_nodes
            and node.output[0] not in self._constant
        ]
        return [engine for engine in ENGINES if self._runs(engine, nodes)] if nodes else None

    def where(self, names: Collection[str]) -> str:
        """Say who computes the nodes of these names: engines, the client, none, or "-": nobody."""
        engines, is_last = self.engines(names), any(name in self.client_nodes for name in names)
        if engines is None:
            return "client" if is_last else "-"
        return (", ".join(engines) or "none") + (", then client" if is_last else "")

    def _runs(self, engine: str, nodes: list[onnx.NodeProto]) -> bool:
        made = {name for node in nodes for name in node.output}
        elsewhere = {
            name for node in self._nodes if node.output[0] not in made for name in node.input
        }
        try:
            for name in sorted(made & (elsewhere | self._outputs)):
                load_engine(engine).check(self._piece(nodes, name))
        except ModelError:
            return False
        return True

    def _piece(self, nodes: list[onnx.NodeProto], output: str) -> onnx.ModelProto:
        """A model on inputs of shape [N, 1] that has `output`, of `nodes`, as its output."""
        made = {name for node in nodes for name in node.output}
        wanted = [name for node in nodes for name in node.input if name and name not in made]
        body: list[onnx.NodeProto] = []
        constants: dict[str, onnx.TensorProto] = {}
        for name in dict.fromkeys(wanted):
            if name in self._initializers or name in self._constant:
                self._add_constant(name, body, constants)
                continue
            shape = self._shapes.get(name)
            if not shape or min(shape) < 1:
                raise ModelError(f"the shape of '{name}' is not fixed")
            weight, target = f"{name}/privserve/weight", f"{name}/privserve/shape"
            ones = np.ones((1, int(np.prod(shape))), np.float32)
            constants[weight] = numpy_helper.from_array(ones, weight)
            constants[target] = numpy_helper.from_array(np.array([-1, *shape]), target)
            body.append(helper.make_node("MatMul", [SOURCE, weight], [f"{name}/privserve/flat"]))
            body.append(helper.make_node("Reshape", [f"{name}/privserve/flat", target], [name]))
        # As many inputs and outputs as the model has, since not every engine takes several. The
        # Identity keeps the engines from leaving an activation to the client.
        sources = [SOURCE, *(f"{SOURCE}/{i}" for i in range(1, len(self._inputs)))]
        ends = [f"{output}/privserve/{i}" for i in range(len(self._outputs))]
        graph = helper.make_graph(
            [*body, *nodes, *(helper.make_node("Identity", [output], [end]) for end in ends)],
            "piece",
            [helper.make_tensor_value_info(s, TensorProto.FLOAT, ["N", 1]) for s in sources],
            [helper.make_tensor_value_info(e, TensorProto.FLOAT, None) for e in ends],
            list(constants.values()),
        )
        return helper.make_model(graph, opset_imports=self._opsets)

    def _add_constant(
        self, name: str, body: list[onnx.NodeProto], constants: dict[str, onnx.TensorProto]
    ) -> None:
        """The initializer `name`, or the nodes that compute it from initializers."""
        if name in self._initializers:
            constants[name] = self._initializers[name]
        elif all(name not in node.output for node in body):
            for source in filter(None, self._constant[name].input):
                self._add_constant(source, body, constants)
            body.append(self._constant[name])
