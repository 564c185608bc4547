"""Clusters of real processes as their owner's program calls them, and how they end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from serving import (
    SAMPLE_DIGITS,
    SAMPLE_MODEL,
    SMALL,
    Digits,
    free_workers,
    serving,
    small_model,
    tagged_processes,
    wait_until,
)

import privserve as ps
from privserve.config import Timeouts

LIMIT = 400
"""More rows than are asked while a party's end is noticed."""
QUICK = Timeouts(connect=20, peer=3, share=0.5)


@pytest.fixture
def image() -> np.ndarray:
    with np.load(SAMPLE_DIGITS) as samples:
        return samples["images"][:1]


@pytest.fixture
def small() -> ps.SecureModel:
    return small_model()


def processes(cluster: ps.Cluster) -> dict[str, int]:
    return {name: process.pid for name, process in cluster.cells[0]._processes.items()}


def test_the_life_of_a_cluster_from_start_to_stop(tag: str, image: np.ndarray) -> None:
    alice, bob, carol = free_workers()
    cluster = ps.Cluster(alice, bob, carol)
    cluster.start()
    model = ps.load_model(SAMPLE_MODEL)
    with ps.Client(cluster, timeout=30) as client:
        with pytest.raises(ps.NotServing, match="call share"):
            client.query_model(image)
        model.share(cluster)
        with pytest.raises(ps.NotServing, match="nobody serves it yet"):
            client.query_model(image)
        expected = model.converted.predict(image)
        for round_ in range(2):  # serve, and serve again
            answers = [client.query_model_async(image) for _ in range(2)] if round_ else []
            for answer in answers:
                assert isinstance(answer.exception(30), ps.LimitReached)
            with serving(cluster, model, 2) as thread:
                for _ in range(2):
                    np.testing.assert_allclose(client.query_model(image), expected, atol=2e-2)
                wait_until(lambda t=thread: not t.is_alive(), "serve() returned")
        model.stop()
        model.stop()
        with pytest.raises(ps.QueryError, match="model owner"):
            client.query_model(image)
    assert len(tagged_processes(tag)) == 3
    directory = cluster.config.path.parent
    cluster.stop()
    cluster.stop()
    assert not tagged_processes(tag)
    assert not directory.exists()
    with pytest.raises(ps.ClusterError, match=r"call start\(\) first"):
        model.share(cluster)


def test_an_exception_in_the_block_leaves_no_party_behind(tag: str) -> None:
    def fail() -> None:
        with ps.Cluster(*free_workers()):
            assert len(tagged_processes(tag)) == 3
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert not tagged_processes(tag)


@pytest.mark.parametrize(
    "victim",
    [
        pytest.param("alice", marks=pytest.mark.slow),
        "bob",
        pytest.param("carol", marks=pytest.mark.slow),
    ],
)
def test_a_party_that_is_killed_is_named_at_once_started_again_and_given_its_share(
    tag: str, small: ps.SecureModel, victim: str
) -> None:
    with ps.Cluster(*free_workers(), timeouts=QUICK) as cluster:
        small.share(cluster)
        before = processes(cluster)
        told: list[str] = []
        ended: list[object] = []

        def serve() -> None:
            try:
                ended.append(small.serve(LIMIT, tell=told.append))
            except ps.PrivserveError as error:
                ended.append(error)

        serving = threading.Thread(target=serve, daemon=True)
        with ps.Client(cluster, timeout=30) as client:
            serving.start()
            wait_until(lambda: ended or small.status()[0].get("serving"), "the model is served")
            expected = small.converted.predict(SMALL)
            for _ in range(3):
                client.query_model(SMALL)
            failed: list[BaseException] = []

            def ask() -> None:
                try:
                    while True:
                        client.query_model(SMALL)
                        meanwhile.append(1)
                except ps.PrivserveError as error:
                    failed.append(error)

            meanwhile: list[int] = []
            asking = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
            os.kill(before[victim], signal.SIGKILL)
            killed = time.monotonic()
            for thread in asking:
                thread.start()
            for thread in asking:
                thread.join(15)
            assert len(failed) == 4
            assert time.monotonic() - killed < 8
            assert victim in " ".join(map(str, failed))
            answers = []
            while (answer := ask_again(client)) is not None:
                answers.append(answer)
            answered = 3 + len(meanwhile) + len(answers)
            assert LIMIT - 8 <= answered <= LIMIT, "the limit holds, of all sessions together"
            for answer in answers:
                np.testing.assert_allclose(answer, expected, atol=1e-2)
            serving.join(10)
        assert ended == [LIMIT]
        assert any(f"{victim} was killed" in line and "starting it again" in line for line in told)
        assert any("lost what it had of" in line and "sharing it again" in line for line in told)
        after = processes(cluster)
        assert {name for name in before if before[name] != after[name]} == {victim}
    assert not tagged_processes(tag)


