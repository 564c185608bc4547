"""What parties say to each other besides an engine's frames, and the one reader of it.

Each message is a small JSON value in a frame of its own. Whoever holds a party's certificate may
still send anything: what is not exactly one of the lane's messages is a `BadFrame`, which names
the peer and quotes nothing of what came.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from privserve.party.channel import Channel
from privserve.party.pending import MAX_PENDING
from privserve.party.queries import GONE
from privserve.party.refusals import MAX_ID, MAX_REFUSALS, Refusal

T = TypeVar("T")

MAX_NAME = 256
MAX_FACTS = 32
MAX_ROWS = 1 << 31
MAX_CAUSE = 4096
MOST_NOTES = 1024
"""In one frame, which stays far below what a lane takes."""
ENDED, FAILED, WAITING = "ended", "failed", "waiting"
STATES = (ENDED, FAILED, WAITING)
"""Of what is over: a session for good, or its round only, where it waits for the next one."""
ROUND = re.compile("[0-9a-f]{32}")


class _Malformed(ValueError):
    """What is wrong with a message, in our own words."""


@dataclass(frozen=True)
class Hello:
    """The first frame of a connection: what it is for, and who dials."""

    session: str
    lane: str
    sender: str


@dataclass(frozen=True)
class Over:
    """Why a session is over at a peer, or its round is."""

    reason: str
    state: str
    """One of STATES."""
    by: str = ""
    """Whose words these are, where a party passes another one's on; so it says, at least."""


class Sign(Enum):
    """What a party says of itself while it lives."""

    ALIVE = "alive"
    LEAVES = "leaves"
    """It is being stopped: nobody is to take queries any more."""
    IDLE = "idle"
    """Since somebody leaves: it takes no more queries, and has none left."""


@dataclass(frozen=True)
class Wait:
    """A party that came back is to wait: the leader says for whom."""

    reason: str


@dataclass(frozen=True)
class Begin:
    """All are there: the next round begins, under this name."""

    round: str


@dataclass(frozen=True)
class Note:
    """A follower has its share of a query; or, where rows are GONE, the query's client left."""

    query_id: str
    rows: int
    client: str


@dataclass(frozen=True)
class Order:
    """What the leader decided: which rows run now, and which queries will not run."""

    run: tuple[tuple[str, int, int], ...]
    """By query: its id, and which of its rows, from one to before another."""
    refuse: tuple[Refusal, ...]


def framed(message: object) -> bytes:
    """Return a JSON-able message as a frame's payload."""
    return json.dumps(message, ensure_ascii=False).encode("utf-8", "backslashreplace")


def message_of(over: Over) -> dict[str, str]:
    """Return what says so, for `framed`."""
    return {"over": over.reason, "state": over.state, **({"by": over.by} if over.by else {})}


def sign_of(sign: Sign) -> dict[str, bool]:
    """Return what gives a sign of life, for `framed`."""
    return {sign.value: True}


def hear(channel: Channel, read: Callable[[Any], T], within: float | None = None) -> T:
    """Receive one message of the channel's lane and return what `read` makes of it.

    within: seconds for all of it. Raises BadFrame for what is no such message, PeerLost.
    """
    payload = bytes(channel.recv(within=within))
    try:
        return read(json.loads(payload))
    except _Malformed as error:
        raise channel.bad(str(error)) from None
    except (ValueError, RecursionError):
        raise channel.bad("it is no JSON") from None


def read_hello(message: Any) -> Hello:
    """Read the first frame of a connection."""
    fields = _object(message, "session", "lane", "from")
    return Hello(*(_name(fields[key], key) for key in ("session", "lane", "from")))


def read_facts(message: Any) -> Mapping[str, str | int] | Over:
    """Read what a party is about to run, or why it will not.

    Other versions may say more of it, or less.
    """
    fields = _object(message)
    if "over" in fields:
        return _over(fields)
    if len(fields) > MAX_FACTS:
        raise _Malformed("it says too much of what it is about to run")
    return {
        _name(key, "a fact"): value
        if type(value) is int and 0 <= value < MAX_ROWS
        else _name(value, "what it is about to run")
        for key, value in fields.items()
    }


