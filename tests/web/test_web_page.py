"""The page in a real browser, against real parties: what it shows, and what leaves it."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from chromium import CHROMIUM, Chromium, Page, Request, chromium
from serving import SAMPLE_MODEL, free_workers, serving, tagged_processes

import privserve as ps
from privserve import oip
from privserve.cluster import Cluster
from privserve.config import NO_ORIGIN
from privserve.credentials import KEY_FILE, Limits
from privserve.web_page import WebPage
from scripts.web_page import PAGE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
]

QUERIES = 200
BYTES_FREEDOM = 255
"""A chi-square of 256 values of a byte has this many degrees of freedom."""
MOST_SIGMAS = 6.0


class Stage:
    """A page with the parties that it asks."""

    def __init__(self, web: WebPage, cluster: Cluster, copied: str) -> None:
        self.url = f"{web.origin}/"
        self.copy = copied
        self.cluster = cluster
        self.parties = [f"http://localhost:{port}" for port in web.browsers.ports]


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as running:
        yield running


@contextlib.contextmanager
def staged(*, is_open: bool) -> Iterator[Stage]:
    """A page and its parties, which let copies that are opened as files ask too."""
    web = WebPage(0, 2, [NO_ORIGIN])
    try:
        with (
            Cluster(*free_workers(), browsers=web.browsers) as cluster,
            ps.load_model(SAMPLE_MODEL) as model,
        ):
            everybody = Limits() if is_open else None
            model.share(cluster, everybody=everybody, report=lambda line: None)
            web.serve(cluster.config.cluster, is_open=is_open)
            with serving(cluster, model):
                yield Stage(web, cluster, PAGE.as_uri())
    finally:
        web.close()


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with staged(is_open=True) as made:
        yield made


@pytest.fixture
def page(browser: Chromium, stage: Stage) -> Page:
    page = browser.page()
    page.look(1280, 900, languages="en-GB")
    page.open(stage.url)
    return page


def text(page: Page, name: str) -> str:
    return str(page.run(f"document.getElementById({name!r}).textContent"))


def click(page: Page, selector: str) -> None:
    page.run(f"document.querySelector({selector!r}).click()")


def ask(page: Page) -> list[float]:
    """Ask, and return the bars' numbers."""
    page.run("document.querySelector('#bars').replaceChildren()")
    click(page, "#ask")
    page.wait("!document.getElementById('ask').disabled")
    bars = page.run("[...document.querySelectorAll('#bars .share')].map((b) => b.textContent)")
    return [float(b.strip("%\xa0 ").replace(",", ".")) for b in bars]


def complaints(page: Page) -> list[dict[str, Any]]:
    """What the browser's console has, a broken policy among it."""
    said = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    return [event for name in said for event in page.named(name)]


@pytest.mark.parametrize("digit", range(10))
def test_each_sample_is_recognised(page: Page, digit: int) -> None:
    click(page, f"[data-sample='{digit}']")
    bars = ask(page)
    assert int(np.argmax(bars)) == digit
    assert text(page, "result").startswith(f"It is a {digit}")
    assert sum(bars) == pytest.approx(100, abs=1)
    assert complaints(page) == []


def test_a_digit_is_drawn_by_hand(page: Page) -> None:
    box = page.run("document.getElementById('paper').getBoundingClientRect().toJSON()")
    line = [(0.52, 0.15 + 0.07 * i) for i in range(11)]
    page.drag([(box["x"] + u * box["width"], box["y"] + v * box["height"]) for u, v in line])
    assert int(np.argmax(ask(page))) == 1
    assert "2 servers answered within" in text(page, "took")
    click(page, "#clear")
    assert ask(page) == []
    assert text(page, "result") == "There is nothing drawn yet."


def test_a_digit_is_drawn_with_keys_alone(page: Page) -> None:
    """From the top of the page, by Tab; a seven."""
    for _ in range(3):
        page.press("Tab")
    assert page.run("document.activeElement.id") == "paper"
    page.press("ArrowLeft", times=6)
    page.press("ArrowUp", times=9)
    assert text(page, "place") == "Column 9, row 6, empty"
    page.press("ArrowRight", shift=True, times=11)
    assert text(page, "place") == "Column 20, row 6, drawn"
    for _ in range(6):
        page.press("ArrowDown", shift=True, times=3)
        page.press("ArrowLeft", shift=True)
    page.press("Enter")
    page.wait("document.querySelectorAll('#bars li').length === 10")
    assert text(page, "result").startswith("It is a 7")
    page.press("Delete")
    assert text(page, "place") == "The drawing is empty."


