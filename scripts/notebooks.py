#!/usr/bin/env python3
"""Writes examples/notebooks: the tutorial in English and Brazilian Portuguese, with one code.

python scripts/notebooks.py           writes the files
python scripts/notebooks.py --check   exit code 1 if they are not current
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tutorial_texts import PARTS, Cell, Text

TARGET = Path(__file__).resolve().parents[1] / "examples" / "notebooks"
LANGUAGES = ("en", "pt")


def notebook(cells: list[Cell], language: str) -> str:
    """Return a notebook (nbformat 4.5) without outputs, as Jupyter would save it."""
    made = []
    for number, cell in enumerate(cells):
        text = getattr(cell, language) if isinstance(cell, Text) else cell
        body: dict[str, Any] = {
            "cell_type": "markdown" if isinstance(cell, Text) else "code",
            "id": f"cell-{number}",
            "metadata": {},
            "source": text.strip("\n").splitlines(keepends=True),
        }
        if not isinstance(cell, Text):
            body |= {"execution_count": None, "outputs": []}
        made.append(dict(sorted(body.items())))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def files() -> dict[Path, str]:
    """Return what each file has to hold."""
    return {
        TARGET / f"{getattr(part.name, language)}.ipynb": notebook(part.cells, language)
        for part in PARTS
        for language in LANGUAGES
    }


def main() -> int:
    """Exit code 1 where --check finds a file that is not current, or one too many."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    made = files()
    if not parser.parse_args().check:
        TARGET.mkdir(exist_ok=True)
        for path, text in made.items():
            path.write_text(text, encoding="utf-8")
        return 0
    there = {path: path.read_text(encoding="utf-8") for path in TARGET.glob("*.ipynb")}
    if there == made:
        return 0
    stale = [path.name for path in {**there, **made} if there.get(path) != made.get(path)]
    print(
        f"out of date: {', '.join(sorted(stale))}; run python scripts/notebooks.py "
        "(and remove what it does not write)",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
