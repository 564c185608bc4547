"""What breaks: each fault of `fault_table`, as it is made and as it is mended."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fault_table import PARTIES
from hosts import OWNER, Hosts

LOSS, DELAY_SECONDS, RATE = 0.01, 0.05, 256e3
HOUR = 3600
SPARE_BYTES = 64 << 20
"""For threads, each of which takes 8 MB of addresses."""


@dataclass(frozen=True)
class Fault:
    """How something breaks, and how it is mended."""

    strike: Callable[[Hosts, str], None]
    mend: Callable[[Hosts, str], None]


def _restart(hosts: Hosts, victim: str) -> None:
    if not hosts.processes[victim].is_alive:
        hosts.start_again(victim)


def _terminate(hosts: Hosts, victim: str) -> None:
    if victim == OWNER:  # its command ends; the process that stands in for it stays
        at = time.monotonic()
        hosts.owner.signal(signal.SIGTERM)
        hosts.owner.wait_for("ended with", at)
    else:
        code = hosts.processes[victim].end(signal.SIGTERM)
        assert victim not in PARTIES or code == 0, f"{victim} ended with {code}"


def _cut(hosts: Hosts, victim: str) -> None:
    for link in hosts.links_of(victim):
        link.cut()


def _lose(hosts: Hosts, victim: str) -> None:
    for link in hosts.links_of(victim):
        link.loss = LOSS


def _slow(hosts: Hosts, victim: str) -> None:
    for link in hosts.links_of(victim):
        link.delay, link.rate = DELAY_SECONDS, RATE


def _mend_links(hosts: Hosts, victim: str) -> None:
    for link in hosts.links_of(victim):
        link.mend()


def _signal(number: int) -> Callable[[Hosts, str], None]:
    return lambda hosts, victim: hosts.processes[victim].signal(number)


def _starve(hosts: Hosts, victim: str) -> None:
    """Let a process have hardly more memory than it has."""
    pid = hosts.processes[victim].running.pid
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    _, most = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (pages * resource.getpagesize() + SPARE_BYTES, most))


def _feed(hosts: Hosts, victim: str) -> None:
    _, most = resource.prlimit(hosts.processes[victim].running.pid, resource.RLIMIT_AS)
    resource.prlimit(hosts.processes[victim].running.pid, resource.RLIMIT_AS, (most, most))


FAULTS = {
    "killed": Fault(Hosts.kill, _restart),
    "stopped": Fault(_signal(signal.SIGSTOP), _signal(signal.SIGCONT)),
    "terminated": Fault(_terminate, _restart),
    "cut off": Fault(_cut, _mend_links),
    "1 % loss": Fault(_lose, _mend_links),
    "slow": Fault(_slow, _mend_links),
    "full disk": Fault(Hosts.fill, Hosts.empty),
    "no memory": Fault(_starve, _feed),
    "clock": Fault(
        lambda hosts, victim: hosts.clocks[victim].set(HOUR),
        lambda hosts, victim: hosts.clocks[victim].set(-HOUR),
    ),
}
