"""What a session has sent and received, in all of its rounds: counts that never fall."""

from __future__ import annotations

import threading
from collections import Counter

from privserve.party.rounds import Round


class Traffic:
    """Bytes to and from each of the other parties. Thread-safe."""

    def __init__(self, round_: Round) -> None:
        self._lock = threading.Lock()
        self._round: Round | None = round_
        """The one that goes on; None between two."""
        self._before: tuple[Counter[str], Counter[str]] = (Counter(), Counter())

    def begin(self, round_: Round) -> None:
        """Count another round from now on."""
        with self._lock:
            self._round = round_

    def end(self) -> None:
        """Keep what the round counted, which is over."""
        with self._lock:
            self._before, self._round = self._by_now(), None

    def by_party(self) -> tuple[Counter[str], Counter[str]]:
        """Return the bytes that were sent to each party, and received from it."""
        with self._lock:
            return self._by_now()

    def _by_now(self) -> tuple[Counter[str], Counter[str]]:
        sent, received = (Counter(one) for one in self._before)
        for lane in [] if self._round is None else list(self._round.lanes.values()):
            for channel in list(lane.channels.values()):
                sent[channel.peer] += channel.bytes_sent
                received[channel.peer] += channel.bytes_received
        return sent, received
