"""HTTP spoken by hand to a party's front, so that it can be wrong in every way."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field

from privserve.calls import tls_context
from privserve.certificates import OWNER_KEY
from privserve.config import ClusterConfig
from privserve.owner_calls import Boot, Signer, load_owner_key

SECONDS = 20.0


@dataclass
class Answer:
    """One answer of a front; status 0 where it hung up instead."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Front:
    """TLS connections to the fronts of a cluster, one kept for each party."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._context = tls_context(config.ca)
        self._kept: dict[str, ssl.SSLSocket] = {}

    def connect(self, party: str) -> ssl.SSLSocket:
        """A new connection to one party."""
        address = self._config.parties[self._config.rank(party)].endpoint
        raw = socket.create_connection(address, timeout=SECONDS)
        return self._context.wrap_socket(raw, server_hostname=self._config.identity(party))

    def ask(
        self, party: str, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes
    ) -> Answer:
        """Make a well-formed request on the kept connection and return its answer."""
        head = [f"{method} {target} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
        head += [f"{name}: {value}" for name, value in headers]
        request = "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body
        for _ in range(2):
            kept = self._kept.pop(party, None) or self.connect(party)
            try:
                kept.sendall(request)
                answer = read_answer(kept)
            except OSError:
                answer = Answer(0)
            if answer.status and answer.headers.get("connection") != "close":
                self._kept[party] = kept
                return answer
            kept.close()
            if answer.status:
                return answer
        return Answer(0)

    def close(self) -> None:
        for kept in self._kept.values():
            kept.close()
        self._kept.clear()


def read_answer(stream: ssl.SSLSocket) -> Answer:
    """Read one answer with a Content-Length, all that the fronts make."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (got := stream.recv(1 << 16)):
            return Answer(0, data)
        data += got
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in lines)}
    status = int(first.split()[1])
    if status == 100:
        return read_answer(stream)
    while len(body) < int(headers.get("content-length", "0")):
        if not (got := stream.recv(1 << 16)):
            break
        body += got
    return Answer(status, body, headers)


def statuses(stream: ssl.SSLSocket, quiet: float) -> list[int]:
    """The statuses of all answers that come until it is quiet, or the connection ends."""
    data = b""
    stream.settimeout(quiet)
    with contextlib.suppress(OSError):
        while got := stream.recv(1 << 16):
            data += got
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) [A-Z]", data)]


class OwnersHand:
    """Signs calls to running parties as the model owner does."""

    def __init__(self, config: ClusterConfig) -> None:
        self._signer = Signer(load_owner_key(config.path.parent / OWNER_KEY), config.cluster)
        front = Front(config)
        self._boots = {
            party.name: Boot.read(json.loads(front.ask(party.name, "GET", "/v2", [], b"").body))
            for party in config.parties
        }
        front.close()

    def sign(self, party: str, method: str, target: str, body: bytes, session: str = "") -> str:
        """The Authorization of one call."""
        boot = self._boots[party]
        return self._signer.authorization(party, boot, method, target, session, body)
