"""The infer call: a share of a query in, a share of its answer out.

What a client asks for besides is read in full: which outputs, each as JSON or as bytes, and for how
long it waits. What would change nothing here is refused by name, not ignored.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from privserve import oip
from privserve.description import Description, TensorDescription
from privserve.errors import InputError, StaleSession
from privserve.fixedpoint import RingArray
from privserve.party.bodies import THREAD_BYTES, read_body
from privserve.party.computing import ComputeSession
from privserve.party.json_answers import Json
from privserve.party.metadata import max_rows
from privserve.party.outcome import Outcome
from privserve.party.pending import Pending
from privserve.party.reasons import REPLACED
from privserve.party.refusals import MAX_ID

if TYPE_CHECKING:
    from privserve.party.party import Party

MAX_JSON_BYTES = 4 << 20
"""Of a query that is JSON throughout, or of its JSON: it is slow to read."""
MAX_JSON_PARTS = 1 << 18
"""Nor does it hold more objects and lists."""
MAX_JSON_NUMBERS = MAX_JSON_BYTES // 8
"""Of an answer, which is slow to write: what is larger has to be asked for as bytes."""
HEADER_ALLOWANCE = 64 * 1024
QUERY_FIELDS = frozenset(["id", "inputs", "outputs", "parameters"])
OUTPUT_FIELDS = frozenset(["name", "parameters"])
MAX_TIMEOUT = (1 << 64) - 1
DEFAULTS: dict[str, tuple[object, ...]] = {
    "priority": (0,),
    "sequence_id": (0, ""),
    "sequence_start": (False,),
    "sequence_end": (False,),
}
"""Parameters that Triton's clients know and a party does not hold, with the values that ask for
nothing."""


@dataclass(frozen=True)
class Asked:
    """What is to come back to a client."""

    outputs: dict[str, bool]
    """By name, in the answer's order: whether as bytes behind the JSON."""
    deadline: float | None
    """By `time.monotonic`; None: it waits for as long as it takes."""


async def infer_any(party: Party, request: Request) -> Response:
    """Refuse a query that does not say which version of the model it was encoded for."""
    version = party.compute_session(request.path_params["model"]).spec.id
    raise StaleSession(
        "a query has to name the model's version, since number formats change with it: "
        f".../versions/{version}/infer"
    )


async def infer(party: Party, request: Request) -> Response:
    """Take one share of a query and answer with one share of its prediction."""
    with party.unplaced.refusals():
        session = _meant(party, request.path_params["model"], request.path_params["version"])
    with session.statistics.refusals():
        query, asked = await _read(session, request)
        answer = _awaitable(query.future)
        session.submit(query)
    outputs = await _unless_gone(request, answer, lambda: session.withdraw(query))
    written = partial(_answer, session, query.id, asked, outputs)
    large = sum(output.nbytes for output in outputs) > THREAD_BYTES
    return await asyncio.to_thread(written) if large else written()


def _meant(party: Party, model: str, version: str) -> ComputeSession:
    """The session that a query's path names."""
    found = party.models.find(version)
    if found is None or found.spec.model != model:
        party.compute_session(model)  # or why there is no such model
        raise StaleSession(REPLACED)
    return party.queried(version)


async def _read(session: ComputeSession, request: Request) -> tuple[Pending, Asked]:
    """A query, read only once its client was admitted."""
    client = session.accounts.admit(request.headers.get("Authorization", ""))
    description, length = session.spec.description, request.headers.get(oip.HEADER_LENGTH)
    each = 8 * sum(math.prod(t["shape"]) for t in description["inputs"])
    size = each * max_rows(description) + HEADER_ALLOWANCE
    limit = MAX_JSON_BYTES if length is None else max(MAX_JSON_BYTES, size)
    body = await read_body(request, limit, is_packed=True)

    def read() -> tuple[Pending, Asked]:
        plain = body.plain()
        parsed = oip.parse_message(plain, length, "inputs", MAX_JSON_BYTES, MAX_JSON_PARTS)
        return read_query(*parsed, description, client)

    return await asyncio.to_thread(read) if body.is_large else read()


