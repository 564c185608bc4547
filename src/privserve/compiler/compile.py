"""ONNX -> Program: reads the graph node by node, folding as it goes.

A linear op stays *pending* while its only reader is something that folds into it: a
BatchNormalization or a constant's Add, Sub, Mul or Div per channel, or an average pooling
(a convolution followed by a k x k mean is one convolution with a larger kernel and stride,
with fewer products than the two). Everything else is lowered to the ops of `program` by
`builder`; one function per ONNX op, registered under its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from privserve.activations import CLIENT_ACTIVATIONS, NORMALISING
from privserve.compiler.bounds import Bounds, UnaffordableError
from privserve.compiler.builder import ProgramBuilder, Traced, extra_bits
from privserve.compiler.input_scaling import default_range
from privserve.compiler.plan import TOLERANCE
from privserve.compiler.ranges import Floats, Range, synthetic_samples
from privserve.compiler.smooth import apply_function
from privserve.errors import ModelError, UnknownOpError
from privserve.fixedpoint import DEFAULT_FRACTION_BITS, RingArray
from privserve.functions import Expression
from privserve.geometry import Geometry
from privserve.program import Program

SYNTHETIC_SAMPLES = 8


@dataclass(frozen=True)
class Pending:
    """A linear op that may still be folded into: out = weight * x + bias, then `shape`.

    `shape` is the ONNX tensor's; channels are its first axis, or its last if `channels_last`.
    """

    x: Traced
    geometry: Geometry
    weight: Floats
    bias: Floats
    shape: tuple[int, ...]
    layer: str
    channels_last: bool = False


@dataclass(frozen=True)
class Function:
    """A smooth function of one value, not lowered yet: see `onnx_functions`."""

    x: Traced
    expression: Expression

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result, as of the value."""
        return self.x.shape


class Compiled(NamedTuple):
    """What `compile_model` makes."""

    program: Program
    parameters: dict[str, RingArray]
    samples: Sequence[Floats]
    """Per input the samples that the compiler used, float64[S, *shape]."""
    ideal: Sequence[Floats]
    """What the model itself makes of them, per output, before what the client applies."""


Constant = NDArray[Any]
Tensor = Constant | Traced | Pending | Function


def compile_model(model: onnx.ModelProto, **options: Any) -> tuple[Program, dict[str, RingArray]]:
    """The program of `model`, and its parameters; options: see `compile_with_samples`."""
    return compile_with_samples(model, **options)[:2]


def compile_with_samples(
    model: onnx.ModelProto,
    *,
    input_range: tuple[float, float] | None = None,
    fraction_bits: int | None = None,
    calibration: Sequence[NDArray[Any]] | NDArray[Any] | None = None,
    range_check: bool = True,
    tolerance: float = TOLERANCE,
) -> Compiled:
    """The program of `model`, its parameters as ring elements, and what it makes of samples.

    input_range: what every input's elements lie in, by default (-8, 8), or what the model's own
    scaling brings there (see `input_scaling`); calibration:
    sample inputs [S, *shape] (one array per input), used where sound bounds do not fit.
    range_check: whether values are checked to stay in ranges that were guessed so.
    tolerance: of the splines that stand for smooth functions.
    Raises ModelError naming the op and node that cannot be compiled.
    """
    bits = DEFAULT_FRACTION_BITS if fraction_bits is None else fraction_bits
    if not 4 <= bits <= 20:
        raise ModelError(f"fraction bits go from 4 to 20, not {bits}")
    low, high = default_range(model.graph) if input_range is None else input_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ModelError(f"the input range [{low}, {high}] is empty or not finite")
    options = (model, (float(low), float(high)), calibration, tolerance)
    try:
        return _Compiler(*options, Bounds(bits, check=range_check)).compile()
    except UnaffordableError:
        return _Compiler(*options, Bounds(bits, guess=True, check=range_check)).compile()


