"""What an error is for an application that asks the gateway: one HTTP status, one gRPC code."""

from __future__ import annotations

import logging
import traceback

from privserve.errors import (
    InputError,
    LimitReached,
    NoAnswer,
    PrivserveError,
    QueryError,
    RangeError,
    UnknownClient,
)

log = logging.getLogger("privserve.gateway")

OWN = {400, 403, 404, 405, 408, 413, 415, 422, 429, 503, 504}
"""Statuses that pass from the cluster to the application, since they mean the same to both."""
GRPC_CODES = {
    400: "INVALID_ARGUMENT",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "RESOURCE_EXHAUSTED",
    422: "OUT_OF_RANGE",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""Names of `grpc.StatusCode`, by the HTTP status that means the same."""


def status_of(error: PrivserveError) -> int:
    """Return the HTTP status for an error.

    RangeError is 422: the request is well-formed, and there is no answer to these values. That
    the cluster is away, or does not let the gateway in, is 503, for neither is the application's
    fault; anything else that parties refuse with is 502.
    """
    if isinstance(error, RangeError):
        return 422
    if isinstance(error, InputError):
        return 400
    if isinstance(error, LimitReached):
        return 429
    if isinstance(error, NoAnswer):
        return 504
    if isinstance(error, UnknownClient) or not isinstance(error, QueryError):
        return 503
    return error.status if error.status in OWN else 502


def text_of(error: PrivserveError) -> str:
    """Return the message; what a request made of it may be no valid text."""
    return str(error).encode("utf-8", "backslashreplace").decode()


def note_bug(error: Exception) -> None:
    """Log where an unexpected error came from, and not its message: that may hold a value."""
    where = traceback.extract_tb(error.__traceback__)
    lines = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(where))
    log.error("internal error: %s at %s", type(error).__name__, lines)
