"""ONNX files and torch modules as sources: already ONNX, or exported to it by torch."""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from google.protobuf.message import DecodeError

from converters.errors import ConversionError
from converters.onnx_data import read_weights
from converters.onnx_ml import served_outputs
from converters.onnx_model import OnnxModule, check
from converters.onnx_nodes import OPSET
from converters.onnx_rewrite import rewrite
from converters.translated import LayerRow, Tensor, Translated

MAX_BYTES = 2 << 30  # protobuf's own limit
SCALES = (1.0, -0.1, 30.0)
"""Of the random samples on which an export is compared with its module."""
TOLERANCE = 1e-3
NOT_EXPORTED = (
    torch.nn.TransformerEncoderLayer,
    torch.nn.TransformerDecoderLayer,
    torch.nn.MultiheadAttention,
    torch.nn.RNNBase,
    torch.nn.RNNCellBase,
)


def read_onnx(path: Path, input_shape: Sequence[Any] | None = None) -> Translated:
    """Return the ONNX model in a file, as opset 17 with a free batch axis.

    input_shape: without the batch; fixes sizes that the file leaves open.

    Raises: ConversionError for a file that is not ONNX, or an invalid model.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConversionError(f"larger than {MAX_BYTES >> 30} GiB, which ONNX cannot hold")
        model = onnx.load_model_from_string(path.read_bytes())
    except FileNotFoundError:
        raise ConversionError("there is no such file") from None
    except OSError as error:
        raise ConversionError(f"cannot be read: {error.strerror}") from None
    except (DecodeError, ValueError):
        raise ConversionError("not an ONNX model; give the file that convert.py wrote") from None
    if not model.graph.node or not model.graph.output:
        raise ConversionError("not an ONNX model; give the file that convert.py wrote")
    read_weights(model, path)
    return _describe(model, input_shape)


def export_module(module: torch.nn.Module, input_shape: Sequence[Any] | None) -> Translated:
    """Return the ONNX model that torch exports for `module` on inputs (batch, *input_shape).

    Raises: ConversionError if the shape is missing or torch cannot export the module.
    """
    if input_shape is None:
        raise ConversionError(
            "a torch.nn.Module does not say what it takes; give input_shape=, without the batch"
        )
    single = all(isinstance(n, int) for n in input_shape)
    shapes = [tuple(input_shape)] if single else [tuple(shape) for shape in input_shape]
    names = ["input"] if single else [f"input_{i}" for i in range(len(shapes))]
    training = module.training
    try:
        with torch.no_grad():
            exported = _exported(module.eval(), shapes, names)
            translated = _describe(onnx.load_model_from_string(exported), None)
            _compare(module, translated, shapes)
    finally:
        module.train(training)
    return translated


def _exported(
    module: torch.nn.Module, shapes: Sequence[tuple[int, ...]], names: Sequence[str]
) -> bytes:
    """What torch's exporter writes, without what it logs."""
    zeros = tuple(torch.zeros((2, *shape)) for shape in shapes)
    buffer = io.BytesIO()
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    # A failing exporter prints its graph to stdout, whatever its settings say.
    printer = torch._C._jit_onnx_log
    try:
        logger.setLevel(logging.ERROR)
        torch._C._jit_onnx_log = lambda *lines: None
        with warnings.catch_warnings():
            # The exporter that needs no further package announces its successor every time.
            warnings.simplefilter("ignore")
            outputs = _output_names(module(*zeros))
            torch.onnx.export(
                module,
                zeros,
                cast(Any, buffer),  # the stubs forget that this exporter takes streams
                dynamo=False,
                opset_version=OPSET,
                input_names=list(names),
                output_names=outputs,
                dynamic_axes={name: {0: "N"} for name in [*names, *outputs]},
            )
    except Exception as error:
        raise ConversionError(_why_not_exported(module, error)) from None
    finally:
        torch._C._jit_onnx_log = printer
        logger.setLevel(level)
    return buffer.getvalue()


def _spread(shape: tuple[int, ...], number: int) -> torch.Tensor:
    """Numbers spread as a normal distribution's, the same every time (a Kronecker sequence)."""
    places = (torch.arange(math.prod(shape), dtype=torch.float64) + 0.5) * (5**0.5 - 1) / 2
    inside = (places + 0.37 * number) % 1.0
    normal: torch.Tensor = torch.special.ndtri(inside.clamp(1e-6, 1 - 1e-6))
    return normal.float().reshape(shape)


