"""Who is let in, and how much each may ask."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privserve.credentials import ClientKey, Entry, Limits, digest
from privserve.errors import LimitReached, UnknownClient
from privserve.party.accounts import Accounts
from privserve.party.pending import Pending
from privserve.party.queries import LeaderQueue

CLUSTER = "c1"
LAB, BANK = ClientKey("lab", b"l" * 32), ClientKey("bank", b"b" * 32)


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0
        self.day = datetime.date(2026, 11, 25)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def entry(key: ClientKey, party: str = "alice", **limits: object) -> Entry:
    return Entry(key.name, digest(key.credential(CLUSTER, party)), Limits(**limits))  # type: ignore[arg-type]


def accounts(clock: Clock, *entries: Entry, everybody: Limits | None = None) -> Known:
    made = Accounts(lambda: clock.seconds, lambda: clock.day)
    made.know(entries)
    return Known(made, everybody)


class Known:
    """Accounts and how one model's session sees them."""

    def __init__(self, made: Accounts, everybody: Limits | None) -> None:
        self.counted = made.of_model("m", everybody)
        self.admit, self.know, self.status = self.counted.admit, made.know, made.status


def test_a_client_is_known_by_its_credential(clock: Clock) -> None:
    known = accounts(clock, entry(LAB), entry(BANK))
    assert known.admit(LAB.authorization(CLUSTER, "alice")) == "lab"
    assert known.admit(BANK.authorization(CLUSTER, "alice")) == "bank"


OTHERS = {
    "nothing": "",
    "another party's credential": LAB.authorization(CLUSTER, "bob"),
    "another cluster's": LAB.authorization("c2", "alice"),
    "another key": ClientKey("lab", b"x" * 32).authorization(CLUSTER, "alice"),
    "another name": BANK.authorization(CLUSTER, "alice").replace("bank", "lab"),
    "a stranger": ClientKey("eve", b"e" * 32).authorization(CLUSTER, "alice"),
    "the digest itself": "PrivserveClient lab." + entry(LAB).digest,
    "no base 64": "PrivserveClient lab.%%%",
    "an owner's call": "Privserve 1.-.0.A",
    "not ASCII": "PrivserveClient lab.\u00e9",
}


@pytest.mark.parametrize("header", OTHERS.values(), ids=OTHERS)
def test_everybody_else_is_refused_with_the_way_in(clock: Clock, header: str) -> None:
    with pytest.raises(UnknownClient, match=r"privserve\.clients add"):
        accounts(clock, entry(LAB)).admit(header)


def test_where_everybody_is_let_in_a_wrong_credential_is_still_refused(clock: Clock) -> None:
    known = accounts(clock, entry(LAB), everybody=Limits())
    assert known.admit("") == "anonymous"
    with pytest.raises(UnknownClient):
        known.admit(LAB.authorization(CLUSTER, "bob"))


def test_what_a_party_keeps_or_sees_is_worth_nothing_at_another_one() -> None:
    shown = LAB.credential(CLUSTER, "alice")
    assert shown != LAB.credential(CLUSTER, "bob")
    assert digest(shown) not in (shown.hex(), LAB.key.hex())
    assert "llll" not in repr(LAB)


def test_a_client_is_let_in_until_the_end_of_its_last_day(clock: Clock) -> None:
    known = accounts(clock, entry(LAB, expires="2026-11-25"))
    header = LAB.authorization(CLUSTER, "alice")
    assert known.admit(header) == "lab"
    clock.day = datetime.date(2026, 11, 26)
    with pytest.raises(UnknownClient, match="until 2026-11-25 only"):
        known.admit(header)


def test_a_client_that_is_revoked_is_refused_at_once_also_if_it_waits(clock: Clock) -> None:
    known = accounts(clock, entry(LAB))
    queue = serving(known)
    waiting = ask(queue, "q", 1, "lab")
    known.know([])
    assert queue.next_batch() == []
    assert "not let in any more" in str(waiting.future.exception(0))
    with pytest.raises(UnknownClient):
        known.admit(LAB.authorization(CLUSTER, "alice"))


