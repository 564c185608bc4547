"""README: what a newcomer reads first, in its order, in two languages, and that it works."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pages import fenced
from serving import ROOT, SAMPLE_DIGITS, SAMPLE_MODEL, wait_until
from test_tutorial import is_served

ENGLISH = ROOT / "README.md"
PORTUGUESE = ROOT / "README.pt-BR.md"
BOTH = [ENGLISH, PORTUGUESE]


def titles(page: Path) -> list[str]:
    return re.findall(r"^## (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)


def numbers(page: Path) -> list[str]:
    """The numbers of the tables, as English writes them."""
    rows = re.findall(r"^\|.*\d.*\|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    found = re.findall(r"\d+(?:[.,]\d+)?", re.sub(r"\(.*?\)", "", "\n".join(rows)))
    if page == PORTUGUESE:
        return [number.translate(str.maketrans(".,", ",.")) for number in found]
    return found


def code(page: Path) -> list[str]:
    """What there is to type, without the remarks beside it."""
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    lines += [line for block in fenced(page) for line in block.code.split("\n")]
    return [line.split("#")[0].rstrip() for line in lines]


def test_it_goes_from_what_it_is_to_where_to_go() -> None:
    assert titles(ENGLISH) == [
        "Two commands",
        "What they print",
        "From Python",
        "What is guaranteed and what is not",
        "Speed",
        "Where to go",
    ]
    head = ENGLISH.read_text(encoding="utf-8").split("\n## ")[0]
    assert "docs/images/share.svg" in head
    assert len(head.splitlines()) < 12


@pytest.mark.parametrize("page", BOTH, ids=lambda page: page.name)
def test_it_has_the_commands_that_people_know(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for command in (
        "make demo",
        "make test",
        "python scripts/convert.py model.h5",
        "python -m privserve.launch --parties 3",
        "python scripts/query.py",
    ):
        assert f"    {command} " in text
    assert "docs/security.md" in text


def test_both_languages_say_the_same() -> None:
    assert len(titles(PORTUGUESE)) == len(titles(ENGLISH))
    assert code(PORTUGUESE) == code(ENGLISH)
    assert numbers(PORTUGUESE) == numbers(ENGLISH)
    links = [set(re.findall(r"\]\((docs/[\w-]+\.md)", page.read_text())) for page in BOTH]
    # The tutorial in Portuguese is the notebooks.
    assert links[0] - links[1] == {"docs/tutorial.md"}
    assert not links[1] - links[0]


def test_its_figures_are_those_of_the_page_on_speed() -> None:
    text = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    for figure in ("0.32 ms", "48.8 ms", "0.20 ms", "2,328", "19,257", "1,789", "2.2 - 2.4"):
        assert figure in text
        assert figure in ENGLISH.read_text(encoding="utf-8")


@pytest.mark.slow
def test_its_lines_of_python_serve_and_ask(tmp_path: Path, tag: str) -> None:
    serve, ask = (block.code for block in fenced(ENGLISH) if block.language == "python")
    shutil.copy(SAMPLE_MODEL, tmp_path / "model.h5")
    assert "(4000, 4001, 4002)" in serve
    free = serve.replace("(4000, 4001, 4002)", "(0, 0, 0)")
    owner = subprocess.Popen([sys.executable, "-c", free], cwd=tmp_path)
    try:
        config = tmp_path / "cluster" / "cluster.toml"
        wait_until(
            lambda: owner.poll() is not None or (config.exists() and is_served(config)),
            "the model is served",
            200,
        )
        with np.load(SAMPLE_DIGITS) as samples:
            images = {"images": samples["images"][:3]}
            labels = samples["labels"][:3]
        assert '"cluster/cluster.toml"' in ask
        example = tmp_path / "ask.py"
        example.write_text(ask.replace('"cluster/cluster.toml"', repr(str(config))))
        names = runpy.run_path(str(example), images)
        assert (names["scores"].argmax(axis=1) == labels).all()
        names["client"].close()
        assert owner.wait(60) == 0
    finally:
        owner.terminate()
        owner.wait(30)