def _compare(
    module: torch.nn.Module, translated: Translated, shapes: Sequence[tuple[int, ...]]
) -> None:
    """Refuse a module that decides by its data: what was exported is one way through it."""
    converted = OnnxModule(translated.model)
    served = {tensor.name for tensor in translated.outputs}
    for scale in SCALES:
        x = [scale * _spread((3, *shape), number) for number, shape in enumerate(shapes)]
        result = module(*x)
        outputs = list(result.values()) if isinstance(result, dict) else result
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        names = _output_names(result)
        if len(outputs) != len(names) or not served <= set(names):
            return  # labels, for which scores are served
        got = converted(*x)
        found = dict(
            zip(converted.output_names, got if isinstance(got, tuple) else (got,), strict=True)
        )
        for name, wanted in zip(names, outputs, strict=True):
            if name in found and not _is_close(found[name], wanted):
                raise ConversionError(
                    "the torch module decides by its data (a branch or a loop on values in "
                    "forward()), of which an export holds one way only; make it the "
                    "same for every input"
                )


def _is_close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    if found.shape != wanted.shape:
        return False
    bound = TOLERANCE * max(1.0, float(wanted.abs().max()) if wanted.numel() else 1.0)
    return bool(((found - wanted).abs() <= bound).all() or not wanted.isfinite().all())


def _why_not_exported(module: torch.nn.Module, error: Exception) -> str:
    """The exporter's complaint without its dumps, and the layers that it cannot know."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0].split(" Please")[0][:200] if lines else type(error).__name__
    found = sorted({type(m).__name__ for m in module.modules() if isinstance(m, NOT_EXPORTED)})
    if found:
        return (
            f"the torch module holds {', '.join(found)}, which cannot be served: attention and "
            "recurrence are not supported; build it from convolutions, dense layers, poolings "
            "and activations"
        )
    return (
        f"torch cannot export the module to ONNX: {first.rstrip('.')}; its forward() must be the "
        "same for every input, and take and return tensors only; or export it yourself with "
        "torch.onnx.export(..., dynamo=True), and give the file"
    )


def _output_names(result: object) -> list[str]:
    """Names for what a module returned: a dictionary's own, numbers where there are several."""
    if isinstance(result, dict):
        return [str(name) for name in result]
    if isinstance(result, tuple | list) and len(result) > 1:
        return [f"output_{i}" for i in range(len(result))]
    return ["output"]


def _describe(model: onnx.ModelProto, input_shape: Sequence[Any] | None) -> Translated:
    check(model)
    notes = served_outputs(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if not inputs:
        raise ConversionError("the model has no input")
    if input_shape is not None:
        single = all(isinstance(n, int) for n in input_shape)
        _fix_shapes(inputs, [input_shape] if single else input_shape)
    model = rewrite(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    for node in model.graph.node:
        if not node.name and node.output:  # error messages and tables go by names
            node.name = node.output[0]
    del model.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ConversionError(f"the shapes in the model contradict each other: {error}") from None
    known = {v.name: v for v in [*inferred.graph.value_info, *inferred.graph.output]}
    sizes = {t.name: math.prod(t.dims) for t in model.graph.initializer}
    rows = []
    for node in inferred.graph.node:
        if node.op_type == "Constant" or not node.output:
            continue
        shape = _shape(known[node.output[0]]) if node.output[0] in known else (None,)
        count = sum(sizes.pop(name, 0) for name in node.input)
        rows.append(LayerRow(node.name, node.op_type, shape, count, (node.name,)))
    return Translated(
        inferred,
        tuple(Tensor(v.name, _shape(v)) for v in inputs),
        tuple(Tensor(v.name, _shape(known[v.name])) for v in model.graph.output),
        tuple(rows),
        tuple(notes),
    )


def _fix_shapes(inputs: Sequence[onnx.ValueInfoProto], shapes: Sequence[Sequence[int]]) -> None:
    if len(shapes) != len(inputs):
        raise ConversionError(f"{len(shapes)} input shapes are given for {len(inputs)} inputs")
    for value, shape in zip(inputs, shapes, strict=True):
        dims = value.type.tensor_type.shape.dim
        if len(dims) != len(shape) + 1:
            raise ConversionError(
                f"input {value.name!r} has {len(dims) - 1} axes, not {len(shape)}"
            )
        for dim, size in zip(dims[1:], shape, strict=True):
            if dim.dim_value and dim.dim_value != size:
                raise ConversionError(f"input {value.name!r} is fixed to other sizes than {shape}")
            dim.dim_value = size


def _shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    dims = value.type.tensor_type.shape.dim
    return (None, *(d.dim_value or None for d in list(dims)[1:]))
