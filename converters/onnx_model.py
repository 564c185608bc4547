"""An ONNX model as a torch.nn.Module, and the checks that an ONNX model must pass."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from converters.errors import ConversionError
from converters.onnx_nodes import attributes_of
from converters.onnx_ops import OPERATORS
from converters.onnx_reasons import reason

SMALL = 4096  # bytes; what is smaller may be a shape or a bound that shape inference reads


def check(model: onnx.ModelProto) -> None:
    """Run onnx.checker with shape inference.

    The checker copies the model several times over, so it is given one whose large weights
    are declared as inputs: it knows their types and shapes, not their numbers.

    Raises: ConversionError with the checker's reason.
    """
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    declared = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if tensor.ByteSize() < SMALL or tensor.data_type == onnx.TensorProto.INT64:
            graph.initializer.append(tensor)
        elif tensor.name not in declared:
            graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    try:
        onnx.checker.check_model(light, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(f"the ONNX model is not valid: {error}") from None


class OnnxModule(nn.Module):
    """Runs an ONNX graph in torch, node by node.

    Float initializers are parameters, others buffers, named after the initializers with
    every character outside [A-Za-z0-9_] as "_". The module takes the graph's inputs in
    their order and returns its output, or a tuple where there are several.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        graph = model.graph
        initializers = {tensor.name for tensor in graph.initializer}
        self.input_names = [v.name for v in graph.input if v.name not in initializers]
        self.output_names = [value.name for value in graph.output]
        self._stored: dict[str, str] = {}
        for tensor in graph.initializer:
            self._store(tensor.name, _array(tensor))
        self._steps = [step for step in map(self._step, graph.node) if step is not None]
        last_use: dict[str, int] = {}
        for i, step in enumerate(self._steps):
            last_use.update(dict.fromkeys(step.inputs, i))
        for name, i in last_use.items():
            if name not in self.output_names:
                self._steps[i].spent.append(name)
        self.eval()

    def _store(self, name: str, array: np.ndarray[Any, Any]) -> None:
        attribute = re.sub(r"\W", "_", name, flags=re.ASCII)
        if hasattr(self, attribute):
            attribute = f"{attribute}_{len(self._stored)}"
        tensor = torch.from_numpy(array)
        if tensor.is_floating_point():
            self.register_parameter(attribute, nn.Parameter(tensor, requires_grad=False))
        else:
            self.register_buffer(attribute, tensor)
        self._stored[name] = attribute

    def _step(self, node: onnx.NodeProto) -> _Step | None:
        attributes = attributes_of(node)
        if node.op_type == "Constant" and not node.domain:
            value = next(iter(attributes.values()), None)
            if value is None:
                raise ConversionError(f"node {node.name!r} (Constant) has no value")
            is_tensor = isinstance(value, onnx.TensorProto)
            self._store(node.output[0], _array(value) if is_tensor else np.array(value))
            return None
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            raise ConversionError(f"node {node.name!r} ({node.op_type}): {reason(node.op_type)}")
        if len([name for name in node.output if name]) != 1:
            raise ConversionError(
                f"node {node.name!r} ({node.op_type}): more than one output is not supported"
            )
        return _Step(node, {**attributes, "op": node.op_type})

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the outputs for inputs: float32 with the batch first, one per graph input."""
        found = self.tensors(self.output_names, *inputs)
        outputs = tuple(_present(found.get(name)) for name in self.output_names)
        return outputs[0] if len(outputs) == 1 else outputs

    def tensors(self, wanted: Collection[str], *inputs: Tensor) -> dict[str, Tensor]:
        """Return the tensors of these names, inner ones too, for inputs as `forward` takes them.

        What the graph does not compute is left out.
        """
        if len(inputs) != len(self.input_names):
            raise TypeError(f"{len(self.input_names)} inputs are needed, not {len(inputs)}")
        kept = {*self.output_names, *wanted}
        values: dict[str, Tensor | None] = {"": None}
        values.update({name: getattr(self, a) for name, a in self._stored.items()})
        values.update(zip(self.input_names, inputs, strict=True))
        for step in self._steps:
            values[step.output] = step.run(values)
            for name in step.spent:
                if name not in kept:
                    values.pop(name, None)
            values[""] = None
        present = {name: values[name] for name in wanted if name in values}
        return {name: tensor for name, tensor in present.items() if tensor is not None}


class _Step:
    """One node, ready to run. spent: tensors that nobody needs afterwards."""

    def __init__(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
        self.name = node.name or node.output[0]
        self.inputs = list(node.input)
        self.output = next(name for name in node.output if name)
        self.attributes = attributes
        self.function = OPERATORS[node.op_type]
        self.spent: list[str] = []

    def run(self, values: dict[str, Tensor | None]) -> Tensor:
        return self.function(self.attributes, *(values[name] for name in self.inputs))


def _array(tensor: onnx.TensorProto) -> np.ndarray[Any, Any]:
    """The tensor's numbers; floats of any width become float32."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ConversionError(
            f"the weight {tensor.name!r} is kept in a file of its own; save the model as one file"
        )
    array = numpy_helper.to_array(tensor)
    return array.astype(np.float32) if array.dtype.kind == "f" else np.array(array)


def _present(value: Tensor | None) -> Tensor:
    if value is None:
        raise ConversionError("an output of the ONNX model is never computed")
    return value
