"""Which status an error has for an application."""

from __future__ import annotations

import grpc
import pytest

import privserve as ps
from privserve.errors import OwnerOnly, PeerLost, PrivserveError, StaleSession, TooManyRows
from privserve.gateway.refusals import GRPC_CODES, status_of, text_of

STATUSES: dict[PrivserveError, int] = {
    ps.InputError("why"): 400,
    ps.RangeError("why"): 422,
    ps.GuessedRangeError("why", {}): 422,
    ps.LimitReached("why"): 429,
    ps.NotServing("why"): 503,
    ps.Draining("why"): 503,
    ps.UnknownClient("why"): 503,
    ps.ClusterError("why"): 503,
    PeerLost("why"): 503,
    ps.ConfigError("why"): 503,
    ps.DeadlinePassed("why"): 504,
    TooManyRows("why"): 413,
    StaleSession("why"): 502,
    OwnerOnly("why"): 502,
    ps.QueryError("why"): 502,
    ps.QueryError("why", 404): 404,
}


@pytest.mark.parametrize(("error", "status"), STATUSES.items(), ids=lambda v: type(v).__name__)
def test_an_error_has_one_status_and_one_code(error: PrivserveError, status: int) -> None:
    assert status_of(error) == status
    assert hasattr(grpc.StatusCode, GRPC_CODES[status])


def test_a_message_that_is_no_text_is_told_all_the_same() -> None:
    assert text_of(ps.InputError("no \udcff text")) == "no \\udcff text"
