"""Whose rows run next: every row once and in order, nobody held up, few sizes of batches."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from privserve.party.pending import Pending
from privserve.party.turns import EXACT, QUANTUM, Admission, Turns, batch_size


def query(name: str, client: str, rows: int) -> Pending:
    return Pending(name, [np.zeros((rows, 1), np.int64)], rows, client)


ASKED = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 300)), max_size=25)


def run_all(asked: list[Pending], most: int) -> list[list[tuple[str, int, int]]]:
    turns = Turns()
    for one in asked:
        turns.add(one)
    batches = []
    while batch := turns.take(most, lambda one: Admission.RUN):
        batches.append([(one.id, start, stop) for one, start, stop in batch])
    assert not turns
    assert turns.rows == 0
    return batches


@given(ASKED, st.integers(1, 200))
def test_every_row_runs_once_and_those_of_a_query_in_order(
    asked: list[tuple[str, int]], most: int
) -> None:
    queries = [query(str(i), *one) for i, one in enumerate(asked)]
    reached = dict.fromkeys((one.id for one in queries), 0)
    begun: dict[str, list[str]] = {}
    clients = {one.id: one.client for one in queries}
    for batch in run_all(queries, most):
        assert sum(stop - start for _, start, stop in batch) <= most
        for name, start, stop in batch:
            assert start == reached[name] < stop
            reached[name] = stop
            if start == 0:
                begun.setdefault(clients[name], []).append(name)
    assert reached == {one.id: one.rows for one in queries}
    for names in begun.values():  # a client's own queries keep their order
        assert names == sorted(names, key=int)


@given(ASKED, st.integers(1, 200))
def test_batches_have_few_sizes(asked: list[tuple[str, int]], most: int) -> None:
    sizes = {
        sum(stop - start for _, start, stop in batch)
        for batch in run_all([query(str(i), *one) for i, one in enumerate(asked)], most)
    }
    assert all(size == batch_size(size, most) for size in sizes)


def test_the_sizes_of_batches_are_a_handful() -> None:
    sizes = {batch_size(rows, 128) for rows in range(1, 2000)}
    assert sizes == {*range(1, EXACT + 1), 8, 12, 16, 24, 32, 48, 64, 96, 128}
    assert all(batch_size(rows, 100) <= min(rows, 100) for rows in range(1, 300))
    assert batch_size(1000, 100) == 100
    # Never less than two thirds of what there is: the rest waits for one batch.
    assert all(3 * batch_size(rows, 10**6) >= 2 * rows for rows in range(1, 5000))


@given(st.integers(1, 40), st.integers(QUANTUM, 200))
def test_a_small_query_waits_for_one_round_of_the_others_at_most(others: int, most: int) -> None:
    turns = Turns()
    for i in range(others):
        turns.add(query(f"bulk{i}", f"bulk{i}", 1000))
    turns.add(query("small", "small", 1))
    waited = 0
    while "small" not in {one.id for one, _, _ in turns.take(most, lambda one: Admission.RUN)}:
        waited += 1
    assert waited <= others * QUANTUM / (most * 2 / 3)


def test_who_is_refused_or_has_to_wait_holds_nobody_else_up() -> None:
    turns = Turns()
    refused, later, fine = query("1", "a", 5), query("2", "b", 5), query("3", "c", 5)
    for one in (refused, later, fine):
        turns.add(one)

    def admit(one: Pending) -> Admission:
        if one is refused:
            turns.discard(one)
            return Admission.REFUSED
        return Admission.LATER if one is later else Admission.RUN

    assert [one for one, _, _ in turns.take(100, admit)] == [fine]
    assert turns.rows == 5
    assert [one for one, _, _ in turns.take(100, lambda one: Admission.RUN)] == [later]
