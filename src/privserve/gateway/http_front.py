"""The gateway's HTTP front: the Open Inference Protocol v2 with tensors of numbers."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Collection
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from privserve.errors import InputError, PrivserveError, QueryError
from privserve.gateway.bodies import ClientGone, read_body
from privserve.gateway.messages import Asked, read_request, write_answer
from privserve.gateway.metadata import index_entry, model_facts, server_facts
from privserve.gateway.refusals import note_bug, status_of, text_of
from privserve.gateway.tensors import Numbers
from privserve.gateway.upstream import MAX_QUERIES
from privserve.gateway.upstreams import Upstreams
from privserve.oip import HEADER_LENGTH
from privserve.served_model import ServedModel

MAX_BODY_BYTES = 256 << 20
MAX_JSON_BYTES = 64 << 20
"""Of a request that is JSON throughout, which is slow to read."""
HEAD_BYTES = 64 << 10
"""For all that is no tensor."""
BINARY_ELEMENT = 8
"""Bytes of the widest datatype."""
JSON_ELEMENT = 32
"""Characters that a number may take."""
THREAD_BYTES = 256 << 10
"""A longer body is read outside the event loop."""
CONTENT_TYPES = {
    "",
    "application/json",
    "application/octet-stream",
    "application/x-www-form-urlencoded",  # `curl -d` says so of any body
}
MAX_LENGTH_DIGITS = 18

Answers = dict[str, Numbers]


class _Heads(NamedTuple):
    """What a request's headers say of its body."""

    encoding: str
    length: int | None
    json_length: int | None
    """How much of it is JSON; None: all."""


def create_app(upstream: Upstreams, origins: Collection[str] = ()) -> ASGIApp:
    """Return the ASGI application. origins: whose pages a browser may ask from."""
    front, infer = _Front(upstream), _Infer(upstream)
    model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    routes = [
        Route(f"{model}/infer", infer, methods=["POST"]),
        Route(f"{version}/infer", infer, methods=["POST"]),
        Route("/v2", front.server_metadata),
        Route("/v2/repository/index", front.index, methods=["POST"]),
        Route("/v2/health/live", front.live),
        Route("/v2/health/ready", front.ready),
        Route(model, front.model_metadata),
        Route(version, front.model_metadata),
        Route(f"{model}/ready", front.model_ready),
        Route(f"{version}/ready", front.model_ready),
    ]
    handlers: dict[Any, Any] = {
        PrivserveError: _on_error,
        Exception: _on_bug,
        404: _on_unknown_path,
        405: _on_unknown_path,
    }
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["Content-Type", "Content-Encoding", HEADER_LENGTH],
        expose_headers=[HEADER_LENGTH],
        allow_private_network=True,
    )
    app = Starlette(
        routes=routes, exception_handlers=handlers, middleware=[cors] if origins else []
    )
    return _Door(app, frozenset(origins))


class _Door:
    """Turns away pages that nobody named, and keeps what goes wrong out of the server's log.

    A browser says whose page it asks for (Origin), and may ask any address on its network for any
    page, although it shows that page no answer. Programs send no such header.
    """

    def __init__(self, app: ASGIApp, origins: frozenset[str]) -> None:
        self._app, self._origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for name, value in scope["headers"]:
            if name == b"origin" and value.decode("latin-1") not in self._origins:
                text = (
                    "this gateway answers no page of that origin; name it with --cors if it is "
                    "meant to ask"
                )
                await JSONResponse({"error": text}, 403)(scope, receive, send)
                return
        try:
            await self._app(scope, receive, send)
        except ClientGone:
            pass
        except Exception as error:  # the application was told by `_on_bug`
            note_bug(error)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PrivserveError)
    return JSONResponse({"error": text_of(error)}, status_of(error))


async def _on_unknown_path(request: Request, error: Exception) -> Response:
    text = f"{request.method} {request.url.path} is not part of the Open Inference Protocol"
    return JSONResponse(
        {"error": text}, getattr(error, "status_code", 404), getattr(error, "headers", None)
    )


async def _on_bug(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "internal error; see the gateway's log"}, 500)


