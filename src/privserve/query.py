"""Query a served model: privserve query [digit.png | digits.npy | inputs.npz | DIRECTORY ...]

privserve query                   sample digits
privserve query inputs.npz        any model: one array per input, by its name
privserve query --model NAME      where several models are shared

Files are looked at before anybody is asked; what is done to a picture is said on stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from privserve import usage
from privserve.command_lines import query as command_line
from privserve.exit_codes import exit_code

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from privserve.client import Client
    from privserve.served_model import ServedModel

    Arrays = Mapping[str, NDArray[np.generic]]

ARRAYS = (".npy", ".npz")


@dataclass(frozen=True)
class Asked:
    """Rows to ask for, by the inputs' names; label: what the one row is known to be."""

    name: str
    inputs: Arrays
    label: int | None = None
    first: int | None = None
    """The number of its first row; None: there is but one, without a number."""


# -- what to ask ----------------------------------------------------------------------------


def read_samples(count: int, start: int) -> list[tuple[str, Any, int | None]]:
    """Return `count` labelled sample digits, beginning at number `start`: float32[28, 28, 1]."""
    import numpy as np

    from privserve.samples import DIGITS

    with np.load(DIGITS, allow_pickle=False) as samples:
        images, labels = samples["images"], samples["labels"]
    chosen = [(start + i) % len(images) for i in range(count)]
    return [(f"sample {i}", images[i], int(labels[i])) for i in chosen]


def found_files(given: Sequence[Path]) -> list[Path]:
    """Return the files that are named, and those of the directories, each checked to be readable.

    Raises InputError naming the first that is not.
    """
    from privserve.errors import InputError
    from privserve.pictures import SUFFIXES, check_picture

    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in (*SUFFIXES, *ARRAYS))
        if not inside:
            raise InputError(f"{path} holds no picture, .npy or .npz")
        others = sum(p.is_file() for p in path.iterdir()) - len(inside)
        if others:
            _note(f"{path}: {others} other files are left out")
        found += inside
    for path in found:
        if path.suffix.lower() in ARRAYS:
            _arrays(path, look=True)
        else:
            check_picture(path)
    return found


def _arrays(path: Path, look: bool = False) -> Arrays:
    """The array of an .npy file under "", those of an .npz file by name; look: not the numbers."""
    import numpy as np

    from privserve.errors import InputError

    try:
        found = np.load(path, allow_pickle=False, mmap_mode="r" if look else None)
        if isinstance(found, np.ndarray):
            arrays = {"": found}
        else:
            with found:
                arrays = {} if look else {name: found[name] for name in found.files}
    except FileNotFoundError:
        raise InputError(f"there is no {path}") from None
    except (OSError, EOFError, ValueError, AttributeError, BadZipFile) as error:
        raise InputError(f"{path} is no {path.suffix} file of arrays: {error}") from None
    for array in arrays.values():
        if array.dtype.kind not in "fiub":
            raise InputError(f"{path} holds {array.dtype}, not numbers")
    return arrays


