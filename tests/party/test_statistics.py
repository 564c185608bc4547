"""What is counted of queries, against a plain sum over all of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from privserve.errors import DeadlinePassed
from privserve.party.pending import Pending
from privserve.party.statistics import RunTime, Statistics
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
