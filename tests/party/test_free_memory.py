"""What memory a party says that it could get, where it has less than its machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from privserve.party.free_memory import available_memory

MIB = 1 << 20


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine with 1,000 MiB to give, and this process in a group of a group."""
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:    {1000 * 1024} kB\n")
    (proc / "self" / "cgroup").write_text("9:cpu:/x\n0::/slice/party.service\n")
    return proc


def limit(group: Path, most: str, used: int, cached: int = 0) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(most + "\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")


def test_where_nothing_is_allotted_it_is_what_the_machine_has(proc: Path, tmp_path: Path) -> None:
    assert available_memory(proc, tmp_path / "none") == 1000 * MIB
    limit(tmp_path / "groups" / "slice" / "party.service", "max", 10 * MIB)
    assert available_memory(proc, tmp_path / "groups") == 1000 * MIB


def test_a_limit_counts_its_own_and_that_of_a_group_around_it(proc: Path, tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    limit(groups / "slice" / "party.service", f"{500 * MIB}", 100 * MIB, cached=40 * MIB)
    assert available_memory(proc, groups) == 440 * MIB
    limit(groups / "slice", f"{300 * MIB}", 200 * MIB)
    assert available_memory(proc, groups) == 100 * MIB
    limit(groups, f"{300 * MIB}", 400 * MIB)  # in a container its own group is the root
    assert available_memory(proc, groups) == 0


@pytest.mark.parametrize("groups", ["", "0::/../other\n", "3:memory:/old\n"])
def test_what_cannot_be_read_is_left_out(groups: str, proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text(groups)
    limit(tmp_path / "other", "1", 0)
    assert available_memory(proc, tmp_path / "groups") == 1000 * MIB
    assert available_memory(tmp_path / "nowhere", tmp_path / "groups") is None
