from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privserve.errors import DeadlinePassed, Draining, LimitReached, NotServing, QueryError
from privserve.party import pending, refusals
from privserve.party.pending import Pending, PendingQueries
from privserve.party.queries import LeaderQueue
from privserve.party.refusals import Refusal
from privserve.party.turns import Piece


def query(name: str, rows: int = 1) -> Pending:
    return Pending(name, [np.zeros((rows, 2), np.int64)], rows)


@pytest.fixture
def leader() -> LeaderQueue:
    """The queue of two compute parties, serving without end."""
    queue = LeaderQueue(compute_parties=2, max_rows=4, share_timeout=10)
    queue.serve(None)
    return queue


def complete(leader: LeaderQueue, *asked: Pending) -> None:
    """Both parties have their shares of these queries."""
    for one in asked:
        leader.submit(one)
        leader.announced(1, one.id, one.rows)


def names(batch: list[Piece]) -> list[str]:
    return [query.id for query, _, _ in batch]


def test_a_query_runs_once_every_party_has_its_share(leader: LeaderQueue) -> None:
    leader.submit(query("q"))
    assert leader.next_batch() == []
    leader.announced(1, "q", 1)
    assert names(leader.next_batch()) == ["q"]
    assert leader.next_batch() == []


def test_the_followers_share_may_come_first(leader: LeaderQueue) -> None:
    leader.announced(1, "q", 1)
    assert leader.next_batch() == []
    leader.submit(query("q"))
    assert names(leader.next_batch()) == ["q"]


def test_with_three_compute_parties_two_shares_are_not_enough() -> None:
    leader = LeaderQueue(3, 4, 10)
    leader.serve(None)
    leader.submit(query("q"))
    leader.announced(2, "q", 1)
    assert leader.next_batch() == []
    leader.announced(1, "q", 1)
    assert names(leader.next_batch()) == ["q"]


def test_queries_run_in_the_order_in_which_they_became_complete(leader: LeaderQueue) -> None:
    late = query("late")
    leader.submit(late)
    complete(leader, query("a"), query("b"))
    leader.announced(1, "late", 1)
    assert names(leader.next_batch()) == ["a", "b", "late"]


def test_a_batch_holds_no_more_rows_than_allowed(leader: LeaderQueue) -> None:
    complete(leader, query("a", 3), query("b", 1), query("c", 1))
    assert names(leader.next_batch()) == ["a", "b"]
    assert names(leader.next_batch()) == ["c"]


def ranges(batch: list[Piece]) -> list[tuple[str, int, int]]:
    return [(query.id, start, stop) for query, start, stop in batch]


def test_a_query_larger_than_a_batch_runs_in_pieces(leader: LeaderQueue) -> None:
    complete(leader, query("a", 1), query("large", 9), query("b", 1))
    batches = [ranges(leader.next_batch()) for _ in range(4)]
    assert batches == [
        [("a", 0, 1), ("large", 0, 3)],
        [("large", 3, 7)],
        [("large", 7, 9), ("b", 0, 1)],
        [],
    ]


def test_a_query_in_pieces_counts_once_all_of_it_ran(leader: LeaderQueue) -> None:
    complete(leader, query("large", 9))
    answered = []
    while batch := leader.next_batch():
        leader.finished(batch)
        answered.append(leader.answered)
    assert answered == [0, 0, 9]


def test_a_query_in_pieces_whose_client_leaves_runs_no_further(leader: LeaderQueue) -> None:
    leader.stop()
    leader.serve(9)
    large, next_one = query("large", 9), query("next", 9)
    complete(leader, large)
    first = leader.next_batch()
    leader.withdraw("large")
    leader.finished(first)
    assert isinstance(large.future.exception(0), QueryError)
    assert leader.next_batch() == []
    complete(leader, next_one)  # its rows are free for others
    while batch := leader.next_batch():
        leader.finished(batch)
    assert (leader.answered, leader.serving) == (9, False)


def test_a_piece_that_fails_fails_its_query_and_frees_its_rows(leader: LeaderQueue) -> None:
    leader.stop()
    leader.serve(9)
    complete(leader, query("large", 9))
    leader.finished(leader.next_batch())
    leader.finished(leader.next_batch(), is_answered=False)
    assert leader.next_batch() == []
    complete(leader, query("next", 9))
    while batch := leader.next_batch():
        leader.finished(batch)
    assert (leader.answered, leader.serving) == (9, False)


