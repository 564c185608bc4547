"""A limit that is split over cells: whatever is lost, no row too many and none that cannot be had.

Leaders are simulated by the queue that real ones have; calls and their answers get lost or come
late, cells die with or without a trace.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privserve.errors import LimitReached, QueryError
from privserve.leases import Heard, Leases, Order
from privserve.party.pending import Pending
from privserve.party.queries import LeaderQueue

IDS = itertools.count()


@dataclass
class Side:
    """One cell: its leader's queue, and calls to it that are still under way."""

    queue: LeaderQueue
    late: list[Order] = field(default_factory=list)
    is_begun: bool = False

    def ask(self, rows: int) -> Pending | None:
        query = Pending(str(next(IDS)), [np.zeros((rows, 1), np.int64)], rows)
        try:
            self.queue.submit(query)
        except QueryError:
            return None
        return query

    def run(self) -> int:
        """Run one batch; how many rows were answered by it."""
        before = self.queue.answered
        self.queue.expire()
        if batch := self.queue.next_batch():
            self.queue.finished(batch)
        return self.queue.answered - before

    def heard(self) -> Heard:
        facts, queue = self.queue.leased(), self.queue
        counts = (facts[key] for key in ("begun", "spare", "short"))
        return Heard(queue.limit or 0, queue.answered, *counts)

    def take(self, order: Order) -> int | None:
        try:
            self.queue.extend("a", order.rows, order.number, final=order.final)
        except QueryError:
            return None
        return self.queue.limit


def new_side() -> Side:
    return Side(LeaderQueue(1, 4, 10.0))


class World:
    """An owner, its cells, and how many rows clients got in truth."""

    def __init__(self, limit: int, cells: int) -> None:
        self.leases = Leases(limit, cells)
        self.sides = [new_side() for _ in range(cells)]
        self.truth = 0

    def look(self, n: int, fate: str = "well") -> None:
        """As the owner's program does every tenth of a second. fate: of the call that it makes."""
        side = self.sides[n]
        if not side.is_begun:
            if rows := self.leases.begin(n):
                side.queue.serve(rows, lease="a")
                side.is_begun = True
            return
        order = self.leases.report(n, side.heard())
        if order is None:
            return
        if fate == "late":
            side.late.append(order)
        elif fate != "lost":
            rows = side.take(order)
            if rows is not None and fate != "unheard":
                self.leases.confirm(n, order, rows)

    def run(self, n: int) -> None:
        self.truth += self.sides[n].run()

    def die(self, n: int, count: str) -> None:
        """A cell loses its session. count: who knows how many rows it answered."""
        answered = self.sides[n].queue.answered
        self.leases.settle(n, None if count == "nobody" else answered)
        self.sides[n] = new_side()


EVENTS = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 3), st.integers(1, 9)),
    st.tuples(st.just("run"), st.integers(0, 3), st.just(0)),
    st.tuples(
        st.just("look"),
        st.integers(0, 3),
        st.sampled_from(["well", "well", "lost", "late", "unheard"]),
    ),
    st.tuples(st.just("arrive"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("die"), st.integers(0, 3), st.sampled_from(["leader", "nobody"])),
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 60), st.integers(2, 4), st.lists(EVENTS, max_size=60))
def test_no_row_too_many_is_answered_and_all_can_be_had(
    limit: int, cells: int, events: list
) -> None:
    world = World(limit, cells)
    lost = 0
    for kind, n, what in events:
        n %= cells
        side = world.sides[n]
        if kind == "ask":
            side.ask(what)
        elif kind == "run":
            world.run(n)
        elif kind == "look":
            world.look(n, what)
        elif kind == "arrive" and side.late:
            side.take(side.late.pop())  # whatever was told meanwhile
        elif kind == "die":
            had, known = world.leases._cells[n].lease, world.sides[n].queue.answered
            lost += had - known if what == "nobody" else 0
            world.die(n, what)
        assert world.truth <= limit
        assert world.leases.pool >= 0
        assert world.leases.total <= limit
    # Then all goes well, and somebody asks one row at a time, wherever there are some.
    for turn in range(40 * limit):
        if world.leases.is_reached:
            break
        n = turn % cells
        world.look(n)
        if world.sides[n].is_begun:
            world.sides[n].ask(1)
        world.run(n)
        world.look(n)
    assert world.leases.is_reached
    assert limit - lost <= world.truth <= limit


def test_what_a_cell_does_not_need_goes_where_it_is_asked_for() -> None:
    world = World(20, 2)
    for n in (0, 1):
        world.look(n)
    asked = [world.sides[1].ask(20), world.sides[0].ask(1)]
    for _ in range(9):
        for n in (0, 1):
            world.run(n)
            world.look(n)
    # One row is answered at cell 0, so that there are 19: this is certain, and said.
    assert isinstance(asked[0].future.exception(0), LimitReached)
    assert "19 of" in str(asked[0].future.exception(0))
    world.sides[1].ask(19)
    for _ in range(9):
        for n in (1, 0):
            world.run(n)
            world.look(n)
    assert (world.truth, world.leases.is_reached) == (20, True)
    assert [side.queue.serving for side in world.sides] == [False, False]


def test_two_cells_that_lack_rows_do_not_wait_for_each_other() -> None:
    world = World(12, 2)
    for n in (0, 1):
        world.look(n)
    asked = [world.sides[n].ask(7) for n in (0, 1)]
    for _ in range(9):
        for n in (1, 0):
            world.run(n)
            world.look(n)
    assert world.truth == 7  # one of them, and the other one is told that 5 are left
    assert isinstance(asked[0].future.exception(0), LimitReached)
    assert not asked[1].future.done()  # a session would answer it


def test_a_lease_that_was_made_smaller_stays_so_though_an_older_call_comes_late() -> None:
    queue = LeaderQueue(1, 4, 10.0)
    queue.serve(5, lease="a")
    queue.extend("a", 4, 2, final=False)
    with pytest.raises(QueryError, match="a later call"):
        queue.extend("a", 9, 1, final=False)
    assert queue.limit == 4


def test_a_leader_that_claims_more_than_it_may_takes_nothing_from_the_others() -> None:
    leases = Leases(100, 2)
    had = leases.begin(0)
    leases.report(0, Heard(had, 10**9, 0, 0, 0))
    assert leases.total <= 100
    assert leases.pool == 100 - sum(cell.lease for cell in leases._cells)
    assert leases.settle(0, 10**9) == 0
    assert leases.total <= 100


@pytest.mark.parametrize("says", [-1, 9, 10**9])
def test_a_leader_that_says_another_lease_than_it_was_told_keeps_the_one_it_had(says: int) -> None:
    leases = Leases(100, 2)
    had = leases.begin(0)
    assert had > 10
    leases.confirm(0, Order(10, False, 1), says)
    assert leases.pool == 100 - had, "it may answer them all"
    leases.confirm(0, Order(10, False, 2), 12)
    assert leases.pool == 100 - 12, "two were begun"
