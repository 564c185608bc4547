"""Parties that are about to run different things deal and open nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from ottt_models import graph
from serving import wait_until
from sessions import QUICK, Sessions, states

import privserve
from privserve import sharing
from privserve.engines import load_engine
from privserve.engines.sources import BESIDES, sources
from privserve.errors import ClusterError
from privserve.party import session
from privserve.party.agreement import compare, digest, facts
from privserve.party.roles import open_session
from privserve.party.seat import Seat
from privserve.party.session_spec import SessionSpec

MINE = {
    "privserve": "1.0",
    "wire": 2,
    "code": "c",
    "engine": "ottt",
    "program": "p",
    "options": "o",
    "layout": "l",
}


def test_equal_facts_pass() -> None:
    compare("alice", MINE, "bob", dict(MINE))


@pytest.mark.parametrize("key", ["engine", "program", "options", "layout"])
def test_a_party_with_another_program_is_named(key: str) -> None:
    with pytest.raises(ClusterError, match=f"bob was given another {key} than alice"):
        compare("alice", MINE, "bob", {**MINE, key: "x"})


@pytest.mark.parametrize("theirs", [{**MINE, "privserve": "0.9"}, {**MINE, "wire": 1}, {}])
def test_a_party_with_another_version_is_named(theirs: dict[str, Any]) -> None:
    with pytest.raises(ClusterError, match=r"bob runs privserve .* install one version"):
        compare("alice", MINE, "bob", theirs)


def test_two_builds_of_one_version_are_told_apart() -> None:
    """Words taken in another order are as many: nonsense, which nothing else would notice."""
    with pytest.raises(ClusterError, match=r"of the same number but with other code; install one"):
        compare("alice", MINE, "bob", {**MINE, "code": "x"})


def test_sources_are_of_all_that_an_engine_runs(tmp_path: Path) -> None:
    """And differ with any line of these."""
    listing = (
        "import sys, privserve.engines as e; e.load_engine('ottt'); e.load_engine('crypten');"
        "import privserve.engines.ottt.compute, privserve.engines.ottt.dealer;"
        "print(*(m.split('.', 1)[1] for m in sys.modules if m.startswith('privserve.')"
        " and not m.startswith('privserve.engines')))"
    )
    used = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True).stdout
    assert set(used.split()) - {"errors"} == set(BESIDES)
    copy = tmp_path / "privserve"
    shutil.copytree(Path(privserve.__file__).parent, copy)
    asked = "from privserve.engines.sources import sources; print(sources())"

    def told() -> str:
        found = subprocess.run(
            [sys.executable, "-c", asked], capture_output=True, text=True, cwd=tmp_path
        )
        return found.stdout.strip()

    assert told() == sources()
    for name in ("engines/ottt/ops/relu.py", "prg.py"):
        before = told()
        with (copy / name).open("a") as file:
            file.write("# another line\n")
        assert told() != before, name


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2.5, None]}) == digest({"b": [2.5, None], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def relu_net(size: int) -> Any:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    return graph(nodes, {"w": np.ones((size, size))}, (size,))


class Owner:
    """What the owner would hand to each of three parties for a small model of `ottt`."""

    def __init__(self, sessions: Sessions) -> None:
        self.prepared = load_engine("ottt").prepare(relu_net(8), input_range=(-1.0, 1.0))
        self.split = {n: sharing.split(p, 2) for n, p in self.prepared.parameters.items()}
        self.sessions = sessions

    def spec(self, rank: int, **changes: Any) -> SessionSpec:
        shares = {n: s[rank] for n, s in self.split.items()} if rank < 2 else {}
        made = SessionSpec("one", "m", "ottt", self.prepared.description, shares, {})
        return replace(made, **changes)

    def start(self, specs: list[SessionSpec]) -> None:
        for rank, spec in enumerate(specs):
            config = self.sessions.configs[rank]
            seat = Seat(config, config.parties[rank], self.sessions.listeners[rank], QUICK)
            self.sessions.all.append(open_session(seat, spec))
            self.sessions.all[-1].start()
        for one in self.sessions.all:
            assert one.ready.wait(30)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_party_that_was_given_another_description_stops_all_before_a_key_is_dealt(
    sessions: Sessions, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dealer with a one-ReLU description used to hand alice bits of bob's masks."""
    began: list[str] = []
    for kind in ("DealerSession", "LeaderSession", "FollowerSession"):
        monkeypatch.setattr(
            f"privserve.party.roles.{kind}._serve", lambda self: began.append(self._me.name)
        )
    owner = Owner(sessions)
    other = load_engine("ottt").prepare(relu_net(7), input_range=(-1.0, 1.0)).description
    specs = [owner.spec(i, **({"description": other} if i == rank else {})) for i in range(3)]
    owner.start(specs)
    wait_until(lambda: states(sessions) == ["failed"] * 3, "all sessions failed")
    assert began == []
    name = sessions.configs[0].parties[rank].name
    reasons = [one.reason for i, one in enumerate(sessions.all) if i != rank]
    assert any(f"{name} was given another program" in reason for reason in reasons), reasons


def test_parties_of_two_versions_do_not_run_together(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two versions could lay packs out differently and leak with nobody deviating."""

    def older(*given: Any) -> dict[str, Any]:
        found = facts(*given)
        return {**found, "wire": 1} if next(calls) == 1 else found

    calls = iter(range(10))
    monkeypatch.setattr(session, "facts", older)
    owner = Owner(sessions)
    owner.start([owner.spec(i) for i in range(3)])
    wait_until(lambda: states(sessions) == ["failed"] * 3, "all sessions failed")
    assert any("install one version" in one.reason for one in sessions.all)


def test_code_that_lays_packs_out_differently_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = load_engine("ottt").prepare(relu_net(8), input_range=(-1.0, 1.0))
    one = facts("ottt", prepared.description, {})
    assert one == facts("ottt", prepared.description, {})
    other = facts("ottt", prepared.description, {"piece_bytes": 64})
    assert one["layout"] != other["layout"]
