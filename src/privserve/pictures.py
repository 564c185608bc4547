"""Pictures as models take them: any PNG, JPEG, ... becomes an array, and what was done is said.

A picture says nothing of how a model wants it. Digits are brought into the form of MNIST (Y. LeCun,
C. Cortes, C. Burges): white on black, the ink fitted into 20 x 20 pixels with its proportions kept,
and its centre of mass put into the centre of 28 x 28. Other pictures are resized. What values black
and white become is guessed from the model's input range where that tells, and refused where not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from privserve.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
"""Of what is taken for a picture in a directory; a file that is named may have any."""
DIGIT, INK = 28, 20
"""Pixels of a digit's side, and of the box that its ink is fitted into."""
FAINT = 1 / 8
"""What is darker than this part of the brightest ink is no ink: paper has a grain."""
LEAST_CONTRAST = 16
"""Of 255, between the brightest and the background: less is no digit but an empty page."""
CHANNELS = (1, 3, 4)
MODES = {1: "L", 3: "RGB", 4: "RGBA"}

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """How a model's input holds a picture."""

    height: int
    width: int
    channels: int
    shape: tuple[int, ...]
    """Of the input, without the batch."""

    @property
    def is_digit(self) -> bool:
        """Whether it is what MNIST has."""
        return (self.height, self.width, self.channels) == (DIGIT, DIGIT, 1)

    def arranged(self, pixels: Bytes) -> Bytes:
        """Return uint8[H, W, C] as the input has it: channels last or first, or none."""
        first = len(self.shape) == 3 and self.shape[-1] not in CHANNELS
        return (np.moveaxis(pixels, -1, 0) if first else pixels).reshape(self.shape)


def layout_of(shape: Sequence[int]) -> Layout | None:
    """Return how an input of this shape, without the batch, holds a picture; None: not at all."""
    shape = tuple(shape)
    if len(shape) == 2 and min(shape) > 1:
        return Layout(*shape, 1, shape)
    if len(shape) != 3:
        return None
    if shape[-1] in CHANNELS:  # Keras'
        return Layout(*shape, shape)
    if shape[0] in CHANNELS:  # torch's
        return Layout(*shape[1:], shape[0], shape)
    return None


@dataclass(frozen=True)
class Pixels:
    """What values a model takes for a black pixel and for a white one."""

    black: float
    white: float
    why: str

    def scaled(self, pixels: Bytes) -> NDArray[np.float32]:
        """Return bytes as the model takes them."""
        part = pixels.astype(np.float32) / np.float32(255)
        return part * np.float32(self.white - self.black) + np.float32(self.black)

    def __str__(self) -> str:
        return f"black is {self.black:g} and white {self.white:g} ({self.why})"


def pixels_for(
    input_range: Sequence[float], given: tuple[float, float] | None, option: str = "--pixels"
) -> Pixels:
    """Return what pixels become for a model that takes values of `input_range`.

    given: what the user says of black and white. Raises InputError where nothing tells.
    """
    low, high = input_range
    if given is not None:
        return Pixels(*given, f"as {option} says")
    if low <= 0 and high >= 255:
        return Pixels(0, 255, f"the model takes values up to {high:g}, so it scales by itself")
    if low <= 0 and high >= 1 and not (low == -1 and high == 1):
        why = "the model's range begins and ends so" if (low, high) == (0, 1) else "a guess"
        return Pixels(0, 1, why if why != "a guess" else f"a guess; {option} says otherwise")
    raise InputError(
        f"the model takes values in [{low:g}, {high:g}], which does not tell what pixels are to "
        f"become; say what black and white are, such as {option}=-1,1 or {option}=0,1"
    )


def read_picture(path: Path, layout: Layout, as_is: bool) -> tuple[Bytes, str]:
    """Return a picture as uint8 of the layout's shape, and what was done to it.

    as_is: only resize, also what could be a digit. Raises InputError for what is no picture.
    """
    picture = _opened(path)
    was = f"{picture.width}x{picture.height}"
    if layout.is_digit and not as_is:
        digit, done = as_digit(np.asarray(picture.convert("L")))
        return layout.arranged(digit[..., None]), f"{was}, {done}"
    done = f"{was}"
    if picture.size != (layout.width, layout.height):
        from PIL import Image as Pictures

        picture = picture.resize((layout.width, layout.height), Pictures.Resampling.BILINEAR)
        done += f", resized to {layout.width}x{layout.height}, its proportions not kept"
    if picture.mode != MODES[layout.channels]:
        done += f", {picture.mode} made {MODES[layout.channels]}"
    pixels = np.asarray(picture.convert(MODES[layout.channels]))
    return layout.arranged(pixels.reshape(layout.height, layout.width, layout.channels)), done


