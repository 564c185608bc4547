"""A query lane by hand, for what no client of ours would send."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager

from serving import Digits, client_headers

from privserve import fixedpoint, sharing
from privserve.addresses import split_address
from privserve.calls import tls_context
from privserve.query_frames import (
    PROTOCOL,
    QUERY_HEAD,
    FrameReader,
    Kind,
    frame,
    json_frame,
    read_json,
)


class RawLane:
    """One TLS connection to one party, which speaks PROTOCOL or pretends to."""

    def __init__(self, digits: Digits, rank: int = 0) -> None:
        config = digits.cluster.config
        self.party = config.parties[rank]
        context = tls_context(config.ca)
        context.set_alpn_protocols([PROTOCOL])
        raw = socket.create_connection(split_address(self.party.address), timeout=20)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock: ssl.SSLSocket = context.wrap_socket(
            raw, server_hostname=config.identity(self.party.name)
        )
        self._reader = FrameReader(1 << 30)
        self._frames: list[tuple[int, int, bytes]] = []
        self._authorization = client_headers(config, self.party.name)["Authorization"]

    def hello(self, authorization: str | None = None) -> dict:
        """Say hello; what the party says of itself."""
        shown = self._authorization if authorization is None else authorization
        self.send(json_frame(Kind.HELLO, 0, {"authorization": shown}))
        kind, _, payload = self.next()
        assert kind == Kind.WELCOME, payload
        return read_json(memoryview(payload))

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def next(self, seconds: float = 20) -> tuple[int, int, bytes]:
        """The next frame; EOFError where the party closed the connection."""
        deadline = time.monotonic() + seconds
        while not self._frames:
            self.sock.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self.sock.recv(1 << 16)
            except (ConnectionError, ssl.SSLError) as error:
                if isinstance(error, ssl.SSLError) and "timed out" in str(error):
                    raise TimeoutError from None
                data = b""
            if not data:
                raise EOFError
            for kind, number, payload in self._reader.frames(memoryview(data)):
                self._frames.append((kind, number, bytes(payload)))
        return self._frames.pop(0)

    def error(self) -> tuple[int, dict]:
        """The number and fields of the error that comes next."""
        kind, number, payload = self.next()
        assert kind == Kind.ERROR, (kind, payload)
        return number, read_json(memoryview(payload))

    def is_closed(self) -> bool:
        """Whether the party closes the connection; frames before that are skipped."""
        try:
            while True:
                self.next()
        except EOFError:
            return True
        except TimeoutError:
            return False

    def close(self) -> None:
        self.sock.close()


@contextmanager
def raw_lanes(digits: Digits, ranks: tuple[int, ...] = (0, 1)) -> Iterator[list[RawLane]]:
    """A lane to each of these parties, greeted."""
    lanes = [RawLane(digits, rank) for rank in ranks]
    try:
        for lane in lanes:
            lane.hello()
        yield lanes
    finally:
        for lane in lanes:
            lane.close()


def query_payloads(digits: Digits, rows: int = 1, session: str | None = None) -> list[bytes]:
    """The payloads of a query for both parties."""
    status = digits.model.status()[0]
    x = fixedpoint.encode(digits.images[:rows])
    head = QUERY_HEAD.pack(os.urandom(16), bytes.fromhex(session or status["session"]), rows, 0, 0)
    return [head + share.tobytes() for share in sharing.split(x, 2)]


def query_frames(digits: Digits, number: int, rows: int = 1) -> list[bytes]:
    """The frames of a query for both parties."""
    return [frame(Kind.QUERY, number, payload) for payload in query_payloads(digits, rows)]
