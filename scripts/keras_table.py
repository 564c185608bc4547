#!/usr/bin/env python3
"""Writes docs/keras.md: which Keras layers convert, read from the converters themselves.

python scripts/keras_table.py           writes the file
python scripts/keras_table.py --check   exit code 1 if it is not current
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from converters.keras_layers import LAYERS, LayerKind
from converters.keras_layers.activations import FUNCTIONS
from converters.keras_operations import SPECS

TARGET = Path(__file__).resolve().parents[1] / "docs" / "keras.md"

HEAD = """\
<!-- Written by scripts/keras_table.py; change the docstrings in converters/keras_layers. -->

# Which Keras models convert

`privserve convert` and `converters.convert` read what Keras wrote, without Keras:

| source | of |
|---|---|
| HDF5 with the whole model (`.h5`, `.hdf5`, also named `.keras`) | Keras 1, 2, 3, tf.keras |
| `.keras` zip | Keras 3, tf.keras from 2.12 |
| HDF5 with weights alone, given `--architecture model.json` (`model.to_json()`) | Keras 1, 2, 3 |
| a live model, `converters.convert(model)` | tf.keras, Keras 2, Keras 3 |
| `.onnx` of opsets 7 to the newest, fixed or free batch | operators in `converters/onnx_ops/` |
| `.onnx` with its weights in `model.onnx.data` beside it | torch's newer exporter |
| `.onnx` of scikit-learn (skl2onnx): scores; labels are left out | scalers, linear models, MLPs |
| `torch.nn.Module` with `input_shape` | what torch exports to those |

Sequential and functional models convert: branches, several inputs and outputs, models in
models, layers called more than once; `channels_last` and `channels_first`. Padding is
TensorFlow's. A model that leaves the sizes of its input open needs `--input-shape`. Files that
Keras 1 wrote on Theano need `--backend theano`, since they do not say so; those of Keras 2 do.

The last column of the table that `privserve convert` prints says who runs a layer: the engines
that can (`ottt, crypten`), `client` for a final activation such as softmax, `none` where no
engine can, and `-` where nothing is left to compute (inputs, Dropout). It is found by having
each engine compile the layer.

Everything else is refused by the layer's name: recurrent layers, attention, Lambda and
other code, custom classes, three-dimensional layers. No code from a file is ever run.

## Layers
"""

TAIL = """
## Activations

As `activation=` of a layer or as an Activation layer: {activations}.

`hard_sigmoid` is that of the Keras that wrote the file: clip(0.2 x + 0.5) before Keras 3,
clip(x / 6 + 0.5) from it on. ReLU, LeakyReLU, PReLU, ELU, ThresholdedReLU and Softmax layers
may stand as `activation=` too.

## Operations

Arithmetic on tensors (`x + y`, `1 - x`, `x[:, ::2]`), which Keras writes as layers of their own,
converts where no sample meets another: axes of a sample, not the batch; constants in any place.

| written by | operations |
|---|---|
| Keras 3, `keras.ops` | {ops} |
| tf.keras from 2.4 on, TFOpLambda and SlicingOpLambda, `tf.` | {tf} |
| tf.keras 2.0 to 2.3, TensorFlowOpLayer | {node} |

A quotient of two computed tensors converts, but no engine runs it.
"""

FAMILIES = {
    "core": "Core",
    "activations": "Activations",
    "convolution": "Convolutions",
    "pooling": "Pooling",
    "normalization": "Normalizations",
    "merging": "Merging",
    "reshaping": "Reshaping",
}


def text() -> str:
    """The whole of docs/keras.md."""
    lines = [HEAD, "| layers | supported |", "|---|---|"]
    for family, title in FAMILIES.items():
        lines.append(f"| **{title}** | |")
        kinds: dict[LayerKind, list[str]] = {}
        for name, kind in LAYERS.items():
            if kind.family == family:
                kinds.setdefault(kind, []).append(name)
        for kind, names in kinds.items():
            lines.append(f"| {', '.join(names)} | {kind.summary} |")
    activations = ", ".join(f"`{name}`" for name in sorted(FUNCTIONS))
    operations = {
        family: ", ".join(f"`{name}`" for name in sorted(specs)) for family, specs in SPECS.items()
    }
    return "\n".join(lines) + "\n" + TAIL.format(activations=activations, **operations)


def main() -> int:
    """Exit code 0, or 1 where --check finds the file out of date."""
    parser = argparse.ArgumentParser(description="Writes docs/keras.md.")
    parser.add_argument("--check", action="store_true", help="only compare")
    if not parser.parse_args().check:
        TARGET.write_text(text(), encoding="utf-8")
        return 0
    if TARGET.read_text(encoding="utf-8") == text():
        return 0
    print(f"{TARGET.name} is out of date: run python scripts/keras_table.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
