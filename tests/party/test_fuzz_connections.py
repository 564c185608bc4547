"""What anybody can send to a party's ports, who shows no certificate and signs nothing.

Covered here, on the front's port: bytes that are no TLS; TLS of other versions, ClientHellos that
are damaged or cut short; then, over TLS, request lines and heads that are damaged, flooded, cut
short or smuggled; bodies whose length is a lie, in chunks or not; pipelines; upgrades, HTTP/2's
preface, other methods; and for every route an Authorization that is garbage, a client's or the
owner's with a bit flipped, of another party, path, session or body, or used before.

On the peers' port: bytes that are no TLS, damaged ClientHellos, no certificate, another cluster's.
What parties send each other is in test_fuzz_peers, what is rightly signed in test_fuzz_calls.

A further kind of request is a function under `@request`.
"""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import time
from collections.abc import Callable

import pytest
from mutations import case, cases, damaged
from raw_http import Front, statuses
from stage import NAMES, Stage

from privserve.credentials import KEY_FILE, ClientKey
from privserve.party.routes import CALLS, REFUSED, Who


def at(path: str) -> str:
    """A route's path, of the model that there is and of a version that there is not."""
    return path.replace("{rest:path}", "status").format(model="small", version="1")


OWNERS = [(call.method, at(call.path)) for call in CALLS if call.who is Who.OWNER]
ROUTES = [
    *[(call.method, at(call.path)) for call in CALLS],
    ("GET", "/openapi.json"),
    *[(method, at(path)) for path in REFUSED for method in ("GET", "POST")],
]
QUIET_SECONDS = 0.03
Request = Callable[[random.Random], bytes]
REQUESTS: list[Request] = []


def request(make: Request) -> Request:
    """Enter a kind of request."""
    REQUESTS.append(make)
    return make


def plain(draw: random.Random, *headers: bytes, body: bytes = b"") -> bytes:
    method, path = draw.choice(ROUTES)
    lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: x", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@request
def damaged_somewhere(draw: random.Random) -> bytes:
    whole = plain(draw, b"Content-Length: 20", b"Accept: */*", body=b'{"num_requests": 12}')
    return damaged(draw, whole)


@request
def an_odd_request_line(draw: random.Random) -> bytes:
    method, path = draw.choice(ROUTES)
    target = draw.choice(
        [
            *(
                f"{path}/",
                f"//{path}",
                f"{path}?\xff\xfe",
                f"{path}?a=%ff",
                f"{path}#x",
                "*",
                "x:1",
            ),
            *(f"http://[::1{path}", f"https://x:99999999{path}", path * 40, "/%ed%a0%80", "/%00"),
            *("/v2/models/%ff%fe/versions/%c3%28/infer", f"{path}/../../etc", "/\x7f", "/"),
        ]
    )
    verb = draw.choice(
        [method, "BREW", "HEAD", "OPTIONS", "CONNECT", "TRACE", "PRI", "get", "", "M-SEARCH"]
    )
    version = draw.choice(["HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/9.9", "", "X"])
    return f"{verb} {target} {version}\r\nHost: x\r\n\r\n".encode("latin-1")


