"""Lowerings of arithmetic and of smooth functions, which are gathered, then approximated.

Swish is x * Sigmoid(x) in ONNX, GELU four nodes. Nodes whose only computed input is one
value therefore stay a `SmoothFunction` of it, an expression, until something else reads the
result; then `smooth.apply_function` turns the whole expression into one spline.
"""

from __future__ import annotations

import math

import numpy as np

from privserve.compiler import moves
from privserve.compiler.comparisons import maximum as maximum_of
from privserve.compiler.lowering import Lowering, SmoothFunction, Tensor
from privserve.compiler.ops.reductions import max_along_axis
from privserve.compiler.products import multiply
from privserve.compiler.registry import lowers
from privserve.compiler.smooth import apply_function
from privserve.compiler.traced import Traced
from privserve.functions import Expression


def _inner(c: Lowering, position: int = 0) -> SmoothFunction | None:
    """An input as a function of one computed value; None for a constant."""
    tensor = c.tensor(position)
    if isinstance(tensor, np.ndarray):
        return None
    if isinstance(tensor, SmoothFunction):
        return tensor
    return SmoothFunction(c.traced(position), "x", c.layer)


def _of_one(c: Lowering, name: str, *constants: float, before: bool = False) -> SmoothFunction:
    """The function `name` of the node's input, constants behind (or before) it."""
    inner = _inner(c)
    assert inner is not None  # constants were folded before
    e = inner.expression
    arguments = [*constants, e] if before else [e, *constants]
    return SmoothFunction(inner.x, [name, *arguments], c.layer)


