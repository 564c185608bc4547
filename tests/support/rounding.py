"""How far an answer on shares may be from the float network's: a bound, node by node.

With f = 14 fraction bits a value is rounded to units of 2^-14, a weight to 2^-18. Writing e for
the largest error of a node's inputs and X for their largest absolute value, measured on the
samples, a node's output is off by at most

    linear ops     max_o sum |w_o| (e + unit) + fan_in X 2^-19 + 2^-19
    scaled         |scale| (e + unit) + X 2^-19 + 2^-19
    products       X e' + X' e + e e' + unit
    clips, leaky   e + 2 units: two roundings each; and X 2^-15 for the slope's
    functions      slope e + 1.5 TOLERANCE max(1, slope / 4), what splines promise
    the others     e + unit: they move elements, or cannot grow a difference (ReLU, maximum)

where a unit is one truncation's: half of one per party, so one for two.
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from converters.onnx_model import OnnxModule
from privserve.compiler import plan as splines

UNIT = 2.0**-14
WEIGHT = 2.0**-19  # half a unit of a weight
SLOPES = {
    "Tanh": 1.0, "Sigmoid": 0.25, "Elu": 1.0, "Selu": 1.76, "Erf": 1.13, "Softplus": 1.0,
    "Softmax": 1.0,
}  # fmt: skip


def error_bounds(model: onnx.ModelProto, inputs: list[np.ndarray]) -> list[float]:
    """For each output of `model` on `inputs`, the largest error that rounding explains."""
    values = all_values(model, inputs)
    constants = {t.name for t in model.graph.initializer}
    errors = {value.name: UNIT / 2 for value in model.graph.input}
    for node in model.graph.node:
        computed = [name for name in node.input if name in errors]
        if not computed:  # of constants alone
            constants |= set(node.output)
            continue
        error = max(errors[name] for name in computed)
        reach = max(float(np.abs(values[name]).max()) for name in computed)
        given = [values[n].astype(np.float64) for n in node.input if n in constants and n]
        errors.update(dict.fromkeys(node.output, _error(node, error, reach, given, computed)))
        if node.op_type in ("Mul", "Div") and len(computed) == 2:
            one, other = (float(np.abs(values[name]).max()) for name in computed)
            e, d = (errors[name] for name in computed)
            errors[node.output[0]] = one * d + other * e + e * d + UNIT + _spline(1.0)
    return [errors[value.name] for value in model.graph.output]


def _error(
    node: onnx.NodeProto, e: float, reach: float, given: list[np.ndarray], computed: list[str]
) -> float:
    kind = node.op_type
    if kind in ("Conv", "Gemm", "MatMul"):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        weight = given[0]
        if kind == "MatMul" or (kind == "Gemm" and not attributes.get("transB")):
            weight = weight.T
        weight = weight.reshape(len(weight), -1)
        gain = float(np.abs(weight).sum(1).max())
        return gain * (e + UNIT) + weight.shape[1] * reach * WEIGHT + WEIGHT
    if kind == "BatchNormalization":
        scale = float(np.abs(given[0] / np.sqrt(given[3])).max())
        return scale * (e + UNIT) + reach * WEIGHT + WEIGHT
    if kind in ("Mul", "Div", "PRelu") and given:
        factor = given[0] if kind != "Div" else 1 / given[0]
        return max(1.0, float(np.abs(factor).max())) * (e + UNIT) + reach * WEIGHT
    if kind in ("Add", "Sub", "Sum"):
        return len(computed) * e + UNIT
    if kind in ("HardSigmoid", "Clip", "LeakyRelu"):
        return e + 2 * UNIT + reach * UNIT / 2 * (kind == "LeakyRelu")
    if kind in SLOPES:
        return SLOPES[kind] * (e + UNIT) + _spline(SLOPES[kind])
    return e + UNIT


def _spline(slope: float) -> float:
    return 1.5 * splines.TOLERANCE * max(1.0, slope / 4)


def all_values(model: onnx.ModelProto, inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor of the model on `inputs`, by name."""
    open_model = onnx.ModelProto()
    open_model.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output]
    del open_model.graph.output[:]
    open_model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    module = OnnxModule(open_model)
    with torch.no_grad():
        found = module(*(torch.from_numpy(x) for x in inputs))
    found = found if isinstance(found, tuple) else (found,)
    values = {name: value.numpy() for name, value in zip(names, found, strict=True)}
    values.update((t.name, numpy_helper.to_array(t)) for t in model.graph.initializer)
    values.update((v.name, x) for v, x in zip(model.graph.input, inputs, strict=True))
    return values
