"""A party's HTTP front: the Open Inference Protocol v2 for clients, and the owner's calls.

It moves shares between HTTP bodies and the party, and knows no protocol.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from privserve import oip
from privserve.credentials import checked_limits, read_entries
from privserve.description import TensorDescription, read_description
from privserve.errors import InputError, PrivserveError, QueryError, StaleSession
from privserve.fixedpoint import RingArray
from privserve.owner_calls import Permission
from privserve.party.metadata import max_rows, model_facts, party_facts
from privserve.party.outcome import Outcome
from privserve.party.pending import Pending
from privserve.party.session import SessionSpec

if TYPE_CHECKING:
    from privserve.party.party import Party

MAX_JSON_BYTES = 4 << 20
"""A query that is JSON throughout is slow to read, and no larger than this."""
THREAD_BYTES = 64 << 10
"""What is larger is read outside the event loop."""
MAX_ID = 128
HEADER_ALLOWANCE = 64 * 1024
MAX_MODEL_BYTES = 8 << 30
MAX_CLIENTS_BYTES = 8 << 20
BODY_SECONDS = 60.0
MODEL_SECONDS = 3600.0
"""A model may come over a slow line."""


def create_app(party: Party) -> Starlette:
    """Return the ASGI application of `party`."""
    front = _Front(party)
    routes = [
        Route("/v2", front.server_metadata),
        Route("/v2/health/live", front.live),
        Route("/v2/health/ready", front.ready),
        Route("/v2/models/{model}", front.model_metadata),
        Route("/v2/models/{model}/ready", front.model_ready),
        Route("/v2/models/{model}/infer", front.infer_any, methods=["POST"]),
        Route("/v2/models/{model}/versions/{version}/infer", front.infer, methods=["POST"]),
        Route("/v2/repository/models/{model}/load", front.load, methods=["POST"]),
        Route("/v2/repository/models/{model}/unload", front.unload, methods=["POST"]),
        Route("/privserve/serve", front.serve, methods=["POST"]),
        Route("/privserve/stop", front.stop, methods=["POST"]),
        Route("/privserve/status", front.status),
        Route("/privserve/revoked", front.list_revoked, methods=["GET"]),
        Route("/privserve/revoked", front.revoked, methods=["POST"]),
        Route("/privserve/clients", front.clients, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {
        PrivserveError: _on_error,
        Exception: _on_bug,
        404: _on_unknown_path,
        405: _on_unknown_path,
    }
    return Starlette(routes=routes, exception_handlers=handlers)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PrivserveError)
    return _refusal(str(error), error.code, error.status)


def _refusal(message: str, code: str, status: int) -> Response:
    """An error's answer. What a request made of the message may be no valid text."""
    text = message.encode("utf-8", "backslashreplace").decode()
    return JSONResponse({"error": text, "code": code}, status)


async def _on_unknown_path(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    message = f"{request.method} {request.url.path} is not part of this server's protocol"
    return _refusal(message, PrivserveError.code, status)


async def _on_bug(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "internal error; see the party's log", "code": "internal"}, 500)