def test_both_languages_are_whole(page: Page, browser: Chromium, stage: Stage) -> None:
    click(page, "[data-sample='4']")
    ask(page)
    english = page.run("document.body.innerText")
    click(page, "[data-language='pt']")
    assert page.run("document.documentElement.lang") == "pt-BR"
    portuguese = page.run("document.body.innerText")
    assert "É um 4" in portuguese
    # Only the languages' own names and numbers are the same in both.
    shared = {line for line in english.splitlines() if re.search("[a-z]{3}", line)}
    same = shared & set(portuguese.splitlines())
    assert not {line for line in same if not re.fullmatch("English|Português|[0-9a-f ]+", line)}, (
        same
    )
    visitor = browser.page()
    visitor.look(360, 740, languages="pt-BR,pt;q=0.9")
    visitor.open(stage.url)
    assert visitor.run("document.documentElement.lang") == "pt-BR"


def test_a_phone_needs_no_sideways_scrolling_and_fingers_find_every_button(page: Page) -> None:
    click(page, "[data-sample='8']")
    ask(page)
    for width, dark in ((320, False), (360, True), (1280, True)):
        page.look(width, 740, dark=dark)
        assert page.run("document.documentElement.scrollWidth") <= width
        small = page.run(
            "[...document.querySelectorAll('button, a, input:not([hidden])')]"
            ".filter((b) => b.offsetParent !== null)"
            ".filter((b) => b.getBoundingClientRect().height < 43.9).map((b) => b.outerHTML)"
        )
        assert small == []


def test_whatever_is_operated_or_seen_has_a_name(page: Page) -> None:
    """As a screen reader is told it."""
    click(page, "[data-sample='8']")
    ask(page)
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    nameless = [
        node["role"]["value"]
        for node in nodes
        if not node.get("ignored")
        and node["role"]["value"] in ("button", "link", "application", "image", "img", "heading")
        and not node.get("name", {}).get("value")
    ]
    assert nameless == []
    live = page.run("[...document.querySelectorAll('[role=status]')].map((e) => e.id)")
    assert live == ["place", "result"]


def shares_of(request: Request) -> np.ndarray:
    """The ring elements in a query's body."""
    length = next(v for k, v in request.headers.items() if k.lower() == oip.HEADER_LENGTH.lower())
    _, tensors = oip.parse_message(request.body, length, "inputs")
    ((_, share),) = tensors.items()
    return share.reshape(-1)


def sigmas(data: bytes) -> float:
    """How far a chi-square of bytes is from what uniform ones have, in standard deviations."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    expected = len(data) / 256
    found = float(((counts - expected) ** 2 / expected).sum())
    return (found - BYTES_FREEDOM) / math.sqrt(2 * BYTES_FREEDOM)


def test_no_request_carries_the_drawing_and_each_share_alone_is_uniform(
    page: Page, stage: Stage
) -> None:
    """By the browser's own network log, of QUERIES queries of one drawing."""
    click(page, "[data-sample='3']")
    before = len(page.requests())
    for _ in range(QUERIES):
        assert len(ask(page)) == 10
    log = page.requests()
    asked = [r for r in log[before:] if r.method == "POST"]
    by_party = {p: [r for r in asked if r.url.startswith(p)] for p in stage.parties}
    assert [len(found) for found in by_party.values()] == [QUERIES, QUERIES]
    pairs = zip(*([shares_of(r) for r in q] for q in by_party.values()), strict=True)
    sums = [a + b for a, b in pairs]
    drawn = sums[0]
    assert np.count_nonzero(drawn) > 60
    assert drawn.min() == 0
    assert drawn.max() <= 1 << 14
    assert all(np.array_equal(drawn, again) for again in sums)

    # What would tell it: as fixed point, as shorts of either width, as text; alone or in a row.
    reals = drawn / 2.0**14
    inked = [i for i in np.flatnonzero(drawn) if np.count_nonzero(drawn[i : i + 4]) == 4]
    needles = {form(reals[i : i + 4]) for i in inked for form in (singles, doubles, words, shorts)}
    assert len(needles) > 50
    for request in log:
        assert request.url.startswith((stage.url, *stage.parties))
        told = [request.body, request.url.encode(), json.dumps(request.headers).encode()]
        told += [unquote_to_bytes(request.url), undone(request.body)]
        assert not any(needle in part for part in told for needle in needles)
    for found in by_party.values():
        assert abs(sigmas(b"".join(shares_of(r).tobytes() for r in found))) < MOST_SIGMAS
        each = np.array([shares_of(r) for r in found])
        assert len(np.unique(each)) == each.size  # none is drawn twice
        top = each < 0
        assert np.abs(top.mean(axis=0) - 0.5).max() < MOST_SIGMAS / (2 * math.sqrt(QUERIES))
        # Nor does a share say where the ink is.
        inside, outside = top[:, drawn != 0].mean(), top[:, drawn == 0].mean()
        assert abs(inside - outside) < MOST_SIGMAS / (
            2 * math.sqrt(QUERIES * np.count_nonzero(drawn))
        )


