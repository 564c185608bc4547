"""A cluster of party processes that a test starts and stops one by one, and looks at from outside.

Any of the parties may be played by the test itself, which holds all of their files: see `rogue`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from raw_http import OwnersHand
from serving import serving, wait_until

import privserve as ps
from privserve.certificates import write_cluster
from privserve.config import read_config

NAMES = ("alice", "bob", "carol")
X = np.linspace(-1, 1, 12).reshape(3, 4)
SPARE = 8
"""Threads that a process may have more than before: those of its pool, made when first needed."""


@dataclass(frozen=True)
class Held:
    """What a process holds."""

    threads: int
    descriptors: int


def model() -> ps.SecureModel:
    """A model with a product, a comparison and an opening, quick to share."""
    torch.manual_seed(5)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    return ps.load_model(net, input_shape=(4,), name="small")


def reopened(sock: socket.socket) -> socket.socket:
    """A new socket on the same port."""
    address = sock.getsockname()
    sock.close()
    return socket.create_server(address)


class Stage:
    """Three parties on free ports, their sockets held here so that nobody else gets them."""

    def __init__(self, home: Path, *options: str) -> None:
        """options: of each party's command line."""
        self.home = home
        self.options = options
        self.sockets: dict[str, socket.socket] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: dict[str, Any] = {}
        parties = []
        for name in NAMES:
            self.sockets[name] = sock = socket.create_server(("127.0.0.1", 0))
            parties.append((name, f"127.0.0.1:{sock.getsockname()[1]}"))
        self.config = read_config(write_cluster(home, parties))
        self.model = model()
        self.expected = self.model.converted.predict(X)
        try:
            for name in NAMES:
                self.start(name)
            self.cluster = ps.Cluster.connect(self.config.path)
            self.owner = OwnersHand(self.config)
        except BaseException:
            self.close()
            raise

    def start(self, name: str) -> None:
        """Start one party and wait until it answers."""
        listening = self.sockets[name].fileno()
        command = [sys.executable, "-m", "privserve.party", "--name", name]
        command += ["--config", str(self.home / name / "cluster.toml"), *self.options]
        command += ["--listen-fd", str(listening)]
        with self.log_path(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, pass_fds=(listening,), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait_alive(self, name: str) -> None:
        """Wait until a party that was started again answers; the owner signs for its process."""
        self.cluster.cells[0].wait_alive(self.config.parties[self.config.rank(name)])
        self.owner = OwnersHand(self.config)

    def stop(self, name: str) -> None:
        """End one party's process."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{name} did not end when it was told to") from None
        # It shut its sockets down, and these are the same ones: they cannot listen any more.
        self.sockets[name] = reopened(self.sockets[name])

    def kill(self, name: str) -> None:
        """Kill one party's process; nobody listens at its port until it is started again."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()
        self._ports[name] = self.sockets[name].getsockname()
        self.sockets[name].close()

    def told_to_end(self, name: str) -> subprocess.Popen[bytes]:
        """Tell one party's process to end, as its host does; its port is free once it has."""
        process = self.processes.pop(name)
        self._ports[name] = self.sockets[name].getsockname()
        self.sockets[name].close()
        process.send_signal(signal.SIGTERM)
        return process

    def start_again(self, name: str) -> None:
        """Start a party at its port that was killed, or was told to end and has."""
        self.sockets[name] = socket.create_server(self._ports.pop(name))
        self.start(name)

    def log_path(self, name: str) -> Path:
        return self.home / name / "party.log"

    def held(self, name: str) -> Held:
        process = Path(f"/proc/{self.processes[name].pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        return Held(int(status["Threads"]), len(os.listdir(process / "fd")))

    def resident(self, name: str) -> int:
        """Megabytes of memory that a process has touched."""
        status = Path(f"/proc/{self.processes[name].pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) >> 10

    def unload(self) -> None:
        """End whatever session there is."""
        for name in self.processes:
            party = self.config.parties[self.config.rank(name)]
            try:
                self.cluster.call(party, "POST", "/v2/repository/models/small/unload")
            except ps.QueryError as error:
                if error.status != 404:  # it has none
                    raise

    def check_log(self, name: str, since: int = 0) -> int:
        """Fail where a party's log tells of a surprise; returns the log's length."""
        text = self.log_path(name).read_bytes()
        new = text[since:].decode(errors="replace")
        for bad in ("Traceback", "in the front", "in the session", "internal error", "never "):
            assert bad not in new, f"{name}'s log:\n{new[-3000:]}"
        return len(text)

    def check_honest(self) -> None:
        """Share the model anew and ask it: all is as ever."""
        self.model.share(self.cluster, report=lambda line: None)
        with serving(self.cluster, self.model), ps.Client(self.config.path, timeout=30) as client:
            for patience in range(5, -1, -1):
                try:
                    got = client.query_model(X)
                    break
                except ps.QueryError as error:
                    # On a busy machine its halves may come further apart than is waited for.
                    if error.status != 504 or not patience:
                        raise
            assert np.abs(got - self.expected).max() < 1e-2

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[Counter[str]]:
        """Whatever happens in the block: the parties live on, hold no more, and answer rightly.

        Yields a counter, for the block to say by party how many connections it rightly keeps.
        """
        kept: Counter[str] = Counter()
        self.check_honest()
        self.unload()
        before = {name: self.held(name) for name in self.processes}
        lengths = {name: self.check_log(name) for name in self.processes}
        yield kept
        for name, process in self.processes.items():
            assert process.poll() is None, f"{name} ended with {process.returncode}"
            self.check_log(name, lengths[name])
        self.check_honest()
        self.unload()
        for name, held in before.items():
            wait_until(
                lambda n=name, h=held: (
                    self.held(n).threads <= h.threads + SPARE
                    and self.held(n).descriptors <= h.descriptors + SPARE + kept[n]
                ),
                f"{name} holds no more than before: {held}, now {self.held(name)}",
                40,
            )
            self.check_log(name, lengths[name])

    def close(self) -> None:
        """End all processes and free the ports."""
        try:
            for name in list(self.processes):
                self.stop(name)
        finally:
            for process in self.processes.values():
                process.kill()
                process.wait()
            for sock in self.sockets.values():
                sock.close()