def read_query(
    message: Mapping[str, Any],
    tensors: Mapping[str, RingArray],
    description: Description,
    client: str,
) -> tuple[Pending, Asked]:
    """Return a client's query, and what it asks for; raises InputError naming what is wrong.

    message: the fields of the query's JSON but for its tensors.
    """
    oip.check_fields("a query", message, QUERY_FIELDS)
    query_id = message.get("id", "")
    if not isinstance(query_id, str) or len(query_id) > MAX_ID or not query_id.isprintable():
        raise InputError(f"'id' must be a text of at most {MAX_ID} printable characters")
    inputs = _check_inputs(tensors, description["inputs"], max_rows(description))
    asked = read_asked(message, description)
    rows = inputs[0].shape[0]
    shapes = {t["name"]: t["shape"] for t in description["outputs"]}
    listed = [name for name, is_raw in asked.outputs.items() if not is_raw and name in shapes]
    if rows * sum(math.prod(shapes[name]) for name in listed) > MAX_JSON_NUMBERS:
        raise InputError(
            f"an answer holds at most {MAX_JSON_NUMBERS} numbers as JSON; ask for bytes with the "
            "parameter 'binary_data_output', or for fewer rows"
        )
    if not query_id:
        raise InputError(
            "a query needs an 'id', the same one at every compute party: they find its shares by it"
        )
    return Pending(query_id, inputs, rows, client, asked.deadline), asked


def read_asked(message: Mapping[str, Any], description: Description) -> Asked:
    """Return which outputs a query asks for, and until when; raises InputError.

    A model with guards answers with these whatever is asked for: what they say is no detail.
    """
    parameters = oip.parameters_of("the query", message)
    is_raw = _flag("the query", parameters, "binary_data_output", is_on=False)
    for name, value in parameters.items():
        if name in ("binary_data_output", "timeout"):
            continue
        if name not in DEFAULTS:
            raise InputError(
                f"a party knows no parameter {name[:100]!r} of a query; it knows "
                "'binary_data_output' and 'timeout'"
            )
        if not any(type(value) is type(none) and value == none for none in DEFAULTS[name]):
            raise InputError(
                f"a party does not hold to the parameter '{name}': clients take turns, and no "
                "query depends on another; leave it out"
            )
    names = [output["name"] for output in description["outputs"]]
    guards = [oip.GUARDS] if description["guards"] else []
    named = _requested(message.get("outputs", []), [*names, *guards], is_raw=is_raw)
    outputs = named or dict.fromkeys(names, is_raw)
    for name in guards:
        outputs.setdefault(name, any(outputs.values()))
    return Asked(outputs, _deadline(parameters.get("timeout", 0)))


def _requested(outputs: Any, names: list[str], *, is_raw: bool) -> dict[str, bool]:
    """The outputs that a query names, and whether each is to come as bytes."""
    if not isinstance(outputs, list):
        raise InputError("'outputs' must be a list of outputs")
    found: dict[str, bool] = {}
    for output in outputs:
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str):
            raise InputError("one of the 'outputs' has no name")
        what = f"output '{name}'"
        if name not in names:
            known = ", ".join(f"'{n}'" for n in names)
            raise InputError(f"the model has no {what}; it has {known}")
        if name in found:
            raise InputError(f"{what} is asked for twice")
        oip.check_fields(what, output, OUTPUT_FIELDS)
        parameters = oip.parameters_of(what, output)
        oip.check_fields(f"the parameters of {what}", parameters, {"binary_data"})
        found[name] = _flag(what, parameters, "binary_data", is_on=is_raw)
    return found


def _flag(what: str, parameters: Mapping[str, Any], name: str, *, is_on: bool) -> bool:
    value = parameters.get(name, is_on)
    if not isinstance(value, bool):
        raise InputError(f"the parameter '{name}' of {what} must be true or false")
    return value


def _deadline(microseconds: Any) -> float | None:
    if type(microseconds) is not int or not 0 <= microseconds <= MAX_TIMEOUT:
        raise InputError("the parameter 'timeout' is a number of microseconds, 0 for no limit")
    return time.monotonic() + microseconds / 1e6 if microseconds else None


def _check_inputs(
    tensors: Mapping[str, RingArray], wanted: list[TensorDescription], most: int
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


def _answer(
    session: ComputeSession, query_id: str, asked: Asked, outputs: list[RingArray]
) -> Response:
    """The answer's message. It is never compressed: a share is random to whoever sees it alone."""
    spec = session.spec
    names = [t["name"] for t in spec.description["outputs"]]
    if len(outputs) > len(names):
        names.append(oip.GUARDS)
    shares = dict(zip(names, outputs, strict=True))
    # What a description says of guards that no engine computes is not made up.
    answers = {name: shares[name] for name in asked.outputs if name in shares}
    fields = {"model_name": spec.model, "model_version": spec.id, "id": query_id}
    listed = {name for name, is_raw in asked.outputs.items() if not is_raw}
    if len(listed) == len(answers):
        return Json(oip.format_json(fields, answers, "outputs"))
    parts, headers = oip.format_message(fields, answers, "outputs", listed)
    return Response(b"".join(parts), headers=headers)


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
