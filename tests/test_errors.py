"""An error's way from a party to a client: its class, its code, its HTTP status."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.requests import Request

from privserve.calls import raise_for_answer
from privserve.errors import (
    BY_CODE,
    ConfigError,
    Draining,
    GuessedRangeError,
    InputError,
    LimitReached,
    ModelError,
    NotServing,
    PeerLost,
    PrivserveError,
    QueryError,
    RangeError,
    StaleSession,
    TooManyRows,
)
from privserve.party.json_answers import _on_error

ANSWERS = {
    QueryError("why"): (QueryError, "refused", 500),
    QueryError("why", 504): (QueryError, "refused", 504),
    LimitReached("why"): (LimitReached, "limit_reached", 429),
    NotServing("why"): (NotServing, "not_serving", 503),
    Draining("why"): (Draining, "draining", 503),
    NotServing("why", 409): (NotServing, "not_serving", 409),
    StaleSession("why"): (StaleSession, "stale_session", 409),
    TooManyRows("why"): (QueryError, "refused", 413),
    InputError("why"): (InputError, "bad_input", 400),
    RangeError("why"): (InputError, "bad_input", 400),
    GuessedRangeError("why", {}): (InputError, "bad_input", 400),
    ConfigError("why"): (QueryError, "refused", 400),
    ModelError("why"): (QueryError, "refused", 400),
    PeerLost("why"): (QueryError, "refused", 400),
}


@pytest.mark.parametrize(
    ("error", "kind", "code", "status"),
    [(error, *expected) for error, expected in ANSWERS.items()],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_a_party_raises_is_what_its_client_raises(
    error: PrivserveError, kind: type[PrivserveError], code: str, status: int
) -> None:
    answer = asyncio.run(_on_error(Request({"type": "http"}), error))
    response = httpx.Response(answer.status_code, content=bytes(answer.body))
    assert response.json() == {"error": "why", "code": code}
    assert response.status_code == status
    with pytest.raises(PrivserveError, match="why") as raised:
        raise_for_answer(response, "alice")
    assert type(raised.value) is kind
    assert raised.value.status == status


def test_an_error_keeps_the_status_of_its_class_from_that_of_one_refusal() -> None:
    assert QueryError("why", 504).status == 504
    assert QueryError("why").status == QueryError.status == 500


def test_no_two_classes_share_a_code() -> None:
    assert len(BY_CODE) == 8
    assert all(kind.code == code for code, kind in BY_CODE.items())
    assert InputError.code not in BY_CODE
