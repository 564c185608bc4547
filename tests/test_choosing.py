"""Which cell a client asks, and where it goes when one fails; the cells are fakes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from serving import make_config
from test_describing import described

import privserve as ps
from privserve import client as client_module
from privserve import lane_client
from privserve.choosing import Trip, is_elsewhere
from privserve.client_cell import ClientCell
from privserve.config import format_config, read_config
from privserve.errors import (
    ClusterError,
    ConfigError,
    DeadlinePassed,
    InputError,
    LimitReached,
    NoAnswer,
    NotServing,
    QueryError,
    RangeError,
    StaleSession,
    UnknownClient,
)
from privserve.lane_client import LaneClient
from privserve.query_frames import Kind
from privserve.served_model import ServedModel, parse_model

X = np.zeros((1, 2))


@pytest.fixture
def client(tmp_path: Path) -> ps.Client:
    """Of three cells; what they do is the test's."""
    config = make_config(tmp_path, [f"127.0.0.1:{n}" for n in (1, 2, 3)])
    names = [party.name for party in config.parties]
    cells = [[(n, f"127.0.0.1:{10 * k + i}") for i, n in enumerate(names)] for k in (1, 2, 3)]
    config.path.write_text(format_config(cells[0], config.cluster, config.owner, cells[1:]))
    return ps.Client(read_config(config.path), timeout=5)


def says(cell: ClientCell, *what: Any) -> list[float]:
    """Have a cell answer or raise this, in turns, the last again and again; when it was asked."""
    asked: list[float] = []
    turns = list(what)

    def ask(x: Any, seconds: float, before: Any = None) -> Any:
        asked.append(seconds)
        turn = turns.pop(0) if len(turns) > 1 else turns[0]
        if isinstance(turn, Exception):
            raise turn
        return turn, []

    cell.asked = ask  # type: ignore[method-assign]
    return asked


def test_of_two_cells_the_one_with_fewer_queries_of_this_client_is_asked(
    client: ps.Client,
) -> None:
    first, second, third = client._cells
    first.pending, second.pending, third.pending = 9, 5, 7
    chosen = {Trip(client._cells, 5).next() for _ in range(200)}
    assert chosen == {second, third}, "the busiest is the worse one of any two"
    second.pending = 20
    chosen = {Trip(client._cells[:2], 5).next() for _ in range(20)}
    assert chosen == {first}


def test_a_cell_that_fails_is_left_alone_longer_each_time_until_it_answers(
    client: ps.Client,
) -> None:
    cell = client._cells[0]
    pauses = []
    for _ in range(8):
        cell.fared(well=False)
        pauses.append(cell.avoided_until - time.monotonic())
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0], abs=0.05)
    assert cell not in {Trip(client._cells, 5).next() for _ in range(100)}
    assert Trip([cell], 5).next() is cell, "where there is no other one it is asked all the same"
    cell.fared(well=True)
    assert cell in {Trip(client._cells, 5).next() for _ in range(100)}
    cell.fared(well=False)
    assert cell.avoided_until - time.monotonic() < 0.2
    cell.avoided_until = 0.0
    tries = [Trip(client._cells, 5).next() for _ in range(100)]
    assert tries.count(cell) == 1, "one query finds out whether it is back"


