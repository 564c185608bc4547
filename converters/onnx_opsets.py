"""Nodes of any opset from 7 to the newest as nodes of opset 17, one small function per operator.

What moved between attribute and input, what was split off as an operator of its own, and what
is a combination of others. `onnx_rewrite` applies these; whatever has no entry means the same
in all opsets.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from converters.errors import ConversionError

Array = NDArray[Any]
Nodes = list[onnx.NodeProto]


_NUMBERS = itertools.count()


@dataclass
class Scope:
    """What a rule may know and make: constants, shapes, fresh names."""

    version: int
    constants: dict[str, Array]
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """With a stand-in for the batch; only those that could be inferred."""
    types: Mapping[str, int] = field(default_factory=dict)
    makers: Mapping[str, onnx.NodeProto] = field(default_factory=dict)
    """The node that made a tensor, as it was in the file."""
    _numbers: Iterator[int] = field(default_factory=lambda: _NUMBERS)

    def constant(self, node: onnx.NodeProto, position: int) -> Array | None:
        """The constant at an input; None where there is no such input."""
        if position >= len(node.input) or not node.input[position]:
            return None
        if node.input[position] not in self.constants:
            raise refusal(node, f"its input {position} depends on the data, or on the batch's size")
        return self.constants[node.input[position]]

    def add(self, value: Any) -> str:
        """The name of a new constant, an array or a NumPy number."""
        name = self.name("constant")
        self.constants[name] = np.asarray(value)
        return name

    def name(self, what: str) -> str:
        """A name that nothing has yet."""
        return f"converters/{what}/{next(self._numbers)}"

    def rank(self, node: onnx.NodeProto) -> int:
        """The rank of a node's first input."""
        if node.input[0] not in self.shapes:
            raise refusal(node, "the shape of what it reads cannot be inferred")
        return len(self.shapes[node.input[0]])


def refusal(node: onnx.NodeProto, why: str) -> ConversionError:
    """An error that names the node and its operator."""
    name = node.name or (node.output[0] if node.output else "")
    return ConversionError(f"node {name!r} ({node.op_type}): {why}")


Rule = Callable[[Scope, onnx.NodeProto, dict[str, Any]], Nodes]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of some operators."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def make(
    op: str, inputs: Sequence[str], output: str, like: onnx.NodeProto, **attributes: Any
) -> onnx.NodeProto:
    """A node that takes its name from the one that it replaces."""
    return helper.make_node(op, inputs, [output], name=like.name or output, **attributes)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _ints(values: Any) -> Array:
    return np.array([int(v) for v in values], dtype=np.int64)


@rule("Dropout")
def dropout(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Nothing, at inference."""
    return [make("Identity", node.input[:1], node.output[0], node)]


@rule("Cast", "CastLike")
def cast(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Nothing between floats, which are all computed alike here."""
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}
    source = s.types.get(node.input[0])
    target = attributes.get("to", s.types.get(node.output[0]))
    if source in floats and target in floats:  # an unknown source is an operator's result
        return [make("Identity", node.input[:1], node.output[0], node)]
    raise refusal(node, "computed values can be cast between floats only")