def serving(known: Known, most: int = 100) -> LeaderQueue:
    queue = LeaderQueue(2, most, 10, known.counted)
    queue.serve(None)
    return queue


def ask(queue: LeaderQueue, name: str, rows: int, client: str) -> Pending:
    query = Pending(name, [], rows, client)
    queue.submit(query)
    queue.announced(1, name, rows, client)
    return query


def run(queue: LeaderQueue) -> list[str]:
    """Answer all that may be answered; the names."""
    answered = []
    while batch := queue.next_batch():
        answered += [query.id for query, _, stop in batch if stop == query.rows]
        queue.finished(batch)
    return answered


def test_a_clients_rows_are_counted_in_all_and_what_is_left_is_said(clock: Clock) -> None:
    queue = serving(accounts(clock, entry(LAB, rows=5), entry(BANK)))
    asked = [ask(queue, str(i), 2, "lab") for i in range(3)]
    others = [ask(queue, f"b{i}", 9, "bank") for i in range(3)]
    assert run(queue) == ["0", "1", "b0", "b1", "b2"]
    refused = asked[2].future.exception(0)
    assert isinstance(refused, LimitReached)
    assert "1 of the 5 rows of client 'lab' are left, not 2" in str(refused)
    assert not any(query.future.done() for query in others)


def test_a_clients_rows_stay_counted_when_the_model_is_shared_again(clock: Clock) -> None:
    known = accounts(clock, entry(LAB, rows=3))
    first = serving(known)
    ask(first, "a", 3, "lab")
    assert run(first) == ["a"]
    known.know([entry(LAB, rows=3)])
    second = serving(known)
    ask(second, "b", 1, "lab")
    assert run(second) == []


def test_rows_per_minute_come_back_after_a_minute(clock: Clock) -> None:
    queue = serving(accounts(clock, entry(LAB, rows_per_minute=4)))
    ask(queue, "a", 3, "lab")
    assert run(queue) == ["a"]
    clock.seconds += 20
    late = ask(queue, "b", 2, "lab")
    assert run(queue) == []
    assert "may ask 4 rows a minute and had 3; try again in 40 s" in str(late.future.exception(0))
    clock.seconds += 40
    ask(queue, "c", 4, "lab")
    assert run(queue) == ["c"]


def test_a_query_may_be_limited_by_itself(clock: Clock) -> None:
    queue = serving(accounts(clock, entry(LAB, rows_per_query=2)))
    large = ask(queue, "a", 3, "lab")
    ask(queue, "b", 2, "lab")
    assert run(queue) == ["b"]
    assert "2 rows per query, not 3" in str(large.future.exception(0))


def test_halves_of_two_clients_make_no_query(clock: Clock) -> None:
    queue = serving(accounts(clock, entry(LAB), entry(BANK)))
    half = Pending("q", [], 1, "lab")
    queue.submit(half)
    queue.announced(1, "q", 1, "bank")
    assert run(queue) == []
    assert "come from different clients" in str(half.future.exception(0))


@given(
    st.lists(st.tuples(st.sampled_from(["lab", "bank"]), st.integers(1, 6)), max_size=25),
    st.integers(1, 30),
    st.integers(1, 8),
)
def test_no_client_ever_gets_more_than_its_rows(
    asked: list[tuple[str, int]], limit: int, most: int
) -> None:
    known = accounts(Clock(), entry(LAB, rows=limit), entry(BANK))
    queue = serving(known, most)
    queries = [ask(queue, str(i), rows, client) for i, (client, rows) in enumerate(asked)]
    answered = set(run(queue))
    had = sum(rows for i, (c, rows) in enumerate(asked) if c == "lab" and str(i) in answered)
    assert had == known.status()["lab"]["rows"] <= limit
    left = limit
    for i, (client, rows) in enumerate(asked):
        if client == "bank" or rows <= left:
            left -= rows * (client == "lab")
            assert str(i) in answered
        else:
            assert isinstance(queries[i].future.exception(0), LimitReached)
