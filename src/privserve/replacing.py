"""One model in another one's place, without a moment in which nobody answers.

The new session is loaded beside the old one. It takes the name once it is served: first at the
followers, which go on taking shares for the old one, and last at the leader, which refuses new
queries for the old one from then on as meant for another session. Clients read the model anew by
themselves. What the old one has is answered, and it is unloaded.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from privserve.cell import POLL_SECONDS, Cell
from privserve.engines import ALONE, is_alone
from privserve.errors import ClusterError, QueryError, StaleSession
from privserve.shared_models import SharedModel

UNLOAD_SECONDS = 12.0
"""For one party to end a session; one that is stopped does not answer at all."""
DRAIN_SECONDS = 30.0
"""The old session may take this long for what it has; half a query is refused long before."""


def holder(cell: Cell, name: str) -> SharedModel | None:
    """Return the model that has a name now and is alive, if there is one."""
    for model in cell.models():
        if model.name == name and model.place == "current" and model.is_alive:
            return model
    return None


def make_way(cell: Cell, engine: str, name: str, tell: Callable[[str], None]) -> None:
    """Stop the model of this name where the engine can hold only one; `tell` is told of the gap.

    Raises ClusterError where a model of another name is in the way.
    """
    if engine not in ALONE:
        return
    there = [m for m in cell.models() if m.engine == engine and m.is_alive]
    for model in there:
        if model.name != name:
            raise ClusterError(is_alone(engine, model.name))
    for model in there:
        tell(
            f"note: '{name}' is stopped first, since a party holds one model of the {engine} "
            "engine at a time; nobody answers until the new one is shared and served"
        )
        unload(cell, name, model.session)


def take_over(cell: Cell, name: str, old: str, new: str) -> None:
    """Give the session `new` the name, let `old` answer what it has, and unload that.

    Nothing is switched at a party where it has been. Raises ClusterError, QueryError.
    """
    parties = cell.config.parties
    for party in [*parties[1:], parties[0]]:  # the leader last: until then the old one goes on
        cell.call(party, "POST", "/privserve/switch", session=new)
    if old:
        _wait_idle(cell, old)
        unload(cell, name, old)


def unload(cell: Cell, name: str, session: str) -> None:
    """End one session at every party that can be reached and still has it."""
    for party in cell.config.parties:
        with contextlib.suppress(ClusterError, QueryError):
            path = f"/v2/repository/models/{name}/unload"
            cell.call(party, "POST", path, session=session, timeout=UNLOAD_SECONDS)


def _wait_idle(cell: Cell, session: str) -> None:
    """Wait until a session has answered what it had; the leader first, which takes no more."""
    deadline = time.monotonic() + DRAIN_SECONDS
    for party in cell.config.compute:
        while time.monotonic() < deadline:
            try:
                status = cell.call(party, "GET", "/privserve/status", session=session).json()
            except StaleSession:
                break  # it is over
            if status["state"] != "loaded" or status["idle"]:
                break
            cell.check_processes()
            time.sleep(POLL_SECONDS / 4)