class _Front:
    """The handlers, bound to one party."""

    def __init__(self, party: Party) -> None:
        self.party = party

    # -- Open Inference Protocol ----------------------------------------------------------

    async def live(self, request: Request) -> Response:
        """Say that the process answers."""
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """Say whether the party takes part in a loaded session."""
        ready = self.party.status()["state"] == "loaded"
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def server_metadata(self, request: Request) -> Response:
        """Say which party this is, its role, and what is served."""
        return JSONResponse(party_facts(self.party))

    async def model_ready(self, request: Request) -> Response:
        """Say that the model of this name is loaded here."""
        self.party.compute_session(request.path_params["model"])
        return JSONResponse({"ready": True})

    async def model_metadata(self, request: Request) -> Response:
        """Describe the model: shapes in the Keras layout, fixed-point formats, activations."""
        return JSONResponse(
            model_facts(self.party.compute_session(request.path_params["model"]).spec)
        )

    async def list_revoked(self, request: Request) -> Response:
        """Hand out the authority's list of revoked certificates, PEM, for anybody to check."""
        return Response(await asyncio.to_thread(self.party.revoked), media_type="text/plain")

    async def infer_any(self, request: Request) -> Response:
        """Refuse a query that does not say which session it was encoded for."""
        version = self.party.compute_session(request.path_params["model"]).spec.id
        raise StaleSession(
            "a query has to name the model's version, since number formats change with it: "
            f".../versions/{version}/infer"
        )

    async def infer(self, request: Request) -> Response:
        """Take one share of a query and answer with one share of its prediction."""
        session = self.party.compute_session(request.path_params["model"])
        if request.path_params["version"] != session.spec.id:
            raise StaleSession(
                "the model was shared anew since this query was encoded; read the model's "
                "description again"
            )
        client = self.party.accounts.admit(request.headers.get("Authorization", ""))
        wanted, most = session.spec.description["inputs"], max_rows(session.spec.description)
        length = request.headers.get(oip.HEADER_LENGTH)
        size = 8 * most * sum(math.prod(t["shape"]) for t in wanted) + HEADER_ALLOWANCE
        body = await _read(request, MAX_JSON_BYTES if length is None else size)
        if len(body) > THREAD_BYTES:
            parsed = await asyncio.to_thread(oip.parse_message, body, length, "inputs")
        else:
            parsed = oip.parse_message(body, length, "inputs")
        message, tensors = parsed
        query_id = message.get("id") or uuid4().hex
        if not isinstance(query_id, str) or len(query_id) > MAX_ID or not query_id.isprintable():
            raise InputError(f"'id' must be a text of at most {MAX_ID} printable characters")
        inputs = _check_inputs(tensors, wanted, most)
        query = Pending(query_id, inputs, inputs[0].shape[0], client)
        answer = _awaitable(query.future)
        session.submit(query)
        outputs = await _unless_gone(request, answer, lambda: session.withdraw(query))
        names = [t["name"] for t in session.spec.description["outputs"]]
        if len(outputs) > len(names):
            names.append(oip.GUARDS)
        answers = dict(zip(names, outputs, strict=True))
        fields = {"model_name": session.spec.model, "id": query_id}
        if length is None:
            return JSONResponse(oip.format_json(fields, answers, "outputs"))
        parts, headers = oip.format_message(fields, answers, "outputs")
        return Response(b"".join(parts), headers=headers)

    # -- the model owner ------------------------------------------------------------------

    def _permission(self, request: Request) -> Permission:
        """What the owner signed of this call, its session compared; raises OwnerOnly."""
        target = request.scope["raw_path"].decode("latin-1")
        if request.url.query:
            target += f"?{request.url.query}"
        header = request.headers.get("Authorization", "")
        permission = self.party.owner.check(header, request.method, target)
        session = self.party.session
        if permission.session and (session is None or session.spec.id != permission.session):
            raise StaleSession("another model was shared here since; this call is about that one")
        return permission

    async def _signed_body(
        self, request: Request, limit: int, seconds: float = BODY_SECONDS
    ) -> bytearray:
        """The body of a call that the owner signed; read only after the signature was checked."""
        permission = self._permission(request)
        body = await _read(request, limit, seconds)
        permission.check(await asyncio.to_thread(lambda: hashlib.sha256(body).hexdigest()))
        return body

    async def load(self, request: Request) -> Response:
        """Begin a session with a share of a model; the dealer gets the description only."""
        body = await self._signed_body(request, MAX_MODEL_BYTES, MODEL_SECONDS)
        length = request.headers.get(oip.HEADER_LENGTH)
        message, shares = oip.parse_message(body, length, "inputs")
        if self.party.role == "dealer" and shares:
            raise InputError("the dealer must never be sent a share")
        spec = SessionSpec(
            id=_text(message, "session"),
            model=request.path_params["model"],
            engine=_text(message, "engine"),
            options=_object(message, "options"),
            description=read_description(message.get("description")),
            shares=shares,
        )
        entries, everybody = read_entries(message.get("clients")), message.get("everybody")
        anonymous = None if everybody is None else checked_limits(_object(message, "everybody"))
        self.party.accounts.know(entries)
        self.party.accounts.let_everybody_in(anonymous)
        await asyncio.to_thread(self.party.load, spec)
        return JSONResponse(self.party.status(), 202)

    async def clients(self, request: Request) -> Response:
        """Know other clients from now on; queries that wait are judged when their turn comes."""
        message = _json_object(await self._signed_body(request, MAX_CLIENTS_BYTES))
        self.party.accounts.know(read_entries(message.get("clients")))
        return JSONResponse(self.party.status())

    async def revoked(self, request: Request) -> Response:
        """Take the authority's list of revoked certificates, from the next connection on."""
        message = _json_object(await self._signed_body(request, MAX_CLIENTS_BYTES))
        await asyncio.to_thread(self.party.take_revoked, _text(message, "revoked"))
        return JSONResponse(self.party.status())

    async def unload(self, request: Request) -> Response:
        """End the session; the shares are forgotten."""
        await self._signed_body(request, 0)
        await asyncio.to_thread(self.party.unload)
        return JSONResponse(self.party.status())

    async def serve(self, request: Request) -> Response:
        """Answer the next `num_requests` queries; null is no limit. Leader only."""
        message = _json_object(await self._signed_body(request, HEADER_ALLOWANCE))
        count = message.get("num_requests")
        if count is not None and (type(count) is not int or count < 1):
            raise InputError("'num_requests' must be a positive whole number or null")
        self.party.leader().queue.serve(count)
        return JSONResponse(self.party.status())

    async def stop(self, request: Request) -> Response:
        """Refuse further queries; the model stays shared. Leader only."""
        await self._signed_body(request, 0)
        self.party.leader().queue.stop()
        return JSONResponse(self.party.status())

    async def status(self, request: Request) -> Response:
        """Describe the state of party and session, and what the queries cost."""
        await self._signed_body(request, 0)
        return JSONResponse(self.party.status())


