"""What a party's front answers with: JSON, and errors as JSON, whatever went wrong."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from privserve.errors import PrivserveError, QueryError

log = logging.getLogger("privserve")

MAX_MESSAGE = 4000
"""Characters of an error's answer."""


def log_no_value(app: ASGIApp) -> ASGIApp:
    """`app`, whose unexpected errors are logged here, and not by the server: frames only.

    An exception's message may quote the values of arrays.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except Exception as error:
            frames = "".join(traceback.format_tb(error.__traceback__))
            log.error("%s in the front\n%s", type(error).__name__, frames)

    return answer


class Json(Response):
    """A JSON answer, in ASCII: what a request or a description says may be no valid text."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """Return the body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class UnsupportedMedia(QueryError):
    """A body is of a media type, or in an encoding, that the call does not take."""

    status = 415

    def __init__(self, message: str, headers: Mapping[str, str]) -> None:
        """headers: which ones it takes, in HTTP's words."""
        super().__init__(message)
        self.headers = headers


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PrivserveError)
    headers = error.headers if isinstance(error, UnsupportedMedia) else None
    return _refusal(str(error), error.code, error.status, headers)


def _refusal(
    message: str, code: str, status: int, headers: Mapping[str, str] | None = None
) -> Response:
    """An error's answer. What a request made of the message may be no valid text, and long."""
    text = message.encode("utf-8", "backslashreplace").decode()
    return Json({"error": text[:MAX_MESSAGE], "code": code}, status, headers)


async def _on_unknown_path(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    path = request.scope["path"]  # its URL cannot be had where host or query are malformed
    message = f"{request.method} {path} is not part of this server's protocol"
    headers = None
    if status == 405:
        methods = sorted(getattr(error, "headers", {}).get("Allow", "").split(", "))
        headers = {"Allow": ", ".join(methods)}
        message += f"; allowed here: {headers['Allow']}"
    return _refusal(message, PrivserveError.code, status, headers)


async def _on_bug(request: Request, error: Exception) -> Response:
    return Json({"error": "internal error; see the party's log", "code": "internal"}, 500)


ERRORS: dict[Any, Any] = {
    PrivserveError: _on_error,
    Exception: _on_bug,
    404: _on_unknown_path,
    405: _on_unknown_path,
}
"""What answers instead of a handler that raised, by class or HTTP status."""