def test_stopping_refuses_a_query_of_which_pieces_are_left(leader: LeaderQueue) -> None:
    large = query("large", 9)
    complete(leader, large)
    batch = leader.next_batch()
    leader.stop()
    leader.finished(batch)
    assert isinstance(large.future.exception(0), NotServing)
    assert leader.answered == 0
    assert [r.id for r in leader.take_refusals()] == ["large"]


def test_clients_take_turns_and_a_large_query_holds_none_up() -> None:
    leader = LeaderQueue(2, 128, 10)
    leader.serve(None)
    for client, rows in [("bulk", 1000), ("ann", 1), ("ben", 1)]:
        one = Pending(client, [np.zeros((rows, 2), np.int64)], rows, client)
        leader.submit(one)
        leader.announced(1, one.id, rows, client)
    first = leader.next_batch()
    assert {"bulk", "ann", "ben"} == set(names(first))
    assert sum(piece.rows for piece in first) == 128


def test_a_batch_waits_for_more_as_long_as_it_is_told(leader: LeaderQueue) -> None:
    assert leader.patience(5) == 0  # nothing waits
    complete(leader, query("a"))
    assert 4 < leader.patience(5) <= 5
    assert leader.patience(0) == 0
    complete(leader, query("b", 3))
    assert leader.patience(5) == 0  # it is full


def test_a_query_whose_time_is_up_is_refused_and_not_counted(leader: LeaderQueue) -> None:
    late, other = query("late"), query("other")
    late.deadline = time.monotonic() - 1
    complete(leader, late, other)
    assert names(leader.next_batch()) == ["other"]
    assert isinstance(late.future.exception(0), DeadlinePassed)


def test_nobody_is_answered_before_serve() -> None:
    leader = LeaderQueue(2, 4, 10)
    with pytest.raises(NotServing, match="call serve") as refusal:
        leader.submit(query("q"))
    assert refusal.value.status == 503
    assert [r.id for r in leader.take_refusals()] == ["q"]


def test_the_follower_of_a_refused_query_is_told_even_if_it_announces_later() -> None:
    leader = LeaderQueue(2, 4, 10)
    with pytest.raises(NotServing):
        leader.submit(query("q"))
    leader.take_refusals()
    leader.announced(1, "q", 1)
    (refusal,) = leader.take_refusals()
    assert (refusal.id, refusal.status) == ("q", 503)
    assert leader.take_refusals() == []


def test_exactly_the_limit_is_run_and_the_rest_is_refused() -> None:
    leader = LeaderQueue(2, 100, 10)
    leader.serve(3)
    asked = [query(str(i)) for i in range(5)]
    complete(leader, *asked)
    batch = leader.next_batch()
    assert names(batch) == ["0", "1", "2"]
    leader.finished(batch)
    assert (leader.answered, leader.serving, leader.next_batch()) == (3, False, [])
    for late in asked[3:]:
        error = late.future.exception(0)
        assert isinstance(error, LimitReached)
        assert "limit of 3 rows" in str(error)
        assert error.status == 429
    assert {r.id for r in leader.take_refusals()} == {"3", "4"}


@pytest.mark.parametrize("rows", [2, 5, 1024])
def test_the_limit_counts_rows_and_a_query_for_more_is_told_how_many_are_left(rows: int) -> None:
    """A limit of 1 used to answer a query of 1,024 images."""
    leader = LeaderQueue(2, 100, 10)
    leader.serve(3)
    first, large, last = query("first", 2), query("large", rows), query("last")
    complete(leader, first, large, last)
    batch = leader.next_batch()
    assert names(batch) == ["first"]
    leader.finished(batch)
    batch = leader.next_batch()
    assert names(batch) == ["last"]
    refused = large.future.exception(0)
    assert isinstance(refused, LimitReached)
    assert f"{rows} rows, and 1 of the limit of 3 are left" in str(refused)
    leader.finished(batch)
    assert (leader.answered, leader.serving) == (3, False)


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 60), st.integers(1, 12))
def test_no_more_rows_than_the_limit_are_ever_answered(
    sizes: list[int], limit: int, most: int
) -> None:
    leader = LeaderQueue(2, most, 10)
    leader.serve(limit)
    asked = [query(str(i), rows) for i, rows in enumerate(sizes)]
    complete(leader, *asked)
    answered: list[str] = []
    while batch := leader.next_batch():
        assert sum(piece.rows for piece in batch) <= most
        answered += [name for name in names(batch) if name not in answered]
        leader.finished(batch)
    rows = sum(sizes[int(name)] for name in answered)
    assert rows == leader.answered <= limit
    left = limit
    for i, size in enumerate(sizes):  # each that fitted when its turn came was answered
        if size <= left:
            left -= size
            assert str(i) in answered
        else:
            assert asked[i].future.done()


