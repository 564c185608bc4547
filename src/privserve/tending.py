"""Serve a model until its owner has had enough, whatever becomes of the parties meanwhile.

A party that comes back with its share rejoins by itself, and serving goes on. Where one has lost
its share, and the owner's program runs still, the model is shared again, with what is left of the
limit; local parties that ended are started again.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from privserve import replacing
from privserve.cell import POLL_SECONDS, Cell
from privserve.config import PartyConfig
from privserve.errors import (
    ClusterError,
    ModelReplaced,
    NotServing,
    PrivserveError,
    QueryError,
    StaleSession,
)
from privserve.leases import Heard, Lease, Order

ASK_SECONDS = 2.0
"""For one party's answer: the others are asked next."""
HEAL_SECONDS = 0.5
"""Between two looks at a model that is not served now."""
FIRST_PAUSE, MOST_PAUSE = 1.0, 30.0
"""Between two tries to share a model again."""
SERVED_ALREADY = 409
"""The status of what a leader refuses a second `serve` with."""
STEADY_SECONDS = 60.0
"""What was served for so long begins anew with FIRST_PAUSE."""
SAY_SECONDS = 10.0
"""So often it is said that nothing has changed."""
OWNER_SECONDS = 30.0
"""After so long without a word of its owner's program a model is not served any more, where its
owner has said so."""
SERVE, STOP = "serve", "stop"


