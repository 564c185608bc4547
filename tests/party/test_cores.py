"""Which core a party's thread stays on."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from privserve.certificates import write_cluster
from privserve.config import ClusterConfig, read_config
from privserve.party.cores import own_cores, physical_first, stay_on_own_core


def cluster(home: Path, *hosts: str) -> ClusterConfig:
    parties = [(f"p{i}", f"{h}:{7000 + i}") for i, h in enumerate(hosts)]
    write_cluster(home, parties)
    return read_config(home / "p0" / "cluster.toml")


def in_a_thread(config: ClusterConfig, rank: int) -> tuple[int | None, set[int]]:
    found: list[tuple[int | None, set[int]]] = []

    def work() -> None:
        found.append((stay_on_own_core(config, rank), os.sched_getaffinity(0)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_neighbours_stay_on_different_cores_and_other_threads_anywhere(tmp_path: Path) -> None:
    everywhere = os.sched_getaffinity(0)
    if len(everywhere) < 2:
        pytest.skip("there is one core only")
    config = cluster(tmp_path, "127.0.0.1", "127.0.0.1", "127.0.0.1")
    cores = []
    for rank in (0, 1):
        core, allowed = in_a_thread(config, rank)
        assert allowed == {core}
        cores.append(core)
    assert cores[0] != cores[1]
    assert os.sched_getaffinity(0) == everywhere


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_a_party_alone_on_its_machine_goes_anywhere(tmp_path: Path) -> None:
    config = cluster(tmp_path, "10.0.0.1", "10.0.0.2", "10.0.0.1")
    assert in_a_thread(config, 0) == (None, os.sched_getaffinity(0))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_more_parties_than_cores_go_anywhere(tmp_path: Path) -> None:
    many = len(os.sched_getaffinity(0)) + 1
    config = cluster(tmp_path, *["127.0.0.1"] * (many + 1))
    assert in_a_thread(config, 0) == (None, os.sched_getaffinity(0))


def test_second_threads_of_a_core_come_last(tmp_path: Path) -> None:
    for core, siblings in enumerate(["0,1", "0,1", "2,3", "2,3"]):
        place = tmp_path / f"cpu{core}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(f"{siblings}\n")
    assert physical_first([0, 1, 2, 3], tmp_path) == [0, 2, 1, 3]
    assert physical_first([7, 8], tmp_path) == [7, 8]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_sessions_of_several_models_stay_on_their_partys_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = cluster(tmp_path, "127.0.0.1", "127.0.0.1", "127.0.0.1")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(100, 106)))
    first, second = (own_cores(config, rank) for rank in (0, 1))
    assert (first, second) == ([100, 102, 104], [101, 103, 105])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_parties_of_several_cells_on_one_machine_stay_on_different_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parties, further = (
        [(f"p{i}", f"127.0.0.1:{port + i}") for i in range(3)] for port in (7000, 8000)
    )
    write_cluster(tmp_path, parties, further=[further])
    config = read_config(tmp_path / "cluster.toml")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(100, 104)))
    cores = [own_cores(cell, rank) for cell in config.cells for rank in (0, 1)]
    assert cores == [[100], [101], [102], [103]]
