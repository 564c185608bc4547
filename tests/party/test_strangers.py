"""What somebody who is nobody could make a party hold, log or wait for."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time

import pytest
from raw_http import Front, read_answer, statuses
from serving import wait_until
from stage import SPARE, Stage

from privserve.credentials import KEY_FILE, ClientKey
from privserve.party.lanes import PROTOCOL, Listener


def first_message() -> bytes:
    """What begins a connection as another party makes it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols([PROTOCOL])
    sent = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="alice").do_handshake()
    return sent.read()


def test_four_hundred_silent_connections_do_not_cost_four_hundred_threads(stage: Stage) -> None:
    before, address = stage.held("alice"), stage.config.parties[0].endpoint
    silent = [socket.create_connection(address, timeout=5) for _ in range(400)]
    hello = first_message()
    try:
        for sock in silent:
            with contextlib.suppress(OSError):  # some are turned away at once
                sock.sendall(hello)
        wait_until(lambda: stage.held("alice").threads > before.threads + 50, "they are met")
        assert stage.held("alice").threads <= before.threads + Listener.MAX_WELCOMING + SPARE
    finally:
        for sock in silent:
            sock.close()
    wait_until(
        lambda: (
            stage.held("alice").threads <= before.threads + SPARE
            and stage.held("alice").descriptors <= before.descriptors + SPARE
        ),
        "their threads have ended",
    )
    stage.check_honest()


def is_hung_up_on(stage: Stage, chunk: bytes, most: int, first: bytes = b"") -> int:
    """Send `chunk` again and again; how many bytes alice took before she hung up."""
    stream = Front(stage.config).connect("alice")
    stream.settimeout(10)
    sent = 0
    with contextlib.closing(stream), contextlib.suppress(OSError):
        stream.sendall(first)
        while sent < most:
            stream.sendall(chunk)
            sent += len(chunk)
    return sent


FLOODS = {
    "a header without end": (b"GET /v2 HTTP/1.1\r\nX: ", b"x" * 65536),
    "headers without end": (b"GET /v2 HTTP/1.1\r\n", b"X: y\r\n" * 10_000),
    "a path without end": (b"GET /", b"x" * 65536),
    "a trailer without end": (
        b"POST /v2/models/small/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"X: y\r\n" * 10_000,
    ),
    "an extension of a chunk without end": (
        b"POST /v2/models/small/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;",
        b"x" * 65536,
    ),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_what_is_no_body_may_not_be_long(stage: Stage, flood: tuple[bytes, bytes]) -> None:
    """A head could be as long as the line and its 20 s let it be: all of it was kept."""
    first, chunk = flood
    before, most = stage.resident("alice"), 200 << 20
    sent = is_hung_up_on(stage, chunk, most, first)
    assert sent < most / 4, "alice took all of it"
    assert stage.resident("alice") < before + 60


def test_a_connection_takes_few_requests_at_once(stage: Stage) -> None:
    stream = Front(stage.config).connect("alice")
    stream.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n" * 5000)
    assert 400 in statuses(stream, 1.0)
    stream.close()


def test_a_few_requests_at_once_are_all_answered(stage: Stage) -> None:
    stream = Front(stage.config).connect("alice")
    stream.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
    assert statuses(stream, 1.0) == [200] * 10
    stream.close()


def test_a_stranger_cannot_fill_the_log(stage: Stage) -> None:
    """The server's own log used to go past the filter: a line for each malformed request."""
    before = len(stage.log_path("bob").read_text().splitlines())
    for _ in range(200):
        stream = Front(stage.config).connect("bob")
        stream.sendall(b"nonsense\r\n\r\n")
        stream.settimeout(5)
        with contextlib.closing(stream), contextlib.suppress(OSError):
            assert b"400" in stream.recv(4096)
    assert len(stage.log_path("bob").read_text().splitlines()) < before + 20


HOSTS = [b"[", b"a b", b"\xff", b"x:99999999", b"[::1", b"@:/?#"]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("query", [b"", b"?\xff\xfe", b"?%ff", b"?[", b"/"])
def test_a_malformed_host_or_query_is_an_answer_and_no_surprise(
    stage: Stage, host: bytes, query: bytes
) -> None:
    """A path with a slash too many was redirected to whatever host was named."""
    since = stage.check_log("alice")
    for path in (b"/privserve/status", b"/nowhere"):
        stream = Front(stage.config).connect("alice")
        stream.sendall(b"GET " + path + query + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        stream.settimeout(5)
        assert read_answer(stream).status in (400, 401, 404)
        stream.close()
    stage.check_log("alice", since)


def test_a_front_answers_others_while_it_reads_large_bodies(stage: Stage) -> None:
    """One JSON body of 19 MB used to hold everybody up for 3 s."""
    stage.model.share(stage.cluster, report=lambda line: None)
    version = stage.cluster.call(stage.config.parties[0], "GET", "/v2/models/small").json()
    target = f"/v2/models/small/versions/{version['versions'][0]}/infer"
    key = ClientKey.read(stage.config.path.parent / KEY_FILE)
    shown = [("Authorization", key.authorization(stage.config.cluster, "alice"))]
    numbers = b'{"inputs":[{"name":"x","datatype":"INT64","shape":[1,4],"data":[%s0]}]}'
    bodies = [
        numbers % (b"1," * (19 << 19)),
        numbers % (b"1," * (4085 << 9)),
        numbers % (b"[]," * (1360 << 10)),
        b'{"inputs":[' + b"{}," * (1360 << 10) + b"{}]}",
        b'{"inputs":[' + b"{}," * (250 << 10) + b"{}]}",
    ]
    worst, done = 0.0, threading.Event()

    def flood() -> None:
        front = Front(stage.config)
        for body in bodies:
            answers.append(front.ask("alice", "POST", target, shown, body).status)
        front.close()
        done.set()

    answers: list[int] = []
    front, flooding = Front(stage.config), threading.Thread(target=flood)
    flooding.start()
    while not done.is_set():
        began = time.monotonic()
        assert front.ask("alice", "GET", "/v2/health/live", [], b"").status == 200
        worst = max(worst, time.monotonic() - began)
        done.wait(0.005)
    flooding.join()
    front.close()
    stage.unload()
    assert answers == [413, 400, 400, 400, 400]
    assert worst < 1.5, f"somebody waited for {worst:.2f} s"
