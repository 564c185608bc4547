"""Keras files, ONNX files and torch modules to torch modules and ONNX models; no MPC in here.

    converted = convert("model.h5")
    converted.predict(images)     # what Keras' model.predict(images) gives

Neither Keras nor TensorFlow is needed, and no code from a file is ever run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from converters.errors import ConversionError
from converters.foreign import refuse_other_formats
from converters.keras1 import depends_on_backend
from converters.keras_file import parse_architecture, read_file, read_live
from converters.keras_to_onnx import translate
from converters.network import Network
from converters.onnx_model import OnnxModule, check
from converters.onnx_source import export_module, read_onnx
from converters.translated import LayerRow, Tensor, Translated

__all__ = ["ConversionError", "Converted", "LayerRow", "Tensor", "convert"]

Floats = NDArray[np.float32]
_MALFORMED = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
BATCH = 64  # samples at a time in predict: bounds the memory for activations


@dataclass(frozen=True)
class Converted:
    """A converted network.

    module: takes float32 tensors in the source's layout (Keras: channels last), the
        batch first; eval mode, no gradients. Returns a tuple where there are several outputs.
    onnx: the same network, opset 17, with a dynamic batch axis "N".
    inputs, outputs: names and shapes, the batch as None.
    layers: the rows of the layer table.
    source: what was converted, for people.
    notes: what the source left open, and how it was taken.
    """

    module: torch.nn.Module
    onnx: onnx.ModelProto
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple[LayerRow, ...]
    source: str
    notes: tuple[str, ...] = ()

    def predict(self, x: Any) -> Any:
        """Return the network's outputs for a batch of samples, as Keras' predict gives them.

        x: an array (batch, *input shape), or a list of them for several inputs. Returns
        float32 arrays likewise.

        Raises: ConversionError for wrong shapes.
        """
        arrays = list(x) if len(self.inputs) > 1 else [x]
        if len(arrays) != len(self.inputs):
            raise ConversionError(f"the model takes {len(self.inputs)} inputs, not {len(arrays)}")
        floats = [_as_floats(a, t) for a, t in zip(arrays, self.inputs, strict=True)]
        if len({len(array) for array in floats}) != 1:
            raise ConversionError("the inputs have different numbers of samples")
        parts: list[list[Floats]] = [[] for _ in self.outputs]
        for start in range(0, max(len(floats[0]), 1), BATCH):
            tensors = [torch.from_numpy(array[start : start + BATCH]) for array in floats]
            try:
                with torch.no_grad():
                    results = self.module(*tensors)
            except (RuntimeError, IndexError) as error:
                raise ConversionError(
                    f"the model does not take {len(tensors[0])} samples at a time "
                    f"({str(error).splitlines()[0]}); export it with a free batch axis "
                    "(dynamic_axes, or dynamic_shapes of the newer exporter)"
                ) from None
            for part, result in zip(
                parts, results if isinstance(results, tuple) else (results,), strict=True
            ):
                part.append(result.numpy())
        outputs = [np.concatenate(part) for part in parts]
        return outputs[0] if len(outputs) == 1 else outputs


def convert(
    source: Any,
    architecture: str | Path | dict[str, Any] | None = None,
    input_shape: Sequence[Any] | None = None,
    backend: str | None = None,
) -> Converted:
    """Convert a trained network.

    source: the path of a .h5, .keras or .onnx file, a live Keras model, or a torch module
        (which needs input_shape).
    architecture: for files that hold weights alone, the model's configuration: what
        model.to_json() gives, as a dictionary, a JSON string or the path of a JSON file.
    input_shape: without the batch; for models that leave it open. A list of shapes for
        several inputs. A torch module's inputs are called input_0, input_1, ..., its outputs
        likewise, or by their keys where it returns a dictionary.
    backend: "theano" for HDF5 files that Keras 1 wrote on Theano, which turns kernels around,
        and that do not say so; files of Keras 2 do. TensorFlow where neither tells.

    Raises: ConversionError, one line that names the file, the layer and the remedy.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        try:
            refuse_other_formats(path)
            if path.suffix.lower() == ".onnx":
                translated = read_onnx(path, input_shape)
                return _converted(translated, f"{path.name} (ONNX)")
            config = None if architecture is None else parse_architecture(architecture)
            network, metadata = read_file(path, config, backend)
            return _from_keras(network, metadata, path.name, input_shape)
        except ConversionError as error:
            raise error.at(str(source)) from None
        except MemoryError:
            raise ConversionError(f"{source}: the model does not fit into memory") from None
        except _MALFORMED as error:
            # A configuration that Keras cannot have written, in a place that nobody thought of.
            raise ConversionError(
                f"{source}: its content is malformed ({type(error).__name__}: {error}); "
                "save the model anew"
            ) from error
    if isinstance(source, torch.nn.Module) and not hasattr(source, "to_json"):
        name = type(source).__name__
        return _converted(export_module(source, input_shape), f"the torch module {name}")
    if hasattr(source, "to_json") and hasattr(source, "get_layer"):
        network, metadata = read_live(source)
        return _from_keras(network, metadata, f"the model {network.name!r}", input_shape)
    raise ConversionError(
        f"cannot convert an object of class {type(source).__name__!r}; give the path of a file, "
        "a Keras model or a torch.nn.Module"
    )


def _from_keras(
    network: Network, metadata: dict[str, str], source: str, input_shape: Sequence[Any] | None
) -> Converted:
    shapes = None
    if input_shape is not None:
        is_single = len(network.inputs) == 1 and all(isinstance(n, int) for n in input_shape)
        shapes = [input_shape] if is_single else input_shape
    translated = translate(network, metadata, shapes)
    about = f"{source} ({metadata['source_format']}, Keras {metadata['keras_version']})"
    notes = []
    if "keras_backend" not in metadata and depends_on_backend(network):
        notes.append(
            "Keras 1 does not say in its files what it ran on; the convolutions are taken for "
            'TensorFlow\'s. If it was Theano, give backend="theano" (--backend theano)'
        )
    return replace(_converted(translated, about), notes=tuple(notes))


def _converted(translated: Translated, source: str) -> Converted:
    check(translated.model)
    module = OnnxModule(translated.model)
    return Converted(
        module,
        translated.model,
        translated.inputs,
        translated.outputs,
        translated.layers,
        source,
        translated.notes,
    )


def _as_floats(array: Any, tensor: Tensor) -> Floats:
    try:
        floats = np.ascontiguousarray(array, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ConversionError(f"input {tensor.name!r}: not an array of numbers ({error})") from None
    if floats.shape[1:] != tensor.shape[1:] or floats.ndim != len(tensor.shape):
        raise ConversionError(
            f"input {tensor.name!r}: the shape is {floats.shape} where "
            f"(batch, {', '.join(map(str, tensor.shape[1:]))}) is needed"
        )
    return floats
