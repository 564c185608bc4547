"""The model owner's calls to a party: each is signed, and its body read once that was checked."""

from __future__ import annotations

import asyncio
import hashlib
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from privserve import oip
from privserve.credentials import Entry, checked_limits, read_entries
from privserve.description import read_description
from privserve.engines import read_options
from privserve.errors import InputError, StaleSession
from privserve.owner_calls import Permission
from privserve.party.bodies import BODY_SECONDS, json_object, read_body
from privserve.party.json_answers import Json
from privserve.party.refusals import MAX_ID
from privserve.party.session_spec import SessionSpec

if TYPE_CHECKING:
    from privserve.party.party import Party

SESSION = re.compile("[0-9a-f]{32}")
"""Queries name it in 16 bytes."""
LEASE = re.compile("[0-9a-f]{1,64}")
"""What the owner's program calls a part of a limit."""
MAX_MODEL_BYTES = 8 << 30
MAX_CLIENTS_BYTES = 8 << 20
MAX_SERVE_BYTES = 64 << 10
MODEL_SECONDS = 3600.0
"""A model may come over a slow line."""


async def load(party: Party, request: Request) -> Response:
    """Begin a session with a share of a model; the dealer gets the description only."""
    _, body = await _signed_body(party, request, MAX_MODEL_BYTES, MODEL_SECONDS)
    length, model = request.headers.get(oip.HEADER_LENGTH), request.path_params["model"]
    session = await asyncio.to_thread(_load, party, body, length, model)
    return Json(party.status(session), 202)


async def unload(party: Party, request: Request) -> Response:
    """End the model's sessions, or the one that is named; their shares are forgotten."""
    permission, _ = await _signed_body(party, request, 0)
    model = request.path_params["model"]
    await asyncio.to_thread(party.models.unload, model, permission.session)
    return Json(party.status(permission.session))


async def switch(party: Party, request: Request) -> Response:
    """Give the session that is named its model's name; the one that has it drains."""
    permission, _ = await _signed_body(party, request, 0)
    if not permission.session:
        raise InputError("this call has to name the session that is to have its model's name")
    await asyncio.to_thread(party.models.switch, permission.session)
    return Json(party.status(permission.session))


async def serve(party: Party, request: Request) -> Response:
    """Answer the next `num_requests` queries; null is no limit. Leader only.

    Where these are a `lease`, what does not fit waits for `/privserve/extend`. With
    `owner_seconds`, only for as long as the owner asks for the session's status that often.
    """
    permission, body = await _signed_body(party, request, MAX_SERVE_BYTES)
    message = json_object(body)
    count = message.get("num_requests")
    lease = None if message.get("lease") is None else _lease(message)
    if count is not None and (type(count) is not int or count < 1):
        raise InputError("'num_requests' must be a positive whole number or null")
    seconds = message.get("owner_seconds")
    if seconds is not None and (type(seconds) not in (int, float) or not 1 <= seconds <= 86400):
        raise InputError("'owner_seconds' must be a number from 1 to 86400, or null")
    queue = party.leader(permission.session).queue
    named = "" if count is None or lease is None else lease
    await asyncio.to_thread(partial(queue.serve, count, seconds, lease=named))
    return Json(party.status(permission.session))


async def extend(party: Party, request: Request) -> Response:
    """Answer `limit` rows of this `lease`, or as many more as are begun already. Leader only.

    Of two calls the one with the larger `number` counts. `final`: there are no more.
    """
    permission, body = await _signed_body(party, request, MAX_SERVE_BYTES)
    message = json_object(body)
    for key, least in (("limit", 0), ("number", 1)):
        value = message.get(key)
        if type(value) is not int or value < least:
            raise InputError(f"'{key}' must be a whole number of at least {least}")
    final = message.get("final", False)
    if type(final) is not bool:
        raise InputError("'final' must be true or false")
    queue, lease = party.leader(permission.session).queue, _lease(message)
    await asyncio.to_thread(
        partial(queue.extend, lease, message["limit"], message["number"], final=final)
    )
    return Json(party.status(permission.session))


