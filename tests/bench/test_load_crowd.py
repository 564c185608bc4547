"""Client processes: how clients are spread, and that none is left whatever goes wrong."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privserve.bench.load_client import Order, Samples
from privserve.bench.load_crowd import Crowd, cpu_seconds, shares
from privserve.errors import ClusterError

SAMPLES = Samples(np.zeros((1, 2)), (np.zeros((1, 1)),), (0.1,))
ORDER = Order("http", 2, (1,), "seed", warmup=0.1, seconds=0.1)


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 12))
def test_clients_are_spread_evenly_and_no_process_used_has_none(
    clients: int, processes: int
) -> None:
    counts = shares(clients, processes)
    assert sum(counts) == clients
    assert len(counts) == min(clients, processes)
    assert max(counts) - min(counts) <= 1
    assert min(counts) >= 1


def test_cpu_time_is_that_of_the_process() -> None:
    before = cpu_seconds(os.getpid())
    assert before is not None
    began = time.process_time()
    while time.process_time() - began < 0.3:
        pass
    after = cpu_seconds(os.getpid())
    assert after is not None
    assert 0.25 <= after - before <= 0.3 + 0.25
    assert cpu_seconds(2**22 + 1) is None  # above any process's id


def crowd(tmp_path: Path, count: int, check: Callable[[], None] = lambda: None) -> Crowd:
    """Processes whose cluster is not there."""
    keys = [tmp_path / f"{n}.key" for n in range(count)]
    return Crowd(tmp_path / "cluster.toml", keys, SAMPLES, check)


def assert_gone(ended: Crowd) -> None:
    assert ended.processes
    assert not any(process.is_alive() for process in ended.processes)


def test_clients_that_cannot_ask_are_an_error_that_says_why(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with crowd(tmp_path, 2) as asked, pytest.raises(ClusterError, match="ended with code 1"):
        asked.run(ORDER, {})
    assert_gone(asked)
    assert "there is no" in capfd.readouterr().err


def test_a_client_process_that_is_killed_is_an_error(tmp_path: Path) -> None:
    with crowd(tmp_path, 3) as asked:
        victim = asked.processes[2]
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        victim.join(20)
        with pytest.raises(ClusterError, match=r"client process 2 ended with code -9"):
            asked._wait_until(time.monotonic() + 60)
    assert_gone(asked)


def test_a_cluster_that_is_gone_ends_the_wait_and_all_client_processes(tmp_path: Path) -> None:
    def check() -> None:
        raise ClusterError("bob was killed")

    with crowd(tmp_path, 2, check) as asked, pytest.raises(ClusterError, match="bob was killed"):
        asked._wait_until(time.monotonic() + 60)
    assert_gone(asked)
    asked.close()


def test_a_client_process_that_does_not_end_by_itself_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privserve.bench.load_crowd.END_SECONDS", 0.1)
    with crowd(tmp_path, 1) as asked:
        pid = asked.processes[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
    assert asked.processes[0].exitcode == -signal.SIGKILL


def blocked_or_ignored(pid: int, number: int) -> bool:
    """Whether a process would not notice signal `number` now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = dict(line.split(":", 1) for line in lines if line.startswith(("SigBlk", "SigIgn")))
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks.values())


def test_ctrl_c_reaches_no_client_process_from_its_first_moment_on(tmp_path: Path) -> None:
    with crowd(tmp_path, 2) as asked:
        for process in asked.processes:
            assert process.pid is not None
            assert blocked_or_ignored(process.pid, signal.SIGINT)
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert_gone(asked)
