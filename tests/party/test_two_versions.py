"""Real parties of two versions: nothing is dealt, both are named, and nothing is lost by it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from serving import wait_until
from stage import Stage, X

import privserve as ps
from privserve.party.agreement import WIRE

NEXT = WIRE + 1
OTHER = f"""
import sys
from privserve.party import agreement
agreement.WIRE = {NEXT}
from privserve.party.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
"""A party that differs in what parties say to each other, as far as it knows."""
NAMED = rf"privserve \S+ \(wire {NEXT}\).*wire {WIRE}\); install one version at all parties"


def start_other(stage: Stage, name: str) -> None:
    """Start one party of the next version, at its port."""
    listening = stage.sockets[name].fileno()
    config = str(stage.home / name / "cluster.toml")
    command = [sys.executable, "-c", OTHER, "--name", name, "--config", config, *stage.options]
    with stage.log_path(name).open("ab") as log:
        stage.processes[name] = subprocess.Popen(
            [*command, "--listen-fd", str(listening)],
            pass_fds=(listening,),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    stage.wait_alive(name)


def state(stage: Stage, name: str, session: str) -> dict:
    party = stage.config.parties[stage.config.rank(name)]
    answer = stage.cluster.call(party, "GET", "/privserve/status", session=session)
    found: dict = answer.json()
    return found


def test_a_cell_of_two_versions_deals_nothing_names_both_and_loses_no_share(
    tmp_path: Path, tag: str
) -> None:
    (tmp_path / "key").write_text(bytes(range(32)).hex())
    keeps = ["--state-dir", str(tmp_path / "state"), "--state-key-file", str(tmp_path / "key")]
    stage = Stage(tmp_path / "stage", "--connect-timeout", "20", *keeps)
    try:
        stage.model.share(stage.cluster, report=lambda line: None)
        leader, session = stage.config.parties[0], stage.model._sessions[0].id
        body = {"num_requests": None}
        stage.cluster.call(leader, "POST", "/privserve/serve", session=session, json=body)
        stage.stop("bob")
        start_other(stage, "bob")
        wait_until(lambda: is_told_of_two_versions(stage, session), "all say what is wrong", 20)
        # Who shares another model is told at once, and that one is given up.
        with (
            ps.load_model(torch.nn.Linear(4, 2), input_shape=(4,), name="more") as more,
            pytest.raises(ps.ClusterError, match=f"bob runs {NAMED}|{other_way()}"),
        ):
            more.share(stage.cluster, report=lambda line: None)
        with ps.Client(stage.config.path, timeout=15, model="small") as client:
            with pytest.raises(ps.NotServing, match="install one version"):
                client.query_model(X)
            stage.stop("bob")
            stage.start("bob")
            stage.wait_alive("bob")
            wait_until(
                lambda: state(stage, "alice", session)["state"] == "loaded", "it is back", 40
            )
            assert np.abs(client.query_model(X) - stage.expected).max() < 1e-2
    finally:
        stage.close()


def other_way() -> str:
    """As bob says it, who is another one from the others' sight."""
    return rf"\w+ runs privserve \S+ \(wire {WIRE}\), and bob \S+ \(wire {NEXT}\); install one"


def is_told_of_two_versions(stage: Stage, session: str) -> bool:
    said = [state(stage, name, session) for name in ("alice", "bob")]
    return all(s["state"] == "waiting" and "install one version" in s["reason"] for s in said)
