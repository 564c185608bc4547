"""Running parties that are killed, stopped or told to end: the cluster heals without its owner."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from serving import wait_until
from stage import NAMES, Stage, X

import privserve as ps

KEY = bytes(range(32)).hex()
SOME = ["alice", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])]
"""The leader, who has the most to lose; the others take as long."""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Parties with a state directory."""
    home = tmp_path_factory.mktemp("kept")
    (home / "key").write_text(KEY)
    running = Stage(home / "stage", *state_options(home))
    yield running
    running.close()


def state_options(home: Path) -> list[str]:
    waits = ["--connect-timeout", "20", "--share-timeout", "2"]
    return [*waits, "--state-dir", str(home / "state"), "--state-key-file", str(home / "key")]


def begin(stage: Stage, limit: int | None = None) -> None:
    """Share the model and have it served, as by an owner who leaves then."""
    stage.model.share(stage.cluster, report=lambda line: None)
    body = {"num_requests": limit}
    leader = stage.config.parties[0]
    session = stage.model._sessions[0].id
    stage.cluster.call(leader, "POST", "/privserve/serve", session=session, json=body)


def told(stage: Stage, name: str) -> dict:
    party = stage.config.parties[stage.config.rank(name)]
    found: dict = stage.cluster.call(party, "GET", "/privserve/status").json()
    return found


def all_are(stage: Stage, state: str, seconds: float = 40) -> None:
    def are() -> bool:
        with contextlib.suppress(ps.ClusterError):
            return all(told(stage, name)["state"] == state for name in NAMES)
        return False

    try:
        wait_until(are, f"all are {state}", seconds)
    except AssertionError as error:
        found = {name: told(stage, name) for name in NAMES}
        raise AssertionError(
            {n: (f["state"], f.get("reason")) for n, f in found.items()}
        ) from error


def ask(stage: Stage, client: ps.Client, seconds: float = 40) -> int:
    """Ask until there is an answer, which is right; how often there was none."""
    deadline, failed = time.monotonic() + seconds, 0
    while True:
        try:
            got = client.query_model(X)
        except ps.LimitReached:
            raise
        except (ps.ClusterError, ps.QueryError):
            if time.monotonic() > deadline:
                raise
            failed += 1
            time.sleep(0.1)
        else:
            assert np.abs(got - stage.expected).max() < 1e-2
            return failed


@pytest.mark.parametrize("victims", [["alice"], ["bob"], ["carol"], list(NAMES)])
def test_who_is_killed_takes_its_share_from_disk_and_counts_go_on(
    kept: Stage, victims: list[str]
) -> None:
    begin(kept, 12)
    with ps.Client(kept.config.path, timeout=15) as client:
        for _ in range(2):
            ask(kept, client)
        wait_until(lambda: told(kept, "alice")["answered"] == 6, "they are counted")
        had = told(kept, "alice")["clients"]["default"]["rows"]
        session = told(kept, "alice")["session"]
        for name in victims:
            kept.kill(name)
        if len(victims) == 1 and victims[0] != "alice":
            began = time.monotonic()
            wait_until(lambda: told(kept, "alice")["state"] == "waiting", "alice knows", 5)
            assert time.monotonic() - began < 3
            assert f"{victims[0]} is gone" in told(kept, "alice")["reason"]
            # Of a compute party the client sees itself that it is gone, perhaps before.
            with pytest.raises(ps.PrivserveError, match=f"{victims[0]}") as refused:
                client.query_model(X)
            if victims == ["carol"]:
                assert isinstance(refused.value, ps.NotServing)
                assert "carol is gone" in str(refused.value)
                assert "comes back by itself" in str(refused.value)
        for name in victims:
            kept.start_again(name)
        for name in victims:
            kept.wait_alive(name)
        all_are(kept, "loaded")
        status = told(kept, "alice")
        assert (status["session"], status["serving"]) == (session, True)
        assert (status["answered"], status["limit"]) == (6, 12)
        for _ in range(2):
            ask(kept, client)
        with pytest.raises(ps.LimitReached, match="the limit of 12 rows is reached"):
            ask(kept, client)
        status = told(kept, "alice")
        assert status["answered"] == 12
        assert had <= status["clients"]["default"]["rows"] == had + 6
    for name in NAMES:
        kept.check_log(name)
    kept.unload()
    state = kept.home.parent / "state" / kept.config.cluster
    assert not list(state.rglob("*.session")), "what is unloaded is not kept"


