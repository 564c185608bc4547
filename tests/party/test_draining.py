"""A party that is told to end: what was taken is answered, and clients are told where to go."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import echo_engine
import numpy as np
import pytest
from raw_http import Answer, Front
from serving import client_headers, wait_until
from sessions import Sessions, answer, numbers
from stage import NAMES, Stage, X

import privserve as ps
from privserve.onlooker import Onlooker
from privserve.status import look

KEY = bytes(range(32)).hex()
LAGS = 1500
"""Milliseconds that a batch waits for more queries: so one is under way when a test needs it."""
TOLD = "ask another cell, or again in a minute"
QUICK = [pytest.param(name, marks=[] if name == "bob" else pytest.mark.slow) for name in NAMES]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Parties with a state directory."""
    home = tmp_path_factory.mktemp("drained")
    (home / "key").write_text(KEY)
    state = ["--state-dir", str(home / "state"), "--state-key-file", str(home / "key")]
    running = Stage(home / "stage", "--connect-timeout", "20", *state)
    yield running
    running.close()


def begin(stage: Stage, lag: int = 0) -> None:
    """Share the model and have it served, as by an owner who leaves then."""
    options = {"max_delay_ms": lag} if lag else {}
    stage.model.share(stage.cluster, report=lambda line: None, options=options)
    leader, session = stage.config.parties[0], stage.model._sessions[0].id
    body = {"num_requests": None}
    stage.cluster.call(leader, "POST", "/privserve/serve", session=session, json=body)


def told(stage: Stage, name: str) -> dict:
    party = stage.config.parties[stage.config.rank(name)]
    found: dict = stage.cluster.call(party, "GET", "/privserve/status").json()
    return found


def are_loaded(stage: Stage) -> bool:
    with contextlib.suppress(ps.ClusterError):
        return all(told(stage, name)["state"] == "loaded" for name in NAMES)
    return False


def begins_to_drain(stage: Stage, name: str) -> subprocess.Popen[bytes]:
    """Tell a party to end, and wait until all parties take no more queries."""
    process = stage.told_to_end(name)
    wait_until(
        lambda: all(told(stage, other)["draining"] for other in ("alice", "bob")),
        "nobody takes queries",
        5,
    )
    return process


def back(stage: Stage, name: str) -> None:
    stage.start_again(name)
    stage.wait_alive(name)
    wait_until(lambda: are_loaded(stage), "all are back", 40)
    with ps.Client(stage.config.path, timeout=15) as client:
        assert np.abs(client.query_model(X) - stage.expected).max() < 1e-2


class Asker(threading.Thread):
    """A client that always has some queries under way, and counts what becomes of them."""

    def __init__(self, stage: Stage, victim: str, is_http: bool) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.right = 0
        self.wrong: list[BaseException] = []
        self._stage, self._victim, self._is_http = stage, victim, is_http

    def run(self) -> None:
        flying: deque[Future[np.ndarray]] = deque()
        try:
            with ps.Client(self._stage.config.path, timeout=15, http=self._is_http) as client:
                while not self.over.is_set():
                    flying.append(client.query_model_async(X))
                    if len(flying) > (3 if self._is_http else 30):
                        self._settle(flying.popleft())
                for future in flying:
                    self._settle(future)
        except BaseException as error:
            self.wrong.append(error)

    def _settle(self, future: Future[np.ndarray]) -> None:
        error = future.exception(20)
        if error is None:
            assert np.abs(future.result() - self._stage.expected).max() < 1e-2
            self.right += 1
        elif isinstance(error, ps.Draining):
            assert f"{self._victim} is being stopped; {TOLD}" in str(error)
        elif isinstance(error, ps.NotServing | ps.ClusterError):
            # The party has ended by now: the others wait for it, and its port is closed.
            assert not re.search("not answered|before the answer came|in time", str(error)), error
        else:
            raise error


@pytest.mark.parametrize("victim", QUICK)
def test_under_load_each_query_is_answered_rightly_or_refused_and_none_breaks(
    kept: Stage, victim: str
) -> None:
    begin(kept)
    askers = [Asker(kept, victim, is_http=number == 3) for number in range(4)]
    for asker in askers:
        asker.start()
    wait_until(lambda: all(a.right > 9 for a in askers) or any(a.wrong for a in askers), "all ask")
    process = kept.told_to_end(victim)
    assert process.wait(15) == 0
    for asker in askers:
        asker.over.set()
    for asker in askers:
        asker.join(20)
        assert not asker.is_alive()
        assert not asker.wrong, asker.wrong
    other = "bob" if victim == "alice" else "alice"
    wait_until(lambda: told(kept, other)["state"] == "waiting", "the others wait", 5)
    assert f"{victim} is being stopped" in told(kept, other)["reason"]
    back(kept, victim)
    # The query of `back` is counted too. What was counted was answered: nobody asked twice.
    answered = len(X) * (sum(asker.right for asker in askers) + 1)
    wait_until(lambda: told(kept, "alice")["answered"] == answered, "all count", 5)
    for name in NAMES:
        kept.check_log(name)
    kept.unload()


