"""docs/operations.md: its commands are ones that there are, and so are the files that it names."""

from __future__ import annotations

import re
import shlex

import pytest
from serving import ROOT

from privserve import certify, clients, launch

TEXT = (ROOT / "docs" / "operations.md").read_text()
PARSERS = {"launch": launch.parse, "certify": certify.parse, "clients": clients.parse}


def commands() -> list[tuple[str, tuple[str, ...]]]:
    """Every command of ours in the document, with its words."""
    blocks = re.findall(r"^ {4,}\S.*", TEXT.replace("\\\n", " "), re.MULTILINE)
    lines = [block.split("#")[0] for block in blocks]
    found = re.findall(r"python -m privserve\.(\w+) ([^;\n]*)", "\n".join(lines))
    return [(name, tuple(shlex.split(words))) for name, words in found]


def test_the_document_has_commands() -> None:
    assert {name for name, _ in commands()} == set(PARSERS)
    assert len(commands()) > 8


@pytest.mark.parametrize(("name", "words"), commands(), ids=lambda one: str(one)[:40])
def test_every_command_has_the_options_that_it_is_given(name: str, words: tuple[str, ...]) -> None:
    PARSERS[name](words)


def test_every_file_that_is_named_is_there() -> None:
    named = set(re.findall(r"deploy/[\w./@-]+", TEXT))
    assert len(named) > 5
    for path in named:
        assert (ROOT / path).exists(), path


def test_every_link_within_it_leads_to_a_section() -> None:
    titles = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    sections = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) <= sections
