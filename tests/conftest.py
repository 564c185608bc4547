"""Fixtures of the serving tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from invited import NAMES, addresses
from serving import SAMPLE_MODEL, TAG, Digits, free_workers, tagged_processes, wait_until

import privserve as ps
from privserve.certificates import join, sign, write_cluster
from privserve.config import read_config


@pytest.fixture
def tag(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Marks every process that the test starts, and fails it if one of them outlives it."""
    mark = uuid4().hex
    monkeypatch.setenv(TAG, mark)
    yield mark
    try:
        wait_until(lambda: not tagged_processes(mark), "all processes of this test are gone", 10)
    finally:
        for pid in tagged_processes(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)


@pytest.fixture(scope="session")
def digits() -> Iterator[Digits]:
    """One cluster for all tests that leave it whole: starting parties takes seconds."""
    with ps.Cluster(*free_workers()) as cluster, ps.load_model(SAMPLE_MODEL) as model:
        model.share(cluster)
        yield Digits(cluster, model)


@pytest.fixture
def client(digits: Digits) -> Iterator[ps.Client]:
    """A client of the running cluster."""
    with ps.Client(digits.cluster, timeout=30) as client:
        yield client


@pytest.fixture
def owner(tmp_path: Path) -> Path:
    """The owner's cluster.toml of a cluster whose parties were invited."""
    home = tmp_path / "owner"
    return write_cluster(home, addresses(), keep=tmp_path / "ca.secret", make_keys=False)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    return tmp_path / "ca.secret"


@pytest.fixture
def hosts(owner: Path, secret: Path, tmp_path: Path, tag: str) -> Iterator[dict[str, Path]]:
    """Three hosts that joined, each in a directory of its own, with its party running."""
    homes, running = {}, []
    for name in NAMES:
        asked, _ = join(owner.parent / f"{name}.invite", tmp_path / "hosts")
        sign(read_config(owner), secret, asked.read_bytes())
        homes[name] = asked.parent
        shutil.copy(owner.parent / f"{name}.pem", homes[name])
        command = [sys.executable, "-m", "privserve.launch", "--party", name]
        log = (homes[name] / "log").open("w")
        running.append(
            subprocess.Popen(
                [*command, "--config", str(homes[name] / "cluster.toml")], stderr=log, stdout=log
            )
        )
        log.close()
    yield homes
    for one in running:
        one.send_signal(signal.SIGINT)
    for one in running:
        one.wait(20)
