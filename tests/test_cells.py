"""Several cells in real processes: load is spread, a limit is exact, one that dies costs no query.

One cluster for all, in one test: to start six parties takes most of the time.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from serving import SMALL, free_workers, small_model, wait_until

import privserve as ps
from privserve.batch.job import run
from privserve.batch.settings import Settings
from privserve.onlooker import Onlooker
from privserve.status import look, shown

LIMIT = 203
CLIENTS = 8
BEFORE, AFTER = 80, 160
"""Queries that are answered before a cell is killed, and in all."""


class Crowd:
    """Clients that ask until they are told of a limit, or there were enough answers."""

    def __init__(self, cluster: ps.Cluster, enough: int | None) -> None:
        self._cluster, self._enough = cluster, enough
        self.answers: list[np.ndarray] = []
        self.failed: list[BaseException] = []
        self.went: Counter[int] = Counter()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        with ps.Client(self._cluster, timeout=30) as client:
            while self._enough is None or len(self.answers) < self._enough:
                try:
                    self.answers.append(client.query_model(SMALL))
                except ps.LimitReached:
                    return
                except BaseException as error:
                    self.failed.append(error)
                    return

    def wait(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not self.failed, self.failed


def serve(
    model: ps.SecureModel, limit: int | None, told: list[str]
) -> tuple[threading.Thread, list]:
    """Serve in the background; the thread, and what `serve` returns."""
    answered: list[int] = []

    def work() -> None:
        with contextlib.suppress(ps.ClusterError):  # the cluster may be stopped meanwhile
            answered.append(model.serve(limit, tell=told.append))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    wait_until(lambda: sum(bool(s.get("serving")) for s in model.status()) == 2, "both serve")
    return thread, answered


def counts(model: ps.SecureModel) -> list[int]:
    """By cell: the rows that its leader counts."""
    return [status["answered"] for status in model.status() if "answered" in status]


def test_two_cells_share_load_and_limit_and_one_that_is_killed_loses_no_query(
    tmp_path: Path, tag: str
) -> None:
    told: list[str] = []
    rows = np.random.default_rng(1).uniform(-2, 2, (300, 4))
    np.save(tmp_path / "rows.npy", rows)
    with ps.Cluster(*free_workers(), cells=2) as cluster, small_model() as model:
        model.share(cluster, report=lambda line: None)
        config = cluster.config

        # All of the limit is had, and no row more.
        thread, answered = serve(model, LIMIT, told)
        crowd = Crowd(cluster, None)
        crowd.wait()
        thread.join(20)
        assert answered == [len(crowd.answers)] == [LIMIT]
        assert sum(counts(model)) == LIMIT
        assert min(counts(model)) > 0

        # A batch job asks both, whose counts begin anew.
        thread, answered = serve(model, None, told)
        rows_in, rows_out, said = tmp_path / "rows.npy", tmp_path / "answers.npy", io.StringIO()
        run(Settings(rows_in, rows_out, config.path, rows_per_query=7), said)
        assert "shared anew" not in said.getvalue(), "two cells are one sharing"
        with ps.Client(config) as client:
            first = client.query_model(rows[:7])
        np.testing.assert_allclose(np.load(rows_out)[:7], first, atol=1e-3)
        assert min(counts(model)) > 0
        assert sum(counts(model)) == 307
        model.stop_serving()
        thread.join(20)
        onlooker = Onlooker(config)
        table = shown(look(onlooker)).splitlines()
        onlooker.close()
        assert table[0].split()[:3] == ["cell", "party", "role"]
        assert [line.split()[:2] for line in table[2:] if "carol" in line] == [
            ["0", "carol"],
            ["1", "carol"],
        ]

        # A cell dies under load.
        thread, answered = serve(model, 100_000, told)
        crowd = Crowd(cluster, AFTER)
        wait_until(lambda: len(crowd.answers) >= BEFORE or crowd.failed, "queries are answered")
        for name, pid in cluster.process_ids.items():
            if name.endswith(".1"):
                os.kill(pid, signal.SIGKILL)
        crowd.wait()
        assert len(crowd.answers) >= AFTER
        for answer in crowd.answers:
            np.testing.assert_allclose(answer, crowd.answers[0], atol=1e-3)
        with pytest.raises(ps.PrivserveError):  # cell 1 has lost it
            model.status()
        wait_until(
            lambda: any("cell 1: alice was killed" in line for line in told), "it is noticed"
        )