class _Front:
    """What is told of the gateway and its models."""

    def __init__(self, upstream: Upstreams) -> None:
        self._upstream = upstream

    async def server_metadata(self, request: Request) -> Response:
        """Say what this is."""
        return JSONResponse(server_facts())

    async def live(self, request: Request) -> Response:
        """Say that the process answers."""
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """Say whether a model is being served now."""
        ready = bool(await self._upstream.served())
        return JSONResponse({"live": True, "ready": ready}, 200 if ready else 503)

    async def model_metadata(self, request: Request) -> Response:
        """Describe the model."""
        model = await self._upstream.model(*_asked_model(request.scope), now=True)
        return JSONResponse(model_facts(model))

    async def model_ready(self, request: Request) -> Response:
        """Say that the model of this name is being served now, or refuse with why not."""
        model = await self._upstream.model(*_asked_model(request.scope), now=True)
        await self._upstream.check_served(model.name)
        return JSONResponse({"name": model.name, "ready": True})

    async def index(self, request: Request) -> Response:
        """List the models, and whether each is being served now."""
        heads = _read_heads(request.scope)
        body = await read_body(request.receive, heads.length, heads.encoding, HEAD_BYTES)
        try:
            asked = json.loads(bytes(body)) if body else {}
        except (ValueError, RecursionError):
            asked = None
        fields = asked if isinstance(asked, dict) else {"ready": None}
        only_ready = fields.pop("ready", False)
        if not isinstance(only_ready, bool) or fields:
            raise InputError("the body of this call holds 'ready', true or false, or nothing")
        names, served = await self._upstream.names(), await self._upstream.served()
        entries = [index_entry(name, is_served=name in served) for name in names]
        return JSONResponse([e for e in entries if e["state"] == "READY" or not only_ready])


class _Infer:
    """Inference: plain ASGI, since everything else waits for it."""

    def __init__(self, upstream: Upstreams) -> None:
        self._upstream = upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        heads = _read_heads(scope)
        model = await self._upstream.model(*_asked_model(scope))
        is_json = heads.json_length is None
        body = await read_body(receive, heads.length, heads.encoding, _limit(model, is_json))
        if is_json and len(body) > THREAD_BYTES:
            asked: Asked = await asyncio.to_thread(read_request, body, None)
        else:
            asked = read_request(body, heads.json_length)
        answers = await _unless_gone(receive, self._upstream.infer(model, asked.inference))
        answer, json_length = write_answer(asked, model.name, answers)
        headers = [(b"content-length", b"%d" % len(answer))]
        if json_length is None:
            headers.append((b"content-type", b"application/json"))
        else:
            headers.append((b"content-type", b"application/octet-stream"))
            headers.append((HEADER_LENGTH.lower().encode(), b"%d" % json_length))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


def _asked_model(scope: Scope) -> tuple[str, str]:
    """Which model a path names, and which version; empty: any."""
    found = scope["path_params"]
    return found["model"], found.get("version", "")


def _read_heads(scope: Scope) -> _Heads:
    """What the headers say; raises QueryError, InputError."""
    found = dict(scope["headers"])
    content_type = found.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip()
    if content_type.lower() not in CONTENT_TYPES:
        raise QueryError(
            f"the body's type {content_type!r} is not known here; send application/json, or "
            f"application/octet-stream with {HEADER_LENGTH}",
            415,
        )
    return _Heads(
        found.get(b"content-encoding", b"").decode("latin-1").strip().lower(),
        _number("Content-Length", found.get(b"content-length")),
        _number(HEADER_LENGTH, found.get(HEADER_LENGTH.lower().encode())),
    )


def _number(header: str, value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > MAX_LENGTH_DIGITS:
        raise InputError(f"{header} is not a number of bytes")
    return int(value)


def _limit(model: ServedModel, is_json: bool) -> int:
    """How long a request to this model may be, bytes."""
    row = sum(math.prod(tensor["shape"]) for tensor in model.description["inputs"])
    elements = MAX_QUERIES * model.max_rows * row
    if is_json:
        return HEAD_BYTES + min(JSON_ELEMENT * elements, MAX_JSON_BYTES)
    return HEAD_BYTES + min(BINARY_ELEMENT * elements, MAX_BODY_BYTES)


async def _unless_gone(receive: Receive, query: Awaitable[Answers]) -> Answers:
    """The answers; where the application leaves before they are there, the query is cancelled."""
    task = asyncio.current_task()
    assert task is not None
    gone = asyncio.ensure_future(receive())  # the body is read: only a goodbye can come
    waits, left = True, False

    def leave(_: asyncio.Future[Any]) -> None:
        nonlocal left
        if waits:
            left = True
            task.cancel()

    gone.add_done_callback(leave)
    try:
        return await query
    except asyncio.CancelledError:
        if not left:
            raise
        task.uncancel()
        raise ClientGone from None
    finally:
        waits = False
        gone.cancel()
