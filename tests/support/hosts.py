"""Three parties, their owner and two clients, as on six hosts with a network between them.

Each has files of its own, in which the others are where its links lead: see `faulty_link`. Nothing
here knows of faults but how a process is treated; what faults there are is in `faults`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from faulty_link import FaultyLink, Wires
from host_processes import QUERY_SECONDS, Asking, Process
from serving import wait_until
from shifted_clock import ShiftedClock
from stage import NAMES, model

from privserve.certificates import write_cluster
from privserve.config import read_config
from privserve.onlooker import Onlooker
from privserve.shared_models import ALIVE

SUPPORT = Path(__file__).parent
OWNER, CLIENT, BYSTANDER = "owner", "client", "bystander"
PEER_SECONDS = 2.0
"""For which a party may be silent."""
MEET_SECONDS = 6.0
"""For which the others are waited for when a model is shared."""
LOOK_SECONDS = 1.0
"""That a party may take to say how it is."""
DISK_BYTES, FILLER = 40 << 20, "filler"
ROWS = (1, 3, 2)
"""Of the queries that clients ask, in turn."""


class Hosts:
    """All six; started with the object, and ended by `close`."""

    def __init__(self, home: Path, clock: Path | None = None, *, seed: int = 1) -> None:
        """clock: the library of `shifted_clock`, where clocks are to be set."""
        self.home = home
        self.wires = Wires()
        self.links: dict[tuple[str, str], FaultyLink] = {}
        """By who dials and who is dialled."""
        self.clocks: dict[str, ShiftedClock] = {}
        self.processes: dict[str, Process] = {}
        self.logs: list[tuple[str, Process]] = []
        """All processes that there ever were, with their names."""
        self._clock = clock
        self._mounted: list[Path] = []
        self._write_files(random.Random(seed))
        self._begin_looking()
        try:
            for name in NAMES:
                self.start(name)
            self.start(OWNER)
            for name in (CLIENT, BYSTANDER):
                self.start(name)
            for name in NAMES:
                self.wait_alive(name)
            self.processes[OWNER].wait_for("ready")
        except BaseException:
            self.close()
            raise

    # -- files ----------------------------------------------------------------------------

    def _write_files(self, draw: random.Random) -> None:
        self.addresses = self._choose_addresses(draw)
        path = write_cluster(self.home / "made", list(self.addresses.items()))
        self.config = read_config(path)
        made, text = path.parent, path.read_text()
        (self.home / "key").write_text(bytes(range(32)).hex())
        self.model = model()
        (self.home / "small.onnx").write_bytes(self.model.converted.onnx.SerializeToString())
        self._write_samples()
        for host in (*NAMES, OWNER, CLIENT, BYSTANDER):
            there = self.home / host
            shutil.copytree(made / host, there) if host in NAMES else there.mkdir()
            files = {OWNER: ("ca.pem", "owner.key", "clients.json")}
            for file in files.get(host, ("ca.pem", "client.key") if host not in NAMES else ()):
                shutil.copy(made / file, there)
            (there / "cluster.toml").write_text(self._as_seen_by(host, text))
            self._make_disk(self.state(host))
            if self._clock is not None:
                self.clocks[host] = ShiftedClock(self._clock, there)

    def _choose_addresses(self, draw: random.Random) -> dict[str, str]:
        """Where each party listens: nobody else does at such an address, whatever the port."""
        tail = f"{os.getpid() >> 8 & 255}.{1 + os.getpid() % 254}"
        return {
            name: f"127.{100 + rank}.{tail}:{draw.randrange(4000, 9000)}"
            for rank, name in enumerate(NAMES)
        }

    def _as_seen_by(self, host: str, text: str) -> str:
        """cluster.toml as this host has it: the others are where its links lead."""
        for name, address in self.addresses.items():
            if name != host:
                link = self.wires.link(address, seed=len(self.links))
                self.links[host, name] = link
                text = text.replace(f'"{address}"', f'"{link.address}"')
        return text

    def _write_samples(self) -> None:
        draw, samples = np.random.default_rng(4), {}
        for number, rows in enumerate(ROWS):
            samples[f"x{number}"] = x = draw.uniform(-1, 1, (rows, 4))
            samples[f"y{number}"] = self.model.converted.predict(x)
        np.savez(self.home / "samples.npz", **samples)

    def _make_disk(self, there: Path) -> None:
        """A directory that is a small disk of its own, where that is permitted."""
        there.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(there)]
        if os.geteuid() == 0 and not subprocess.run(mount, capture_output=True).returncode:
            self._mounted.append(there)

    @property
    def has_disks(self) -> bool:
        """Whether disks can be filled here."""
        return bool(self._mounted)

    def fill(self, host: str) -> None:
        """Fill a host's disk to the last block."""
        with (self.state(host) / FILLER).open("wb", buffering=0) as file:
            for size in (1 << 20, 4 << 10, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def empty(self, host: str) -> None:
        """Make room again."""
        (self.state(host) / FILLER).unlink(missing_ok=True)

    def state(self, host: str) -> Path:
        """A directory that a host may write, on what may be a disk of its own."""
        return self.home / host / "state"

    def links_of(self, host: str) -> list[FaultyLink]:
        """All links that end at a host."""
        return [link for ends, link in self.links.items() if host in ends]

    # -- processes ------------------------------------------------------------------------

    def _python(self, host: str) -> list[str]:
        """How Python is started on a host."""
        return [sys.executable]

    def start(self, name: str) -> None:
        """Start a host's process."""
        config, environment = str(self.home / name / "cluster.toml"), {}
        if name in self.clocks:
            environment = self.clocks[name].environment
        process: Process
        python = self._python(name)
        if name == OWNER:
            process = Process([*python, str(SUPPORT / "owner_process.py")], environment)
        elif name in NAMES:
            command = [*python, "-m", "privserve.party", "--name", name, "--config", config]
            command += ["--peer-timeout", str(PEER_SECONDS), "--share-timeout", "2"]
            command += [
                "--connect-timeout",
                str(MEET_SECONDS),
                "--state-dir",
                str(self.state(name)),
            ]
            command += ["--state-key-file", str(self.home / "key")]
            process = Process(command, environment)
        else:
            command = [
                *python,
                str(SUPPORT / "asking_process.py"),
                config,
                str(self.home / "samples.npz"),
                str(QUERY_SECONDS),
            ]
            process = Asking(command, environment)
        self.processes[name] = process
        self.logs.append((name, process))

    def asking(self, name: str) -> Asking:
        """A client's process."""
        process = self.processes[name]
        assert isinstance(process, Asking)
        return process

    @property
    def owner(self) -> Process:
        return self.processes[OWNER]

    def wait_alive(self, name: str) -> None:
        """Wait until a party answers."""
        wait_until(
            lambda: self.status(name) is not None or not self.processes[name].is_alive,
            f"{name} answers",
            40,
        )
        assert self.processes[name].is_alive, self.processes[name].since(0)[-20:]

    def kill(self, name: str) -> None:
        """End a process as the system does."""
        self.processes[name].end(signal.SIGKILL)

    def start_again(self, name: str) -> None:
        """Start what ended, and wait until it is there."""
        self.start(name)
        if name in NAMES:
            self.wait_alive(name)
        elif name == OWNER:
            self.owner.wait_for("ready")

    # -- the model ------------------------------------------------------------------------

    def share(self) -> float:
        """Begin the owner's command; when that was."""
        at = time.monotonic()
        told = ["--config", str(self.home / OWNER / "cluster.toml")]
        self.owner.say(json.dumps([*told, "--model", str(self.home / "small.onnx")]))
        return at

    def serve(self) -> float:
        """Have the owner share the model and serve it; since when it does."""
        self.owner.wait_for("serving|ended with", self.share())
        return time.monotonic()

    @property
    def answered(self) -> int:
        """How many rows were answered since the owner's command began, as it says."""
        lines = [line for _, line in list(self.owner.lines)]
        begun = max((at for at, line in enumerate(lines) if line == "began"), default=0)
        told = [re.match(r" *(?:answered|stopped after) (\d+)", line) for line in lines[begun:]]
        return int(next((found[1] for found in reversed(told) if found), 0))

    def _begin_looking(self) -> None:
        self._onlooker, self._looking = Onlooker(self.config, LOOK_SECONDS), threading.Lock()

    def _end_looking(self) -> None:
        self._onlooker.close()

    def look(self) -> dict[str, dict[str, Any] | None]:
        """What each party says of the model; None of a party that says nothing in time.

        The test looks from a place that no fault reaches.
        """
        with self._looking:
            seen = self._onlooker.look()
        return {one.party.name: None if one.status is None else dict(one.status) for one in seen}

    def status(self, name: str) -> dict[str, Any] | None:
        return self.look()[name]

    @property
    def is_served(self) -> bool:
        """Whether all parties have the model loaded, it is served, and no other takes its place."""
        told = [one for one in self.look().values() if one is not None]
        alive = [[m for m in one["models"] if m["state"] in ALIVE] for one in told]
        return (
            len(told) == len(NAMES)
            and all(len(models) == 1 and models[0]["state"] == "loaded" for models in alive)
            and bool(told[0]["serving"])
        )

    def close(self) -> None:
        """End all of them, whatever they do."""
        for process in self.processes.values():
            process.signal(signal.SIGCONT)
            process.signal(signal.SIGTERM)
            assert process.running.stdin is not None
            with contextlib.suppress(OSError):
                process.running.stdin.close()
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.running.wait(10)
            process.close()
        self._end_looking()
        self.wires.close()
        for there in self._mounted:
            subprocess.run(["umount", "--lazy", str(there)], check=True)
