"""Fixtures of the serving tests."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from uuid import uuid4

import pytest
from serving import SAMPLE_MODEL, TAG, Digits, free_workers, tagged_processes, wait_until

import privserve as ps


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
