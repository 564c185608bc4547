"""A log that cannot be filled from outside: what repeats itself is counted, not written."""

from __future__ import annotations

import logging
import threading
import time

from privserve.party.query_log import LOGGER as QUERIES

SECONDS = 60.0
MOST = 5
"""How often one message, whatever its arguments, is written per SECONDS."""
MAX_KINDS = 1000


class SaidOften(logging.Filter):
    """Lets each kind of message through MOST times per SECONDS, then says how many it kept.

    A kind is a logger and a message before its arguments are filled in: every refused
    handshake is one kind, whoever it comes from. Tracebacks go with their message. Lines about
    single queries are let through: whoever wants none does not ask for them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is to be written; may add how many were not."""
        if record.name == QUERIES:  # each is wanted, or none
            return True
        # A long message is mostly what somebody sent.
        kind = (record.name, str(record.msg)[:60])
        now = time.monotonic()
        with self._lock:
            since, count = self._seen.get(kind, (now, 0))
            kept = 0
            if now - since > SECONDS:
                since, kept, count = now, max(0, count - MOST), 0
            if kind not in self._seen and len(self._seen) >= MAX_KINDS:
                self._seen.pop(next(iter(self._seen)))
            self._seen[kind] = (since, count + 1)
        if kept:
            record.msg = f"{record.msg} (and {kept} times more in the last minutes)"
        elif count + 1 == MOST:
            record.msg = f"{record.msg} (more of these are not written for a minute)"
        return count < MOST