def check_picture(path: Path) -> None:
    """Raise InputError for a file that is no picture, by its beginning."""
    _opened(path, whole=False)


def as_digit(grey: Bytes) -> tuple[Bytes, str]:
    """Return a picture of one digit, uint8[H, W], as MNIST has it, uint8[28, 28]; and what it took.

    One of 28 x 28 is taken as it lies, but for dark on light. Raises InputError for an empty one.
    """
    done = []
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    if border.mean() > 127:  # dark on light, as people draw
        grey, border = 255 - grey, 255 - border
        done.append("dark on light turned to light on dark")
    if grey.shape == (DIGIT, DIGIT):
        return grey, ", ".join([*done, "taken as it lies"])
    paper = float(np.median(border))
    ink = np.clip(grey.astype(np.float64) - paper, 0, None)
    if ink.max() < LEAST_CONTRAST:
        raise InputError("it holds no digit: it is of one brightness all over")
    ink *= 255 / ink.max()
    rows, columns = (np.flatnonzero((ink > FAINT * 255).any(axis)) for axis in (1, 0))
    cut = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    cut = np.where(cut > FAINT * 255, cut, 0)
    fitted = _fitted(cut)
    done.append(f"its ink fitted into {INK}x{INK} and centred in {DIGIT}x{DIGIT} by its mass")
    return _centred(fitted), ", ".join(done)


def _fitted(ink: NDArray[np.float64]) -> Bytes:
    """The ink, resized to fit into the box, its proportions kept."""
    from PIL import Image as Pictures

    height, width = ink.shape
    scale = INK / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Pictures.fromarray(ink.astype(np.uint8))
    return np.asarray(picture.resize(size, Pictures.Resampling.LANCZOS), np.uint8)


def _centred(ink: Bytes) -> Bytes:
    """The ink in the whole picture, its centre of mass as near to the centre as whole pixels go."""
    mass = ink.astype(np.float64)
    canvas = np.zeros((DIGIT, DIGIT), np.uint8)
    starts = []
    for axis, length in enumerate(ink.shape):
        along = mass.sum(axis=1 - axis)
        centre = float((along * (np.arange(length) + 0.5)).sum() / along.sum())
        starts.append(int(np.clip(round(DIGIT / 2 - centre), 0, DIGIT - length)))
    top, left = starts
    canvas[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return canvas


def _opened(path: Path, whole: bool = True) -> Image:
    """The picture of a file, turned upright, laid on white where it lets something through."""
    try:
        from PIL import Image as Pictures
        from PIL import ImageOps
    except ModuleNotFoundError:
        raise InputError("reading pictures needs Pillow: pip install pillow") from None
    try:
        with Pictures.open(path) as picture:
            if not whole:
                return picture
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith(("I", "F")):
                upright = _of_8_bits(np.asarray(upright, np.float64))
            if upright.has_transparency_data:
                clear = upright.convert("RGBA")
                white = Pictures.new("RGBA", clear.size, "white")
                return Pictures.alpha_composite(white, clear).convert("RGB")
            return upright.convert("L" if upright.mode in ("1", "L", "LA") else "RGB")
    except FileNotFoundError:
        raise InputError(f"there is no {path}") from None
    except (OSError, ValueError, SyntaxError, Pictures.DecompressionBombError) as error:
        raise InputError(f"{path} is neither an array nor a picture: {error}") from None


def _of_8_bits(values: NDArray[np.float64]) -> Image:
    """A picture of more bits or of floats, its darkest value black and its brightest white."""
    from PIL import Image as Pictures

    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("it holds NaN or infinity")
    spread = max(high - low, 1e-30)
    return Pictures.fromarray(np.rint((values - low) * (255 / spread)).astype(np.uint8))