@request
def an_odd_head(draw: random.Random) -> bytes:
    odd = [
        *(b"Host: [", b"Host: x:y:z", b"Host: \xff", b"Host: a b", b"Host:", b"Host: x:999999"),
        *(b"Content-Length: -1", b"Content-Length: 1e3", b"Content-Length: " + b"9" * 400),
        *(b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: 0x10", b": x", b"\x00: x"),
        *(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked, gzip", b"A\r\n b: folded"),
        *(b"Transfer-Encoding: chunked\r\nContent-Length: 3", b"Expect: 100-continue"),
        *(b"Expect: the unexpected", b"Connection: close, keep-alive, upgrade", b"Cookie: \x0b"),
        *(b"Inference-Header-Content-Length: " + b"9" * 5000, b"A" * 3000 + b": x"),
        *(b"Authorization: " + b"x" * 9000, b"X: " + bytes(range(128, 256)), b"\xff\xfe: x"),
        b"\r\n".join(b"X-%d: y" % n for n in range(300)),
    ]
    lines = draw.sample(odd, draw.choice([1, 1, 2, 3]))
    return plain(draw, *lines, body=draw.choice([b"", b"{}", b"5\r\nhello\r\n0\r\n\r\n"]))


@request
def chunks_that_lie(draw: random.Random) -> bytes:
    sizes = [b"5", b"0", b"-1", b"FFFFFFFFFFFFFFFF", b"1" * 40, b"", b"zz", b"5;" + b"x" * 500]
    parts = []
    for _ in range(draw.randrange(1, 6)):
        piece = draw.randbytes(draw.choice([0, 4, 5, 6]))
        ending = draw.choice([b"\r\n", b"\r\n", b"\n", b""])
        parts.append(draw.choice(sizes) + b"\r\n" + piece + ending)
    trailer = draw.choice([b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\r\n" + b"X: y\r\n" * 300, b""])
    return plain(draw, b"Transfer-Encoding: chunked", body=b"".join(parts) + trailer)


@request
def a_body_that_is_longer_or_shorter_than_it_says(draw: random.Random) -> bytes:
    body = draw.randbytes(draw.randrange(60))
    length = draw.choice([0, 1, len(body) - 1, len(body) + 1, 10**6, 10**12])
    return plain(draw, b"Content-Length: %d" % max(0, length), body=body + plain(draw) * 2)


@request
def a_pipeline(draw: random.Random) -> bytes:
    parts = [draw.choice(REQUESTS)(draw) for _ in range(draw.randrange(2, 5))]
    return b"".join(parts) if draw.random() < 0.8 else plain(draw) * draw.choice([5, 200, 2000])


@request
def an_upgrade(draw: random.Random) -> bytes:
    if draw.random() < 0.3:
        return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + draw.randbytes(draw.choice([0, 9, 60]))
    protocol = draw.choice([b"websocket", b"h2c", b"TLS/1.0", b"\xff", b"x" * 2000])
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13"
    return plain(draw, b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + protocol, key)


@request
def an_authorization_that_is_garbage(draw: random.Random) -> bytes:
    schemes = ["Privserve", "PrivserveClient", "Bearer", "Basic", "privserve", "", "\xff"]
    values = [
        "1.-.0.A",
        "....",
        "a.b",
        "x" * 3000,
        "\xff\xfe",
        "9" * 19 + ".-." + "0" * 64 + ".AA==",
    ]
    values += ["0" * 21 + ".-." + "f" * 64 + ".%%%", "default.%%%", "default." + "A" * 44, ""]
    shown = f"{draw.choice(schemes)}{draw.choice([' ', '  ', ''])}{draw.choice(values)}"
    return plain(draw, b"Authorization: " + shown.encode("latin-1"), b"Content-Length: 0")


def connections_of(stage: Stage, usual: int) -> None:
    front = Front(stage.config)
    sizes = {name: stage.check_log(name) for name in NAMES}
    seen: set[int] = set()
    for number in cases(usual):
        sent = b""
        with case(number, lambda: sent) as draw:  # noqa: B023 - said at once
            sent = draw.choice(REQUESTS)(draw)
            name = draw.choice(NAMES)
            cut = draw.choice([len(sent), len(sent), draw.randrange(len(sent) + 1)])
            stream = front.connect(name)
            with contextlib.closing(stream), contextlib.suppress(OSError):
                stream.sendall(sent[:cut])
                if draw.random() < 0.1:
                    time.sleep(0.001)  # the rest comes by itself
                stream.sendall(sent[cut:])
                found = statuses(stream, QUIET_SECONDS)
                assert all(s < 500 or s in (503, 504) for s in found), found
                seen.update(found)
            sizes[name] = stage.check_log(name, sizes[name])
    assert {200, 400, 401, 404, 405} <= seen or len(cases(usual)) < 100, seen


def test_no_request_of_a_stranger_makes_a_front_fail(stage: Stage) -> None:
    with stage.undisturbed():
        connections_of(stage, 300)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_no_request_of_fifteen_thousand_strangers_makes_a_front_fail(stage: Stage) -> None:
    with stage.undisturbed():
        connections_of(stage, 15_000)


# -- who is who -----------------------------------------------------------------------------


class Forger:
    """What the owner signed, for another call or with something changed."""

    def __init__(self, stage: Stage) -> None:
        self.owner, self.config = stage.owner, stage.config
        self.client = ClientKey.read(stage.config.path.parent / KEY_FILE)

    def mutant(self, draw: random.Random, party: str, method: str, target: str) -> str:
        """An Authorization that is worth nothing for this call."""
        other = draw.choice([name for name in NAMES if name != party])
        way = draw.randrange(6)
        if way == 0:
            return self.owner.sign(other, method, target, b"")
        if way == 1:
            return self.owner.sign(party, method, target + "?", b"")
        if way == 2:
            return self.owner.sign(party, "PUT", target, b"")
        if way == 3:
            return self.client.authorization(self.config.cluster, party)
        good = self.owner.sign(party, method, target, b"")
        scheme, _, rest = good.partition(" ")
        if way == 4:
            fields = rest.split(".")
            at = draw.randrange(4)
            odd = ["", "--", fields[at - 1], fields[at] + "0", "0" + fields[at]]
            fields[at] = draw.choice([field for field in odd if field != fields[at]])
            return f"{scheme} {'.'.join(fields)}"
        # The last character of the base 64 before its padding holds bits that mean nothing.
        at = draw.randrange(len(rest) - 3)
        new = draw.choice([c for c in "0123456789abcdefXYZ-_." if c != rest[at]])
        return f"{scheme} {rest[:at]}{new}{rest[at + 1 :]}"


def forgeries(stage: Stage, usual: int) -> None:
    front, forger = Front(stage.config), Forger(stage)
    used: dict[str, list[tuple[str, str, str]]] = {name: [] for name in NAMES}
    for number in cases(usual):
        header = ""
        with case(number, lambda: header) as draw:  # noqa: B023 - said at once
            method, target = draw.choice(OWNERS)
            name = draw.choice(NAMES)
            if number % 20 == 0:
                header = stage.owner.sign(name, "GET", "/privserve/status", b"")
                answer = front.ask(
                    name, "GET", "/privserve/status", [("Authorization", header)], b""
                )
                assert answer.status == 200, answer
                used[name].append(("GET", "/privserve/status", header))
            if number % 7 == 0 and used[name]:
                method, target, header = draw.choice(used[name])
            else:
                header = forger.mutant(draw, name, method, target)
            answer = front.ask(name, method, target, [("Authorization", header)], b"")
            assert answer.status == 401, (name, method, target, answer)
    front.close()


def test_no_forged_call_of_the_owner_is_taken(stage: Stage) -> None:
    with stage.undisturbed():
        forgeries(stage, 400)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_no_forged_call_of_eight_thousand_is_taken(stage: Stage) -> None:
    with stage.undisturbed():
        forgeries(stage, 8_000)


# -- before TLS is agreed -------------------------------------------------------------------


def hello_of(draw: random.Random) -> bytes:
    """The first bytes of a TLS client of some kind, or what a client of another protocol says."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if draw.random() < 0.4:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if draw.random() < 0.3:
        context.set_alpn_protocols(draw.choice([["h2"], ["http/1.1", "h3"], ["x" * 200]]))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=draw.choice(["x", "a.b.c", None]))
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    others = [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", bytes(1000), draw.randbytes(300), b""]
    others += [
        b"\x16\x03\x01\xff\xff" + draw.randbytes(500),
        hello + hello,
        b"\x80\x2e\x01\x00\x02",
    ]
    return draw.choice([hello, damaged(draw, hello), damaged(draw, hello), *others])


def handshakes(stage: Stage, usual: int) -> None:
    for number in cases(usual):
        sent = b""
        with case(number, lambda: sent) as draw:  # noqa: B023 - said at once
            sent = hello_of(draw)
            party = stage.config.parties[draw.randrange(3)]
            with (
                socket.create_connection(party.endpoint, timeout=5) as sock,
                contextlib.suppress(OSError),
            ):
                sock.sendall(sent)
                sock.settimeout(QUIET_SECONDS / 10)
                while sock.recv(4096):
                    pass


def test_no_handshake_makes_a_party_fail(stage: Stage) -> None:
    with stage.undisturbed():
        handshakes(stage, 150)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_no_handshake_of_seven_thousand_makes_a_party_fail(stage: Stage) -> None:
    with stage.undisturbed():
        handshakes(stage, 7_000)