@contextlib.contextmanager
def one_under_way(
    stage: Stage, lag: int = LAGS
) -> Iterator[tuple[ps.Client, Callable[[], np.ndarray]]]:
    """A client, one of whose queries is complete everywhere and waits for its batch."""
    begin(stage, lag)
    with ps.Client(stage.config.path, timeout=15) as client:
        client.read_model()
        future = client.query_model_async(X)
        wait_until(lambda: told(stage, "alice")["waiting"] == 1, "the query waits")
        yield client, future.result


def half_a_query(stage: Stage, front: Front, session: str) -> Answer:
    """Ask as a client that sends alice her share, and bob none."""
    tensor = {"name": "input", "shape": [1, 4], "datatype": "INT64", "data": [0] * 4}
    body = json.dumps({"id": "half", "inputs": [tensor]}).encode()
    path = f"/v2/models/small/versions/{session}/infer"
    headers = list(client_headers(stage.config, "alice").items())
    return front.ask("alice", "POST", path, headers, body)


def test_meanwhile_all_fronts_say_that_the_party_is_being_stopped(kept: Stage) -> None:
    with one_under_way(kept) as (client, result), ThreadPoolExecutor(1) as pool:
        half = pool.submit(half_a_query, kept, Front(kept.config), client.read_model().session)
        wait_until(lambda: told(kept, "alice")["waiting"] == 2, "alice has her share")
        process = begins_to_drain(kept, "bob")
        refused = half.result(5)
        assert (refused.status, json.loads(refused.body)["code"]) == (503, "draining")
        front = Front(kept.config)
        for name in ("alice", "bob"):
            assert front.ask(name, "GET", "/v2/health/ready", [], b"").status == 503
            assert front.ask(name, "GET", "/v2/health/live", [], b"").status == 200
            for path in ("", "/ready"):
                said = front.ask(name, "GET", f"/v2/models/small{path}", [], b"")
                assert said.status == 503
                assert b'"code":"draining"' in said.body
        for way in (client, ps.Client(kept.config.path), ps.Client(kept.config.path, http=True)):
            with pytest.raises(ps.Draining, match=f"bob is being stopped; {TOLD}") as error:
                way.query_model(X)
            assert error.value.status == 503
            if way is not client:
                way.close()
        with pytest.raises(ps.Draining, match="bob is being stopped"):
            kept.model.share(kept.cluster, report=lambda line: None)
        front.close()
        found = [row.state for row in look(Onlooker(kept.config)).parties]
        assert found == ["up, takes no more queries since a party is being stopped"] * 3
        assert process.poll() is None, "it waits for the query"
        assert np.abs(result() - kept.expected).max() < 1e-2
        assert process.wait(5) == 0
    back(kept, "bob")
    kept.unload()


@pytest.mark.parametrize(
    "again", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_second_signal_ends_it_at_once(kept: Stage, again: signal.Signals) -> None:
    with one_under_way(kept) as (_, result):
        process = begins_to_drain(kept, "bob")
        process.send_signal(again)
        with pytest.raises(ps.PrivserveError, match="bob"):
            result()
        assert process.wait(5) == 0
    back(kept, "bob")
    kept.unload()


@pytest.mark.slow  # parties of its own
def test_it_waits_no_longer_than_it_was_told(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "--drain-timeout", "0.3")
    try:
        with one_under_way(stage, 5 * LAGS) as (_, result):
            began = time.monotonic()
            process = stage.told_to_end("bob")
            with pytest.raises(ps.NotServing, match="bob is being stopped"):
                result()
            assert process.wait(5) == 0
            assert 0.3 < time.monotonic() - began < 5 * LAGS / 1000
        assert "not answered after 0.3 s" in stage.log_path("bob").read_text()
    finally:
        stage.close()


def test_parties_of_a_larger_cluster_wait_for_each_others_queries(
    tmp_path: Path, echo: None
) -> None:
    sessions = Sessions(tmp_path, 4)
    try:
        larger_cluster(sessions)
    finally:
        sessions.close()


def larger_cluster(sessions: Sessions) -> None:
    sessions.start()
    sessions.leader.queue.serve(None)
    bob, dealer, x = sessions.all[1], sessions.all[3], numbers(1, 2)
    echo_engine.hold.clear()
    asked = sessions.ask(x)
    wait_until(lambda: sessions.leader.queue._begun.total(), "it runs")
    dealer.leave_soon()
    wait_until(lambda: all(s.stopping for s in sessions.all), "nobody takes queries", 5)
    with pytest.raises(ps.Draining, match="carol is being stopped"):
        sessions.ask(x)
    assert not dealer.may_leave
    echo_engine.hold.set()
    assert np.array_equal(answer(asked), 2 * x)
    wait_until(lambda: dealer.may_leave, "all are idle", 5)
    bob.leave_soon()
    wait_until(lambda: bob.may_leave, "so they are for bob", 5)
    dealer.leave("carol is being stopped")
    others = [s for s in sessions.all if s is not dealer]
    wait_until(lambda: all(s.state == "waiting" for s in others), "they wait")
    bob.leave("bob is being stopped")
    for rank in (1, 3):
        sessions.come_back(rank)
    wait_until(lambda: all(s.state == "loaded" for s in sessions.all), "they are back", 20)
    assert [s.stopping for s in sessions.all] == [""] * 4
    assert np.array_equal(answer(sessions.ask(x)), 2 * x)