def _check_inputs(
    tensors: dict[str, RingArray], wanted: list[TensorDescription], most: int
) -> list[RingArray]:
    names = [t["name"] for t in wanted]
    if set(tensors) != set(names):
        takes = ", ".join(f"'{t['name']}' {[-1, *t['shape']]}" for t in wanted)
        raise InputError(f"the model takes the inputs {takes}, not {sorted(tensors)}")
    rows = tensors[names[0]].shape[:1]
    if not rows or not 1 <= rows[0] <= most:
        raise InputError(f"a query holds 1 to {most} rows")
    for tensor in wanted:
        expected = (*rows, *tensor["shape"])
        if tensors[tensor["name"]].shape != expected:
            raise InputError(
                f"'{tensor['name']}' must have the shape {list(expected)}, "
                f"not {list(tensors[tensor['name']].shape)}"
            )
    return [tensors[name] for name in names]


async def _unless_gone(
    request: Request, answer: asyncio.Future[Any], withdraw: Callable[[], None]
) -> Any:
    """The answer; where the client leaves before it is there, the query is withdrawn."""
    gone = asyncio.ensure_future(request.receive())  # the body is read: only a goodbye can come
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            withdraw()
        return await answer
    finally:
        gone.cancel()


def _awaitable(future: Outcome) -> asyncio.Future[Any]:
    """The asyncio side of `future`."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[Any] = loop.create_future()

    def deliver() -> None:
        if result.done():
            return
        error = future.exception()
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(future.result())

    future.add_done_callback(lambda _: loop.call_soon_threadsafe(deliver))
    return result


async def _read(request: Request, limit: int, seconds: float = BODY_SECONDS) -> bytearray:
    """The body, read no further than `limit` bytes and no longer than `seconds`."""
    too_long = QueryError(f"the body is longer than the {limit} bytes that this call takes", 413)
    announced = request.headers.get("Content-Length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_long
    except TimeoutError:
        raise QueryError(f"the body did not arrive within {seconds:g} s", 408) from None
    except ClientDisconnect:
        raise QueryError("the client left before its request was complete", 400) from None
    return body


def _json_object(body: bytearray) -> dict[str, Any]:
    try:
        message = json.loads(bytes(body) or b"{}")
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise InputError("the body is not a JSON object")
    return message


def _text(message: dict[str, Any], key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(f"'{key}' must be a text")
    return value


def _object(message: dict[str, Any], key: str) -> dict[str, Any]:
    value = message.get(key)
    if not isinstance(value, dict):
        raise InputError(f"'{key}' must be an object")
    return value
