"""How much memory a party could still get: of its machine, or of what it was allotted of it.

A container, and a service with a limit, may have less than the machine has free. The kernel ends
a process that takes more, so the model's owner has to know of the smaller number.
"""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")


def available_memory(proc: Path = PROC, groups: Path = GROUPS) -> int | None:
    """Return the bytes that a process here could get without swapping; None: unknown."""
    known = [found for found in (_of_machine(proc), _of_groups(proc, groups)) if found is not None]
    return min(known, default=None)


def _of_machine(proc: Path) -> int | None:
    kilobytes = _field(proc / "meminfo", "MemAvailable:")
    return None if kilobytes is None else kilobytes * 1024


def _of_groups(proc: Path, groups: Path) -> int | None:
    """The least that this process' control group (version 2) and those around it leave."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return None
    own = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    if not own or ".." in Path(own[0]).parts:
        return None
    within = groups / own[0]
    around = [within, *(one for one in within.parents if one.is_relative_to(groups))]
    left = [found for group in around if (found := _left_in(group)) is not None]
    return min(left, default=None)


def _left_in(group: Path) -> int | None:
    """Bytes up to a group's limit; None where it has none. Files in its cache make room."""
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # "max"
        return None
    cached = _field(group / "memory.stat", "inactive_file") or 0
    return max(0, limit - max(0, used - cached))


def _field(file: Path, name: str) -> int | None:
    """The number behind a name in one of the kernel's tables."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    found = [words[1] for words in map(str.split, lines) if words and words[0] == name]
    return int(found[0]) if found else None
