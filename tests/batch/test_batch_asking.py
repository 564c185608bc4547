"""How a batch job asks: order, what becomes of failures, which rows are bad."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from fake_asker import FakeAsker, numbered, served_model

from privserve.batch.asking import Asking, Patience
from privserve.batch.pace import Pace
from privserve.credentials import ANONYMOUS, Limits
from privserve.errors import (
    ClusterError,
    DeadlinePassed,
    GuessedRangeError,
    InputError,
    LimitReached,
    NotServing,
    PartyRevoked,
    PrivserveError,
    QueryError,
    RangeError,
    UnknownClient,
)
from privserve.party.accounts import Accounts


class Numbered:
    """A source of numbered rows."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.rows, self.identity = array, len(array), {}

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        return {"x": self.array[start:stop]}

    def where(self, row: int) -> str:
        return f"rows[{row}]"


def asking(
    asker: Any, array: np.ndarray, *, rows: int = 8, patience: float = 60.0, **how: Any
) -> tuple[Asking, list[float]]:
    """Asks with queries of `rows` rows, three at a time, and how long it slept."""
    slept: list[float] = []
    pace = Pace(64, 16, 60.0, rows=rows, in_flight=3)
    patient = Patience(patience, sleep=slept.append)
    return Asking(asker, Numbered(array), pace, patience=patient, **how), slept


def collect(asks: Asking, start: int, stop: int) -> tuple[np.ndarray, dict[int, str]]:
    """All answers, which have to come in order, and the bad rows."""
    values, bad, due = [], {}, start
    for answered in asks.answers(start, stop):
        assert answered.start == due
        due += len(answered.outputs["y"])
        values.append(answered.outputs["y"])
        bad.update(answered.bad)
    return np.concatenate(values), bad


def once(*errors: PrivserveError) -> Callable[[list[float]], PrivserveError | None]:
    """Fails the first queries with these, one each."""
    left = list(errors)
    return lambda _: left.pop(0) if left else None


def keys(start: int, stop: int) -> list[float]:
    return [row / 256 for row in range(start, stop)]


def test_rows_are_asked_once_each_in_order_and_answered_in_order() -> None:
    asker, array = FakeAsker(), numbered(50)
    values, bad = collect(asking(asker, array)[0], 5, 50)
    assert (values == 2 * array[5:].astype(np.float32)).all()
    assert not bad
    assert asker.rows_asked == keys(5, 50)
    assert [len(query) for query in asker.asked] == [8] * 5 + [5]


def test_as_many_queries_are_under_way_as_were_asked_for() -> None:
    class Slow(FakeAsker):
        def begin(self, rows: Any) -> Future[Any]:
            self.seen = (*getattr(self, "seen", ()), len(self.asked) + 1 - consumed[0])
            return super().begin(rows)

    asker, consumed = Slow(), [0]
    for _ in asking(asker, numbered(80))[0].answers(0, 80):
        consumed[0] += 1
    assert max(asker.seen) == 3


PASSING = [ClusterError("bob is gone"), NotServing("later"), QueryError("busy", 503)]


@pytest.mark.parametrize("error", PASSING, ids=lambda e: type(e).__name__)
def test_a_cluster_that_is_away_for_a_while_is_asked_again(error: PrivserveError) -> None:
    asker = FakeAsker(once(error, error, error, error, error))
    asks, slept = asking(asker, numbered(40))
    values, _ = collect(asks, 0, 40)
    assert (values == 2 * numbered(40).astype(np.float32)).all()
    assert sorted(asker.answered) == keys(0, 40)  # nobody was answered twice
    assert slept == [0.25, 0.5]


def test_patience_ends_with_the_last_error() -> None:
    asker = FakeAsker(lambda _: ClusterError("bob is gone"))
    asks, slept = asking(asker, numbered(40), patience=0.0)
    with pytest.raises(ClusterError, match="bob is gone"):
        collect(asks, 0, 40)
    assert not slept


@pytest.mark.parametrize(
    "error",
    [PartyRevoked("revoked"), UnknownClient("who"), QueryError("no such model", 404)],
    ids=lambda e: type(e).__name__,
)
def test_what_waiting_does_not_mend_ends_it_at_once(error: PrivserveError) -> None:
    asks, slept = asking(FakeAsker(once(error)), numbered(40))
    with pytest.raises(type(error)):
        collect(asks, 0, 40)
    assert not slept


def test_what_is_left_of_a_limit_is_used_to_the_last_row() -> None:
    left = [21]

    def refuse(rows: list[float]) -> PrivserveError | None:
        if len(rows) > left[0]:
            return LimitReached(f"this query has {len(rows)} rows, and {left[0]} are left")
        left[0] -= len(rows)
        return None

    asker = FakeAsker(refuse)
    asks, _ = asking(asker, numbered(64))
    answered = []
    answers = asks.answers(0, 64)
    while len(answered) < 21:
        answered += list(next(answers).outputs["y"][:, 0] / 2)
    with pytest.raises(LimitReached, match="0 are left"):
        next(answers)
    assert answered == keys(0, 21)


