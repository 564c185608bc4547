"""ONNX -> Program: reads the graph node by node, folding as it goes.

A linear op stays *pending* while its only reader is something that folds into it: a
BatchNormalization or a constant's Add, Sub, Mul or Div per channel, or an average pooling
(a convolution followed by a k x k mean is one convolution with a larger kernel and stride,
with fewer products than the two). Everything else is lowered to the ops of `program` by
`builder`; one function per ONNX op in `ops`, registered under its name.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from privserve.activations import CLIENT_ACTIVATIONS, NORMALISING, ROOT
from privserve.compiler.arranging import arranged
from privserve.compiler.bounds import Bounds, UnaffordableError
from privserve.compiler.builder import ProgramBuilder
from privserve.compiler.fusing import fused
from privserve.compiler.input_scaling import default_range
from privserve.compiler.lowering import Lowering, SmoothFunction, Tensors
from privserve.compiler.onnx_graph import attributes_of, constants_of, evaluated
from privserve.compiler.ops import lower
from privserve.compiler.plan import TOLERANCE
from privserve.compiler.ranges import Floats, Range, synthetic_samples
from privserve.compiler.smooth import is_nonnegative
from privserve.compiler.traced import Traced, extra_bits
from privserve.errors import ModelError
from privserve.fixedpoint import DEFAULT_FRACTION_BITS, RingArray
from privserve.lift import lift_for
from privserve.program import LAN, Lift, Program

if TYPE_CHECKING:
    import onnx

SYNTHETIC_SAMPLES = 8


class Compiled(NamedTuple):
    """What `compile_model` makes."""

    program: Program
    parameters: dict[str, RingArray]
    samples: Sequence[Floats]
    """Per input the samples that the compiler used, float64[S, *shape]."""
    ideal: Sequence[Floats]
    """What the model itself makes of them, per output, before what the client applies."""
    tensors: Mapping[str, int]
    """By name those of the model's tensors that are values of the program, and which."""


Samples = Sequence[NDArray[Any]] | None
"""Per input, or None for synthetic ones."""


def compile_model(model: onnx.ModelProto, **options: Any) -> tuple[Program, dict[str, RingArray]]:
    """Return the program of `model`, and its parameters; options: see `compile_with_samples`."""
    return compile_with_samples(model, **options)[:2]


def compile_with_samples(
    model: onnx.ModelProto,
    *,
    input_range: tuple[float, float] | None = None,
    fraction_bits: int | None = None,
    calibration: Sequence[NDArray[Any]] | NDArray[Any] | None = None,
    range_check: bool = True,
    strict_inputs: bool = False,
    tolerance: float = TOLERANCE,
    exchange_bytes: int = LAN,
) -> Compiled:
    """Return the program of `model`, its parameters, and what the model makes of samples.

    input_range: what every input's elements lie in, by default (-8, 8), or what the model's own
    scaling brings there (see `input_scaling`); calibration:
    sample inputs [S, *shape] (one array per input), used where sound bounds do not fit.
    range_check: whether values are checked to stay in ranges that were guessed so.
    strict_inputs: whether inputs are lifted first, so that bounds hold whatever a client sends.
    tolerance: of the splines that stand for smooth functions. exchange_bytes: what an exchange is
    worth, see `fusing`.
    Raises ModelError naming the op and node that cannot be compiled.
    """
    bits = DEFAULT_FRACTION_BITS if fraction_bits is None else fraction_bits
    if not 4 <= bits <= 20:
        raise ModelError(f"fraction bits go from 4 to 20, not {bits}")
    low, high = default_range(model.graph) if input_range is None else input_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ModelError(f"the input range [{low}, {high}] is empty or not finite")
    if isinstance(calibration, np.ndarray):
        calibration = [calibration]
    options = (model.graph, (float(low), float(high)), calibration, strict_inputs, tolerance)
    try:
        compiled = _compiled(*options, Bounds(bits, check=range_check))
    except UnaffordableError:
        guessing = Bounds(bits, guess=True, check=range_check, calibrated=calibration is not None)
        compiled = _compiled(*options, guessing)
    program = replace(compiled.program, exchange_bytes=exchange_bytes)
    return compiled._replace(program=fused(arranged(program)))


def _compiled(
    graph: onnx.GraphProto,
    input_range: tuple[float, float],
    calibration: Samples,
    strict: bool,
    tolerance: float,
    bounds: Bounds,
) -> Compiled:
    """One compilation: inputs, then node by node, then outputs."""
    constants = constants_of(graph)
    builder = ProgramBuilder(bounds.fraction_bits, bounds)
    tensors = Tensors(builder, tolerance, constants, _readers(graph))
    ports = [port for port in graph.input if port.name not in constants]
    bits = bounds.fraction_bits + extra_bits(max(map(abs, input_range)))
    lift = lift_for(input_range, bits) if strict else None
    inputs = _add_inputs(ports, tensors, input_range, calibration, bits, lift)
    finals = _final_activations(graph, tensors)
    for node in graph.node:
        if node.output[0] not in finals:
            _add_node(node, tensors)
            tensors.release(node.input)
    outputs = _outputs(graph, tensors, finals)
    if not outputs or not inputs:
        raise ModelError("the model has no input or no output")
    return Compiled(
        builder.finish(inputs, outputs, input_range, lift),
        builder.parameters,
        [x.range.samples for _, x in inputs],
        [x.range.samples for _, x, _ in outputs],
        tensors.numbers,
    )


