"""The log as one JSON object a line, for programs that collect logs (`--log-json`).

Each has `time` (RFC 3339, UTC, milliseconds), `level`, `party` and `event`, which is the text that
would be the line else; and where the line is about one, `session`, `model` and `request`, the
query's id. Of an exception there is where it was raised, and not what it says: it may quote the
values of arrays.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
import threading
import traceback
from types import TracebackType
from typing import Any

FIELDS = ("session", "model", "request", "client", "rows", "outcome", "ms")
"""What a line may be told of besides, as `extra`."""
log = logging.getLogger("privserve")


class JsonLines(logging.Formatter):
    """Writes each record as a JSON object, in ASCII, on one line."""

    def __init__(self, party: str) -> None:
        super().__init__()
        self._party = party

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        said: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "party": self._party,
            "event": record.getMessage(),
        }
        said |= {name: vars(record)[name] for name in FIELDS if name in vars(record)}
        if record.exc_info is not None and record.exc_info[0] is not None:
            said["error"] = record.exc_info[0].__name__
            said["frames"] = "".join(traceback.format_tb(record.exc_info[2]))
        return json.dumps(said)


def log_as_json(party: str) -> None:
    """Have all that this process logs, warns of and dies of written as JSON."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonLines(party))
    logging.captureWarnings(True)

    def died(
        kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
    ) -> None:
        frames = "".join(traceback.format_tb(trace))
        log.critical("%s, which nobody foresaw\n%s", kind.__name__, frames)

    sys.excepthook = died
    threading.excepthook = lambda args: died(args.exc_type, args.exc_value, args.exc_traceback)