def test_a_bound_on_a_querys_rows_is_kept_to_from_then_on() -> None:
    asker = FakeAsker(lambda rows: LimitReached("may ask 5 per query") if len(rows) > 5 else None)
    asks, _ = asking(asker, numbered(80))
    values, _ = collect(asks, 0, 80)
    assert (values == 2 * numbered(80).astype(np.float32)).all()
    assert [len(query) for query in asker.asked[-8:]] == [4] * 8
    assert sorted(asker.answered) == keys(0, 80)


def test_a_rate_that_is_limited_is_waited_for() -> None:
    accounts = Accounts().of_model("m", Limits(rows_per_minute=10))
    accounts.charge(ANONYMOUS, 9)
    said = accounts.refusal(ANONYMOUS, 8)
    assert said is not None
    asks, slept = asking(FakeAsker(once(*3 * [LimitReached(said)])), numbered(24))
    values, _ = collect(asks, 0, 24)
    assert len(values) == 24
    assert len(slept) == 1  # for all that were under way
    assert 55 < slept[0] < 65


@pytest.mark.parametrize("error", [DeadlinePassed("late"), QueryError("no memory", 413)])
def test_a_query_that_is_too_much_is_asked_as_two(error: PrivserveError) -> None:
    asker = FakeAsker(lambda rows: error if len(rows) > 4 else None)
    values, _ = collect(asking(asker, numbered(30))[0], 0, 30)
    assert (values == 2 * numbered(30).astype(np.float32)).all()
    assert sorted(asker.answered) == keys(0, 30)


def with_bad_rows() -> np.ndarray:
    array = numbered(40)
    array[11, 1], array[12, 1], array[30, 1] = 9.0, np.nan, np.inf
    return array


def test_a_row_out_of_range_stops_it_and_is_named() -> None:
    asker = FakeAsker()
    with pytest.raises(InputError) as caught:
        collect(asking(asker, with_bad_rows())[0], 0, 40)
    said = str(caught.value)
    assert said.startswith("rows[11] has no answer: input 'x' holds values from")
    assert "--on-bad-row nan" in said


def test_bad_rows_alone_are_nan_and_the_others_are_asked_once() -> None:
    asker, array = FakeAsker(), with_bad_rows()
    values, bad = collect(asking(asker, array, on_bad_row="nan")[0], 0, 40)
    assert set(bad) == {11, 12, 30}
    assert "outside" in bad[11]
    assert "NaN" in bad[12]
    good = np.delete(np.arange(40), [11, 12, 30])
    assert np.isnan(values[[11, 12, 30]]).all()
    assert (values[good] == 2 * array[good].astype(np.float32)).all()
    assert sorted(asker.answered) == [row / 256 for row in good]


def test_a_query_of_bad_rows_only_is_not_asked() -> None:
    asker, array = FakeAsker(), numbered(24)
    array[8:16, 1] = np.nan
    values, bad = collect(asking(asker, array, on_bad_row="nan")[0], 0, 24)
    assert set(bad) == set(range(8, 16))
    assert np.isnan(values[8:16]).all()
    assert len(asker.asked) == 2


def guarded(rows: list[float]) -> PrivserveError | None:
    """Rows 5 and 20 leave a guessed range."""
    bad = {i: ("dense",) for i, key in enumerate(rows) if round(256 * key) in (5, 20)}
    return GuessedRangeError("there is no answer", bad) if bad else None


def test_rows_that_leave_a_guessed_range_are_told_by_the_answer() -> None:
    asker, array = FakeAsker(guarded), numbered(32)
    values, bad = collect(asking(asker, array, on_bad_row="nan")[0], 0, 32)
    assert set(bad) == {5, 20}
    assert "in layer 'dense'" in bad[5]
    assert np.flatnonzero(np.isnan(values[:, 0])).tolist() == [5, 20]
    with pytest.raises(InputError, match=r"rows\[5\] has no answer: in layer 'dense'"):
        collect(asking(FakeAsker(guarded), array)[0], 0, 32)


def test_bad_rows_of_both_kinds_in_one_query_are_found() -> None:
    array = numbered(32)
    array[6, 1] = np.nan
    values, bad = collect(asking(FakeAsker(guarded), array, on_bad_row="nan")[0], 0, 32)
    assert set(bad) == {5, 6, 20}
    good = np.delete(np.arange(32), [5, 6, 20])
    assert (values[good] == 2 * array[good].astype(np.float32)).all()


def test_a_range_error_that_no_row_explains_is_not_answered_with_nan() -> None:
    asker = FakeAsker(once(RangeError("odd")))
    with pytest.raises(RangeError, match="odd"):
        collect(asking(asker, numbered(8), on_bad_row="nan")[0], 0, 8)


def test_the_session_of_each_answer_is_told() -> None:
    asker = FakeAsker()
    answers = asking(asker, numbered(16))[0].answers(0, 16)
    assert next(answers).sharing == "one"
    asker.served = served_model("two")
    assert next(answers).sharing == "two"
