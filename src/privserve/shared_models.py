"""The models of a cluster, put together of what its parties say of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ALIVE = ("loading", "loaded", "waiting")
STOPPED = "the model owner stopped the model"
"""Why a model's sessions ended that nobody wants any more."""


@dataclass(frozen=True)
class SharedModel:
    """One session of a model at all parties."""

    name: str
    session: str
    engine: str
    place: str
    """What it is to its name: "current", "coming" beside that one, or "draining"."""
    state: str
    """"loaded" where it is so at every party; else of the first where it is not."""
    reason: str
    """Why it is over, where it is."""
    serving: bool
    answered: int
    """Rows, since it was served last."""
    limit: int | None
    """Rows that are answered in all; None: no limit, or it was never served."""
    memory: Mapping[str, int | None]
    """By party: about how many bytes it takes."""
    cell: int = 0

    @property
    def is_alive(self) -> bool:
        """Whether it is shared, or being shared."""
        return self.state in ALIVE

    @property
    def is_stopped(self) -> bool:
        """Whether its owner wants it no more."""
        return self.state == "ended" and self.reason == STOPPED


def put_together(said: Mapping[str, Mapping[str, Any]], cell: int = 0) -> list[SharedModel]:
    """Return a cell's models from each party's status, by name, the leader's first."""
    sessions: dict[str, dict[str, Mapping[str, Any]]] = {}
    for party, status in said.items():
        for facts in status.get("models", []):
            sessions.setdefault(str(facts["session"]), {})[party] = facts
    return [_put_together(list(said), s, found, cell) for s, found in sessions.items()]


def _put_together(
    parties: list[str], session: str, found: Mapping[str, Mapping[str, Any]], cell: int
) -> SharedModel:
    first = found.get(parties[0]) or next(iter(found.values()))
    missing = [name for name in parties if name not in found]
    state, reason = str(first["state"]), str(first["reason"])
    for facts in found.values():
        if state == "loaded" and facts["state"] != "loaded":
            state, reason = str(facts["state"]), str(facts["reason"])
    if missing and state == "loaded":
        state, reason = "failed", f"{missing[0]} does not have it"
    return SharedModel(
        name=str(first["model"]),
        session=session,
        engine=str(first["engine"]),
        place=str(first["place"]),
        state=state,
        reason=reason,
        serving=state in ALIVE and bool(first.get("serving", False)),
        answered=int(first.get("answered", 0)),
        limit=first.get("limit"),
        memory={party: facts.get("memory") for party, facts in found.items()},
        cell=cell,
    )