class Reader:
    """Makes what a model takes of files."""

    def __init__(self, model: ServedModel, pixels: tuple[float, float] | None, as_is: bool) -> None:
        """pixels: what the user says that black and white are; as_is: no digit is centred."""
        self._shapes = {t["name"]: tuple(t["shape"]) for t in model.description["inputs"]}
        self._range = model.description["input_range"]
        self._pixels, self._as_is = pixels, as_is
        self._most = model.max_rows
        self._said = False

    def read(self, path: Path) -> Iterator[Asked]:
        """Yield what to ask for one file; raises InputError where the model takes no such thing."""
        from privserve.errors import InputError

        try:
            if path.suffix.lower() not in ARRAYS:
                yield self._picture(path)
                return
            arrays = dict(_arrays(path))
            if len(self._shapes) == 1 and len(arrays) == 1:
                arrays = {next(iter(self._shapes)): next(iter(arrays.values()))}
            elif "" in arrays:
                raise InputError(
                    f"the model takes {len(self._shapes)} inputs; give an .npz file with an array "
                    f"for each: {', '.join(self._shapes)}"
                )
            if path.suffix.lower() == ".npy":
                name, array = next(iter(arrays.items()))
                rows = self._fitted(name, array)
                names = (
                    [str(path)] if len(rows) == 1 else [f"{path}[{i}]" for i in range(len(rows))]
                )
                for one, row in zip(names, rows, strict=True):
                    yield Asked(one, {name: row[None]})
                return
            rows_each = {name: self._batched(name, array) for name, array in arrays.items()}
            count = max(map(len, rows_each.values()), default=0)
            for start in range(0, max(1, count), self._most):
                part = {n: a[start : start + self._most] for n, a in rows_each.items()}
                yield Asked(str(path), part, first=start)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def _picture(self, path: Path) -> Asked:
        from privserve.errors import InputError
        from privserve.pictures import layout_of, pixels_for, read_picture

        if len(self._shapes) != 1:
            raise InputError(f"the model takes {len(self._shapes)} inputs, and this is one picture")
        ((name, shape),) = self._shapes.items()
        layout = layout_of(shape)
        if layout is None:
            raise InputError(
                f"the model takes no pictures but arrays of the shape {shape}; give .npy or .npz"
            )
        pixels = pixels_for(self._range, self._pixels)
        picture, done = read_picture(path, layout, self._as_is)
        _note(f"{path}: {done}; {pixels}")
        return Asked(str(path), {name: pixels.scaled(picture)[None]})

    def _batched(self, name: str, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """The array with a batch axis, where it is one row without; else as it is."""
        return array[None] if array.shape == self._shapes.get(name) else array

    def _fitted(self, name: str, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """An array as rows of the input; whole numbers of a picture are pixels."""
        import numpy as np

        from privserve.errors import InputError
        from privserve.inputs import batched
        from privserve.pictures import layout_of, pixels_for

        shape = self._shapes[name]
        layout = layout_of(shape)
        taken = [shape]
        if layout is not None and layout.channels == 1:
            taken.append((layout.height, layout.width))
        fits = any(array.shape == one or array.shape[1:] == one for one in taken)
        if not fits or not array.size:
            raise InputError(
                f"the array's shape is {array.shape}, and the model takes {batched(shape)}"
            )
        rows = array.reshape(-1, *shape)
        if layout is None or array.dtype.kind not in "iu":
            return rows
        if rows.min() < 0 or rows.max() > 255:
            raise InputError("it holds whole numbers that are no pixels; give floats")
        pixels = pixels_for(self._range, self._pixels)
        if not self._said:
            _note(f"whole numbers are taken for pixels: {pixels}")
            self._said = True
        return pixels.scaled(rows.astype(np.uint8))


# -- asking, and telling ----------------------------------------------------------------------


class Teller:
    """Prints the answers, to people or to programs."""

    def __init__(self, model: ServedModel, as_json: bool) -> None:
        from privserve.pictures import layout_of

        inputs, outputs = model.description["inputs"], model.description["outputs"]
        layout = layout_of(inputs[0]["shape"]) if len(inputs) == 1 else None
        self._json = as_json
        self._is_digits = (
            layout is not None
            and layout.is_digit
            and len(outputs) == 1
            and outputs[0]["shape"] == [10]
        )
        self.wrong = 0

    def tell(self, asked: Asked, answers: Arrays) -> None:
        """Print what the model says of each row."""
        count = len(next(iter(answers.values())))
        for row in range(count):
            name = asked.name if asked.first is None else f"{asked.name}[{asked.first + row}]"
            self._tell_row(name, asked.label, {n: a[row] for n, a in answers.items()})

    def _tell_row(self, name: str, label: int | None, outputs: Arrays) -> None:
        import numpy as np

        first = np.asarray(next(iter(outputs.values()))).ravel()
        seen = int(first.argmax()) if self._is_digits else None
        if label is not None:
            self.wrong += seen != label
        if self._json:
            told: dict[str, Any] = {"asked": name}
            if seen is not None:
                told |= {"digit": seen, "score": float(first[seen])}
            if label is not None:
                told["label"] = label
            told["outputs"] = {n: np.asarray(a).tolist() for n, a in outputs.items()}
            print(json.dumps(told), flush=True)
        elif label is not None:
            verdict = "correctly" if seen == label else "WRONGLY"
            said = f"The image had label {label} and was {verdict} classified as {seen}"
            print(said, flush=True)
        elif seen is not None:
            print(f"{name} looks like a {seen} (score {first[seen]:.3f})", flush=True)
        else:
            for output, values in outputs.items():
                text = np.array2string(values, precision=4, suppress_small=True, threshold=20)
                print(f"{name} {output}: {' '.join(text.split())}", flush=True)


def ask(options: argparse.Namespace) -> int:
    """Ask for what the options name, and print the answers; 1 where one of them is wrong."""
    from privserve.client import Client
    from privserve.terminal import progress

    files = found_files(options.files)
    pixels = parse_pixels(options.pixels)
    samples = [] if files else read_samples(options.count, options.start)
    with Client(options.config, model=options.model) as client:
        model = client.read_model()
        teller = Teller(model, options.json)
        asked_for = _rows(client, files, samples, pixels, options.as_is)
        # On a terminal the answers are what shows how far it is.
        with nullcontext() if sys.stdout.isatty() else progress("asking"):
            for asked in asked_for:
                teller.tell(asked, client.query_model(asked.inputs, named=True))
    return 1 if teller.wrong else 0


def _rows(
    client: Client,
    files: Sequence[Path],
    samples: Sequence[tuple[str, Any, int | None]],
    pixels: tuple[float, float] | None,
    as_is: bool,
) -> Iterator[Asked]:
    """What to ask, in order."""
    from privserve.errors import InputError

    model = client.read_model()
    reader = Reader(model, pixels, as_is)
    for path in files:
        yield from reader.read(path)
    inputs = model.description["inputs"]
    if samples and (len(inputs) != 1 or inputs[0]["shape"] != list(samples[0][1].shape)):
        raise InputError(
            f"the samples are digits of 28x28x1, and '{model.name}' takes other inputs; name files"
        )
    for name, image, label in samples:
        yield Asked(name, {inputs[0]["name"]: image[None]}, label)


def parse_pixels(text: str | None) -> tuple[float, float] | None:
    """Return (-1.0, 1.0) from "-1,1"; raises ConfigError."""
    from privserve.errors import ConfigError

    if text is None:
        return None
    try:
        black, white = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--pixels takes two numbers, such as 0,1; not '{text}'") from None
    return black, white


def _note(line: str) -> None:
    print(f"note: {line}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask for each file or digit, print what the model says; returns the exit code."""
    parser = command_line.parser()
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(usage.with_values(given, "--pixels"))
    if options.count < 1:
        parser.error("--count must be at least 1")
    return exit_code(lambda: ask(options))


if __name__ == "__main__":
    sys.exit(main())
