"""Query a served model: python scripts/query.py [digit.png | digits.npy ...] [--count 5].

python scripts/query.py inputs.npz      any model: one array per input, by its name
python scripts/query.py --model NAME    where several models are shared
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from privserve import Client
from privserve.exit_codes import exit_code

SAMPLES = Path(__file__).resolve().parent.parent / "examples" / "digits.npz"
DEFAULT_CONFIG = Path(".privserve/cluster.toml")

Image = NDArray[np.float32]


def read_samples(count: int, start: int) -> list[tuple[str, Image, int | None]]:
    """`count` labelled sample digits from examples/, beginning at number `start`."""
    with np.load(SAMPLES, allow_pickle=False) as samples:
        images, labels = to_unit(samples["images"]), samples["labels"]
    chosen = [(start + i) % len(images) for i in range(count)]
    return [(f"sample {i}", images[i], int(labels[i])) for i in chosen]


def read_file(path: Path) -> list[tuple[str, Image, int | None]]:
    """The digits in a .npy file, (28, 28), (28, 28, 1) or a batch of them, or in a picture."""
    try:
        is_array = path.suffix == ".npy"
        array = np.load(path, allow_pickle=False) if is_array else read_picture(path)
    except FileNotFoundError:
        raise SystemExit(f"error: there is no {path}") from None
    except (OSError, EOFError, ValueError) as error:
        raise SystemExit(f"error: {path} is neither a .npy array nor a picture: {error}") from None
    if array.dtype.kind not in "fiub":
        raise SystemExit(f"error: {path} holds {array.dtype}, not numbers")
    if array.ndim < 2 or array.size == 0:
        raise SystemExit(f"error: {path} holds no picture: its shape is {array.shape}")
    if array.shape[-2:] == (28, 28):
        array = array[..., None]
    batch = to_unit(array.reshape(-1, *array.shape[-3:]))
    names = [str(path)] if len(batch) == 1 else [f"{path}[{i}]" for i in range(len(batch))]
    return [(name, image, None) for name, image in zip(names, batch, strict=True)]


def ask_arrays(client: Client, path: Path) -> None:
    """Query any model with the arrays of an .npz file, and print each row of each output."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            inputs = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise SystemExit(f"error: there is no {path}") from None
    except (OSError, EOFError, ValueError, AttributeError, BadZipFile) as error:
        raise SystemExit(f"error: {path} is not an .npz file of arrays: {error}") from None
    answers = client.query_model(inputs, named=True)
    for row in range(len(next(iter(answers.values())))):
        for name, values in answers.items():
            numbers = np.array2string(values[row], precision=4, suppress_small=True, threshold=20)
            print(f"{path}[{row}] {name}: {' '.join(numbers.split())}", flush=True)


def read_picture(path: Path) -> NDArray[np.uint8]:
    """A picture as MNIST has it: 28x28, grey, white on black."""
    try:
        from PIL import Image as Pictures
    except ModuleNotFoundError:
        raise SystemExit("error: reading pictures needs Pillow: pip install pillow") from None
    with Pictures.open(path) as picture:
        grey = np.asarray(picture.convert("L").resize((28, 28)))
    # Dark on light, as people draw, has a light border.
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return 255 - grey if border.mean() > 127 else grey


def to_unit(images: NDArray[np.generic]) -> Image:
    """Pixels 0..255 as 0..1, which the sample model was trained on; floats as they are."""
    values = images.astype(np.float32)
    return values / np.float32(255) if images.dtype.kind in "iu" else values


def ask(options: argparse.Namespace) -> int:
    """Ask for what the options name, and print the answers; 1 where one of them is wrong."""
    archives = [path for path in options.files if path.suffix == ".npz"]
    if options.files:
        pictures = [path for path in options.files if path not in archives]
        queries = [query for path in pictures for query in read_file(path)]
    else:
        queries = read_samples(options.count, options.start)
    wrong = 0
    with Client(options.config, model=options.model) as client:
        for path in archives:
            ask_arrays(client, path)
        for name, image, label in queries:
            scores = np.asarray(client.query_model(image[None])).ravel()
            seen = int(scores.argmax())
            if label is None:
                print(f"{name} looks like a {seen} (score {scores[seen]:.3f})", flush=True)
                continue
            verdict = "correctly" if seen == label else "WRONGLY"
            wrong += seen != label
            print(
                f"The image had label {label} and was {verdict} classified as {seen}",
                flush=True,
            )
    return 1 if wrong else 0


def main(arguments: list[str] | None = None) -> int:
    """Ask for each file or digit, print what the model says; returns the exit code."""
    parser = argparse.ArgumentParser(description="Query a served model.")
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        help="pictures or .npy arrays of digits; for any model .npz files, an array per input",
    )
    parser.add_argument("--count", type=int, default=3, help="of sample digits (default: 3)")
    parser.add_argument("--start", type=int, default=0, help="the first sample's number")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="cluster.toml")
    parser.add_argument("--model", metavar="NAME", help="which, where several are shared")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error("--count must be at least 1")
    return exit_code(lambda: ask(options))


if __name__ == "__main__":
    sys.exit(main())
