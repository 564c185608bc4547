"""Whatever breaks, whoever it is and whenever it does: what the table of faults says comes of it.

A handful of cells are among the quick tests. What the table means is in `fault_table`, what is
held against it, for each cell alike, in `fault_play`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import shifted_clock
from fault_play import Play
from fault_table import Cell, cells
from hosts import Hosts
from serving import TAG, tagged_processes, wait_until

QUICK = (
    ("stopped", "alice", "answering"),
    ("killed", "bob", "answering"),
    ("killed", "bob", "sharing"),
    ("cut off", "carol", "answering"),
    ("full disk", "alice", "answering"),
)
"""What tells the most in half a minute: each loses something else."""


class Cluster:
    """Hosts that cell after cell is played on; others once one has failed."""

    def __init__(self, home: Path) -> None:
        self._home, self._hosts, self._count = home, None, 0  # type: tuple[Path, Hosts | None, int]
        self._clock = shifted_clock.build(home) if shutil.which("gcc") else None

    def play(self, cell: Cell) -> None:
        if self._hosts is None:
            self._count += 1
            self._hosts = Hosts(self._home / str(self._count), self._clock, seed=self._count)
        try:
            if cell.fault == "full disk" and not self._hosts.has_disks:
                pytest.skip("no disk can be made here to be filled: that takes root")
            if cell.fault == "clock" and self._clock is None:
                pytest.skip("no clock can be set here: that takes gcc")
            Play(self._hosts, cell).run()
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        hosts, self._hosts = self._hosts, None
        if hosts is not None:
            hosts.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    mark = uuid4().hex
    os.environ[TAG] = mark
    made = Cluster(tmp_path_factory.mktemp("faults"))
    try:
        yield made
    finally:
        made.close()
        del os.environ[TAG]
        try:
            wait_until(lambda: not tagged_processes(mark), "no process is left", 10)
        finally:
            for pid in tagged_processes(mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)


def marks(where: tuple[str, str, str]) -> list[pytest.MarkDecorator]:
    """Whether a cell is slow."""
    return [] if where in QUICK else [pytest.mark.slow]


def chosen() -> list[object]:
    """All cells, of which the quick tests play a few."""
    return [
        pytest.param(
            one,
            id=one.name.replace(" ", "-"),
            marks=marks((one.fault, one.victim, one.phase)),
        )
        for one in cells()
    ]


@pytest.mark.parametrize("cell", chosen())
def test_it_comes_to_what_the_table_says(cluster: Cluster, cell: Cell) -> None:
    cluster.play(cell)
