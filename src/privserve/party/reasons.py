"""Why a model is not there, or takes no queries, in the words that logs and clients get."""

from __future__ import annotations

import datetime

from privserve.errors import Draining, NotServing
from privserve.party.messages import WAITING

REPLACED = "the model was shared anew since this query was encoded; read its description again"
MAX_REASON = 2000
"""Characters: it goes into logs and answers, and a peer may have written it."""


def is_over(state: str, reason: str) -> NotServing:
    """Return what clients of a model are told that is not there, or not now."""
    if state == WAITING:
        return NotServing(f"{reason}; the model comes back by itself, ask again in a while")
    return NotServing(f"{reason}; the model owner has to share the model again")


def is_stopped(party: str) -> str:
    """Say that a party is told to end."""
    return f"{party} is being stopped"


def draining(why: str) -> Draining:
    """Return what clients are told whose queries come while a party is being stopped."""
    return Draining(f"{why}; ask another cell, or again in a minute")


def now() -> str:
    """Say what time it is."""
    return f"{datetime.datetime.now(datetime.UTC):%H:%M:%S} UTC"


def printable(text: str) -> str:
    """Return the text on one line, of a bounded length: a peer may have written it."""
    kept = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(kept)[:MAX_REASON]
