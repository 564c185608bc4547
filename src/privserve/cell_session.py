"""One model in one cell: its session there, from the splitting of the weights on."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from typing import Any

from privserve import replacing, sending
from privserve.cell import Cell
from privserve.engines import ALONE
from privserve.errors import ClusterError, StaleSession
from privserve.shared_models import SharedModel


class CellSession:
    """A model's session in one cell; another one each time that the model is shared again.

    No share is sent to two cells: the weights are split anew for each session.
    """

    def __init__(self, cell: Cell, sent: sending.Sent, sharing: str) -> None:
        """sent: what the cell's parties are given, also when one has lost it. sharing: what the ids
        of all its sessions begin with, in all cells."""
        self.cell = cell
        self._sharing = sharing
        self.id = self._fresh_id()
        self.sent = sent
        self._before: SharedModel | None = None
        self._replaces = ""
        """The session in whose place this one is served, once it is."""

    def _fresh_id(self) -> str:
        return self._sharing + secrets.token_hex(16 - len(self._sharing) // 2)

    @property
    def name(self) -> str:
        """The model's."""
        return self.sent.name

    def make_way(self, tell: Callable[[str], None]) -> None:
        """Find out what has the model's name, and stop it where there is no room for two."""
        replacing.make_way(self.cell, self.sent.prepared.engine, self.name, tell)
        self._before = replacing.holder(self.cell, self.name)

    def send(self) -> None:
        """Split the weights, and give each compute party its shares."""
        sending.send(self.cell, self.id, self.sent)

    def wait_loaded(self) -> None:
        """Wait until all parties can serve it; it has the name then, unless another is served."""
        sending.wait_loaded(self.cell, self.id)
        before = self._before
        if before is not None and self._is_served(before.session):
            self._replaces = before.session
        else:
            # Also where nobody has the name: a party that was started again may believe that a
            # session has it still which the others know to be over.
            old = "" if before is None else before.session
            replacing.take_over(self.cell, self.name, old, self.id)

    def take_over(self) -> None:
        """Take the place of the one that has been served until now, if any has."""
        if self._replaces:
            replacing.take_over(self.cell, self.name, self._replaces, self.id)
            self._replaces = ""

    def share_again(self) -> str:
        """Share the model anew, in place of what is left of it; returns the new session's id."""
        before, session = self.id, self._fresh_id()
        if self.sent.prepared.engine in ALONE:  # there is no room for two
            replacing.unload(self.cell, self.name, before)
        try:
            sending.send(self.cell, session, self.sent)
            sending.wait_loaded(self.cell, session)
            replacing.take_over(self.cell, self.name, before, session)
        except BaseException:
            replacing.unload(self.cell, self.name, session)
            raise
        self.id = session
        return session

    def _is_served(self, session: str) -> bool:
        """Whether this session is served now."""
        leader = self.cell.config.compute[0]
        try:
            status = self.cell.call(leader, "GET", "/privserve/status", session=session).json()
        except StaleSession:
            return False
        return status["state"] == "loaded" and bool(status.get("serving"))

    def stop_serving(self) -> int:
        """Refuse further queries; how many rows were answered."""
        leader = self.cell.config.compute[0]
        stopped = self.cell.call(leader, "POST", "/privserve/stop", session=self.id).json()
        return int(stopped["answered"])

    def status(self) -> list[dict[str, Any]]:
        """Return every party's state, with this session's."""
        parties, path = self.cell.config.parties, "/privserve/status"
        return [self.cell.call(p, "GET", path, session=self.id).json() for p in parties]

    def stop(self) -> None:
        """Have every party forget its share."""
        with contextlib.suppress(ClusterError):
            replacing.unload(self.cell, self.name, self.id)
