"""A party's HTTP front: the Open Inference Protocol v2 for clients, and the owner's calls.

It moves shares between HTTP bodies and the party, and knows no protocol.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from privserve import oip
from privserve.credentials import Entry, checked_limits, read_entries
from privserve.description import TensorDescription, read_description
from privserve.engines import read_options
from privserve.errors import InputError, QueryError, StaleSession
from privserve.fixedpoint import RingArray
from privserve.owner_calls import Permission
from privserve.party.json_answers import ERRORS, Json, log_no_value
from privserve.party.metadata import max_rows, model_facts, party_facts
from privserve.party.outcome import Outcome
from privserve.party.pending import Pending
from privserve.party.queries import MAX_ID
from privserve.party.session import SessionSpec

if TYPE_CHECKING:
    from privserve.party.party import Party

MAX_JSON_BYTES = 4 << 20
"""A query that is JSON throughout is slow to read, and no larger than this."""
MAX_JSON_PARTS = 1 << 18
"""Nor does it hold more objects and lists."""
THREAD_BYTES = 64 << 10
"""What is larger is read outside the event loop."""
HEADER_ALLOWANCE = 64 * 1024
MAX_MODEL_BYTES = 8 << 30
MAX_CLIENTS_BYTES = 8 << 20
BODY_SECONDS = 60.0
MODEL_SECONDS = 3600.0
"""A model may come over a slow line."""


def create_app(party: Party) -> ASGIApp:
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
    app = Starlette(routes=routes, exception_handlers=ERRORS)
    # A redirection is made of whatever host and query were sent; no path of ours needs one.
    app.router.redirect_slashes = False
    return log_no_value(app)


class _Front:
    """The handlers, bound to one party."""

    def __init__(self, party: Party) -> None:
        self.party = party

    # -- Open Inference Protocol ----------------------------------------------------------

    async def live(self, request: Request) -> Response:
        """Say that the process answers."""
        return Json({"live": True})

    async def ready(self, request: Request) -> Response:
        """Say whether the party takes part in a loaded session."""
        ready = self.party.status()["state"] == "loaded"
        return Json({"ready": ready}, 200 if ready else 503)

    async def server_metadata(self, request: Request) -> Response:
        """Say which party this is, its role, and what is served."""
        return Json(party_facts(self.party))

    async def model_ready(self, request: Request) -> Response:
        """Say that the model of this name is loaded here."""
        self.party.compute_session(request.path_params["model"])
        return Json({"ready": True})

    async def model_metadata(self, request: Request) -> Response:
        """Describe the model: shapes in the Keras layout, fixed-point formats, activations."""
        return Json(model_facts(self.party.compute_session(request.path_params["model"]).spec))

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
        wanted, rows = session.spec.description["inputs"], max_rows(session.spec.description)
        length = request.headers.get(oip.HEADER_LENGTH)
        size = 8 * rows * sum(math.prod(t["shape"]) for t in wanted) + HEADER_ALLOWANCE
        most = MAX_JSON_BYTES if length is None else HEADER_ALLOWANCE
        body = await _read(request, most if length is None else size)
        parsed = partial(oip.parse_message, body, length, "inputs", most, MAX_JSON_PARTS)
        large = len(body) > THREAD_BYTES
        message, tensors = await asyncio.to_thread(parsed) if large else parsed()
        query_id = message.get("id") or uuid4().hex
        if not isinstance(query_id, str) or len(query_id) > MAX_ID or not query_id.isprintable():
            raise InputError(f"'id' must be a text of at most {MAX_ID} printable characters")
        inputs = _check_inputs(tensors, wanted, rows)
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
            return Json(oip.format_json(fields, answers, "outputs"))
        parts, headers = oip.format_message(fields, answers, "outputs")
        return Response(b"".join(parts), headers=headers)

    # -- the model owner ------------------------------------------------------------------

    def _permission(self, request: Request) -> Permission:
        """What the owner signed of this call, its session compared; raises OwnerOnly."""
        target = request.scope["raw_path"].decode("latin-1")
        if query := request.scope["query_string"]:
            target += f"?{query.decode('latin-1')}"
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
        length, model = request.headers.get(oip.HEADER_LENGTH), request.path_params["model"]
        await asyncio.to_thread(self._load, body, length, model)
        return Json(self.party.status(), 202)

    def _load(self, body: bytearray, length: str | None, model: str) -> None:
        """Read the body of a call that loads `model`, all of it, before anything is changed."""
        message, shares = oip.parse_message(body, length, "inputs")
        if self.party.role == "dealer" and shares:
            raise InputError("the dealer must never be sent a share")
        spec = SessionSpec(
            id=_text(message, "session", MAX_ID),
            model=model,
            engine=_text(message, "engine", MAX_ID),
            options=read_options(message.get("options")),
            description=read_description(message.get("description")),
            shares=shares,
        )
        if not model.isprintable():
            raise InputError("a model's name must be printable")
        entries, everybody = read_entries(message.get("clients")), message.get("everybody")
        anonymous = None if everybody is None else checked_limits(_object(message, "everybody"))
        self.party.accounts.know(entries)
        self.party.accounts.let_everybody_in(anonymous)
        self.party.load(spec)

    async def clients(self, request: Request) -> Response:
        """Know other clients from now on; queries that wait are judged when their turn comes."""
        body = await self._signed_body(request, MAX_CLIENTS_BYTES)
        self.party.accounts.know(await asyncio.to_thread(_entries, body))
        return Json(self.party.status())

    async def revoked(self, request: Request) -> Response:
        """Take the authority's list of revoked certificates, from the next connection on."""
        message = _json_object(await self._signed_body(request, MAX_CLIENTS_BYTES))
        listed = _text(message, "revoked", MAX_CLIENTS_BYTES, lines=True)
        await asyncio.to_thread(self.party.take_revoked, listed)
        return Json(self.party.status())

    async def unload(self, request: Request) -> Response:
        """End the session; the shares are forgotten."""
        await self._signed_body(request, 0)
        await asyncio.to_thread(self.party.unload)
        return Json(self.party.status())

    async def serve(self, request: Request) -> Response:
        """Answer the next `num_requests` queries; null is no limit. Leader only."""
        message = _json_object(await self._signed_body(request, HEADER_ALLOWANCE))
        count = message.get("num_requests")
        if count is not None and (type(count) is not int or count < 1):
            raise InputError("'num_requests' must be a positive whole number or null")
        self.party.leader().queue.serve(count)
        return Json(self.party.status())

    async def stop(self, request: Request) -> Response:
        """Refuse further queries; the model stays shared. Leader only."""
        await self._signed_body(request, 0)
        self.party.leader().queue.stop()
        return Json(self.party.status())

    async def status(self, request: Request) -> Response:
        """Describe the state of party and session, and what the queries cost."""
        await self._signed_body(request, 0)
        return Json(self.party.status())


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


def _entries(body: bytearray) -> list[Entry]:
    return read_entries(_json_object(body).get("clients"))


def _text(message: dict[str, Any], key: str, most: int, *, lines: bool = False) -> str:
    """A text of 1 to `most` printable characters; or, of several `lines`, of ASCII ones."""
    value = message.get(key)
    if (
        not isinstance(value, str)
        or not 1 <= len(value) <= most
        or not (value.isascii() if lines else value.isprintable())
    ):
        raise InputError(f"'{key}' must be a text of at most {most} printable characters")
    return value


def _object(message: dict[str, Any], key: str) -> dict[str, Any]:
    value = message.get(key)
    if not isinstance(value, dict):
        raise InputError(f"'{key}' must be an object")
    return value
