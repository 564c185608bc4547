"""Parties' processes on this machine: each gets its own part, and none outlives its starter."""

from __future__ import annotations

import numpy as np
import pytest

from privserve import sharing
from privserve.bench.processes import Member, PartyProcesses, split_parameters
from privserve.engines import Prepared
from privserve.errors import ClusterError

PARAMETERS = {"w": np.arange(6).reshape(2, 3)}
PREPARED = Prepared("echo", {}, PARAMETERS)


def tell_all(member: Member) -> None:
    member.pipe.send((member.name, member.rank, member.deals, member.shares, member.options))
    member.pipe.recv()


def die(member: Member) -> None:
    raise SystemExit(3)


def hang(member: Member) -> None:
    member.pipe.send("hangs")
    while True:
        member.listener._changed.acquire()


def test_every_party_gets_its_shares_and_the_dealer_none() -> None:
    with PartyProcesses(PREPARED, 4, tell_all, options={"pool": 3}) as parties:
        parties.start_all(PARAMETERS)
        told = [parties.hear(name, 60) for name in parties.names]
    assert [fields[:3] for fields in told] == [
        ("alice", 0, False),
        ("bob", 1, False),
        ("dave", 2, False),
        ("carol", 3, True),
    ]
    assert all(fields[4] == {"pool": 3} for fields in told)
    joined = sharing.join([fields[3]["w"] for fields in told[:3]])
    np.testing.assert_array_equal(joined, PARAMETERS["w"])
    assert told[3][3] == {}
    assert not any(process.is_alive() for process in parties.processes.values())
    assert not parties._home.exists()


def test_a_party_that_ended_is_an_error_and_leaves_nobody_behind() -> None:
    parties = PartyProcesses(PREPARED, 3, die)
    with parties:
        parties.start_all(PARAMETERS)
        with pytest.raises(ClusterError, match="echo: a party ended"):
            parties.hear("bob", 60)
    assert [process.exitcode for process in parties.processes.values()] == [3, 3, 3]
    parties.close()


def test_a_party_that_says_nothing_is_given_up_and_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privserve.bench.processes.END_SECONDS", 0.1)
    parties = PartyProcesses(PREPARED, 3, hang)
    with parties:
        parties.start("alice", {})
        assert parties.hear("alice", 60) == "hangs"
        with pytest.raises(ClusterError, match="echo: a party does not answer"):
            parties.hear("alice", 0.1)
    assert parties.processes["alice"].exitcode == -9


def test_a_party_may_begin_anew_at_its_old_address() -> None:
    shares = split_parameters(PARAMETERS, ["alice", "bob", "carol"])
    with PartyProcesses(PREPARED, 3, tell_all) as parties:
        for _ in range(2):
            parties.start("alice", shares["alice"])
            name, *_, given, _ = parties.hear("alice", 60)
            assert name == "alice"
            np.testing.assert_array_equal(given["w"], shares["alice"]["w"])
