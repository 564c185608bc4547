"""What becomes of a query: set once, waited for, called back with."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from privserve.errors import NotServing
from privserve.party.outcome import Outcome

SHARES = [np.arange(3)]


def test_shares_reach_who_waits_and_who_is_called_back() -> None:
    outcome, called = Outcome(), []
    outcome.add_done_callback(lambda o: called.append(o.result(0)))
    thread = threading.Timer(0.05, outcome.set_result, [SHARES])
    thread.start()
    assert outcome.result(10) is SHARES
    thread.join()
    outcome.add_done_callback(lambda o: called.append(o.result(0)))
    assert called == [SHARES, SHARES]
    assert outcome.done()
    assert outcome.exception(0) is None


def test_an_error_is_raised() -> None:
    outcome = Outcome()
    with pytest.raises(TimeoutError):
        outcome.result(0)
    outcome.set_exception(NotServing("no"))
    assert isinstance(outcome.exception(0), NotServing)
    with pytest.raises(NotServing, match="no"):
        outcome.result(0)


def test_what_is_set_first_counts() -> None:
    outcome, called = Outcome(), []
    outcome.add_done_callback(called.append)
    outcome.set_result(SHARES)
    outcome.set_result([])
    outcome.set_exception(NotServing("no"))
    assert outcome.result(0) is SHARES
    assert called == [outcome]


def test_no_callback_is_lost_to_a_race() -> None:
    for _ in range(300):
        outcome, called = Outcome(), threading.Event()
        setter = threading.Thread(target=outcome.set_result, args=(SHARES,))
        setter.start()
        outcome.add_done_callback(lambda _, called=called: called.set())
        setter.join()
        assert called.is_set()