@dataclass
class Tended:
    """One model that is served, by a program of its owner."""

    cell: Cell
    name: str
    session: str
    limit: int | None
    on_owner_loss: str
    share_again: Callable[[], str]
    """Shares the model anew and returns the new session's id; raises ClusterError, QueryError."""
    tell: Callable[[str], None]
    is_stopped: threading.Event = field(default_factory=threading.Event)
    """Set once its owner has told the leader to stop, which need not be there to say so."""
    lease: Lease | None = None
    """What this cell has of a limit that is for several; then `limit` is None."""
    before: int = 0
    """Rows that earlier sessions answered."""
    answered: int = 0
    """Rows that this session answered."""
    _lease_name: str = field(default_factory=lambda: secrets.token_hex(16))
    _ran: dict[str, int] = field(default_factory=dict)
    """By follower: the rows that it had run in this session when it was served."""
    _said: tuple[str, float] = ("", 0.0)
    _pause: float = 0.0
    _next_try: float = 0.0
    _counted: str = ""
    """The session whose rows are in `before` already."""
    _begun: str = ""
    """The session that was told to serve."""
    _since: float = field(default_factory=time.monotonic)
    """When the model was shared."""

    @property
    def total(self) -> int:
        """Rows that were answered since `serve` was called."""
        return self.before + self.answered

    @property
    def leader(self) -> PartyConfig:
        """The party that decides what runs."""
        return self.cell.config.compute[0]

    def begin(self) -> None:
        """Have what is left of the limit answered; raises as the leader does."""
        self._ran = {
            party.name: int(status["ran"])
            for party in self.cell.config.compute[1:]
            if isinstance(status := self._asked(party), dict) and "ran" in status
        }
        left = None if self.limit is None else self.limit - self.before
        message: dict[str, Any] = {"num_requests": left}
        if self.lease is not None:
            if not (rows := self.lease.begin()):
                return  # others have them all; there may be some again
            message = {"num_requests": rows, "lease": self._lease_name}
        if self.on_owner_loss == STOP:
            message["owner_seconds"] = OWNER_SECONDS
        path = "/privserve/serve"
        try:
            self.cell.call(self.leader, "POST", path, session=self.session, json=message)
        except QueryError as error:
            if self.lease is None or error.status != SERVED_ALREADY:
                raise
            status = self._asked(self.leader)
            if isinstance(status, str):
                raise
            if status is None or status.get("lease") != self._lease_name:
                self.lease.settle(0)  # it serves something else, and never knew of this lease
                raise
        self._begun, self.answered = self.session, 0

    def look(self) -> bool:
        """Look once how serving goes and mend what can be mended; whether it is over.

        Raises ClusterError where it ended in a way that does not pass, ModelReplaced.
        """
        self.cell.revive(self.tell)
        status = self._asked(self.leader)
        is_led = isinstance(status, dict) and self._begun == self.session
        if self.lease is not None and self.lease.is_over and not is_led:
            if isinstance(status, dict) and status["state"] == "loaded":
                self._extend(Order(0, True, 1))  # so that clients are told why it serves nothing
            return True
        if isinstance(status, dict) and is_led:
            if self._counted != self.session:
                self.answered = max(self.answered, int(status.get("answered", 0)))
            state = status["state"]
            is_over = state not in ("loaded", "waiting")
            if status.get("replaced") and (is_over or status["idle"]):
                raise ModelReplaced(
                    f"serving ended: another model is shared as '{self.name}' and has taken "
                    f"this one's place, which answered {self.total} rows"
                )
            if state == "ended":
                raise ClusterError(f"serving ended: {status['reason']}")
            if state == "loaded":
                self._is_well()
                return self._leased(status) if self.lease else not status["serving"]
        return self._mend(status)

    def _leased(self, status: dict[str, Any]) -> bool:
        """Have the leader answer more rows, or fewer, than it was told; whether serving is over."""
        assert self.lease is not None
        try:
            keys = ("limit", "answered", "begun", "spare", "short")
            heard = Heard(*(int(status[key]) for key in keys))
        except (KeyError, TypeError, ValueError):
            raise ClusterError(
                f"{self.leader.name} does not say what it does with the rows that it may answer; "
                "all parties have to run one version of privserve"
            ) from None
        if status.get("refuses") == NotServing.code:  # somebody has told it to stop
            if not heard.begun and self._counted != self.session:
                self._settle(heard.answered)
                self.answered, self._counted = 0, self.session
            return not heard.begun
        order = self.lease.report(heard)
        if order is not None and (rows := self._extend(order)) is not None:
            self.lease.confirm(order, rows)
        return self.lease.is_over and order is None  # else it is told, and looked at once more

    def _extend(self, order: Order) -> int | None:
        """Tell the leader how many rows it has; how many it says then, None: nothing."""
        message = {
            "lease": self._lease_name,
            "limit": order.rows,
            "number": order.number,
            "final": order.final,
        }
        path, session = "/privserve/extend", self.session
        try:
            told = self.cell.call(self.leader, "POST", path, session=session, json=message)
            return int(told.json()["limit"])
        except (ClusterError, QueryError):  # the next look says what it knows
            return None

    def _is_well(self) -> None:
        if self._said[0]:
            self.tell(f"'{self.name}' is served again")
            self._said = ("", 0.0)
        if time.monotonic() - self._since > STEADY_SECONDS:
            self._pause = 0.0

    def _mend(self, led: dict[str, Any] | str | None) -> bool:
        """Find out why the model is not served, and share it again if that is what it takes."""
        said = {party.name: self._asked(party) for party in self.cell.config.parties}
        away = [found for found in said.values() if isinstance(found, str)]
        lost = [name for name, found in said.items() if found is None or self._is_stuck(led, found)]
        if away:
            self._say(f"'{self.name}' is not served: {away[0]}; trying again")
        elif lost:
            return self._share_again(lost, said)
        elif isinstance(led, dict):
            if led["state"] == "failed":
                raise ClusterError(f"serving ended: {led['reason']}")
            if led["state"] == "loaded" and self._begun != self.session:
                try:
                    self.begin()  # which failed when it was shared, or shared again
                    return False
                except (ClusterError, QueryError) as error:
                    led = {**led, "reason": str(error)}
            self._say(f"'{self.name}' is not served: {led['reason']}")
        time.sleep(HEAL_SECONDS)
        return False

    @staticmethod
    def _is_stuck(led: dict[str, Any] | str | None, found: dict[str, Any] | str) -> bool:
        """Whether the leader waits for a party whose session is over."""
        return (
            isinstance(led, dict)
            and isinstance(found, dict)
            and led["state"] == "waiting"
            and found["state"] in ("failed", "ended")
        )

    def _share_again(self, lost: list[str], said: dict[str, Any]) -> bool:
        if self._counted != self.session:
            self._settle(self._count(said))
            self.answered, self._counted = 0, self.session
        if self.limit is not None and self.before >= self.limit:
            return True
        if time.monotonic() < self._next_try or not self._is_ours():
            time.sleep(HEAL_SECONDS)
            return False
        self._pause = min(max(FIRST_PAUSE, 2 * self._pause), MOST_PAUSE)
        names = " and ".join(lost)
        left = "" if self.limit is None else f", for the {self.limit - self.before} rows left"
        self.tell(f"{names} lost what it had of '{self.name}': sharing it again{left}")
        try:
            self.session = self.share_again()
            self.begin()
        except (ClusterError, QueryError) as error:
            self.tell(f"'{self.name}' could not be shared again: {error}")
        self._since = time.monotonic()
        self._next_try = self._since + self._pause
        self._said = ("sharing again", self._since)
        return False

    def _is_ours(self) -> bool:
        """Whether the name is free for this model; False where that cannot be told now.

        Raises ClusterError where somebody shares another model under it.
        """
        try:
            other = replacing.holder(self.cell, self.name)
        except (ClusterError, QueryError):
            return False
        if other is not None and other.session != self.session:
            raise ClusterError(
                f"serving ended: another model was shared as '{self.name}' meanwhile"
            )
        return True

    def _settle(self, answered: int | None) -> None:
        """Count what this session answered; None: nobody knows."""
        self.before += self.answered if answered is None else answered
        if self.lease is not None and (unknown := self.lease.settle(answered)):
            self.tell(
                f"how many rows of '{self.name}' were answered last is lost with all compute "
                f"parties: {unknown} rows that may have been count as answered"
            )

    def give_up(self) -> None:
        """Tend the cell no more: what it may answer counts as answered."""
        if self._counted != self.session:
            self._settle(None)
            self.answered, self._counted = 0, self.session

    def _count(self, said: dict[str, Any]) -> int | None:
        """How many rows this session has answered, at most; None: nobody knows.

        Where the leader has lost its count, those are taken for answered that the others ran: the
        last batch may have reached nobody, but no limit is exceeded.
        """
        found = []
        for name, status in said.items():
            if isinstance(status, dict) and name == self.leader.name:
                return int(status.get("answered", self.answered))
            if isinstance(status, dict) and "ran" in status and name in self._ran:
                found.append(int(status["ran"]) - self._ran[name])
        return max(self.answered, *found) if found else None

    def _say(self, line: str) -> None:
        """Tell what is new, or what is so still."""
        now = time.monotonic()
        before, at = self._said
        if line != before or now - at > SAY_SECONDS:
            self.tell(line)
            self._said = (line, now)

    def _asked(self, party: PartyConfig) -> dict[str, Any] | str | None:
        """A party's status of this session; None where it has none, and why it says nothing."""
        path = "/privserve/status"
        try:
            found: dict[str, Any] = self.cell.call(
                party, "GET", path, session=self.session, timeout=ASK_SECONDS
            ).json()
            return found
        except StaleSession:
            return None
        except (ClusterError, QueryError, ValueError) as error:
            return str(error)