@pytest.mark.parametrize("victim", NAMES)
def test_who_is_told_to_end_is_waited_for(kept: Stage, victim: str) -> None:
    begin(kept)
    kept.stop(victim)
    other = "alice" if victim != "alice" else "bob"
    wait_until(lambda: told(kept, other)["state"] == "waiting", "the others wait", 5)
    assert f"{victim} is being stopped" in told(kept, other)["reason"]
    kept.start(victim)
    kept.wait_alive(victim)
    all_are(kept, "loaded")
    with ps.Client(kept.config.path, timeout=15) as client:
        ask(kept, client)
    kept.unload()


def test_random_kills_while_clients_ask_count_every_answer_once_and_exceed_no_limit(
    kept: Stage,
) -> None:
    """No answer is lost to the count, none is counted twice, and no row is answered too many."""
    limit, draw = 600, random.Random(7)
    begin(kept, limit)
    before = told(kept, "alice")["clients"]["default"]["rows"]
    received = [0] * 3
    failures = [0] * 3
    wrong: list[BaseException] = []
    over = threading.Event()

    def work(number: int) -> None:
        try:
            with ps.Client(kept.config.path, timeout=15) as client:
                while not over.is_set():
                    failures[number] += ask(kept, client)
                    received[number] += len(X)
        except ps.LimitReached:
            pass
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        time.sleep(draw.uniform(0.05, 0.6))  # at any moment: this is what is drawn
        name = draw.choice(NAMES)
        kept.kill(name)
        kept.start_again(name)
        kept.wait_alive(name)
        all_are(kept, "loaded")
        status = told(kept, "alice")
        assert status["answered"] <= limit
        if not status["serving"]:
            break
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong, wrong
    status = told(kept, "alice")
    assert status["answered"] == limit
    assert status["clients"]["default"]["rows"] == before + limit
    # A query whose answer left one party only was counted, and its client asked again.
    assert sum(received) <= limit <= sum(received) + len(X) * sum(failures)
    kept.unload()


@pytest.mark.parametrize("victim", SOME)
def test_who_was_stopped_for_a_while_is_back_without_any_state(tmp_path: Path, victim: str) -> None:
    stage = Stage(tmp_path, "--connect-timeout", "20")
    try:
        begin(stage)
        with ps.Client(stage.config.path, timeout=15) as client:
            ask(stage, client)
            pid = stage.processes[victim].pid
            other = "alice" if victim != "alice" else "bob"
            os.kill(pid, signal.SIGSTOP)
            began = time.monotonic()
            try:
                why = ""
                while not why:  # the dealer is missed once the packs are used up, or it is silent
                    try:
                        client.query_model(X)
                    except ps.PrivserveError as error:
                        why = str(error)
                wait_until(lambda: told(stage, other)["state"] == "waiting", "it is missed", 10)
                assert time.monotonic() - began < 8
                assert f"{victim} gave no sign of life for 3 s" in told(stage, other)["reason"]
                assert "send one to each" not in why
            finally:
                os.kill(pid, signal.SIGCONT)
            all_are(stage, "loaded")
            ask(stage, client)
        for name in NAMES:
            stage.check_log(name)
    finally:
        stage.close()


@pytest.mark.parametrize("victim", SOME)
def test_who_lost_its_share_says_so_to_all(tmp_path: Path, victim: str) -> None:
    """Without a state directory, and without the owner's program: status says what to do."""
    stage = Stage(tmp_path, "--connect-timeout", "20")
    try:
        begin(stage)
        stage.kill(victim)
        stage.start_again(victim)
        stage.wait_alive(victim)
        others = [name for name in NAMES if name != victim]
        wait_until(
            lambda: all(
                f"{victim} was started again and has lost" in told(stage, name)["reason"]
                for name in others
            ),
            "all know",
            20,
        )
        with (
            ps.Client(stage.config.path, timeout=15) as client,
            pytest.raises(ps.NotServing, match=r"has to (share the model again|call share)"),
        ):
            client.query_model(X)
        stage.check_honest()
    finally:
        stage.close()


def test_a_party_with_the_wrong_key_does_not_start_and_keeps_the_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    stage = Stage(tmp_path / "stage", *state_options(tmp_path))
    try:
        begin(stage)
        stage.kill("bob")
        files = sorted((tmp_path / "state").rglob("bob/*"))
        (tmp_path / "key").write_text("00" * 32)
        stage.start_again("bob")
        assert stage.processes["bob"].wait(30) == 2
        assert "the key is another one" in stage.log_path("bob").read_text()
        assert sorted((tmp_path / "state").rglob("bob/*")) == files
        (tmp_path / "key").write_text(KEY)
        stage.start("bob")
        stage.wait_alive("bob")
        all_are(stage, "loaded")
    finally:
        stage.close()