async def stop(party: Party, request: Request) -> Response:
    """Refuse further queries; the model stays shared. Leader only."""
    permission, _ = await _signed_body(party, request, 0)
    await asyncio.to_thread(party.leader(permission.session).queue.stop)
    return Json(party.status(permission.session))


async def status(party: Party, request: Request) -> Response:
    """Describe the state of party and models, and what the queries of one of them cost.

    Which one is said by the session that is signed; it need not be where there is one model.
    """
    permission, _ = await _signed_body(party, request, 0)
    party.owner_heard(permission.session)
    return Json(party.status(permission.session))


async def clients(party: Party, request: Request) -> Response:
    """Know other clients from now on; queries that wait are judged when their turn comes."""
    _, body = await _signed_body(party, request, MAX_CLIENTS_BYTES)
    entries = await asyncio.to_thread(_entries, body)
    await asyncio.to_thread(party.know, entries)
    return Json(party.status())


async def revoked(party: Party, request: Request) -> Response:
    """Take the authority's list of revoked certificates, from the next connection on."""
    _, body = await _signed_body(party, request, MAX_CLIENTS_BYTES)
    message = json_object(body)
    listed = _text(message, "revoked", MAX_CLIENTS_BYTES, lines=True)
    await asyncio.to_thread(party.take_revoked, listed)
    return Json(party.status())


def _permission(party: Party, request: Request) -> Permission:
    """What the owner signed of this call, its session compared; raises OwnerOnly."""
    target = request.scope["raw_path"].decode("latin-1")
    if query := request.scope["query_string"]:
        target += f"?{query.decode('latin-1')}"
    header = request.headers.get("Authorization", "")
    permission = party.owner.check(header, request.method, target)
    if permission.session and party.models.find(permission.session) is None:
        raise StaleSession("another model was shared here since; this call is about that one")
    return permission


async def _signed_body(
    party: Party, request: Request, limit: int, seconds: float = BODY_SECONDS
) -> tuple[Permission, bytearray]:
    """A call that the owner signed, and its body; read only after the signature was checked."""
    permission = _permission(party, request)
    body = (await read_body(request, limit, seconds)).data
    permission.check(await asyncio.to_thread(lambda: hashlib.sha256(body).hexdigest()))
    return permission, body


def _load(party: Party, body: bytearray, length: str | None, model: str) -> str:
    """Read the body of a call that loads `model`, all of it, before anything is changed.

    Returns the session's id.
    """
    message, shares = oip.parse_message(body, length, "inputs")
    if party.role == "dealer" and shares:
        raise InputError("the dealer must never be sent a share")
    if not model.isprintable():
        raise InputError("a model's name must be printable")
    everybody = message.get("everybody")
    session = message.get("session")
    if not isinstance(session, str) or not SESSION.fullmatch(session):
        raise InputError("'session' must be 32 hexadecimal digits, which no other session has")
    spec = SessionSpec(
        id=session,
        model=model,
        engine=_text(message, "engine", MAX_ID),
        options=read_options(message.get("options")),
        description=read_description(message.get("description")),
        shares=shares,
        everybody=None if everybody is None else checked_limits(_object(message, "everybody"), 0),
    )
    party.know(read_entries(message.get("clients")))
    party.load(spec)
    return spec.id


def _entries(body: bytearray) -> list[Entry]:
    return read_entries(json_object(body).get("clients"))


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


def _lease(message: dict[str, Any]) -> str:
    lease = message.get("lease")
    if not isinstance(lease, str) or not LEASE.fullmatch(lease):
        raise InputError("'lease' must be 1 to 64 hexadecimal digits")
    return lease


def _object(message: dict[str, Any], key: str) -> dict[str, Any]:
    value = message.get(key)
    if not isinstance(value, dict):
        raise InputError(f"'{key}' must be an object")
    return value