def serve(tended: Tended, report: Callable[[int], None]) -> int:
    """Look after a model until its limit is reached or it is stopped; how many were answered."""
    reported = 0
    while True:
        is_stopped = tended.is_stopped.is_set()  # before the last look, which counts
        is_over = tended.look() or is_stopped
        if tended.total > reported:
            reported = tended.total
            report(reported)
        if is_over:
            return reported
        time.sleep(POLL_SECONDS)


def serve_cells(many: Sequence[Tended], report: Callable[[int], None]) -> int:
    """Look after a model in several cells, each by itself; how many rows were answered in all.

    Returns once all are over: where they have leases, once their limit is reached. Raises what the
    first of them ended with that did not end well, if none did.
    """
    failed: list[PrivserveError] = []

    def look_after(tended: Tended) -> None:
        try:
            serve(tended, lambda _: None)
        except PrivserveError as error:
            failed.append(error)
            tended.give_up()
            tended.tell(str(error))

    threads = [threading.Thread(target=look_after, args=(one,), daemon=True) for one in many]
    for thread in threads:
        thread.start()
    reported, is_over = 0, False
    while not is_over:
        is_over = not any(thread.is_alive() for thread in threads)  # before the last count
        total = sum(one.total for one in many)
        if total > reported:
            reported = total
            report(reported)
        if not is_over:
            time.sleep(POLL_SECONDS)
    if len(failed) == len(many):
        raise failed[0]
    return reported
