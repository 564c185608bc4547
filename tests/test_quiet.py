"""What repeats itself fills no log."""

from __future__ import annotations

import logging

import pytest

from privserve import quiet


def test_a_message_is_written_a_few_times_a_minute_whatever_its_arguments(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(quiet.time, "monotonic", lambda: now[0])
    caplog.handler.addFilter(quiet.SaidOften())
    log = logging.getLogger("front")
    for number in range(10_000):
        log.warning("refused %s", number)
    log.warning("something else")
    assert len(caplog.messages) == quiet.MOST + 1
    assert "more of these are not written" in caplog.messages[quiet.MOST - 1]
    assert caplog.messages[-1] == "something else"
    now[0] += quiet.SECONDS + 1
    log.warning("refused %s", "later")
    assert (
        caplog.messages[-1]
        == f"refused later (and {10_000 - quiet.MOST} times more in the last minutes)"
    )


def test_what_is_remembered_of_messages_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "MAX_KINDS", 10)
    said = quiet.SaidOften()
    for number in range(1000):
        said.filter(logging.makeLogRecord({"name": "front", "msg": f"sent {number}"}))
    assert len(said._seen) == 10