def test_a_leader_with_a_state_directory_needs_no_new_share_and_counts_on(
    tag: str, tmp_path: Path, small: ps.SecureModel
) -> None:
    (tmp_path / "key").write_text("1f" * 32)
    state = {"state_dir": tmp_path / "state", "state_key_file": tmp_path / "key"}
    with ps.Cluster(*free_workers(), timeouts=QUICK, **state) as cluster:  # type: ignore[arg-type]
        small.share(cluster)
        session, told, ended = small.status()[0]["session"], [], []
        serve = threading.Thread(
            target=lambda: ended.append(small.serve(6, tell=told.append)), daemon=True
        )
        serve.start()
        with ps.Client(cluster, timeout=30) as client:
            wait_until(lambda: small.status()[0].get("serving"), "the model is served")
            for _ in range(3):
                client.query_model(SMALL)
            wait_until(lambda: small.status()[0]["answered"] == 3, "they are counted")
            os.kill(processes(cluster)["alice"], signal.SIGKILL)
            answers = 0
            while ask_again(client) is not None:
                answers += 1
        serve.join(10)
        assert (answers, ended) == (3, [6])
        assert small.status()[0]["session"] == session
        assert not any("sharing it again" in line for line in told)


def ask_again(client: ps.Client, seconds: float = 40) -> np.ndarray | None:
    """An answer, as soon as there is one; None where the limit is reached."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return client.query_model(SMALL)
        except ps.LimitReached:
            return None
        except (ps.ClusterError, ps.QueryError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_a_party_that_ends_thrice_within_a_minute_is_given_up(
    tag: str, small: ps.SecureModel
) -> None:
    with ps.Cluster(*free_workers(), timeouts=QUICK) as cluster:
        small.share(cluster)
        failed: list[BaseException] = []

        def serve() -> None:
            try:
                small.serve(tell=lambda line: None)
            except ps.ClusterError as error:
                failed.append(error)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        for _ in range(3):
            pid = processes(cluster)["carol"]
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda p=pid: failed or processes(cluster)["carol"] != p, "it is back", 30)
        thread.join(10)
        assert "carol was killed" in str(failed[0])
        assert "third time within a minute" in str(failed[0])


def test_parties_that_live_on_take_another_model_after_a_failure(
    tag: str, tmp_path: Path, small: ps.SecureModel
) -> None:
    with ps.Cluster(*free_workers(), directory=tmp_path, timeouts=QUICK) as cluster:
        small.share(cluster)
        os.kill(processes(cluster)["bob"], signal.SIGKILL)
        wait_until(
            lambda: _state(cluster, 0) == _state(cluster, 2) == "waiting", "the others noticed"
        )
        config = cluster.config.parties[1]
        command = ["--party", "bob", "--config", str(tmp_path / "bob" / "cluster.toml")]
        again = subprocess.Popen(
            [sys.executable, "-m", "privserve.launch", *command], stderr=subprocess.DEVNULL
        )
        try:
            cluster.cells[0]._processes["bob"].wait()
            cluster.cells[0]._processes["bob"] = again  # type: ignore[assignment]
            wait_until(lambda: _lives(cluster, config), "bob is back")
            small.share(cluster)
            with ps.Client(cluster, timeout=30) as client, serving(cluster, small, 1):
                expected = small.converted.predict(SMALL)
                np.testing.assert_allclose(client.query_model(SMALL), expected, atol=1e-2)
        finally:
            again.terminate()
            again.wait()


def _state(cluster: ps.Cluster, rank: int) -> str:
    party = cluster.config.parties[rank]
    return cluster.call(party, "GET", "/privserve/status").json()["state"]


def _lives(cluster: ps.Cluster, party: object) -> bool:
    try:
        cluster.call(party, "GET", "/v2/health/live")  # type: ignore[arg-type]
    except ps.ClusterError:
        return False
    return True


def test_a_party_that_is_stopped_is_given_up_within_the_timeout(
    tag: str, small: ps.SecureModel
) -> None:
    with ps.Cluster(*free_workers(), timeouts=QUICK) as cluster:
        small.share(cluster)
        pid = processes(cluster)["carol"]
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: _state(cluster, 0) == _state(cluster, 1) == "waiting", "given up", 9)
            with (
                ps.Client(cluster, timeout=10) as client,
                pytest.raises(ps.PrivserveError, match="carol gave no sign of life for 3 s"),
            ):
                client.query_model(SMALL)
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: [_state(cluster, r) for r in range(3)] == ["loaded"] * 3, "it is back")
        with ps.Client(cluster, timeout=30) as client, serving(cluster, small, 1):
            expected = small.converted.predict(SMALL)
            np.testing.assert_allclose(client.query_model(SMALL), expected, atol=1e-2)


def test_a_port_in_use_is_named_with_the_remedy_and_nothing_is_started(tag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cluster = ps.Cluster(
            ps.Worker("localhost:0"), ps.Worker(f"127.0.0.1:{port}"), *free_workers(1)
        )
        with pytest.raises(ps.ConfigError, match=rf"bob: cannot listen on .*:{port}"):
            cluster.start()
    assert not tagged_processes(tag)


def test_a_party_that_ends_at_once_is_named_with_its_last_words(
    tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subprocess.Popen

    def lose_bobs_key(command: list[str], **options: object) -> subprocess.Popen:
        if "bob" in command:
            (tmp_path / "bob" / "bob.key").unlink()
        return real(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", lose_bobs_key)
    cluster = ps.Cluster(*free_workers(), directory=tmp_path)
    with pytest.raises(ps.ClusterError, match=r"bob ended with code 2: error: .*bob\.key is miss"):
        cluster.start()
    assert not tagged_processes(tag)


def test_a_cluster_needs_three_workers_and_starts_once(digits: Digits) -> None:
    with pytest.raises(ps.ConfigError, match="at least 3 parties"):
        ps.Cluster(*free_workers(2))
    with pytest.raises(ps.ClusterError, match="running already"):
        digits.cluster.start()
    with pytest.raises(ps.ClusterError, match=r"call start\(\) first"):
        _ = ps.Cluster(*free_workers()).config


def test_workers_have_addresses_that_can_be_used() -> None:
    assert ps.Worker("[::1]:4000").address == "[::1]:4000"
    with pytest.raises(ps.ConfigError, match="needs a port"):
        ps.Worker("localhost:0", auto_managed=False)
    with pytest.raises(ps.ConfigError, match="write host:port"):
        ps.Worker("localhost")
    with pytest.raises(ps.ConfigError, match="write host:port"):
        ps.Worker("localhost:65600")


def test_an_unmanaged_party_gets_a_command_and_is_awaited(
    tag: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], small: ps.SecureModel
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        bob = ps.Worker(f"127.0.0.1:{free.getsockname()[1]}", auto_managed=False)
    alice, carol = free_workers(2)
    cluster = ps.Cluster(alice, bob, carol, directory=tmp_path)
    started = threading.Thread(target=cluster.start, daemon=True)
    started.start()
    printed = ""

    def command_is_printed() -> bool:
        nonlocal printed
        printed += capfd.readouterr().out
        return "--party bob --config bob/cluster.toml" in printed

    wait_until(command_is_printed, "the command for bob's host is printed")
    assert started.is_alive()
    by_hand = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "privserve.launch",
            "--party",
            "bob",
            "--config",
            "bob/cluster.toml",
        ],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    try:
        started.join(30)
        assert not started.is_alive()
        small.share(cluster)
        with ps.Client(cluster, timeout=30) as client, serving(cluster, small, 1):
            expected = small.converted.predict(SMALL)
            np.testing.assert_allclose(client.query_model(SMALL), expected, atol=1e-2)
        capfd.readouterr()
        cluster.stop()
        assert by_hand.poll() is None
        told = f"bob at {bob.address} was started by hand; end it there with Ctrl-C\n"
        assert capfd.readouterr().out == told
    finally:
        by_hand.send_signal(signal.SIGINT)
        assert by_hand.wait(10) == 0