def _readers(graph: onnx.GraphProto) -> Counter[str]:
    """How many times each tensor is read, by nodes and as an output."""
    readers = Counter(name for node in graph.node for name in node.input)
    return readers + Counter({output.name for output in graph.output})


def _add_inputs(
    ports: Sequence[onnx.ValueInfoProto],
    tensors: Tensors,
    input_range: tuple[float, float],
    calibration: Samples,
    bits: int,
    lift: Lift | None,
) -> list[tuple[str, Traced]]:
    """Add the model's inputs to the program, and the tensors that they are once lifted.

    bits: their fraction bits. Returns them as clients send them.
    """
    if calibration is not None and len(calibration) != len(ports):
        raise ModelError(
            f"calibration has {len(calibration)} arrays, the model {len(ports)} inputs"
        )
    builder, (low, high) = tensors.builder, input_range
    inputs = []
    for position, port in enumerate(ports):
        shape = _static_shape(port)
        if calibration is None:
            samples = synthetic_samples(shape, low, high, SYNTHETIC_SAMPLES)
        else:
            samples = np.asarray(calibration[position], dtype=np.float64)
            if samples.shape[1:] != shape or not len(samples):
                raise ModelError(
                    f"calibration samples have shape {samples.shape}, the input is (B, {shape})"
                )
            if lift is not None and not (low <= samples.min() and samples.max() <= high):
                raise ModelError(
                    f"calibration samples of '{port.name}' reach from {samples.min():g} to "
                    f"{samples.max():g}, but strict inputs keep to [{low:g}, {high:g}]; declare a "
                    "wider range (--input-range) or leave those samples away"
                )
        bounds = Range(np.full(shape, low), np.full(shape, high), samples)
        x = builder.input(shape, bits, bounds)
        inputs.append((port.name, x))
        with builder.scope(port.name):
            tensors[port.name] = x if lift is None else builder.lifted(x, lift)
    return inputs


def _static_shape(port: onnx.ValueInfoProto) -> tuple[int, ...]:
    """An input's shape without its batch axis."""
    dims = port.type.tensor_type.shape.dim
    shape = tuple(d.dim_value for d in dims[1:])
    if not dims or any(d <= 0 for d in shape):
        raise ModelError(
            f"input '{port.name}' has no static shape; export the model with fixed sizes "
            "(the batch axis alone may be free)"
        )
    return shape


class Final(NamedTuple):
    """An activation that the client applies to an output, and the tensor that it reads."""

    source: str
    activation: dict[str, Any]


def _final_activations(graph: onnx.GraphProto, tensors: Tensors) -> dict[str, Final]:
    """The outputs that are made by an activation which is left to the client."""
    outputs = {o.name for o in graph.output}
    finals = {}
    for node in graph.node:
        name = node.output[0]
        if node.op_type in CLIENT_ACTIVATIONS and name in outputs and tensors.readers(name) == 1:
            activation: dict[str, Any] = {"op": node.op_type}
            attributes = attributes_of(node)
            if node.op_type in NORMALISING:
                activation["axis"] = int(attributes.pop("axis", -1))
            if attributes:
                raise Lowering(node, tensors).unknown(min(attributes))
            finals[name] = Final(node.input[0], activation)
    return finals


def _add_node(node: onnx.NodeProto, tensors: Tensors) -> None:
    """Evaluate a node of constants; lower any other, in the scope of its layer."""
    constants = tensors.constants(node.input)
    if node.op_type == "Constant" or constants:
        for name, constant in evaluated(node, constants or {}).items():
            tensors[name] = constant
        return
    c = Lowering(node, tensors)
    with tensors.builder.scope(c.layer):
        outputs = lower(c)
    for name, output in zip(node.output, outputs, strict=False):
        tensors[name] = output
    for name in node.output[len(outputs) :]:
        if tensors.readers(name):
            raise c.refuse(f"its output '{name}' is not computed here, but something reads it")


def _outputs(
    graph: onnx.GraphProto, tensors: Tensors, finals: dict[str, Final]
) -> list[tuple[str, Traced, dict[str, Any] | None]]:
    """Per output its name, its value and the activation that the client applies.

    A root that nothing made part of another function is the client's too, where it may be.
    """
    outputs: list[tuple[str, Traced, dict[str, Any] | None]] = []
    for port in graph.output:
        source, activation = finals.get(port.name, (port.name, None))
        last = tensors[source]
        if (
            activation is None
            and isinstance(last, SmoothFunction)
            and last.expression == ["sqrt", "x"]
            and is_nonnegative(tensors.builder, last.x)
        ):
            outputs.append((port.name, last.x, {"op": ROOT}))
        else:
            outputs.append((port.name, tensors.traced(source), activation))
    return outputs
