"""The options of `privserve convert`, and those of a model's source that `check` has too."""

from __future__ import annotations

import argparse
from pathlib import Path

from privserve import usage


def parser() -> argparse.ArgumentParser:
    """Return the options of `privserve convert`."""
    parser = usage.parser(
        "convert",
        "Convert a Keras model file to ONNX, and say who runs which layer: the engines that can, "
        '"client" for a final activation such as softmax, "none" where no engine can, and "-" '
        "where nothing is left to compute. Exit code: 0 where it is converted, 1 where --check "
        "found a difference, 2 where it cannot be.",
        {
            "convert model.h5": "writes model.onnx beside it",
            "convert model.keras -o served.onnx": "",
            "convert model.h5 --check xy.npz": "and compares with Keras' own outputs",
            "convert weights.h5 --architecture model.json": "a file of weights alone",
        },
    )
    add_source(parser)
    parser.add_argument(
        "-o", "--output", type=Path, help="where to write (default: the model's name with .onnx)"
    )
    parser.add_argument(
        "--check",
        type=Path,
        metavar="NPZ",
        help="arrays x and y (x_1, y_1 for a second input or output): inputs and Keras' outputs",
    )
    usage.add_json(parser)
    return parser


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what model it is."""
    parser.add_argument("model", type=Path, help=".h5, .keras or .onnx")
    parser.add_argument(
        "--architecture", type=Path, help="what model.to_json() wrote, for files of weights alone"
    )
    parser.add_argument(
        "--input-shape",
        type=_shape,
        help="without the batch, such as 224,224,3, for models that leave it open",
    )
    parser.add_argument(
        "--backend",
        choices=("tensorflow", "theano"),
        help="what Keras 1 ran on, for files that do not say it (default: tensorflow)",
    )


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(n) for n in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape such as 28,28,1")
    return shape
