"""What repeats itself fills no log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from privserve.party import quiet


class Lines(logging.Handler):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.written.append(record.getMessage())


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    handler.addFilter(quiet.SaidOften())
    log = logging.getLogger("front")
    log.propagate = False
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)
    log.propagate = True


def test_a_message_is_written_a_few_times_a_minute_whatever_its_arguments(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(quiet, "time", SimpleNamespace(monotonic=lambda: now[0]))
    log = logging.getLogger("front")
    for number in range(10_000):
        log.warning("refused %s", number)
    log.warning("something else")
    assert len(lines.written) == quiet.MOST + 1
    assert "more of these are not written" in lines.written[quiet.MOST - 1]
    assert lines.written[-1] == "something else"
    now[0] += quiet.SECONDS + 1
    log.warning("refused %s", "later")
    kept = 10_000 - quiet.MOST
    assert lines.written[-1] == f"refused later (and {kept} times more in the last minutes)"


def test_what_is_remembered_of_messages_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "MAX_KINDS", 10)
    said = quiet.SaidOften()
    for number in range(1000):
        said.filter(logging.makeLogRecord({"name": "front", "msg": f"sent {number}"}))
    assert len(said._seen) == 10


def test_lines_about_queries_are_written_one_by_one(lines: Lines) -> None:
    log = logging.getLogger("privserve.queries")
    log.addHandler(lines)
    level, log.propagate = log.level, False
    log.setLevel(logging.INFO)
    try:
        for number in range(100):
            log.info("query %s", number)
    finally:
        log.removeHandler(lines)
        log.setLevel(level)
        log.propagate = True
    assert len(lines.written) == 100