class _Compiler:
    """One compilation: the builder, the tensors seen so far and who reads them."""

    def __init__(
        self,
        model: onnx.ModelProto,
        input_range: tuple[float, float],
        calibration: Sequence[NDArray[Any]] | NDArray[Any] | None,
        tolerance: float,
        bounds: Bounds,
    ) -> None:
        self.graph = model.graph
        self.builder = ProgramBuilder(bounds.fraction_bits, bounds)
        self.tolerance = tolerance
        self.input_range = input_range
        self.tensors: dict[str, Tensor] = {
            i.name: numpy_helper.to_array(i) for i in self.graph.initializer
        }
        self.readers: dict[str, int] = {o.name: 1 for o in self.graph.output}
        for node in self.graph.node:
            for name in node.input:
                self.readers[name] = self.readers.get(name, 0) + 1
        # Tensors go after their last reader: the ranges of a large network's are gigabytes.
        self.unread = dict(self.readers)
        self.layers = {name: _layer(node) for node in self.graph.node for name in node.output}
        self.inputs = [i for i in self.graph.input if i.name not in self.tensors]
        if isinstance(calibration, np.ndarray):
            calibration = [calibration]
        if calibration is not None and len(calibration) != len(self.inputs):
            raise ModelError(
                f"calibration has {len(calibration)} arrays, the model {len(self.inputs)} inputs"
            )
        self.calibration = calibration

    def compile(self) -> Compiled:
        """Lower every node, then finish the program."""
        inputs = []
        for position, port in enumerate(self.inputs):
            inputs.append((port.name, self._input(position, port)))
            self.tensors[port.name] = inputs[-1][1]
        activations = self._client_activations()
        for node in self.graph.node:
            if node.output[0] not in activations:
                self._lower(node)
                for name in filter(None, node.input):
                    self.unread[name] -= 1
                    if not self.unread[name]:
                        del self.tensors[name]
        outputs = []
        for port in self.graph.output:
            source, activation = activations.get(port.name, (port.name, None))
            outputs.append((port.name, self.traced(source), activation))
        if not outputs or not inputs:
            raise ModelError("the model has no input or no output")
        program = self.builder.finish(inputs, outputs, self.input_range)
        return Compiled(
            program,
            self.builder.parameters,
            [x.range.samples for _, x in inputs],
            [x.range.samples for _, x, _ in outputs],
        )

    def _input(self, position: int, port: onnx.ValueInfoProto) -> Traced:
        dims = port.type.tensor_type.shape.dim
        shape = tuple(d.dim_value for d in dims[1:])
        if not dims or any(d <= 0 for d in shape):
            raise ModelError(
                f"input '{port.name}' has no static shape; export the model with fixed sizes "
                "(the batch axis alone may be free)"
            )
        low, high = self.input_range
        if self.calibration is None:
            samples = synthetic_samples(shape, low, high, SYNTHETIC_SAMPLES)
        else:
            samples = np.asarray(self.calibration[position], dtype=np.float64)
            if samples.shape[1:] != shape or not len(samples):
                raise ModelError(
                    f"calibration samples have shape {samples.shape}, the input is (B, {shape})"
                )
        bounds = Range(np.full(shape, low), np.full(shape, high), samples)
        bits = self.builder.fraction_bits + extra_bits(max(abs(low), abs(high)))
        return self.builder.input(shape, bits, bounds)

    def _client_activations(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Outputs made by an activation that the client applies: name -> (its input, what)."""
        outputs = {o.name for o in self.graph.output}
        found = {}
        for node in self.graph.node:
            name = node.output[0]
            if node.op_type in CLIENT_ACTIVATIONS and name in outputs and self.readers[name] == 1:
                attributes = _attributes(node)
                activation: dict[str, Any] = {"op": node.op_type}
                if node.op_type in NORMALISING:
                    activation["axis"] = int(attributes.get("axis", -1))
                found[name] = (node.input[0], activation)
        return found

    def _lower(self, node: onnx.NodeProto) -> None:
        constants = [self.tensors.get(name) for name in node.input if name]
        if node.op_type == "Constant" or (
            constants and all(isinstance(c, np.ndarray) for c in constants)
        ):
            named = {n: self.tensors[n] for n in node.input if n}
            values = ReferenceEvaluator(node).run(None, named)
            self.tensors.update(zip(node.output, map(np.asarray, values), strict=True))
            return
        if node.op_type not in LOWERINGS:
            raise UnknownOpError("ottt", node.op_type, _layer(node))
        self.tensors[node.output[0]] = LOWERINGS[node.op_type](self, node, _attributes(node))

    # What lowerings use.

    def refuse(self, node: onnx.NodeProto, why: str) -> ModelError:
        """An error that names the op and the node."""
        return ModelError(f"op '{node.op_type}' (node '{_layer(node)}'): {why}")

    def constant(self, node: onnx.NodeProto, position: int) -> Constant | None:
        """A constant input; None where it is absent."""
        if position >= len(node.input) or not node.input[position]:
            return None
        tensor = self.tensors[node.input[position]]
        if not isinstance(tensor, np.ndarray):
            raise self.refuse(node, f"its input {position} must be a constant")
        return tensor

    def traced(self, name: str) -> Traced:
        """A tensor as a value; emits the linear op that it is pending on."""
        tensor = self.tensors[name]
        if isinstance(tensor, np.ndarray):
            raise ModelError(f"tensor '{name}' is a constant where a computed value is expected")
        if isinstance(tensor, Pending):
            tensor = self.tensors[name] = self._materialise(tensor)
        if isinstance(tensor, Function):
            tensor = self.tensors[name] = self._apply(tensor, name)
        return tensor

    def _apply(self, f: Function, name: str) -> Traced:
        layer = self.layers.get(name, name)
        if f.expression == ["mul", "x", "x"]:
            return self.builder.multiply(f.x, f.x, layer)
        return apply_function(self.builder, f.x, f.expression, layer, tolerance=self.tolerance)

    def _materialise(self, p: Pending) -> Traced:
        out = self.builder.linear(p.x, p.geometry, p.weight, p.bias, p.layer)
        if p.channels_last:
            channels, positions, _ = out.shape
            out = self.builder.reshape(out, (channels, positions), p.layer)
            out = self.builder.transpose(out, (1, 0), p.layer)
        return self.builder.reshape(out, p.shape, p.layer)

    def foldable(self, name: str) -> Pending | None:
        """The pending linear op behind a tensor, if nothing else reads it."""
        tensor = self.tensors[name]
        return tensor if isinstance(tensor, Pending) and self.readers[name] == 1 else None

    def affine(
        self, node: onnx.NodeProto, name: str, scale: Constant | float, shift: Constant | float
    ) -> Tensor:
        """scale * x + shift with constants that broadcast to x's shape (no batch axis)."""
        pending = self.foldable(name)
        shape = pending.shape if pending else self.traced(name).shape
        scale, shift = np.asarray(scale, np.float64), np.asarray(shift, np.float64)
        axis = len(shape) - 1 if pending and pending.channels_last else 0
        factor, constant = _per_channel(scale, shape, axis), _per_channel(shift, shape, axis)
        if pending and factor is not None and constant is not None:
            return replace(
                pending,
                weight=pending.weight * factor[:, None, None, None],
                bias=pending.bias * factor + constant,
            )
        x = self.traced(name)
        layer = _layer(node)
        if np.all(scale == 1):
            return self.builder.add_parameter(x, _without_batch(shift, shape), layer)
        if scale.size == 1 and scale.item() > 0:
            x = self.builder.with_step(x, scale.item(), layer)
            if not np.any(shift):
                return x
            return self.builder.add_parameter(x, _without_batch(shift, shape), layer)
        if factor is None or constant is None:
            x = self.builder.reshape(x, (math.prod(shape),), layer)
            factor = np.broadcast_to(_without_batch(scale, shape), shape).ravel()
            constant = np.broadcast_to(_without_batch(shift, shape), shape).ravel()
        channels = x.shape[0]
        planes = (channels, math.prod(x.shape[1:]), 1)
        x = self.builder.reshape(x, planes, layer)
        geometry = Geometry(planes, channels, groups=channels)
        weight = factor.reshape(channels, 1, 1, 1)
        return Pending(x, geometry, weight, constant, shape, layer)


Lowering = Callable[[_Compiler, onnx.NodeProto, dict[str, Any]], Tensor]
LOWERINGS: dict[str, Lowering] = {}


def lowers(*names: str) -> Callable[[Lowering], Lowering]:
    """Register a lowering under ONNX op names."""

    def register(function: Lowering) -> Lowering:
        LOWERINGS.update(dict.fromkeys(names, function))
        return function

    return register


def _layer(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _without_batch(constant: Floats, shape: tuple[int, ...]) -> Floats:
    """The constant without the leading axis of 1 that stands for the batch."""
    if constant.ndim == len(shape) + 1 and constant.shape[0] == 1:
        return constant.reshape(constant.shape[1:])
    return constant


def _per_channel(constant: Floats, shape: tuple[int, ...], axis: int) -> Floats | None:
    """The constant as a vector over one axis, or None if it varies along another."""
    constant = _without_batch(constant, shape)
    if constant.ndim > len(shape):
        return None
    full = constant.reshape((1,) * (len(shape) - constant.ndim) + constant.shape)
    if any(d != 1 for i, d in enumerate(full.shape) if i != axis):
        return None
    vector: Floats = np.broadcast_to(full.ravel(), (shape[axis],)).astype(np.float64)
    return vector


def geometry_of(
    compiler: _Compiler, node: onnx.NodeProto, attributes: Mapping[str, Any], spatial: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """kernel, strides, dilations and pads of a windowed node, with 1-d ones made 2-d."""
    rank = len(spatial)
    if rank > 2:
        raise compiler.refuse(node, "windows over three or more axes are not supported")
    kernel = [int(k) for k in attributes["kernel_shape"]]
    strides = [int(s) for s in attributes.get("strides", [1] * rank)]
    dilations = [int(d) for d in attributes.get("dilations", [1] * rank)]
    pads = [int(p) for p in attributes.get("pads", [0] * (2 * rank))]
    auto = attributes.get("auto_pad", b"NOTSET").decode()
    if auto.startswith("SAME"):
        before, after = [], []
        for size, k, s, d in zip(spatial, kernel, strides, dilations, strict=True):
            total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
            small, large = total // 2, total - total // 2
            before.append(small if auto == "SAME_UPPER" else large)
            after.append(large if auto == "SAME_UPPER" else small)
        pads = before + after
    if rank == 1:
        kernel, strides, dilations = [*kernel, 1], [*strides, 1], [*dilations, 1]
        pads = [pads[0], 0, pads[1], 0]
    return {
        "kernel": tuple(kernel),
        "strides": tuple(strides),
        "dilations": tuple(dilations),
        "pads": tuple(pads),
    }


# The lowerings themselves register on import.
from privserve.compiler.ops import activations as _activations  # noqa: E402, F401
from privserve.compiler.ops import functions as _functions  # noqa: E402, F401
from privserve.compiler.ops import linear as _linear  # noqa: E402, F401
from privserve.compiler.ops import reductions as _reductions  # noqa: E402, F401
from privserve.compiler.ops import resampling as _resampling  # noqa: E402, F401
