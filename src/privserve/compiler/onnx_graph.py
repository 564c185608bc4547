"""What the compiler asks of ONNX itself: constants, attributes, and nodes of constants alone.

Nothing else in the compiler needs `onnx` at run time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

Constant = NDArray[Any]

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
"""The types of numbers that are all computed alike here."""


def array_of(tensor: onnx.TensorProto) -> Constant:
    """Return what a tensor of the file holds."""
    return numpy_helper.to_array(tensor)


def constants_of(graph: onnx.GraphProto) -> dict[str, Constant]:
    """Return the graph's initializers by name."""
    return {tensor.name: array_of(tensor) for tensor in graph.initializer}


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes as Python values, strings as str."""
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {n: v.decode() if isinstance(v, bytes) else v for n, v in values.items()}


def type_name(number: int) -> str:
    """Return the name of an ONNX element type, or its number where there is no such type."""
    known = number in TensorProto.DataType.values()
    return TensorProto.DataType.Name(number).lower() if known else str(number)


def evaluated(node: onnx.NodeProto, constants: Mapping[str, Constant]) -> dict[str, Constant]:
    """Return the outputs of a node that reads nothing but `constants`."""
    values: Any = ReferenceEvaluator(node).run(None, dict(constants))
    return dict(zip(node.output, map(np.asarray, values), strict=True))