@rule("Clip")
def clip(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Opset 11 made inputs of the bounds."""
    if not {"min", "max"} & set(attributes):
        return [node]
    bounds = [
        s.add(np.float32(attributes[key])) if key in attributes else "" for key in ("min", "max")
    ]
    return [make("Clip", [node.input[0], *bounds], node.output[0], node)]


@rule("Squeeze", "Unsqueeze", "ReduceSum")
def axes_as_input(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Opset 13 made an input of the axes."""
    if "axes" not in attributes:
        return reduced(s, node, attributes) if node.op_type == "ReduceSum" else [node]
    axes = s.add(_ints(attributes.pop("axes")))
    return [make(node.op_type, [node.input[0], axes], node.output[0], node, **attributes)]


@rule("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")
def reduced(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Opset 18 made an input of the axes; up to 17 only ReduceSum has it so."""
    axes = attributes.pop("axes", None)
    if (given := s.constant(node, 1)) is not None:
        axes = given.tolist()
    keeps_all = attributes.pop("noop_with_empty_axes", 0)
    if axes is None or not len(axes):
        if keeps_all:
            return [make("Identity", node.input[:1], node.output[0], node)]
        axes = list(range(s.rank(node)))
    keep = {"keepdims": attributes.get("keepdims", 1)}
    if node.op_type == "ReduceSum":
        names = [node.input[0], s.add(_ints(axes))]
        return [make("ReduceSum", names, node.output[0], node, **keep)]
    return [make(node.op_type, node.input[:1], node.output[0], node, axes=list(axes), **keep)]


@rule("ReduceL1", "ReduceL2", "ReduceSumSquare")
def norms(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Sums of absolute values, or of squares, and their root."""
    inner, total = s.name("inner"), s.name("total")
    x = node.input[0]
    if node.op_type == "ReduceL1":
        first = make("Abs", [x], inner, node)
    else:
        first = make("Mul", [x, x], inner, node)
    last = node.output[0] if node.op_type != "ReduceL2" else total
    summed = helper.make_node("ReduceSum", [inner, *node.input[1:]], [last], name=node.name)
    summed.attribute.extend(node.attribute)
    s.shapes = {**s.shapes, inner: s.shapes.get(x, ())}
    nodes = [first, *axes_as_input(s, summed, attributes_of(summed))]
    if node.op_type == "ReduceL2":
        nodes.append(make("Sqrt", [total], node.output[0], node))
    return nodes


@rule("Softmax", "LogSoftmax")
def softmax(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Up to opset 12 it went over all axes from `axis` on, by default 1."""
    if s.version >= 13:
        return [node]
    axis = attributes.get("axis", 1)
    shape = s.shapes.get(node.input[0])
    if shape is None:
        raise refusal(node, "the shape of what it reads cannot be inferred")
    axis %= len(shape)
    if any(d != 1 for d in shape[axis + 1 :]):
        raise refusal(node, "opset 12 and older: it runs over several axes; export it anew")
    return [make(node.op_type, node.input, node.output[0], node, axis=axis)]


@rule("Split")
def split(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """A slice per output."""
    if node.input[0] not in s.shapes:
        raise refusal(node, "the shape of what it reads cannot be inferred")
    shape = s.shapes[node.input[0]]
    axis = attributes.get("axis", 0) % len(shape)
    sizes = attributes.get("split")
    if (given := s.constant(node, 1)) is not None:
        sizes = given.tolist()
    if sizes is None:  # equal parts, the last one smaller
        each = -(-shape[axis] // len(node.output))
        sizes = [min(each, shape[axis] - i * each) for i in range(len(node.output))]
    if axis == 0:
        raise refusal(node, "it works across the batch")
    nodes, start = [], 0
    for output, size in zip(node.output, sizes, strict=True):
        ends = [s.add(_ints([v])) for v in (start, start + size, axis)]
        if output:
            nodes.append(helper.make_node("Slice", [node.input[0], *ends], [output], name=output))
        start += size
    return nodes


@rule("Slice")
def slice_(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Opset 10 made inputs of its ends."""
    if "starts" not in attributes:
        return [node]
    starts = attributes["starts"]
    parts = [starts, attributes["ends"], attributes.get("axes", range(len(starts)))]
    names = [s.add(_ints(part)) for part in parts]
    return [make("Slice", [node.input[0], *names], node.output[0], node)]


@rule("Pad")
def pad(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Constants around; a reflection or a repeated edge is picked row by row."""
    mode = attributes.get("mode", b"constant").decode()
    amounts = attributes.get("pads", attributes.get("paddings"))
    value: Any = attributes.get("value", 0.0)
    if amounts is None:
        given = s.constant(node, 1)
        if given is None:
            raise refusal(node, "it does not say how much it pads")
        amounts = given.tolist()
        stored = s.constant(node, 2)
        value = 0.0 if stored is None or not stored.size else stored.item()
    rank = s.rank(node)
    if (axes := s.constant(node, 3)) is not None:
        full = [0] * (2 * rank)
        for i, axis in enumerate(int(a) % rank for a in axes.tolist()):
            full[axis], full[axis + rank] = amounts[i], amounts[i + len(axes)]
        amounts = full
    if mode == "constant":
        removed = [max(0, -int(n)) for n in amounts]
        added = [max(0, int(n)) for n in amounts]
        names = [s.add(_ints(added)), s.add(np.float32(value))]
        first = _cut(s, node, removed) if any(removed) else []
        source = first[0].output[0] if first else node.input[0]
        return [*first, make("Pad", [source, *names], node.output[0], node)]
    nodes, current = [], node.input[0]
    shape = s.shapes[node.input[0]]
    for axis in range(rank):
        before, after = int(amounts[axis]), int(amounts[axis + rank])
        if not before and not after:
            continue
        if axis == 0:
            raise refusal(node, "it pads the batch axis")
        rows = np.arange(-before, shape[axis] + after)
        if mode == "edge":
            rows = np.clip(rows, 0, shape[axis] - 1)
        elif mode == "wrap":
            rows = rows % shape[axis]
        elif mode == "reflect" and max(before, after) < shape[axis]:
            rows = shape[axis] - 1 - np.abs(shape[axis] - 1 - np.abs(rows))
        else:
            raise refusal(node, f"padding of mode {mode!r} by more than there is")
        output = s.name("padded")
        nodes.append(make("Gather", [current, s.add(_ints(rows))], output, node, axis=axis))
        current = output
    return [*nodes, make("Identity", [current], node.output[0], node)]


def _cut(s: Scope, node: onnx.NodeProto, amounts: list[int]) -> Nodes:
    """What a node reads without some elements at the sides: (begin of each axis, end of each)."""
    shape = s.shapes[node.input[0]]
    rank = len(shape)
    # Only what is cut is named: the batch is of any size.
    axes = [a for a in range(rank) if amounts[a] or amounts[a + rank]]
    starts = s.add(_ints(amounts[a] for a in axes))
    ends = s.add(_ints(shape[a] - amounts[a + rank] for a in axes))
    inputs = [node.input[0], starts, ends, s.add(_ints(axes))]
    return [make("Slice", inputs, s.name("cut"), node)]


@rule("Upsample")
def upsample(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """What Resize was called up to opset 9."""
    scales = attributes.get("scales")
    if scales is None:
        given = s.constant(node, 1)
        scales = [] if given is None else given.tolist()
    return _resized(node, s, scales, attributes.get("mode", b"nearest").decode())


@rule("Resize")
def resize(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Opset 10 had the scales as its second input; 18 added settings that are rarely used."""
    if s.version == 10:
        scales = s.constant(node, 1)
        mode = attributes.get("mode", b"nearest").decode()
        return _resized(node, s, [] if scales is None else scales.tolist(), mode)
    if attributes.pop("antialias", 0):
        raise refusal(node, "antialiasing is not supported")
    if attributes.pop("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise refusal(node, "keep_aspect_ratio_policy is not supported; give both sizes")
    axes = attributes.pop("axes", None)
    scales, sizes = s.constant(node, 2), s.constant(node, 3)
    shape = s.shapes.get(node.input[0])
    if axes is not None:
        if shape is None:
            raise refusal(node, "the shape of what it reads cannot be inferred")
        factors = np.ones(len(shape), np.float32)
        for axis, i in zip(axes, range(len(axes)), strict=True):
            if sizes is not None and sizes.size:
                factors[axis] = float(sizes[i]) / shape[axis]
            elif scales is not None:
                factors[axis] = scales[i]
        scales, sizes = factors, None
    elif sizes is not None and sizes.size and shape is not None:
        # The batch is never resized, whatever its size was when the model was exported.
        scales = np.array([1.0, *(t / n for t, n in zip(sizes[1:], shape[1:], strict=True))])
        sizes = None
    names = (
        [node.input[0], "", s.add(np.asarray(scales, np.float32))] if sizes is None else node.input
    )
    return [make("Resize", names, node.output[0], node, **attributes)]


def _resized(node: onnx.NodeProto, s: Scope, scales: Sequence[float], mode: str) -> Nodes:
    names = [node.input[0], "", s.add(np.array(scales, np.float32))]
    settings = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    mode = "linear" if mode == "bilinear" else mode
    return [make("Resize", names, node.output[0], node, mode=mode, **settings)]


@rule("BatchNormalization", "MaxPool")
def first_output(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """What training needs, and where a maximum was, nobody reads."""
    for old in ("spatial", "storage_order"):
        attributes.pop(old, None)
    return [make(node.op_type, node.input, node.output[0], node, **attributes)]


@rule("AveragePool")
def average_pool(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Opset 19 added dilations."""
    if any(d != 1 for d in attributes.pop("dilations", [])):
        raise refusal(node, "dilated average pooling is not supported")
    return [make("AveragePool", node.input, node.output[0], node, **attributes)]


@rule("DepthToSpace", "SpaceToDepth")
def depth_to_space(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Blocks of pixels become channels, or channels blocks: two reshapes and a transpose."""
    if len(s.shapes.get(node.input[0], ())) != 4:
        raise refusal(node, "it works on images only")
    _, channels, height, width = s.shapes[node.input[0]]
    size = int(attributes["blocksize"])
    if node.op_type == "SpaceToDepth":
        split = [0, channels, height // size, size, width // size, size]
        order = [0, 3, 5, 1, 2, 4]
        shape = [0, channels * size * size, height // size, width // size]
    elif attributes.get("mode", b"DCR") == b"DCR":
        split = [0, size, size, channels // size**2, height, width]
        order = [0, 3, 4, 1, 5, 2]
        shape = [0, channels // size**2, height * size, width * size]
    else:
        split = [0, channels // size**2, size, size, height, width]
        order = [0, 1, 4, 2, 5, 3]
        shape = [0, channels // size**2, height * size, width * size]
    parts, moved = s.name("parts"), s.name("moved")
    return [
        make("Reshape", [node.input[0], s.add(_ints(split))], parts, node),
        make("Transpose", [parts], moved, node, perm=order),
        make("Reshape", [moved, s.add(_ints(shape))], node.output[0], node),
    ]


@rule("Gelu")
def gelu(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """x (1 + erf(x / sqrt 2)) / 2, or its approximation by tanh."""
    x = node.input[0]
    half, one = s.add(np.float32(0.5)), s.add(np.float32(1.0))
    inner, outer = s.name("inner"), s.name("outer")
    if attributes.get("approximate", b"none") == b"none":
        scaled = s.name("scaled")
        nodes = [
            make("Mul", [x, s.add(np.float32(np.sqrt(0.5)))], scaled, node),
            make("Erf", [scaled], inner, node),
        ]
    else:
        square, cube, part, total, scaled = (s.name("part") for _ in range(5))
        nodes = [
            make("Mul", [x, x], square, node),
            make("Mul", [square, x], cube, node),
            make("Mul", [cube, s.add(np.float32(0.044715))], part, node),
            make("Add", [x, part], total, node),
            make("Mul", [total, s.add(np.float32(np.sqrt(2 / np.pi)))], scaled, node),
            make("Tanh", [scaled], inner, node),
        ]
    halved = s.name("halved")
    return [
        *nodes,
        make("Add", [inner, one], outer, node),
        make("Mul", [x, half], halved, node),
        make("Mul", [halved, outer], node.output[0], node),
    ]


@rule("Where")
def where(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """torch's Softplus, which is x itself beyond a threshold: there both are alike."""
    test, soft = (s.makers.get(node.input[i]) for i in (0, 2))
    while soft is not None and soft.op_type in ("Mul", "Div") and soft.input[1] in s.constants:
        soft = s.makers.get(soft.input[0])
    if (
        test is not None
        and soft is not None
        and (test.op_type, soft.op_type) == ("Greater", "Softplus")
        and test.input[0] == soft.input[0]
        and np.all(s.constants.get(test.input[1], np.zeros(1)) >= 15)
    ):
        return [make("Identity", [node.input[2]], node.output[0], node)]
    raise refusal(node, "choosing by a computed condition is not supported")


@rule("Mish")
def mish(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """x tanh(softplus(x))."""
    soft, bent = s.name("soft"), s.name("bent")
    return [
        make("Softplus", node.input[:1], soft, node),
        make("Tanh", [soft], bent, node),
        make("Mul", [node.input[0], bent], node.output[0], node),
    ]


@rule("Swish")
def swish(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """x sigmoid(alpha x)."""
    scaled, gate = s.name("scaled"), s.name("gate")
    alpha = s.add(np.float32(attributes.get("alpha", 1.0)))
    return [
        make("Mul", [node.input[0], alpha], scaled, node),
        make("Sigmoid", [scaled], gate, node),
        make("Mul", [node.input[0], gate], node.output[0], node),
    ]


def to_initializer(name: str, array: Array) -> onnx.TensorProto:
    """A constant as the model stores it."""
    return numpy_helper.from_array(np.asarray(array), name)
