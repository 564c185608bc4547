"""What is counted of queries, against a plain sum over all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privserve.errors import (
    DeadlinePassed,
    InputError,
    LimitReached,
    NotServing,
    QueryError,
    UnknownClient,
)
from privserve.party.pending import Pending
from privserve.party.statistics import (
    BOUNDS,
    STAGES,
    WHOLE,
    Histogram,
    RunTime,
    Statistics,
    Tally,
    outcome_of,
)
from privserve.party.turns import Piece


def pending(rows: int) -> Pending:
    return Pending("q", [np.zeros((rows, 1), np.int64)], rows)


TIMES = st.builds(RunTime, *[st.integers(0, 10**9)] * 3)
BATCHES = st.lists(st.tuples(st.lists(st.integers(1, 5), min_size=1, max_size=4), TIMES))


@given(BATCHES, st.integers(0, 5))
def test_batches_are_summed_by_query_and_by_their_size(
    batches: list[tuple[list[int], RunTime]], refused: int
) -> None:
    statistics = Statistics()
    for rows, took in batches:
        queries = [pending(count) for count in rows]
        for query in queries:
            statistics.follow(query)
            query.begun_ns = query.since_ns
        statistics.ran([Piece(query, 0, query.rows) for query in queries], took)
        for query in queries:
            query.answer([query.inputs[0]])
    for _ in range(refused):
        query = pending(1)
        statistics.follow(query)
        query.future.set_exception(DeadlinePassed("the query's time was up"))
    facts = statistics.facts("m", "v")
    answered = sum(len(rows) for rows, _ in batches)
    found = facts["inference_stats"]
    assert found["success"]["count"] == found["queue"]["count"] == answered
    assert found["fail"]["count"] == refused
    assert found["queue"]["ns"] == 0
    assert facts["inference_count"] == sum(sum(rows) for rows, _ in batches)
    assert facts["execution_count"] == len(batches)
    for name, phase in (("input", "inputs"), ("infer", "engine"), ("output", "outputs")):
        each = [(sum(rows), len(rows), getattr(took, phase)) for rows, took in batches]
        expected = sum(queries * ns for _, queries, ns in each)
        assert found[f"compute_{name}"] == {"count": answered, "ns": expected}
        by_size = {s["batch_size"]: s[f"compute_{name}"] for s in facts["batch_stats"]}
        assert set(by_size) == {rows for rows, _, _ in each}
        for size, told in by_size.items():
            of_size = [ns for rows, _, ns in each if rows == size]
            assert told == {"count": len(of_size), "ns": sum(of_size)}


def test_a_query_in_pieces_is_one_query_that_took_all_of_its_batches() -> None:
    statistics, query = Statistics(), pending(5)
    statistics.follow(query)
    query.begun_ns = query.since_ns + 7
    for start, stop in ((0, 2), (2, 4), (4, 5)):
        statistics.ran([Piece(query, start, stop)], RunTime(1, 10, 100))
        query.answer([query.inputs[0][start:stop]])
    facts = statistics.facts("m", "v")
    assert facts["inference_stats"]["success"]["count"] == 1
    assert facts["inference_stats"]["queue"] == {"count": 1, "ns": 7}
    assert facts["inference_stats"]["compute_infer"] == {"count": 1, "ns": 30}
    assert (facts["inference_count"], facts["execution_count"]) == (5, 3)
    ran = statistics.runs()
    assert (ran.queries, ran.rows) == (1, 5)
    assert ran.recent == [(2, 110e-9), (2, 110e-9), (1, 110e-9)]


@given(st.lists(st.integers(0, 10**11)))
def test_a_histogram_holds_what_takes_no_longer_than_a_bound(times: list[int]) -> None:
    one, two = Histogram(), Histogram()
    for at, ns in enumerate(times):
        (one, two)[at % 2].add(ns)
    one.merge(two)
    assert one.ns == sum(times)
    for at, bound in enumerate(BOUNDS):
        assert sum(one.counts[: at + 1]) == sum(ns <= bound * 1e9 for ns in times)
    assert sum(one.counts) == len(times)


@given(BATCHES)
def test_a_batch_is_counted_in_each_of_its_stages(
    batches: list[tuple[list[int], RunTime]],
) -> None:
    statistics = Statistics()
    for rows, took in batches:
        third = took.engine // 3
        took = RunTime(took.inputs, took.engine, took.outputs, third, third)
        queries = [pending(count) for count in rows]
        statistics.ran([Piece(query, 0, query.rows) for query in queries], took)
    tally = statistics.tally()
    tally.merge(statistics.tally())  # of another session
    thirds = [took.engine // 3 for _, took in batches]
    whole = [took.inputs + took.engine + took.outputs for _, took in batches]
    assert tally.took["packs"].ns == tally.took["exchanges"].ns == 2 * sum(thirds)
    assert tally.took["compute"].ns == 2 * (sum(whole) - 2 * sum(thirds))
    assert tally.stalls == 2 * sum(ns > 0 for ns in thirds)
    assert tally.batches == 2 * len(batches)
    assert tally.rows == 2 * sum(sum(rows) for rows, _ in batches)
    assert tally.took["queue"] == tally.took[WHOLE] == Histogram(), "no query has ended"


OUTCOMES = {
    "answered": None,
    "limit_reached": LimitReached("3 rows are left"),
    "deadline_passed": DeadlinePassed("the query's time was up"),
    "not_serving": NotServing("nobody serves"),
    "unknown_client": UnknownClient("who are you"),
    "bad_input": InputError("a query holds 1 to 5 rows"),
    "client_left": QueryError("its client left", 499),
    "incomplete": QueryError("1 of 2 parties", 504),
    "too_large": QueryError("no memory", 413),
    "refused": QueryError("the shares differ", 400),
    "internal": ValueError("values"),
}


@pytest.mark.parametrize(("outcome", "error"), OUTCOMES.items(), ids=OUTCOMES)
def test_each_end_of_a_query_has_a_word(outcome: str, error: Exception | None) -> None:
    assert outcome_of(error) == outcome


def test_who_watches_is_told_of_each_query_once() -> None:
    told: list[tuple[str, str]] = []
    statistics = Statistics(lambda query, outcome, ns: told.append((query.id, outcome)))
    answered, failed, not_taken = pending(2), pending(1), pending(1)
    for query in (answered, failed):
        statistics.follow(query)
    answered.begun_ns = answered.since_ns + 3
    answered.answer(answered.inputs)
    failed.future.set_exception(NotServing("it ended"))
    failed.future.set_exception(ValueError("too late"))
    statistics.refused(LimitReached("no more"), not_taken)
    with pytest.raises(InputError), statistics.refusals():
        raise InputError("what could not be read has no id to tell")
    assert told == [("q", "answered"), ("q", "not_serving"), ("q", "limit_reached")]
    tally = statistics.tally()
    expected = {"answered": 1, "not_serving": 1, "limit_reached": 1, "bad_input": 1}
    assert tally.outcomes == expected
    assert tally.took["queue"].ns == 3
    assert sum(tally.took[WHOLE].counts) == 1
    assert set(tally.took) == {*STAGES, WHOLE}
    assert statistics.facts("m", "v")["inference_stats"]["fail"]["count"] == 1, "of those taken"
    assert Statistics().tally() == Tally()
