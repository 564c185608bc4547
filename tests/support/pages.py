"""The pages that people read: their code, links and titles, as tests need them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from serving import ROOT

PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "examples").glob("*.md"),
    ]
)
FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
RUN = "<!-- run -->\n"
"""Stands before a block of Python that needs nothing but what is in the checkout."""


class Block(NamedTuple):
    """A fenced piece of code."""

    page: str
    language: str
    code: str
    runs: bool
    """Whether the page says that it can be run as it is."""


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def fenced(page: Path) -> Iterator[Block]:
    """The blocks of a page, without the indentation of the list that they are in."""
    text = page.read_text(encoding="utf-8")
    for found in FENCED.finditer(text):
        indent, language, code = found.groups()
        lines = [line.removeprefix(indent) for line in code.split("\n")]
        runs = text[: found.start()].endswith(RUN)
        yield Block(name_of(page), language, "\n".join(lines), runs)


def commands(page: Path) -> Iterator[list[str]]:
    """What a page tells to type, by words: lines of code, and code within sentences."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    prose = FENCED.sub("", text)
    lines = [*re.findall(r"^ {4,}(\S.*)$", prose, re.MULTILINE)]
    lines += [
        line for block in fenced(page) if not block.language for line in block.code.split("\n")
    ]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    for line in [*lines, *spans]:
        for part in re.split(r"&&|;|\|(?!.*[\]'\"])", line.split(" #")[0]):
            words = part.replace("(", " ").replace(")", " ").split()
            if words:
                yield words


def links(page: Path) -> Iterator[tuple[str, str]]:
    """What a page links to in the repository: a path from the page, and a title's anchor."""
    prose = FENCED.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's titles."""
    prose = FENCED.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}
