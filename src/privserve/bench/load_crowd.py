"""The load benchmark's client processes, as the process that measures sees them.

They are started once and told to begin together: each opens its clients, says that it is ready,
and is given one moment of the clock that all processes of a machine share.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from privserve.bench.load_client import Order, Outcome, Samples, run_clients
from privserve.bench.processes import SPAWN
from privserve.errors import ClusterError

LEAD_SECONDS = 0.2
"""From the last process's readiness to the beginning, so that the message is there in time."""
CHECK_SECONDS = 0.2
START_SECONDS = 120.0
AFTER_SECONDS = 120.0
"""For the last answers, or their time-outs, after the measured phase."""
END_SECONDS = 2.0


def shares(clients: int, processes: int) -> list[int]:
    """Return how many of the clients each process has: as evenly as can be, none has 0."""
    used = min(clients, processes)
    return [clients // used + (i < clients % used) for i in range(used)]


def cpu_seconds(pid: int) -> float | None:
    """Return the user and system time that a process has had; None where /proc is not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # Fields 14 and 15 (man 5 proc); the name, which may hold blanks, and two before it are gone.
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Crowd:
    """The client processes. A context manager: none of them outlives it."""

    def __init__(
        self, config: Path, keys: Sequence[Path], samples: Samples, check: Callable[[], None]
    ) -> None:
        """Start one process per client's key. config: a cluster.toml.

        check: called several times a second while something is waited for; raises where the
        cluster is gone.
        """
        self._check = check
        self._pipes: list[Connection] = []
        self.processes: list[SpawnProcess] = []
        # Processes inherit this until they ignore the signal themselves: Ctrl-C in a terminal is
        # for us, who then end them. What starts with the first of them would lift it for itself.
        resource_tracker.ensure_running()
        former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for key in keys:
                ours, theirs = SPAWN.Pipe()
                self._pipes.append(ours)
                with theirs:
                    process = SPAWN.Process(
                        target=run_clients, args=(config, key, samples, theirs), daemon=True
                    )
                    process.start()
                self.processes.append(process)
        except BaseException:
            self.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self, order: Order, others: Mapping[str, int]
    ) -> tuple[list[Outcome], dict[str, float]]:
        """Spread `order` over the processes: what came of it at each, and CPU time by process.

        order: its clients and rate are those of all processes together. others: by name, the
        processes besides the clients' own whose CPU time counts. CPU seconds are those of the
        measured phase; there are none where the system does not tell. Raises ClusterError where
        a client process ends, and whatever `check` raises.
        """
        counts = shares(order.clients, len(self.processes))
        for number, count in enumerate(counts):
            rate = None if order.rate is None else order.rate * count / order.clients
            seed = f"{order.seed} process {number}"
            self._pipes[number].send(replace(order, clients=count, rate=rate, seed=seed))
        for number in range(len(counts)):
            self._hear(number, START_SECONDS)
        begin = time.monotonic() + LEAD_SECONDS + order.warmup
        for number in range(len(counts)):
            self._pipes[number].send(begin)
        pids = {f"client {i}": self.processes[i].pid or 0 for i in range(len(counts))}
        pids = {**others, **pids}
        self._wait_until(begin)
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        self._wait_until(begin + order.seconds)
        after = {name: cpu_seconds(pid) for name, pid in pids.items()}
        outcomes = [self._hear(number, AFTER_SECONDS) for number in range(len(counts))]
        used = {
            name: now - then
            for name, then in before.items()
            if then is not None and (now := after[name]) is not None
        }
        return outcomes, used

    def _wait_until(self, moment: float) -> None:
        """Return at `moment` of the clock; raises where something ended before."""
        while (left := moment - time.monotonic()) > 0:
            ended = wait([p.sentinel for p in self.processes], min(left, CHECK_SECONDS))
            self._check()
            if ended:
                self._raise_ended()

    def _hear(self, number: int, seconds: float) -> Any:
        """Return what process `number` says next."""
        deadline = time.monotonic() + seconds
        pipe = self._pipes[number]
        while not pipe.poll(CHECK_SECONDS):
            self._check()
            self._raise_ended()
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"client process {number} has said nothing for {seconds:g} s; fewer clients, "
                    "or a faster machine"
                )
        try:
            return pipe.recv()
        except (EOFError, ConnectionError):
            self.processes[number].join(END_SECONDS)
            self._check()  # a cluster that is gone is the cause, and not the consequence
            self._raise_ended()
            raise ClusterError(f"client process {number} closed its pipe") from None

    def _raise_ended(self) -> None:
        for number, process in enumerate(self.processes):
            if process.exitcode is not None:
                raise ClusterError(
                    f"client process {number} ended with code {process.exitcode} before its work "
                    "was done; see the messages above, or whether memory ran out"
                )

    def close(self) -> None:
        """End all processes, by force those that wait for answers; idempotent."""
        for pipe in self._pipes:
            pipe.close()
        deadline = time.monotonic() + END_SECONDS
        for process in self.processes:
            with contextlib.suppress(ValueError):  # closed before
                process.join(max(0.0, deadline - time.monotonic()))
                if process.is_alive():
                    process.kill()
                    process.join()