@lowers("Sigmoid", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Softplus", "Softsign")
def plain(c: Lowering) -> Tensor:
    """What `functions` has under the op's name."""
    return _of_one(c, c.op.lower())


@lowers("Reciprocal")
def reciprocal(c: Lowering) -> Tensor:
    """1 / x."""
    return _of_one(c, "div", 1.0, before=True)


@lowers("Elu")
def elu(c: Lowering, *, alpha: float = 1.0) -> Tensor:
    """alpha (e^x - 1) below 0."""
    return _of_one(c, "elu", alpha)


@lowers("Celu")
def celu(c: Lowering, *, alpha: float = 1.0) -> Tensor:
    """alpha (e^(x / alpha) - 1) below 0."""
    return _of_one(c, "celu", alpha)


@lowers("Selu")
def selu(
    c: Lowering, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805
) -> Tensor:
    """gamma x, and gamma alpha (e^x - 1) below 0."""
    return _of_one(c, "selu", alpha, gamma)


@lowers("Add", "Sub", "Mul", "Div")
def arithmetic(c: Lowering) -> Tensor:
    """A function of one value, an affine map, or an op of two values."""
    if (function := _combined(c)) is not None:
        return function
    b, kind = c.builder, c.op
    one, other = c.tensor(0), c.tensor(1)
    if isinstance(one, np.ndarray):
        if kind == "Div":
            raise c.refuse("division by a secret value is not supported")
        constant = one.astype(np.float64)
        if kind == "Mul":
            return c.affine(1, constant, 0.0)
        return c.affine(1, 1.0 if kind == "Add" else -1.0, constant)
    if isinstance(other, np.ndarray):
        constant = other.astype(np.float64)
        if kind in ("Mul", "Div"):
            return c.affine(0, constant if kind == "Mul" else 1 / constant, 0.0)
        return c.affine(0, 1.0, constant if kind == "Add" else -constant)
    x, y = c.traced(0), c.traced(1)
    if kind == "Mul":
        return multiply(b, x, y)
    if kind == "Div":
        raise c.refuse("division by another computed value is not supported by 'ottt'")
    return b.add(x, y) if kind == "Add" else b.subtract(x, y)


def _combined(c: Lowering) -> SmoothFunction | None:
    """Add, Sub, Mul or Div as a function of one value, if it is one and not simply affine."""
    name = c.op.lower()
    tensors = [c.tensor(i) for i in range(2)]
    scalars = [
        float(t.item()) if isinstance(t, np.ndarray) and t.size == 1 else None for t in tensors
    ]
    if any(isinstance(t, np.ndarray) and t.size != 1 for t in tensors):
        return None
    if not any(isinstance(t, SmoothFunction) for t in tensors):
        inverse = name == "div" and scalars[0] is not None
        square = name in ("mul", "div") and not any(isinstance(t, np.ndarray) for t in tensors)
        if not inverse and not square:
            return None  # affine in each: exact, and often free
    parts = [None if s is not None else _inner(c, i) for i, s in enumerate(scalars)]
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
    return SmoothFunction(base, [name, *operands], c.layer)


def _rescaled(expression: Expression, factor: float) -> Expression:
    """The expression of factor * x."""
    if abs(factor - 1) < 1e-12:
        return expression
    if expression == "x":
        return ["mul", factor, "x"]
    if isinstance(expression, list):
        return [expression[0], *(_rescaled(e, factor) for e in expression[1:])]
    return expression


@lowers("Pow")
def power(c: Lowering) -> Tensor:
    """A root, or a product of a few factors."""
    exponent, inner = c.constant(1), _inner(c)
    if exponent is None or inner is None or exponent.size != 1:
        raise c.refuse("its exponent must be a constant")
    e, value = inner.expression, float(exponent.item())
    if value == 0.5:
        return SmoothFunction(inner.x, ["sqrt", e], c.layer)
    if not value.is_integer() or not 1 <= value <= 4:
        raise c.refuse(f"the exponent {value:g} is not supported; 0.5 and 1 to 4 are")
    product: Expression = e
    for _ in range(round(value) - 1):
        product = ["mul", product, e]
    return SmoothFunction(inner.x, product, c.layer)


@lowers("Neg")
def negate(c: Lowering) -> Tensor:
    """-x, which a linear op before it takes in."""
    return c.affine(0, -1.0, 0.0)


@lowers("Sum")
def total(c: Lowering) -> Tensor:
    """Of all inputs, one after the other."""
    return _total(c)


@lowers("Mean")
def mean(c: Lowering) -> Tensor:
    """A sum that is read with a smaller step."""
    return c.builder.with_step(_total(c), 1 / len(c.inputs))


def _total(c: Lowering) -> Traced:
    x = c.traced(0)
    for position in range(1, len(c.inputs)):
        x = c.builder.add(x, c.traced(position))
    return x


@lowers("Max")
def maximum(c: Lowering) -> Tensor:
    """Of all inputs, one after the other."""
    x = c.traced(0)
    for position in range(1, len(c.inputs)):
        x = maximum_of(c.builder, x, _alike(c, x, position))
    return x


@lowers("Min")
def minimum(c: Lowering) -> Tensor:
    """-max(-x, -y)."""
    b = c.builder
    x = b.negate(c.traced(0))
    for position in range(1, len(c.inputs)):
        x = maximum_of(b, x, b.negate(_alike(c, x, position)))
    return b.negate(x)


def _alike(c: Lowering, x: Traced, position: int) -> Traced:
    """An input that has to have x's shape."""
    y = c.traced(position)
    if y.shape != x.shape:
        raise c.refuse("its inputs must have one shape")
    return y


@lowers("Softmax")
def softmax(c: Lowering, *, axis: int = -1) -> Tensor:
    """exp(x - max) / sum: the maximum by comparisons, exp and 1 / sum by splines."""
    b, x = c.builder, c.traced(0)
    shape = x.shape
    axis = c.axis(axis, len(shape))
    count = shape[axis]
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    x = b.truncate(moves.reshape(b, x, (outer, count, inner)))
    most = max_along_axis(b, x, 1)
    below = b.subtract(x, moves.expand(b, most, x.shape))
    # An error of every term adds up in the sum. Beyond `reach` a term is worth nothing.
    tolerance = c.tolerance / math.sqrt(count)
    spread = float(x.range.high.max() - x.range.low.min())
    reach = min(2.0 ** math.ceil(math.log2(max(spread, 1.0))), 2.0**20)
    below = b.bounded(below, -reach, 0.0)
    terms = apply_function(b, below, ["exp", "x"], domain=(-reach, 0.0), tolerance=tolerance)
    terms = b.truncate(b.bounded(terms, 0.0, 1.0))
    total = b.sum_pool(terms, (count, 1), (1, 1), (0, 0, 0, 0))
    total = b.bounded(total, 1.0, float(count))
    share = apply_function(
        b, total, ["div", 1.0, "x"], domain=(1.0, float(max(count, 2))), tolerance=tolerance
    )
    out = multiply(b, terms, b.bounded(share, 0.0, 1.0))
    return moves.reshape(b, b.bounded(out, 0.0, 1.0), shape)
