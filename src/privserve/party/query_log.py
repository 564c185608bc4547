"""A line in the log for each query, where the party's operator asks for it (`--log-queries`).

It says who asked, for how many rows, and what became of that: never a share, nor a value.
"""

from __future__ import annotations

import logging

from privserve.party.pending import Pending
from privserve.party.statistics import Report

LOGGER = "privserve.queries"
"""Lines of this logger are wanted one by one: see `quiet`."""
log = logging.getLogger(LOGGER)
log.setLevel(logging.WARNING)


def log_queries() -> None:
    """Log the queries of all sessions that begin from now on."""
    log.setLevel(logging.INFO)


def report_to(model: str, session: str) -> Report | None:
    """Return what logs the queries of a session; None where nobody asked for it."""
    if not log.isEnabledFor(logging.INFO):
        return None

    def report(query: Pending, outcome: str, ns: int) -> None:
        ms = round(ns / 1e6, 3)
        log.info(
            "query %s of client %s to '%s': %d rows, %s in %.1f ms",
            query.id,
            query.client,
            model,
            query.rows,
            outcome,
            ms,
            extra={
                "session": session,
                "model": model,
                "request": query.id,
                "client": query.client,
                "rows": query.rows,
                "outcome": outcome,
                "ms": ms,
            },
        )

    return report
