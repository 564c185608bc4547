"""What one client, or somebody who is none, can cost a party: each was shown once to hurt."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any

import echo_engine
import numpy as np
import pytest
from serving import wait_until
from sessions import Sessions, answer, numbers, states

from privserve.errors import NotServing
from privserve.party import connections, pending
from privserve.party.metadata import MAX_ROWS, max_rows
from privserve.party.pending import Pending, PendingQueries
from privserve.party.queries import GONE, LeaderQueue


def held(queue: PendingQueries, client: str, count: int) -> list[Pending]:
    """Queries of a client that wait, as many as are taken of `count`."""
    taken = []
    for number in range(count):
        query = Pending(f"{client}{number}", [np.zeros((1, 2), np.int64)], 1, client)
        try:
            queue.add(query)
        except NotServing:
            break
        taken.append(query)
    return taken


def test_halves_of_one_clients_queries_leave_room_for_the_others() -> None:
    """1,024 halves at one follower used to keep everybody else out."""
    waiting = PendingQueries()
    assert len(held(waiting, "bad", 5000)) == pending.MAX_PENDING_PER_CLIENT
    assert len(held(waiting, "good", 100)) == 100
    with pytest.raises(NotServing, match="256 queries of client 'bad' are waiting"):
        waiting.add(Pending("more", [], 1, "bad"))
    waiting.take("bad0")
    waiting.add(Pending("more", [], 1, "bad"))


def test_what_waits_takes_a_bounded_amount_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "MAX_PENDING_BYTES", 100)
    waiting = PendingQueries()
    waiting.add(Pending("a", [np.zeros((5, 2), np.int64)], 5))
    with pytest.raises(NotServing, match="fewer rows at a time"):
        waiting.add(Pending("b", [np.zeros((2, 2), np.int64)], 2))
    waiting.take("a")
    waiting.add(Pending("b", [np.zeros((6, 2), np.int64)], 6))
    waiting.fail_all(NotServing("over"))
    waiting.add(Pending("c", [np.zeros((6, 2), np.int64)], 6))


def test_models_have_equal_parts_of_it_and_each_takes_one_query(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pending, "MAX_PENDING_BYTES", 160)
    models = [1]
    waiting = PendingQueries(lambda: models[0])
    for name in "abcd":
        waiting.add(Pending(name, [np.zeros((2, 2), np.int64)], 2))
    models[0] = 2  # another model is shared: this one holds more than its part now
    with pytest.raises(NotServing, match="4 queries are waiting already"):
        waiting.add(Pending("e", [np.zeros((1, 2), np.int64)], 1))
    waiting.take("a")
    waiting.take("b")
    waiting.add(Pending("e", [np.zeros((1, 2), np.int64)], 1))
    with pytest.raises(NotServing):
        waiting.add(Pending("f", [np.zeros((1, 2), np.int64)], 1))
    other = PendingQueries(lambda: models[0])
    other.add(Pending("large", [np.zeros((10, 2), np.int64)], 10))
    with pytest.raises(NotServing):
        PendingQueries(lambda: 2).add(Pending("larger", [np.zeros((11, 2), np.int64)], 11))


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((2,), MAX_ROWS), ((28, 28, 1), MAX_ROWS), ((224, 224, 3), 55), ((1 << 24,), 1)],
)
def test_a_query_of_large_inputs_holds_fewer_rows(shape: tuple[int, ...], rows: int) -> None:
    """At 224 x 224 x 3 a query's body was let grow to 3.7 GB."""
    tensor = {"name": "x", "shape": list(shape)}
    assert max_rows({"inputs": [tensor]}) == rows  # type: ignore[typeddict-item]
    assert rows == 1 or 8 * rows * int(np.prod(shape)) <= 64 << 20


def test_a_follower_holds_no_share_while_nobody_serves(sessions: Sessions) -> None:
    sessions.start()
    follower = sessions.all[1]
    lonely = Pending("q", [numbers(1, 1)], 1)
    follower.submit(lonely)  # type: ignore[attr-defined]
    assert isinstance(lonely.future.exception(5), NotServing)
    assert states(sessions) == ["loaded"] * 3


@pytest.mark.parametrize("rank", [0, 1])
def test_a_query_whose_client_left_is_withdrawn_everywhere(sessions: Sessions, rank: int) -> None:
    sessions.start()
    sessions.leader.queue.serve(None)
    echo_engine.hold.clear()
    running = sessions.ask(numbers(1, 1))
    wait_until(lambda: len(sessions.leader.queue.pending) == 0, "the first query runs")
    leaving, staying = sessions.ask(numbers(2, 2)), sessions.ask(numbers(3, 3))
    wait_until(lambda: sessions.leader.queue._ready.rows == 2, "both wait")
    sessions.all[rank].withdraw(leaving[rank])  # type: ignore[attr-defined]
    wait_until(leaving[0].future.done, "the leader let it go")
    echo_engine.hold.set()
    np.testing.assert_array_equal(answer(running), numbers(2, 2))
    np.testing.assert_array_equal(answer(staying), numbers(6, 6))
    assert "client left" in str(leaving[1].future.exception(5))
    assert sessions.leader.queue.answered == 2


def test_a_query_that_runs_already_cannot_be_withdrawn() -> None:
    queue = LeaderQueue(2, 10, 10)
    queue.serve(None)
    query = Pending("q", [], 1)
    queue.submit(query)
    queue.announced(1, "q", 1)
    batch = queue.next_batch()
    queue.withdraw("q")
    queue.announced(1, "q", GONE)
    queue.finished(batch)
    assert not query.future.done()
    assert queue.answered == 1


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    return 0.3


SLOW = {"nothing": b"", "half a head": b"GET /v2 HTTP/1.1\r\nHost: x\r\n", "half a line": b"GE"}


GOES_ON = {
    "a body that trickles": (b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\n", b"x"),
    "a body that trickles in chunks": (
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"1\r\nx\r\n",
    ),
    "empty lines": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n"),
}


@pytest.mark.parametrize("sent", GOES_ON.values(), ids=GOES_ON)
def test_who_goes_on_after_the_answer_is_hung_up_on(
    patience: float, sent: tuple[bytes, bytes]
) -> None:
    """A byte after the answer disarmed the timer of idle connections for good."""
    first, later = sent
    assert asyncio.run(talk(first, later)) >= patience * 0.9


@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW)
def test_who_says_nothing_is_hung_up_on(patience: float, sent: bytes) -> None:
    """uvicorn waits for ever for the head of a request."""
    assert asyncio.run(talk(sent)) >= patience * 0.9


async def talk(sent: bytes, later: bytes = b"") -> float:
    """Connect, send, once more after an answer; the seconds until the server hangs up."""
    import uvicorn

    async def app(scope: object, receive: object, send: Callable[[object], Any]) -> None:
        assert later, "no request is complete"
        head = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(app, http=connections.ForgottenWhenLost, log_level="critical")  # type: ignore[arg-type]
    config.load()
    state = uvicorn.Server(config).server_state
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: connections.ForgottenWhenLost(config, state, {}),  # type: ignore[arg-type]
        sock=socket.create_server(("127.0.0.1", 0)),
    )
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    began = time.monotonic()
    writer.write(sent)
    with contextlib.suppress(ConnectionResetError):
        if later:
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            writer.write(later)
        assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()
    server.close()
    return time.monotonic() - began
