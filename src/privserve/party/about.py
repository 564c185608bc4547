"""What a party tells of itself and its models: the Open Inference Protocol's calls but for infer.

With Triton's extensions for a model's configuration, statistics and the repository's index.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from privserve.errors import InputError, QueryError
from privserve.party.bodies import json_object, read_body
from privserve.party.computing import ComputeSession
from privserve.party.json_answers import Json
from privserve.party.metadata import index_entry, model_config, model_facts, party_facts

if TYPE_CHECKING:
    from privserve.party.party import Party

MAX_INDEX_BYTES = 4096


async def live(party: Party, request: Request) -> Response:
    """Say that the process answers."""
    return Json({"live": True})


async def ready(party: Party, request: Request) -> Response:
    """Say whether the party takes part in a loaded session, of any model, and is not to end."""
    is_ready = any(not session.stopping for session in party.models.loaded())
    return Json({"ready": is_ready}, 200 if is_ready else 503)


async def server_metadata(party: Party, request: Request) -> Response:
    """Say which party this is, its role, and what is served."""
    return Json(party_facts(party))


async def model_ready(party: Party, request: Request) -> Response:
    """Say that the model of this name is loaded here."""
    _session(party, request)
    return Json({"ready": True})


async def model_metadata(party: Party, request: Request) -> Response:
    """Describe the model: shapes in the Keras layout, fixed-point formats, activations."""
    return Json(model_facts(_session(party, request).spec))


async def configuration(party: Party, request: Request) -> Response:
    """Describe the model in the words of Triton's model configuration."""
    return Json(model_config(_session(party, request).spec))


async def statistics(party: Party, request: Request) -> Response:
    """Say how many queries were answered, and how long they took; for the model's clients only."""
    session = _session(party, request)
    session.accounts.admit(request.headers.get("Authorization", ""))
    return Json({"model_stats": [_statistics(session)]})


async def all_statistics(party: Party, request: Request) -> Response:
    """Say it of all models that are loaded and that the client may ask."""
    shown = request.headers.get("Authorization", "")
    party.compute_session()  # or why there is none
    party.admit(shown)
    return Json({"model_stats": [_statistics(session) for session in party.may_ask(shown)]})


def _statistics(session: ComputeSession) -> dict[str, Any]:
    return session.statistics.facts(session.spec.model, session.spec.id)


async def repository_index(party: Party, request: Request) -> Response:
    """List the models that are shared, and in which state each of their sessions is here."""
    message = json_object((await read_body(request, MAX_INDEX_BYTES)).data)
    only_ready = message.pop("ready", False)
    if message or not isinstance(only_ready, bool):
        raise InputError("the body of this call holds 'ready', true or false, or nothing")
    entries = [index_entry(*listed) for listed in party.models.listed()]
    return Json([e for e in entries if e["state"] == "READY" or not only_ready])


async def list_revoked(party: Party, request: Request) -> Response:
    """Hand out the authority's list of revoked certificates, PEM, for anybody to check."""
    return Response(await asyncio.to_thread(party.revoked), media_type="text/plain")


async def no_shared_memory(party: Party, request: Request) -> Response:
    """Refuse Triton's shared memory extensions."""
    raise QueryError(
        "a party shares no memory with its clients, which are elsewhere; send tensors in the query",
        404,
    )


async def no_settings(party: Party, request: Request) -> Response:
    """Refuse Triton's extensions for traces and logs."""
    raise QueryError(
        "a party is not told over the network what to trace or to log; see its command line", 404
    )


def _session(party: Party, request: Request) -> ComputeSession:
    """The session of the model and the version in the path, where it names them."""
    session = party.compute_session(request.path_params.get("model"))
    version = request.path_params.get("version", session.spec.id)
    if version != session.spec.id:
        raise QueryError(
            f"there is no version '{version}' of '{session.spec.model}'; '{session.spec.id}' is "
            "served",
            404,
        )
    return session
