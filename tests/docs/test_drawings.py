"""The drawings are what their script makes, can be read by machines, and fit their frames."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from serving import ROOT

from scripts import drawings, recording

SVG = "{http://www.w3.org/2000/svg}"
IMAGES = sorted((ROOT / "docs").rglob("*.svg"))


def test_the_drawings_are_current() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "drawings.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("image", IMAGES, ids=lambda one: one.name)
def test_a_drawing_says_what_it_shows_to_who_cannot_see_it(image: Path) -> None:
    root = ElementTree.parse(image).getroot()
    assert root.get("role") == "img"
    named = (root.get("aria-labelledby") or "").split()
    words = {e.get("id"): e.text for e in root if e.tag in (f"{SVG}title", f"{SVG}desc")}
    assert len(named) == 2
    assert all(words[name] for name in named)


@pytest.mark.parametrize("name", drawings.drawings())
def test_a_drawing_is_for_light_pages_and_dark_ones(name: str) -> None:
    text = (ROOT / "docs" / "images" / name).read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    root = ElementTree.fromstring(text)
    width, height = (float(root.get(side, "0")) for side in ("width", "height"))
    for element in root.iter(f"{SVG}text"):
        assert 0 < float(element.get("x", "")) < width
        assert 0 < float(element.get("y", "")) < height


def test_a_recording_shows_its_lines_when_they_came_and_all_of_them_where_nothing_moves() -> None:
    lines = [recording.Line(0.5, "--- 1. <Convert>"), recording.Line(2.25, "done")]
    root = ElementTree.fromstring(recording.svg(lines))
    texts = list(root.iter(f"{SVG}text"))
    assert [text.text for text in texts] == ["$ make demo", "--- 1. <Convert>", "done"]
    assert [text.get("style") for text in texts] == [
        None,
        "animation: hidden 1.50s",
        "animation: hidden 3.25s",
    ]


def test_the_recording_is_of_three_right_answers() -> None:
    text = (ROOT / "docs" / "images" / "demo.svg").read_text(encoding="utf-8")
    assert text.count("was correctly classified") == 3
    assert str(ROOT) not in text
