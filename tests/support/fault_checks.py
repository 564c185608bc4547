"""What is held against whatever happened on hosts when something broke: see `fault_play`."""

from __future__ import annotations

import re
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from fault_table import ENDED, PARTIES, UNAFFECTED
from host_processes import Asking
from hosts import BYSTANDER, CLIENT, ROWS, Hosts
from serving import wait_until

CLIENTS = (CLIENT, BYSTANDER)
HEALED_SECONDS = 40.0
ANSWERS = 12
"""Right ones, of each client, that show that it is served."""
TYPED = (
    *("NotServing", "Draining", "ClusterError", "NoAnswer"),
    *("QueryError", "DeadlinePassed", "StaleSession"),
)
_NAME = "(alice|bob|carol)"
_BLAMES = (
    rf"{_NAME} (?:is gone|gives? no sign|gave no sign|was shut|was started|has lost|lost |left )",
    rf"{_NAME} (?:ran out|hit an|did not|does not|sent|began|cannot keep|is not|has no)",
    rf"cannot reach {_NAME} at",
    rf"connection to {_NAME} ",
    rf"{_NAME} at \S+ (?:did not|shows|belongs)",
    rf"{_NAME} and {_NAME} give",
)
SHARE = re.compile(r"(?<![0-9a-f])-?[0-9]{12,}(?![0-9a-f])")
"""A number like a share's: nothing else that is logged has as many digits."""
SURPRISES = ("Traceback", "internal error", "in the session", "in the front", "never ")


def blamed(text: str, victim: str) -> set[str]:
    """Which parties a text says are at fault; the victim itself may say that nobody came."""
    if f"did not connect to {victim} " in text:
        return set()
    found = [match for blame in _BLAMES for match in re.findall(blame, text)]
    return {name for match in found for name in ([match] if isinstance(match, str) else match)}


@dataclass
class Witness:
    """Looks at all parties' status all the while."""

    hosts: Hosts
    seen: list[tuple[float, str, str, str]] = field(default_factory=list)
    """When, which party, its state and the reason."""

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.05):
            told, now = self.hosts.look(), time.monotonic()
            for name, status in told.items():
                if status is not None:
                    self.seen.append((now, name, status["state"], status["reason"]))

    def reasons(self, since: float) -> dict[str, list[str]]:
        """By party: what it gave for a reason."""
        found: dict[str, list[str]] = {name: [] for name in PARTIES}
        for at, name, _, reason in list(self.seen):
            if at >= since and reason and reason not in found[name]:
                found[name].append(reason)
        return found

    def states(self, since: float) -> set[tuple[str, str]]:
        """Which parties were in which states."""
        return {(name, state) for at, name, state, _ in list(self.seen) if at >= since}

    def close(self) -> None:
        self._over.set()
        self._thread.join(10)


class Mark:
    """What the owner's command and clients had counted at a time at which nobody asked."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._owner, self._life = hosts.owner, _lives(hosts)
        self._at, self._answered = time.monotonic(), hosts.answered
        self.besides = 0
        """Rows that others asked, who may have asked up to as many again in vain."""

    def check(self, lost_client: bool, outcome: str) -> None:
        """Hold what was counted since against what clients got; nobody asks by now.

        What runs when the owner's command is ended may be answered after it has told its count.
        """
        if self._owner is not self._hosts.owner or _lives(self._hosts) != self._life:
            return  # counted anew, see check_counts
        if not self._owner.is_alive:
            return
        results = [r for name in CLIENTS for _, r in self._results(name)]
        got = self.besides + sum(r["rows"] for r in results if "right" in r)
        unsure = self.besides + sum(r["rows"] for r in results if "error" in r)
        if lost_client:
            unsure += max(ROWS)
        least = got - (len(CLIENTS) * max(ROWS) if outcome == ENDED else 0)
        wait_until(
            lambda: self._hosts.answered - self._answered >= least,
            f"{got} rows are counted; {self._hosts.answered - self._answered} are",
            10,
        )
        counted = self._hosts.answered - self._answered
        assert counted <= got + unsure, (counted, got, unsure)
        if outcome == UNAFFECTED and not unsure:
            assert counted == got

    def _results(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        found = [p for who, p in self._hosts.logs if who == name and isinstance(p, Asking)]
        return [(name, r) for process in found for r in process.ended_since(self._at)]


def _lives(hosts: Hosts) -> int:
    """How often the owner's command was begun."""
    return sum(line == "began" for _, line in list(hosts.owner.lines))


def hold(hosts: Hosts) -> None:
    """Have no client ask."""
    for name in CLIENTS:
        if hosts.processes[name].is_alive:
            hosts.asking(name).hold()


def stop_serving(hosts: Hosts) -> None:
    """End the owner's command as Ctrl-C does."""
    at = time.monotonic()
    hosts.owner.signal(signal.SIGINT)
    hosts.owner.wait_for("ended with", at)


def brief(hosts: Hosts) -> list[tuple[str, Any, Any]]:
    """What parties say, for who reads that a test failed."""
    told = hosts.look()
    return [(n, s and s["state"], s and (s["reason"] or s["models"])) for n, s in told.items()]


def settle(hosts: Hosts) -> None:
    """Have all processes be there, the model served, and nobody ask."""
    for name, process in list(hosts.processes.items()):
        if not process.is_alive:
            hosts.start_again(name)
    hold(hosts)
    lines = [line for _, line in list(hosts.owner.lines)]
    runs = lines[-1:] and "began" in lines and not lines[-1].startswith("ended with")
    if not runs:
        hosts.serve()
    wait_until(lambda: hosts.is_served, f"all is well; {brief(hosts)}", HEALED_SECONDS)


def check_counts(hosts: Hosts) -> None:
    """Ask a few times: where all is well, counts are exact."""
    mark = Mark(hosts)
    since = time.monotonic()
    for name in CLIENTS:
        hosts.asking(name).ask()
    for name in CLIENTS:
        wait_until(
            lambda n=name: hosts.asking(n).right_since(since) >= ANSWERS, f"{name} is answered"
        )
    hold(hosts)
    mark.check(lost_client=False, outcome=UNAFFECTED)


def check_logs(hosts: Hosts, lengths: list[int]) -> None:
    """Fail where a process tells of a surprise."""
    lengths = lengths + [0] * (len(hosts.logs) - len(lengths))
    for (name, process), length in zip(hosts.logs, lengths, strict=True):
        for _, line in process.lines[length:]:
            assert line[:1] == "{" or not SHARE.search(line), f"{name} tells a share: {line}"
            for surprise in SURPRISES:
                assert surprise not in line, f"{name} says: " + "\n".join(
                    t for _, t in process.lines[-40:]
                )
