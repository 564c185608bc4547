"""A log of JSON lines, whatever is logged."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from privserve.party.json_log import JsonLines, log_as_json

SECRET = f"share {8_675_309}"


class Kept(logging.Handler):
    """Keeps lines as they would be written."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def last(self) -> dict[str, Any]:
        assert "\n" not in self.lines[-1]
        return json.loads(self.lines[-1])


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    """The only handler of a process that logs JSON."""
    root, handler = logging.getLogger(), Kept()
    monkeypatch.setattr(root, "handlers", [handler])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    log_as_json("bob")
    yield handler
    logging.captureWarnings(False)


def test_a_line_has_time_level_party_and_text(kept: Kept) -> None:
    logging.getLogger("privserve").warning("%s: Grüße\n\x1b[2J\u2028", "bob")
    line = kept.last()
    at = line.pop("time")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", at)
    assert line == {"level": "warning", "party": "bob", "event": "bob: Grüße\n\x1b[2J\u2028"}
    assert kept.lines[-1].isascii()


def test_what_a_line_is_about_has_fields_of_its_own_and_nothing_else_gets_in(kept: Kept) -> None:
    about = {"session": "5", "model": "m", "request": "q1", "secret": [1, 2]}
    logging.getLogger("privserve").error("lost", extra=about)
    line = kept.last()
    assert {name: line[name] for name in ("session", "model", "request")} == {
        "session": "5",
        "model": "m",
        "request": "q1",
    }
    assert "secret" not in line


def test_an_exception_is_told_by_its_place_and_not_by_what_it_says(kept: Kept) -> None:
    try:
        raise ValueError(SECRET)
    except ValueError as error:
        logging.getLogger("asyncio").error("a task failed", exc_info=True)
        line = kept.last()
        assert line["error"] == "ValueError"
        assert "test_json_log.py" in line["frames"]
        sys.excepthook(ValueError, error, error.__traceback__)
    assert "ValueError, which nobody foresaw" in kept.last()["event"]
    assert kept.last()["level"] == "critical"

    def fail() -> None:
        raise KeyError(SECRET)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert "KeyError, which nobody foresaw" in kept.last()["event"]
    assert SECRET not in "".join(kept.lines)


def test_warnings_are_lines_as_well(kept: Kept) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)  # pytest has put its own in between
        log_as_json("bob")
        warnings.warn("old settings", stacklevel=1)
    assert "old settings" in kept.last()["event"]


def test_text_logs_are_as_they_were() -> None:
    formatted = JsonLines("bob").format(logging.makeLogRecord({"msg": "x", "created": 0.0004}))
    assert json.loads(formatted)["time"] == "1970-01-01T00:00:00.000Z"
