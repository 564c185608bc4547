"""Pictures as models take them: what MNIST does to a digit, layouts, values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from serving import SAMPLE_DIGITS, SAMPLE_MODEL

import converters
from privserve.errors import InputError
from privserve.pictures import as_digit, layout_of, pixels_for, read_picture

DIGIT = layout_of((28, 28, 1))


def drawn(digit: np.ndarray, size: int, scale: int, corner: tuple[int, int]) -> np.ndarray:
    """A digit of MNIST, larger and somewhere on a page, dark on light: uint8[size, size]."""
    ink = Image.fromarray((digit[..., 0] * 255).astype(np.uint8))
    large = np.asarray(ink.resize((28 * scale, 28 * scale), Image.Resampling.BICUBIC))
    page = np.zeros((size, size), np.uint8)
    page[corner[0] : corner[0] + 28 * scale, corner[1] : corner[1] + 28 * scale] = large
    return 255 - page


def test_digits_anywhere_on_a_page_are_seen_as_those_that_they_are() -> None:
    with np.load(SAMPLE_DIGITS) as samples:
        images, labels = samples["images"], samples["labels"]
    model = converters.convert(SAMPLE_MODEL)
    as_they_are = (model.predict(images).argmax(1) == labels).sum()
    pages = [drawn(x, 300, 5, (i % 150, 7 * i % 150)) for i, x in enumerate(images)]
    made = np.stack([as_digit(page)[0] for page in pages])[..., None] / np.float32(255)
    seen = (model.predict(made).argmax(1) == labels).sum()
    assert seen >= as_they_are - 4, f"{seen} of {len(labels)}, {as_they_are} as they are"


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 90),
    st.integers(2, 90),
    st.integers(0, 40),
    st.integers(0, 40),
    st.booleans(),
)
def test_ink_keeps_its_proportions_in_the_box_and_its_mass_in_the_centre(
    height: int, width: int, top: int, left: int, is_dark: bool
) -> None:
    page = np.zeros((140, 150), np.uint8)
    page[top + 3 : top + 3 + height, left + 3 : left + 3 + width] = 200
    made, done = as_digit(255 - page if is_dark else page)
    assert made.shape == (28, 28)
    rows, columns = (np.flatnonzero(made.any(axis)) for axis in (1, 0))
    box = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    assert max(box) == 20
    assert min(box) == pytest.approx(max(1, 20 * min(height, width) / max(height, width)), abs=1)
    for axis, across in ((0, 1), (1, 0)):
        mass = made.sum(axis=across) / made.sum()
        assert (mass * (np.arange(28) + 0.5)).sum() == pytest.approx(14, abs=0.51), axis
    assert ("dark on light" in done) == is_dark


def test_a_picture_of_the_right_size_is_taken_as_it_lies() -> None:
    picture = np.zeros((28, 28), np.uint8)
    picture[2:5, 2:9] = 255
    assert (as_digit(picture)[0] == picture).all()
    assert (as_digit(255 - picture)[0] == picture).all()


def test_paper_is_no_ink() -> None:
    page = np.full((100, 100), 205, np.uint8)  # grey paper with a grain
    page[::3, ::5] -= 6
    page[40:60, 45:55] = 30
    made, _ = as_digit(page)
    assert made[0].max() == made[:, 0].max() == 0


@pytest.mark.parametrize("value", [0, 120, 255])
def test_an_empty_page_is_refused(value: int) -> None:
    with pytest.raises(InputError, match="holds no digit"):
        as_digit(np.full((60, 40), value, np.uint8))


LAYOUTS = {
    "Keras' digit": ((28, 28, 1), (28, 28, 1)),
    "torch's digit": ((1, 28, 28), (28, 28, 1)),
    "without a channel": ((28, 28), (28, 28, 1)),
    "Keras' colours": ((32, 48, 3), (32, 48, 3)),
    "torch's colours": ((3, 32, 48), (32, 48, 3)),
    "features": ((784,), None),
    "a volume": ((8, 8, 8), None),
    "a row": ((1, 784), None),
}


@pytest.mark.parametrize(("shape", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_the_layout_follows_from_the_input(
    shape: tuple[int, ...], expected: tuple[int, ...] | None
) -> None:
    layout = layout_of(shape)
    if expected is None:
        assert layout is None
        return
    assert layout is not None
    assert (layout.height, layout.width, layout.channels) == expected
    pixels = np.arange(np.prod(expected)).reshape(expected).astype(np.uint8)
    made = layout.arranged(pixels)
    assert made.shape == shape
    if len(shape) == 3 and shape[-1] not in (1, 3):
        assert (made[0] == pixels[..., 0]).all()


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    Image.fromarray(pixels, mode).save(path)
    return path


def test_other_pictures_are_resized_and_it_is_said(tmp_path: Path) -> None:
    red = np.zeros((40, 20, 3), np.uint8)
    red[..., 0] = 255
    layout = layout_of((8, 8, 3))
    assert layout is not None
    made, done = read_picture(save(tmp_path / "red.png", red), layout, False)
    assert (made == [255, 0, 0]).all()
    assert "20x40, resized to 8x8, its proportions not kept" in done
    grey, done = read_picture(tmp_path / "red.png", layout_of((8, 8)), False)
    assert grey.shape == (8, 8)
    assert "RGB made L" in done


def test_as_is_does_not_look_for_a_digit(tmp_path: Path) -> None:
    half = np.zeros((56, 56), np.uint8)
    half[:28] = 255
    made, done = read_picture(save(tmp_path / "half.png", half), DIGIT, True)
    assert made[0, 0, 0] == 255
    assert made[-1, -1, 0] == 0
    assert "ink" not in done


def test_what_lets_light_through_lies_on_white(tmp_path: Path) -> None:
    ink = np.zeros((50, 50, 4), np.uint8)  # all of it black, and clear but for the ink
    ink[20:40, 22:28, 3] = 255
    made, done = read_picture(save(tmp_path / "clear.png", ink), DIGIT, False)
    assert made.max() > 200
    assert "dark on light" in done


def test_sixteen_bits_are_not_cut_off(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    made, _ = read_picture(save(tmp_path / "deep.png", deep), layout_of((8, 8)), False)
    assert made[0, 0] == 0
    assert made[-1, -1] == 255
    assert len(np.unique(made)) == 64


def test_a_turned_photograph_is_turned_upright(tmp_path: Path) -> None:
    picture = Image.fromarray(np.repeat(np.arange(8, dtype=np.uint8)[:, None] * 30, 4, axis=1))
    exif = picture.getexif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "turned.png", exif=exif)
    made, _ = read_picture(tmp_path / "turned.png", layout_of((8, 4)), False)
    assert made[0, 0] > made[-1, 0]


@pytest.mark.parametrize(
    ("input_range", "expected"),
    [((-8, 8), (0, 1)), ((0, 1), (0, 1)), ((-2048, 2048), (0, 255)), ((0, 256), (0, 255))],
)
def test_what_pixels_become_follows_from_the_range(
    input_range: tuple[float, float], expected: tuple[float, float]
) -> None:
    pixels = pixels_for(input_range, None)
    assert (pixels.black, pixels.white) == expected
    assert ("a guess" in str(pixels)) == (input_range == (-8, 8))


@pytest.mark.parametrize("input_range", [(-1, 1), (-0.5, 0.5), (1, 8)])
def test_a_range_that_tells_nothing_is_refused_with_what_to_pass(
    input_range: tuple[float, float],
) -> None:
    with pytest.raises(InputError, match=r"--pixels=-1,1"):
        pixels_for(input_range, None)
    assert pixels_for(input_range, (-1, 1)).white == 1


def test_a_bomb_of_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="neither an array nor a picture"):
        read_picture(save(tmp_path / "b.png", np.zeros((40, 40), np.uint8)), DIGIT, False)
