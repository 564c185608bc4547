#!/usr/bin/env python3
"""Writes docs/images/demo.svg: what `make demo` prints, and when, as a drawing of a terminal.

python scripts/recording.py     runs scripts/demo.py (with this Python), and writes what it printed

Lines appear as they did. Where nothing moves (a reader that wants it so, a program that knows no
CSS) all of them are there from the beginning.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "images" / "demo.svg"
WIDTH, LINE, TOP = 860, 18, 46
TYPED = 1.0
"""Seconds after which the command has been typed."""

STYLE = """\
    rect { fill: #10151c } .bar { fill: #232b36 } circle { fill: #5b6675 }
    text { font: 12.5px Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #d5dce5;
           white-space: pre }
    .step { fill: #6cb4f0; font-weight: bold } .typed { fill: #6fcf97 }
    @keyframes hidden { from, to { visibility: hidden } }
    @media (prefers-reduced-motion: reduce) { text { animation: none !important } }
"""


class Line(NamedTuple):
    """A printed line."""

    seconds: float
    """After the command was typed."""
    text: str


def record() -> Iterator[Line]:
    """Run the demo; yield its lines as they come. Raises CalledProcessError where it fails."""
    command = [sys.executable, "-u", str(ROOT / "scripts" / "demo.py")]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    began = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            yield Line(time.monotonic() - began, _anywhere(line.rstrip()))
    if demo.returncode:
        raise subprocess.CalledProcessError(demo.returncode, command)


def _anywhere(text: str) -> str:
    """A line without what differs from machine to machine and from run to run."""
    return re.sub(r"/\S*/privserve-demo-\w+", "/tmp/privserve-demo", text.replace(f"{ROOT}/", ""))


def svg(lines: list[Line]) -> str:
    """The drawing, with its text for those who cannot see it."""
    shown = [Line(0.0, "$ make demo"), *lines]
    height = TOP + LINE * len(shown) + 8
    parts = []
    for number, (seconds, text) in enumerate(shown):
        kind = "typed" if number == 0 else "step" if text.startswith("---") else ""
        delay = f' style="animation: hidden {seconds + TYPED:.2f}s"' if number else ""
        y = TOP + LINE * number
        parts.append(f'  <text class="{kind}" x="16" y="{y}"{delay}>{escape(text)}</text>')
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    dots = "".join(f'<circle cx="{20 + 18 * i}" cy="14" r="5"/>' for i in range(3))
    return "\n".join(
        [
            "<!-- Written by scripts/recording.py -->",
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" '
            'aria-labelledby="title says">',
            '  <title id="title">make demo, as a terminal shows it</title>',
            '  <desc id="says">It converts a Keras model, launches alice, bob and carol, asks them '
            "for three digits and ends them.</desc>",
            f"  <style>\n{STYLE}  </style>",
            f'  <rect width="{WIDTH}" height="{height}" rx="8"/>',
            f'  <rect class="bar" width="{WIDTH}" height="28" rx="8"/>{dots}',
            *parts,
            "</svg>\n",
        ]
    )


def main() -> int:
    """Exit code 0, or what the demo ended with."""
    argparse.ArgumentParser(
        description="Runs the demo, and writes docs/images/demo.svg."
    ).parse_args()
    try:
        lines = list(record())
    except subprocess.CalledProcessError as error:
        print(f"the demo failed with exit code {error.returncode}", file=sys.stderr)
        return error.returncode
    TARGET.write_text(svg(lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