def singles(values: np.ndarray) -> bytes:
    return values.astype("<f4").tobytes()


def doubles(values: np.ndarray) -> bytes:
    return values.astype("<f8").tobytes()


def words(values: np.ndarray) -> bytes:
    return np.rint(values * 2**14).astype("<i8").tobytes()


def shorts(values: np.ndarray) -> bytes:
    return np.rint(values * 2**14).astype("<i2").tobytes()


def undone(body: bytes) -> bytes:
    """What a body would be if it were text of base 64."""
    try:
        return base64.b64decode(body)
    except ValueError:
        return b""


def test_the_search_for_the_drawing_can_find_it() -> None:
    values = np.array([0.25, 0.5, 0.75, 1.0])
    for form in (singles, doubles, words, shorts):
        assert form(values) in b"before" + form(np.array([0.1, *values])) + b"behind"
    assert abs(sigmas(b"the drawing, as text" * 4000)) > MOST_SIGMAS


def test_a_kept_copy_asks_whom_its_reader_names(
    browser: Chromium, stage: Stage, tmp_path: Path
) -> None:
    """As a file, which has no origin of its own; the operator let such pages in."""
    with urllib.request.urlopen(stage.url, timeout=20) as answer:
        kept = answer.read()
    assert kept == PAGE.read_bytes()
    page = browser.page()
    page.look(1280, 900, languages="en")
    page.open(stage.copy)
    click(page, "[data-sample='5']")
    assert ask(page) == []
    assert text(page, "result") == "Say below which servers to ask."
    page.run(f"document.getElementById('addresses').value = {' '.join(stage.parties)!r}")
    click(page, "#servers-form button")
    assert int(np.argmax(ask(page))) == 5


def test_another_page_is_answered_by_no_party(browser: Chromium, stage: Stage) -> None:
    page = browser.page()
    other = WebPage(0, 1)
    other.serve("another", is_open=True)
    try:
        page.open(f"{other.origin}/")
        fetched = f"fetch('{stage.parties[0]}/v2').then((a) => a.status, (e) => e.name)"
        assert page.run(fetched) == "TypeError"
    finally:
        other.close()


def test_a_party_that_is_gone_and_a_page_without_a_key_are_told(
    browser: Chromium, tag: str
) -> None:
    """A cluster that asks for keys: the page says so, takes one, and says when a party is gone."""
    with staged(is_open=False) as stage:
        page = browser.page()
        page.look(1280, 900, languages="en")
        page.open(stage.url)
        click(page, "[data-sample='2']")
        assert ask(page) == []
        assert "choose your client.key" in text(page, "result")
        shown = stage.cluster.config.path.parent / KEY_FILE
        page.call("DOM.enable")
        root = page.call("DOM.getDocument")["root"]["nodeId"]
        found = page.call("DOM.querySelector", nodeId=root, selector="#key")["nodeId"]
        page.call("DOM.setFileInputFiles", files=[str(shown)], nodeId=found)
        page.wait("document.getElementById('key').files.length === 1")
        assert int(np.argmax(ask(page))) == 2
        key = shown.read_text().split()[1]
        for request in page.requests():
            assert key not in json.dumps(request.headers)
            assert key.encode() not in request.body
    assert ask(page) == []
    assert text(page, "result").startswith("A server cannot be reached")
    assert not tagged_processes(tag)
