"""Where browsers ask a party: plain HTTP on this host alone, for pages of named origins alone.

A browser knows nothing of the cluster's authority, so it cannot come to the party's own port. This
one is not encrypted, and so never leaves the host: either the browser is on it too, or a server
before it that has a certificate which browsers trust, and that belongs to the party's
administration, since it reads what the party reads.

A request is answered where its `Origin` is one of those that the operator named, and refused
otherwise, also where there is none: so no other page can have a visitor's browser ask, be it one
that had a name of its own lead here (DNS rebinding). That keeps pages out, not programs. Of the
front's calls it has the three that a client needs. No answer has a wildcard, and no cookie counts.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from privserve import oip
from privserve.party.json_answers import Json
from privserve.party.plain_door import PlainDoor

MAX_CONNECTIONS = 1024
IDLE_SECONDS = 60
KEPT_SECONDS = 600
"""For which a browser need not ask again whether it may ask."""
SEGMENT = "[^/]+"
PATHS = {
    re.compile("/v2"): "GET",
    re.compile(f"/v2/models/{SEGMENT}"): "GET",
    re.compile(f"/v2/models/{SEGMENT}/versions/{SEGMENT}/infer"): "POST",
}
"""What a client asks, with the method of each."""
SENT = ("Authorization", "Content-Type", oip.HEADER_LENGTH)
"""The headers that a page may send."""


def allow_pages(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    """`app`, for pages of these origins, and no more of it than a client needs."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        given = headers.getlist("Origin")
        if len(given) != 1 or given[0] not in origins:
            await _refuse(403, "this port answers pages of the origins that its operator named")(
                scope, receive, send
            )
            return
        method = next((m for path, m in PATHS.items() if path.fullmatch(scope["path"])), None)
        shown = {"Access-Control-Allow-Origin": given[0], "Vary": "Origin"}
        if method is None:
            refused = _refuse(404, "this port has what a client in a browser asks, and no more")
            await _with(refused, shown)(scope, receive, send)
        elif scope["method"] == "OPTIONS":
            shown |= {
                "Access-Control-Allow-Methods": method,
                "Access-Control-Allow-Headers": ", ".join(SENT),
                "Access-Control-Max-Age": str(KEPT_SECONDS),
            }
            await Response(status_code=204, headers=shown)(scope, receive, send)
        elif scope["method"] != method:
            refused = _refuse(405, f"allowed here: {method}", {"Allow": method})
            await _with(refused, shown)(scope, receive, send)
        else:
            shown["Access-Control-Expose-Headers"] = oip.HEADER_LENGTH
            await _with(app, shown)(scope, receive, send)

    return answer


def _refuse(status: int, why: str, headers: dict[str, str] | None = None) -> Json:
    return Json({"error": why, "code": "refused"}, status, headers)


def _with(app: ASGIApp, shown: dict[str, str]) -> ASGIApp:
    """`app`, with these headers on whatever it answers."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def say(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(shown)
            await send(message)

        await app(scope, receive, say)

    return answer


async def open_web(app: ASGIApp, sock: socket.socket, origins: Collection[str]) -> PlainDoor:
    """Let pages of these origins ask `app`, a party's front, at a socket that is bound."""
    return await PlainDoor.open(allow_pages(app, origins), sock, MAX_CONNECTIONS, IDLE_SECONDS)
