"""A leader that has a part of a limit: what waits for more, what is refused, what is remembered."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_queries import complete, names, query

from privserve.errors import LimitReached, NotServing, QueryError
from privserve.party import leased
from privserve.party.journal import AnsweredJournal, Book
from privserve.party.queries import LeaderQueue

KEY = bytes(32)


@pytest.fixture
def leader() -> LeaderQueue:
    """With three rows of a lease."""
    queue = LeaderQueue(compute_parties=2, max_rows=4, share_timeout=10)
    queue.serve(3, lease="a")
    return queue


def run(leader: LeaderQueue) -> list[str]:
    batch = leader.next_batch()
    leader.finished(batch)
    return names(batch)


def test_what_does_not_fit_waits_until_there_is_more(leader: LeaderQueue) -> None:
    complete(leader, query("a", 2), query("b", 2))
    assert run(leader) == ["a"]
    assert run(leader) == []
    assert leader.leased() == {"lease": "a", "begun": 0, "spare": -1, "short": 1, "refuses": ""}
    leader.extend("a", 4, 1, final=False)
    assert run(leader) == ["b"]
    assert (leader.answered, leader.serving) == (4, True), "there may be more"
    leader.extend("a", 4, 2, final=True)
    assert not leader.serving
    with pytest.raises(LimitReached, match="of which this cell had 4 rows, is reached"):
        leader.submit(query("c"))
    leader.extend("a", 5, 3, final=False)  # another cell has lost some, and this one gets them
    complete(leader, query("d"))
    assert run(leader) == ["d"]


def test_what_waits_for_rows_that_nobody_leases_is_refused(
    leader: LeaderQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = query("large", 4), query("small", 1)
    complete(leader, large)
    assert leader.next_batch() == []
    wait = leader.expire()
    assert wait is not None
    assert 0 < wait <= leased.LEASE_SECONDS, "the leader looks again by itself"
    monkeypatch.setattr(leased, "LEASE_SECONDS", 0.0)
    assert leader.next_batch() == []
    error = large.future.exception(0)
    assert isinstance(error, LimitReached)
    assert "ask another cell" in str(error)
    complete(leader, small)
    assert run(leader) == ["small"]


def test_a_call_about_a_lease_that_is_over_does_nothing(leader: LeaderQueue) -> None:
    leader.extend("a", 2, 1, final=False)
    leader.stop()
    leader.serve(5, lease="b")
    with pytest.raises(QueryError, match="another part"):
        leader.extend("a", 100, 9, final=False)
    assert leader.limit == 5


def test_a_lease_is_made_smaller_down_to_what_is_begun(leader: LeaderQueue) -> None:
    complete(leader, query("a", 2))
    batch = leader.next_batch()
    leader.extend("a", 0, 1, final=False)
    assert leader.limit == 2
    leader.finished(batch)
    leader.extend("a", 0, 2, final=False)
    assert (leader.limit, leader.answered) == (2, 2)


def test_nothing_is_leased_to_who_does_not_serve(leader: LeaderQueue) -> None:
    leader.stop()
    with pytest.raises(QueryError, match="no part of a limit"):
        leader.extend("a", 9, 1, final=False)
    leader.serve(None)
    with pytest.raises(QueryError, match="no part of a limit"):
        leader.extend("a", 9, 1, final=False)


def test_a_cell_that_never_had_a_row_is_told_that_there_are_none() -> None:
    leader = LeaderQueue(2, 4, 10)
    with pytest.raises(QueryError, match="no part of a limit"):
        leader.extend("a", 1, 1, final=True)
    with pytest.raises(NotServing):
        leader.submit(query("a"))
    leader.extend("a", 0, 1, final=True)
    with pytest.raises(LimitReached):
        leader.submit(query("b"))
    leader.serve(1)
    complete(leader, query("c"))
    assert run(leader) == ["c"]


def test_a_leader_that_is_started_again_has_the_lease_that_it_had(tmp_path: Path) -> None:
    def started() -> tuple[AnsweredJournal, LeaderQueue]:
        journal = AnsweredJournal(tmp_path / "answered.journal", KEY)
        return journal, LeaderQueue(1, 4, 10, book=Book(journal, "s", lambda name: name))

    journal, leader = started()
    leader.serve(2, lease="a")
    leader.extend("a", 3, 1, final=False)
    leader.submit(query("a", 3))
    batch = leader.next_batch()
    leader.settle(batch)
    leader.finished(batch)
    journal.close()
    journal, leader = started()
    assert (leader.limit, leader.answered, leader.serving) == (3, 3, True)
    assert leader.leased()["lease"] == "a"
    leader.extend("a", 4, 1, final=True)
    journal.close()
    journal, leader = started()
    leader.submit(query("b"))
    batch = leader.next_batch()
    leader.settle(batch)
    leader.finished(batch)
    assert not leader.serving
    journal.close()
    journal, leader = started()
    with pytest.raises(LimitReached):
        leader.submit(query("c"))
    journal.close()