def read_sign(message: Any) -> Over | Sign:
    """Read a sign of life, or the news that the session is over."""
    fields = _object(message)
    for sign in Sign:
        if fields.keys() == {sign.value} and fields[sign.value] is True:
            return sign
    return _over(fields)


def _over(fields: Mapping[str, Any]) -> Over:
    if set(fields) - {"by"} != {"over", "state"}:
        raise _Malformed("it is no message of this lane")
    by = _name(fields["by"], "whose words these are") if "by" in fields else ""
    if not isinstance(fields["over"], str) or fields["state"] not in STATES:
        raise _Malformed("it does not say how the session is over")
    return Over(fields["over"], fields["state"], by)


def read_meeting(message: Any) -> Wait | Begin | Over:
    """Read what the leader says to a party that waits for the next round."""
    fields = _object(message)
    if set(fields) == {"wait"}:
        return Wait(_name(fields["wait"], "what is waited for", MAX_CAUSE))
    if set(fields) == {"round"}:
        if not isinstance(fields["round"], str) or not ROUND.fullmatch(fields["round"]):
            raise _Malformed("it names a round by what is no name of one")
        return Begin(fields["round"])
    return _over(fields)


def read_parting(message: Any) -> Over:
    """Read what a party says that leaves while it waits for the next round."""
    return _over(_object(message))


def read_notes(message: Any) -> tuple[Note, ...]:
    """Read a follower's notes of queries."""
    return tuple(_note(one) for one in _list(message, MOST_NOTES, "what has come in"))


def _note(message: Any) -> Note:
    if not isinstance(message, list) or len(message) != 3:
        raise _Malformed("it is no note of a query")
    query_id, rows, client = message
    if rows != GONE or type(rows) is not int:
        rows = _whole(rows, 1, MAX_ROWS, "a query's rows")
    return Note(_name(query_id, "a query's id", MAX_ID), rows, _name(client, "a client"))


def read_order(message: Any) -> Order:
    """Read an order of the leader."""
    fields = _object(message, "run", "refuse")
    run = _list(fields["run"], MAX_PENDING, "what is to run")
    rows = tuple(_rows(one) for one in run)
    if len({query_id for query_id, _, _ in rows}) != len(rows):
        raise _Malformed("it orders one query twice")
    refuse = _list(fields["refuse"], MAX_REFUSALS, "what is refused")
    return Order(rows, tuple(_refusal(one) for one in refuse))


def _rows(given: Any) -> tuple[str, int, int]:
    if not isinstance(given, list) or len(given) != 3:
        raise _Malformed("it orders what are no rows of a query")
    query_id, start, stop = given
    start = _whole(start, 0, MAX_ROWS, "a query's first row")
    return _name(query_id, "a query's id", MAX_ID), start, _whole(stop, 1, MAX_ROWS, "its last")


def _refusal(given: Any) -> Refusal:
    if not isinstance(given, list) or len(given) != 4:
        raise _Malformed("it has a refusal that is none")
    query_id, code, status, reason = given
    if not isinstance(reason, str):
        raise _Malformed("it refuses a query without a reason")
    return Refusal(
        _name(query_id, "a query's id", MAX_ID),
        _name(code, "an error's code"),
        _whole(status, 400, 599, "a refusal's status"),
        reason,
    )


def _object(message: Any, *keys: str) -> Mapping[str, Any]:
    """The message as an object; with these keys and no others, where any are named."""
    if not isinstance(message, dict) or (keys and set(message) != set(keys)):
        raise _Malformed("it is no message of this lane")
    return message


def _list(value: Any, most: int, what: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise _Malformed(f"{what} is no list of at most {most}")
    return value


def _name(value: Any, what: str, most: int = MAX_NAME) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= most or not value.isprintable():
        raise _Malformed(f"'{what}' is no text of 1 to {most} printable characters")
    return value


def _whole(value: Any, low: int, high: int, what: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise _Malformed(f"{what} is no whole number from {low} to {high}")
    return value
