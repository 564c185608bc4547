"""What a party counted for each of its models since its process began.

Sessions come and go while their model stays, and a counter that those read who watch a party must
not fall when one goes. So what a session counted is added up when it is not remembered any more. It
is read when somebody asks, and costs nobody anything before: a session that has begun and is
forgotten between two looks is not counted, for which more than sixteen others have to end.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from privserve.party.computing import ComputeSession
from privserve.party.models import Models
from privserve.party.session import Session
from privserve.party.statistics import Tally

MAX_NAMES = 64
"""Models of which sessions are over and not remembered; beyond, the one counted first goes."""


@dataclass
class Count:
    """What was counted of one model, or of one session of it."""

    queries: Tally = field(default_factory=Tally)
    exchanges: int = 0
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes, by the name of the party that they were sent to."""
    received: Counter[str] = field(default_factory=Counter)

    def merge(self, other: Count) -> None:
        """Count all that another one has."""
        self.queries.merge(other.queries)
        self.exchanges += other.exchanges
        self.sent.update(other.sent)
        self.received.update(other.received)


class Tallies:
    """The counts of a party's models. Thread-safe."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._lock = threading.Lock()
        self._seen: dict[str, Session] = {}
        self._over: dict[str, Count] = {}

    def by_model(self) -> dict[str, Count]:
        """Return by model what all its sessions counted, those that are over included."""
        with self._lock:
            known = {session.spec.id: session for session in self._models.known()}
            for name, session in self._seen.items():
                if name not in known:
                    self._over.setdefault(session.spec.model, Count()).merge(count_of(session))
            self._seen = known
            while len(self._over) > MAX_NAMES:
                self._over.pop(next(iter(self._over)))
            found: dict[str, Count] = {}
            for model, over in self._over.items():
                found.setdefault(model, Count()).merge(over)
            for session in known.values():
                found.setdefault(session.spec.model, Count()).merge(count_of(session))
            return found


def count_of(session: Session) -> Count:
    """Return what a session has counted by now."""
    count = Count()
    count.sent, count.received = session.traffic.by_party()
    if isinstance(session, ComputeSession):
        count.queries = session.statistics.tally()
        count.exchanges = session.exchanges
    return count