def test_queries_that_wait_for_a_share_at_the_limit_are_refused_too() -> None:
    leader = LeaderQueue(2, 100, 10)
    leader.serve(1)
    complete(leader, query("a"))
    half = query("half")
    leader.submit(half)
    leader.announced(1, "other half", 1)
    leader.finished(leader.next_batch())
    assert isinstance(half.future.exception(0), LimitReached)
    assert {r.id for r in leader.take_refusals()} == {"half", "other half"}


def test_after_the_limit_queries_are_refused_until_serve_is_called_again() -> None:
    leader = LeaderQueue(2, 100, 10)
    leader.serve(1)
    complete(leader, query("a"))
    leader.finished(leader.next_batch())
    with pytest.raises(LimitReached):
        leader.submit(query("b"))
    leader.serve(1)
    assert leader.answered == 0
    complete(leader, query("c"))
    assert names(leader.next_batch()) == ["c"]


def test_a_batch_that_fails_does_not_count_as_answered() -> None:
    leader = LeaderQueue(2, 100, 10)
    leader.serve(1)
    complete(leader, query("a"))
    leader.next_batch()
    assert (leader.answered, leader.serving) == (0, True)


def test_serving_twice_at_once_is_refused(leader: LeaderQueue) -> None:
    with pytest.raises(QueryError, match="served already"):
        leader.serve(3)


def test_stopping_refuses_what_waits_but_not_what_runs(leader: LeaderQueue) -> None:
    running, waiting = query("running"), query("waiting")
    complete(leader, running)
    batch = leader.next_batch()
    leader.submit(waiting)
    leader.stop()
    leader.finished(batch)
    assert not running.future.done()
    assert isinstance(waiting.future.exception(0), NotServing)
    assert leader.answered == 1
    leader.stop()  # again


def test_a_share_that_stays_alone_times_out_alone() -> None:
    leader = LeaderQueue(2, 100, share_timeout=0.0)
    leader.serve(None)
    alone = query("alone")
    leader.submit(alone)
    complete(leader, query("whole"))
    assert leader.expire() is None
    error = alone.future.exception(0)
    assert isinstance(error, QueryError)
    assert error.status == 504
    assert "only 1 of 2 compute parties" in str(error)
    assert names(leader.next_batch()) == ["whole"]


def test_the_time_until_the_next_share_is_overdue_is_known(leader: LeaderQueue) -> None:
    assert leader.expire() is None
    leader.submit(query("a"))
    left = leader.expire()
    assert left is not None
    assert 9 < left <= 10


def test_a_share_that_arrives_after_its_timeout_is_refused() -> None:
    leader = LeaderQueue(2, 100, share_timeout=0.0)
    leader.serve(None)
    leader.announced(1, "q", 1)
    leader.expire()
    with pytest.raises(QueryError, match="within 0 s"):
        leader.submit(query("q"))


def test_shares_of_different_sizes_are_refused(leader: LeaderQueue) -> None:
    uneven = query("q", rows=2)
    leader.submit(uneven)
    leader.announced(1, "q", 3)
    error = uneven.future.exception(0)
    assert isinstance(error, QueryError)
    assert error.status == 400
    assert leader.next_batch() == []


