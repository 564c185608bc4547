"""Lowerings of arithmetic and of smooth functions, which are gathered, then approximated.

Swish is x * Sigmoid(x) in ONNX, GELU four nodes. Nodes whose only computed input is one
value therefore stay a `Function` of it, an expression, until something else reads the
result; then `smooth.apply_function` turns the whole expression into one spline.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from privserve.compiler.builder import Traced
from privserve.compiler.compile import Function, Pending, Tensor, _Compiler, _layer, lowers
from privserve.compiler.ops.activations import negated
from privserve.compiler.ops.linear import first_input, max_along_axis
from privserve.compiler.smooth import apply_function
from privserve.functions import Expression

Attributes = dict[str, Any]


def function_of(c: _Compiler, name: str) -> Function | None:
    """A tensor as a function of one computed value; None for a constant."""
    tensor = c.tensors[name]
    if isinstance(tensor, np.ndarray):
        return None
    if isinstance(tensor, Pending):
        tensor = c.traced(name)
    return tensor if isinstance(tensor, Function) else Function(tensor, "x")


def _unary(make: Callable[[Expression, Attributes], Expression]) -> Any:
    def lowering(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
        inner = function_of(c, node.input[0])
        assert inner is not None  # constants were folded before
        return Function(inner.x, make(inner.expression, attributes))

    return lowering


for _op, _name in {
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Erf": "erf",
    "Exp": "exp",
    "Log": "log",
    "Sqrt": "sqrt",
    "Softplus": "softplus",
    "Softsign": "softsign",
}.items():
    lowers(_op)(_unary(lambda e, attributes, name=_name: [name, e]))  # type: ignore[misc]

lowers("Reciprocal")(_unary(lambda e, attributes: ["div", 1.0, e]))
lowers("Elu")(_unary(lambda e, attributes: ["elu", e, float(attributes.get("alpha", 1.0))]))
lowers("Celu")(_unary(lambda e, attributes: ["celu", e, float(attributes.get("alpha", 1.0))]))
lowers("Selu")(
    _unary(
        lambda e, attributes: [
            "selu",
            e,
            float(attributes.get("alpha", 1.6732632423543772)),
            float(attributes.get("gamma", 1.0507009873554805)),
        ]
    )
)


def combined(c: _Compiler, node: onnx.NodeProto) -> Function | None:
    """Add, Sub, Mul or Div as a function of one value, if it is one and not simply affine."""
    name = node.op_type.lower()
    tensors = [c.tensors[i] for i in node.input]
    scalars = [
        float(t.item()) if isinstance(t, np.ndarray) and t.size == 1 else None for t in tensors
    ]
    if any(isinstance(t, np.ndarray) and t.size != 1 for t in tensors):
        return None
    if not any(isinstance(t, Function) for t in tensors):
        inverse = name == "div" and scalars[0] is not None
        square = name in ("mul", "div") and not any(isinstance(t, np.ndarray) for t in tensors)
        if not inverse and not square:
            return None  # affine in each: exact, and often free
    parts = [
        None if s is not None else function_of(c, i)
        for i, s in zip(node.input, scalars, strict=True)
    ]
    functions = [p for p in parts if p is not None]
    base = next((p.x for p in functions if p.expression != "x"), functions[0].x)
    if any(p.x.number != base.number for p in functions):
        return None
    operands: list[Expression] = []
    for part, scalar in zip(parts, scalars, strict=True):
        if part is None:
            operands.append(scalar)
        else:
            operands.append(_rescaled(part.expression, part.x.step / base.step))
    return Function(base, [name, *operands])


def _rescaled(expression: Expression, factor: float) -> Expression:
    """The expression of factor * x."""
    if abs(factor - 1) < 1e-12:
        return expression
    if expression == "x":
        return ["mul", factor, "x"]
    if isinstance(expression, list):
        return [expression[0], *(_rescaled(e, factor) for e in expression[1:])]
    return expression


@lowers("Add", "Sub", "Mul", "Div")
def arithmetic(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    if (function := combined(c, node)) is not None:
        return function
    one, other = (c.tensors[name] for name in node.input)
    layer, kind = _layer(node), node.op_type
    if isinstance(one, np.ndarray):
        if kind == "Div":
            raise c.refuse(node, "division by a secret value is not supported")
        constant = one.astype(np.float64)
        if kind == "Mul":
            return c.affine(node, node.input[1], constant, 0.0)
        return c.affine(node, node.input[1], 1.0 if kind == "Add" else -1.0, constant)
    if isinstance(other, np.ndarray):
        constant = other.astype(np.float64)
        if kind in ("Mul", "Div"):
            return c.affine(node, node.input[0], constant if kind == "Mul" else 1 / constant, 0.0)
        return c.affine(node, node.input[0], 1.0, constant if kind == "Add" else -constant)
    x, y = c.traced(node.input[0]), c.traced(node.input[1])
    if kind == "Mul":
        return c.builder.multiply(x, y, layer)
    if kind == "Div":
        raise c.refuse(node, "division by another computed value is not supported by 'ottt'")
    return c.builder.add(x, y, layer) if kind == "Add" else c.builder.subtract(x, y, layer)


@lowers("Sum")
def total(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    x = c.traced(node.input[0])
    for name in node.input[1:]:
        x = c.builder.add(x, c.traced(name), _layer(node))
    return x


@lowers("Neg")
def negate(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    return c.affine(node, first_input(node), -1.0, 0.0)


@lowers("Max")
def maximum(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    x = c.traced(node.input[0])
    for name in node.input[1:]:
        y = c.traced(name)
        if y.shape != x.shape:
            raise c.refuse(node, "its inputs must have one shape")
        x = c.builder.maximum(x, y, _layer(node))
    return x


@lowers("Min")
def minimum(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    """-max(-x, -y)."""
    layer = _layer(node)
    x = negated(c, c.traced(node.input[0]), layer)
    for name in node.input[1:]:
        y = c.traced(name)
        if y.shape != x.shape:
            raise c.refuse(node, "its inputs must have one shape")
        x = c.builder.maximum(x, negated(c, y, layer), layer)
    return negated(c, x, layer)


@lowers("Mean")
def mean(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    summed = total(c, node, attributes)
    assert isinstance(summed, Traced)
    return c.builder.with_step(summed, 1 / len(node.input), _layer(node))


@lowers("Pow")
def power(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    exponent, inner = c.constant(node, 1), function_of(c, node.input[0])
    if exponent is None or inner is None or exponent.size != 1:
        raise c.refuse(node, "its exponent must be a constant")
    e, value = inner.expression, float(exponent.item())
    if value == 0.5:
        return Function(inner.x, ["sqrt", e])
    if not value.is_integer() or not 1 <= value <= 4:
        raise c.refuse(node, f"the exponent {value:g} is not supported; 0.5 and 1 to 4 are")
    product: Expression = e
    for _ in range(round(value) - 1):
        product = ["mul", product, e]
    return Function(inner.x, product)


@lowers("Softmax")
def softmax(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    """exp(x - max) / sum: the maximum by comparisons, exp and 1 / sum by splines."""
    b, layer = c.builder, _layer(node)
    x = c.traced(node.input[0])
    axis = int(attributes.get("axis", -1))
    axis = axis + len(x.shape) if axis < 0 else axis - 1
    if axis < 0:
        raise c.refuse(node, "it works across the batch")
    shape, count = x.shape, x.shape[axis]
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    x = b.truncate(b.reshape(x, (outer, count, inner), layer), layer)
    most = max_along_axis(c, x, 1, layer)
    below = b.subtract(x, b.expand(most, x.shape, layer), layer)
    # An error of every term adds up in the sum. Beyond `reach` a term is worth nothing.
    tolerance = c.tolerance / math.sqrt(count)
    spread = float(x.range.high.max() - x.range.low.min())
    reach = min(2.0 ** math.ceil(math.log2(max(spread, 1.0))), 2.0**20)
    below = b.bounded(below, -reach, 0.0)
    terms = apply_function(b, below, ["exp", "x"], layer, domain=(-reach, 0.0), tolerance=tolerance)
    terms = b.truncate(b.bounded(terms, 0.0, 1.0), layer)
    total = b.sum_pool(terms, (count, 1), (1, 1), (0, 0, 0, 0), layer)
    total = b.bounded(total, 1.0, float(count))
    share = apply_function(
        b, total, ["div", 1.0, "x"], layer, domain=(1.0, float(max(count, 2))), tolerance=tolerance
    )
    out = b.multiply(terms, b.bounded(share, 0.0, 1.0), layer)
    return b.reshape(b.bounded(out, 0.0, 1.0), shape, layer)
