"""Serves the page by which a browser on this machine asks the parties that were started here.

It hands out files and is asked nothing else: the page itself, the client that is in it as a module
of its own, and who the parties are. No share comes here, since the page sends them to the parties.
But what the page does is what this program serves: whoever visits trusts it for that, or keeps a
copy whose hash he knows.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources

from privserve.addresses import bind
from privserve.config import Browsers

PAGE = "page.html"
MODULE = "privserve-client.js"
TYPES = "privserve-client.d.ts"
PARTIES = "/parties.json"
CONNECT = re.compile('connect-src [^;"]*')
POLICY = re.compile('<meta http-equiv="Content-Security-Policy" content="([^"]*)">')
IDLE_SECONDS = 20
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def read_file(name: str) -> bytes:
    """Return one of the files that browsers are served."""
    return (resources.files("privserve") / "web" / name).read_bytes()


def policy(page: str, parties: tuple[str, ...]) -> str:
    """Return the page's own policy, narrowed to these parties and to no frame around it."""
    found = POLICY.search(page)
    assert found is not None  # scripts/web_page.py wrote it
    connect = f"connect-src 'self' {' '.join(parties)}"
    return f"{CONNECT.sub(connect, found[1])}; frame-ancestors 'none'"


class WebPage:
    """The page at a port of localhost, and where its browsers ask the parties."""

    def __init__(self, port: int, parties: int, others: Sequence[str] = ()) -> None:
        """Bind the page's port, and see that those of this many parties, which follow, are free.

        0: any free ones. others: origins of further pages that may ask. Raises ConfigError where a
        port is not free.
        """
        with _Bound(port and port + 1, parties) as ports:
            self._sock = bind(("localhost", port), "the page", "--web")
        self.origin = f"http://localhost:{self._sock.getsockname()[1]}"
        self.browsers = Browsers(tuple(ports), (self.origin, *others))
        self._server: ThreadingHTTPServer | None = None

    @property
    def sha256(self) -> str:
        """The page's hash, in hex."""
        return hashlib.sha256(read_file(PAGE)).hexdigest()

    def serve(self, cluster: str, *, is_open: bool, model: str = "") -> None:
        """Answer from now on. cluster: its id; is_open: whether the parties ask for no key.

        model: which one the page asks, where there are several.
        """
        parties = tuple(f"http://localhost:{port}" for port in self.browsers.ports)
        told = {"parties": list(parties), "cluster": cluster, "open": is_open, "model": model}
        page = read_file(PAGE)
        files = {
            "/": (page, "text/html; charset=utf-8"),
            f"/{MODULE}": (read_file(MODULE), "text/javascript; charset=utf-8"),
            f"/{TYPES}": (read_file(TYPES), "text/plain; charset=utf-8"),
            PARTIES: (json.dumps(told).encode(), "application/json"),
        }
        own = {"Content-Security-Policy": policy(page.decode(), parties)}
        self._server = _server(self._sock, self.origin, files, own)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Answer no more; idempotent."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self._sock.close()


class _Bound:
    """This many ports of localhost, held while others are looked for; yields their numbers."""

    def __init__(self, first: int, count: int) -> None:
        self._wanted = [first and first + i for i in range(count)]
        self._held: list[socket.socket] = []

    def __enter__(self) -> list[int]:
        try:
            for port in self._wanted:
                self._held.append(bind(("localhost", port), "a party's browsers", "--web"))
        except BaseException:
            self.__exit__()
            raise
        return [int(sock.getsockname()[1]) for sock in self._held]

    def __exit__(self, *_: object) -> None:
        for sock in self._held:
            sock.close()


def _server(
    sock: socket.socket,
    origin: str,
    files: Mapping[str, tuple[bytes, str]],
    policy: Mapping[str, str],
) -> ThreadingHTTPServer:
    host = origin.removeprefix("http://")

    class Answer(BaseHTTPRequestHandler):
        timeout = IDLE_SECONDS
        server_version, sys_version = "privserve", ""

        def do_GET(self) -> None:
            if self.headers.get("Host") != host:
                # By another name of this machine the page has another origin, which parties refuse.
                self._say(HTTPStatus.TEMPORARY_REDIRECT, b"", {"Location": f"{origin}/"})
                return
            body, kind = files.get(self.path, (b"", ""))
            if not kind:
                self._say(HTTPStatus.NOT_FOUND, b"", {})
                return
            self._say(HTTPStatus.OK, body, {"Content-Type": kind, **HEADERS, **policy})

        def _say(self, status: HTTPStatus, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing of who visits."""

    server = ThreadingHTTPServer((host, 0), Answer, bind_and_activate=False)
    server.socket.close()
    server.socket = sock
    server.server_activate()
    return server
