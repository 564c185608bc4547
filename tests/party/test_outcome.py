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


def test_it_is_set_once() -> None:
    outcome = Outcome()
    outcome.set_result(SHARES)
    for again in (lambda: outcome.set_result([]), lambda: outcome.set_exception(NotServing("no"))):
        with pytest.raises(RuntimeError, match="set once"):
            again()
    assert outcome.result(0) is SHARES


def test_no_callback_is_lost_to_a_race() -> None:
    for _ in range(300):
        outcome, called = Outcome(), threading.Event()
        setter = threading.Thread(target=outcome.set_result, args=(SHARES,))
        setter.start()
        outcome.add_done_callback(lambda _, called=called: called.set())
        setter.join()
        assert called.is_set()