def test_an_id_in_use_is_refused_and_the_first_query_is_kept(leader: LeaderQueue) -> None:
    first = query("q")
    leader.submit(first)
    with pytest.raises(QueryError, match="already waiting") as refusal:
        leader.submit(query("q"))
    assert refusal.value.status == 409
    leader.announced(1, "q", 1)
    assert [piece.query for piece in leader.next_batch()] == [first]


def test_an_announcement_made_twice_runs_its_query_once(leader: LeaderQueue) -> None:
    leader.submit(query("q"))
    leader.announced(1, "q", 1)
    leader.announced(1, "q", 1)
    assert names(leader.next_batch()) == ["q"]
    assert leader.next_batch() == []


def test_a_full_queue_refuses_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "MAX_PENDING", 2)
    waiting = PendingQueries()
    waiting.add(query("a"))
    waiting.add(query("b"))
    with pytest.raises(NotServing, match="try again later"):
        waiting.add(query("c"))
    waiting.take("a")
    waiting.add(query("c"))
    assert len(waiting) == 2
    assert [waiting.get(name).id for name in ("b", "c")] == ["b", "c"]
    assert waiting.take("a") is None


def test_what_is_remembered_of_refusals_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "MAX_REMEMBERED", 10)
    leader = LeaderQueue(2, 4, 10)
    for number in range(30):
        with pytest.raises(NotServing):
            leader.submit(query(str(number)))
    assert len(leader._refused._known) == 10


def test_failing_all_leaves_answered_queries_alone() -> None:
    held = PendingQueries()
    answered, waiting = query("answered"), query("waiting")
    for one in (answered, waiting):
        held.add(one)
    answered.future.set_result([])
    held.fail_all(NotServing("over"))
    assert answered.future.result(0) == []
    assert isinstance(waiting.future.exception(0), NotServing)
    assert len(held) == 0


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("limit_reached", 429, LimitReached),
        ("not_serving", 503, NotServing),
        ("refused", 504, QueryError),
        ("of a later version", 500, QueryError),
    ],
)
def test_a_refusal_becomes_the_error_of_its_code(code: str, status: int, kind: type) -> None:
    error = Refusal("q", code, status, "why").error()
    assert type(error) is kind
    assert error.status == status
    assert str(error) == "why"


def test_a_pending_query_does_not_show_its_shares() -> None:
    one = Pending("q", [np.full((1, 2), 123456789)], 1)
    assert "123456789" not in repr(one)


def test_many_clients_at_once_get_exactly_the_limit() -> None:
    leader = LeaderQueue(2, 5, 10)
    leader.serve(40)
    asked = [query(str(number)) for number in range(100)]
    refused = []

    def ask(mine: list[Pending]) -> None:
        for one in mine:
            try:
                complete(leader, one)
            except LimitReached:
                refused.append(one)

    threads = [threading.Thread(target=ask, args=(asked[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    answered: list[str] = []
    deadline = time.monotonic() + 10
    while leader.serving and time.monotonic() < deadline:
        batch = leader.next_batch()
        answered += names(batch)
        for one in batch:
            one.query.future.set_result([])
        if batch:
            leader.finished(batch)
    for thread in threads:
        thread.join(10)
    assert len(answered) == len(set(answered)) == leader.answered == 40
    assert len(refused) + sum(one.future.done() for one in asked) == 100


def test_while_a_party_is_being_stopped_only_whole_queries_are_answered(
    leader: LeaderQueue,
) -> None:
    whole, mine, late = query("whole"), query("mine"), query("late")
    complete(leader, whole)
    leader.submit(mine)
    leader.announced(1, "theirs", 1)
    leader.take_no_more("bob is being stopped")
    assert isinstance(mine.future.exception(0), Draining)
    with pytest.raises(Draining, match="bob is being stopped"):
        leader.submit(late)
    leader.announced(1, "later", 1)
    told = leader.take_refusals()
    assert {r.id for r in told} == {"mine", "theirs", "late", "later"}
    assert {(r.code, r.status) for r in told} == {("draining", 503)}
    batch = leader.next_batch()
    assert names(batch) == ["whole"]
    assert not leader.is_idle
    leader.finished(batch)
    assert leader.is_idle
    leader.lose(NotServing("bob is being stopped"))
    leader.take_again()
    complete(leader, query("again"))
    assert names(leader.next_batch()) == ["again"]