def test_the_models_of_all_cells_are_told_and_none_that_is_silent_is_waited_for(
    client: ps.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_over = threading.Event()
    first, second, third = client._cells

    def refuse(*, served: bool) -> list[str]:
        raise ClusterError("cannot reach alice")

    def hang(*, served: bool) -> list[str]:
        is_over.wait(60)
        return []

    first.names = lambda *, served: ["a", "b"]  # type: ignore[method-assign]
    second.names = lambda *, served: ["b", "c"]  # type: ignore[method-assign]
    third.names = refuse  # type: ignore[method-assign]
    assert client.models() == ["a", "b", "c"]
    monkeypatch.setattr(client_module, "PATIENCE_SECONDS", 0.5)
    third.names, first.names = first.names, hang  # type: ignore[method-assign]
    assert sorted(client.models()) == ["a", "b", "c"]
    is_over.set()
    for cell in client._cells:
        cell.names = refuse  # type: ignore[method-assign]
    with pytest.raises(ClusterError):
        client.models()


REFUSALS = {
    "a party is gone": (ClusterError("cannot reach bob"), True),
    "silence": (NoAnswer("bob did not answer in time"), True),
    "nobody serves": (NotServing("serve() is not called"), True),
    "it drains": (QueryError("this party is about to end", 503), True),
    "a share did not come": (QueryError("only 1 of 2 parties", 504), True),
    "its limit": (LimitReached("the limit is reached"), True),
    "still another session": (StaleSession("shared anew"), True),
    "no such model yet": (QueryError("there is no model 'm'", 404), True),
    "not told of the client yet": (UnknownClient("who is that?"), True),
    "time is up": (DeadlinePassed("too late"), False),
    "a bad input": (InputError("no such shape"), False),
    "out of range": (RangeError("too large"), False),
    "too many rows": (QueryError("no memory for this", 413), False),
    "not this client's model": (QueryError("may not ask", 403), False),
    "a bug of ours": (ConfigError("a client does not survive a fork"), False),
}


@pytest.mark.parametrize(("error", "goes_on"), REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("how", ["at once", "in the background"])
def test_where_a_query_goes_when_a_cell_refuses_it(
    client: ps.Client, error: ps.PrivserveError, goes_on: bool, how: str
) -> None:
    assert is_elsewhere(error) == goes_on
    first, second, _ = client._cells
    client._cells = [first, second]
    second.avoided_until = time.monotonic() + 60
    answer = SimpleNamespace(decode=lambda shares, logits: {"y": "an answer"})
    asked = says(second, answer)

    def refuse(*_: Any) -> Any:
        raise error

    first.asked = refuse  # type: ignore[method-assign]
    first.open = refuse  # type: ignore[method-assign]

    def ask() -> Any:
        if how == "at once":
            return client.query_model(X)
        return client.query_model_async(X).result(5)

    if goes_on:
        assert ask() == "an answer"
        assert asked[0] <= 5, "what is left of the query's time"
    else:
        with pytest.raises(type(error)) as raised:
            ask()
        assert raised.value is error
    assert len(asked) == goes_on


def test_each_cell_is_asked_once_and_the_error_is_the_one_that_says_most(
    client: ps.Client,
) -> None:
    errors = [LimitReached("reached"), ClusterError("cannot reach bob"), NotServing("bob is away")]
    asked = [says(cell, error) for cell, error in zip(client._cells, errors, strict=True)]
    for _ in range(9):
        with pytest.raises(NotServing, match="bob is away"):
            client._asked(X)
    assert [len(times) for times in asked] == [9, 9, 9]
    says(client._cells[2], ClusterError("cannot reach carol"))
    for _ in range(9):
        with pytest.raises(LimitReached):
            client._asked(X)


def test_a_query_whose_time_is_up_asks_no_further_cell(client: ps.Client) -> None:
    trip = Trip(client._cells, 0.0)
    error = NoAnswer("bob did not answer in time")
    assert trip.failed(trip.next(), error) is error


# -- one model in all cells --------------------------------------------------------------------


def model(session: str, shape: int = 2) -> ServedModel:
    facts = described("m", session)
    facts["inputs"] = [{"name": "x", "datatype": "INT64", "shape": [-1, shape]}]
    return parse_model("alice", facts)


def serves(cell: ClientCell, now: Callable[[], ServedModel]) -> None:
    cell._describer = SimpleNamespace(read=lambda way: now(), wanted="")  # type: ignore[assignment]
    cell.way = SimpleNamespace(close=lambda: None)  # type: ignore[assignment]


def test_a_cell_that_describes_another_model_is_refused(client: ps.Client) -> None:
    first, second, third = client._cells
    serves(first, lambda: model("00"))
    serves(second, lambda: model("11", shape=3))
    serves(third, lambda: model("22"))
    assert first.read_model().session == "00"
    with pytest.raises(ClusterError, match="cell 1 describes another model than cell 0 does"):
        second.read_model()
    assert second.model is None
    assert third.read_model().session == "22"


def test_a_model_that_is_replaced_in_one_cell_after_the_other_is_taken_over(
    client: ps.Client,
) -> None:
    now = [model("00"), model("11"), model("22")]
    for n, cell in enumerate(client._cells):
        serves(cell, lambda n=n: now[n])  # type: ignore[misc]
        cell.read_model()
    now[0] = model("33", shape=3)
    with pytest.raises(ClusterError, match="another model"):
        client._cells[0].read_model(again=True)
    now[1], now[2] = model("44", shape=3), model("55", shape=3)
    assert client._cells[0].read_model(again=True).session == "33"
    assert client._cells[1].read_model(again=True).session == "44"


def test_a_cell_that_is_away_has_no_say_in_what_the_model_is(client: ps.Client) -> None:
    first, second, _ = client._cells
    serves(first, lambda: model("00"))
    first.read_model()

    def away() -> ServedModel:
        raise ClusterError("cannot reach alice")

    serves(first, away)
    serves(second, lambda: model("11", shape=3))
    assert second.read_model().session == "11"
    assert first.model is None, "it is read anew when it is back"


# -- signs of life -----------------------------------------------------------------------------


def test_a_party_that_says_nothing_is_asked_for_a_sign_of_life_and_given_up() -> None:
    lanes = LaneClient([], SimpleNamespace(set_alpn_protocols=lambda _: None), 5.0)  # type: ignore[arg-type]
    sent: list[bytes] = []
    now = time.monotonic()
    lane = SimpleNamespace(
        is_lost=False,
        heard=now - 3.0,
        probed=0.0,
        send=sent.append,
        peer=SimpleNamespace(name="bob", address="h:1"),
        rank=0,
        stream=SimpleNamespace(sock=object()),
        close=lambda: None,
    )
    lanes._connections = [lane]  # type: ignore[list-item]
    lanes._probe()
    assert not sent, "who asks one cell only waits for as long as the query may take"
    lanes.silent_seconds = 4.0
    lanes._probe()
    lanes._probe()
    assert sent == [lane_client.frame(Kind.PING, 0)]
    lane.heard = time.monotonic()  # it answered
    lanes._probe()
    assert not lane.is_lost
    lane.heard, lane.probed = now - 5.0, now - 2.5
    lanes._probe()
    assert lane.is_lost
    lanes.close()
