"""The site is built as strictly as mkdocs can, and what a hook makes of pages for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from serving import ROOT

from scripts import site_docstrings, site_hooks


def test_the_site_is_built_without_a_warning_and_asks_no_other_host(tmp_path: Path) -> None:
    """A page or title that is linked to and not there is a warning, and so an error."""
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert {"index.html", "faq.html", "api.html", "CONTRIBUTING.html"} <= {p.name for p in pages}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(
            r"<(?:script|img|link|iframe)\b[^>]*(?:src|href)=\"?(\w+:)?//[^\s>]*", text
        )
        assert not loaded, page
    api = (tmp_path / "api.html").read_text(encoding="utf-8")
    assert 'id="privserve.client.Client.query_model"' in api
    assert "learnt by nobody else" in api
    assert "<strong><code>timeout</code></strong>: seconds that a query may take." in api


@pytest.mark.parametrize(
    ("page", "link", "on_the_site"),
    [
        ("docs/faq.md", "speed.md", "speed.md"),
        ("docs/faq.md", "speed.md#queries", "speed.md#queries"),
        ("docs/faq.md", "../CONTRIBUTING.md", "repository/CONTRIBUTING.md"),
        ("CONTRIBUTING.md", "docs/faq.md", "../faq.md"),
        ("CONTRIBUTING.md", "CHANGELOG.md", "CHANGELOG.md"),
        ("examples/README.md", "../docs/faq.md", "../../faq.md"),
        ("docs/faq.md", "https://a.example/b", "https://a.example/b"),
        ("docs/faq.md", "#a-title", "#a-title"),
    ],
)
def test_a_link_leads_on_the_site_to_what_it_leads_to_in_the_repository(
    page: str, link: str, on_the_site: str
) -> None:
    assert site_hooks.relinked(f"see [it]({link}).", page) == f"see [it]({on_the_site})."


@pytest.mark.parametrize(
    ("page", "on_the_site"),
    [
        (
            "1. one\n\n       code\n\n   text\n2. two",
            "1. one\n\n        code\n\n    text\n\n2. two",
        ),
        ("words:\n- one\n- two\n  more", "words:\n\n- one\n- two\n    more"),
        (
            "- one\n  - inner\n\n    its text\n- two",
            "- one\n    - inner\n\n        its text\n\n- two",
        ),
        ("- one\ntext of one\n\nafter", "- one\n    text of one\n\nafter"),
        (
            "::: a\n    options:\n      members:\n        - b",
            "::: a\n    options:\n      members:\n        - b",
        ),
        ("```\n- code\nmore\n```\nwords", "```\n- code\nmore\n```\nwords"),
        ("1. one\n\n   ```python\n   if x:\n       y\n   ```", None),
    ],
)
def test_lists_are_indented_as_the_site_wants_them(page: str, on_the_site: str | None) -> None:
    wanted = "1. one\n\n    ```python\n    if x:\n        y\n    ```"
    assert site_hooks.indented(page) == (wanted if on_the_site is None else on_the_site)


@pytest.mark.parametrize(
    ("docstring", "on_the_site"),
    [
        (
            "Begin.\n\nx: a thing. rows:\nhow many.",
            "Begin.\n\n**`x`**: a thing.\n\n**`rows`**: how many.",
        ),
        ("x, rows: both; x is more.", "**`x`**, **`rows`**: both; x is more."),
        ("Begin. note: no parameter.", "Begin. note: no parameter."),
        (
            "x: a thing. Raises ModelError for none.",
            "**`x`**: a thing.\n\nRaises ModelError for none.",
        ),
    ],
)
def test_parameters_begin_paragraphs(docstring: str, on_the_site: str) -> None:
    shown = site_docstrings.parted(docstring, ["x", "rows"])
    assert re.sub(r"\n{2,}", "\n\n", shown) == on_the_site


def test_links_in_code_are_none() -> None:
    assert site_hooks.links("[a](b.md)\n```\n[c](d.md)\n```\n[e](https://f)") == ["b.md"]
