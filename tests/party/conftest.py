"""Fixtures of the tests of one party's rooms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import echo_engine
import pytest
from connected import Parties
from sessions import Sessions
from stage import Stage

from privserve import engines


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(engines.ENGINES, "echo", "echo_engine")
    echo_engine.batches.clear()
    echo_engine.released.clear()
    yield
    echo_engine.hold.set()
    echo_engine.released.set()


@pytest.fixture
def sessions(echo: None, tmp_path: Path) -> Iterator[Sessions]:
    three = Sessions(tmp_path)
    yield three
    echo_engine.hold.set()
    echo_engine.released.set()
    three.close()


@pytest.fixture(scope="package")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Three party processes that wait for nobody for long."""
    waits = ("--connect-timeout", "20", "--share-timeout", "0.6", "--peer-timeout", "6")
    running = Stage(tmp_path_factory.mktemp("stage"), *waits)
    yield running
    running.close()


@pytest.fixture
def parties(tmp_path: Path) -> Iterator[Parties]:
    """Two compute parties and the dealer, connected on two lanes."""
    three = Parties(tmp_path, 3)
    three.open()
    yield three
    three.close()
