"""Hosts with networks of their own: namespaces of the kernel's, whose cables can be pulled.

Here TCP itself meets the cut, with its own retransmissions, refusals and time-outs, where
`faulty_link` only acts as if. Takes root and a kernel with virtual Ethernet.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from hosts import BYSTANDER, CLIENT, LOOK_SECONDS, NAMES, OWNER, SUPPORT, Hosts

WATCHER = "watcher"
EVERYBODY = (*NAMES, OWNER, CLIENT, BYSTANDER, WATCHER)
PORT = 4000


def ip(*words: str) -> None:
    """Call `ip`; raises CalledProcessError."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


def are_permitted() -> bool:
    """Whether namespaces can be made here."""
    name = f"ps{os.getpid()}-try"
    try:
        ip("netns", "add", name)
        try:
            ip("-n", name, "link", "add", "bridge", "type", "bridge")
        finally:
            ip("netns", "del", name)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


class Cable:
    """The cable of a host, at the switch's end."""

    def __init__(self, switch: str, port: str) -> None:
        self._switch, self._port = switch, port
        self.delay = self.loss = 0.0
        """Not of a cable."""
        self._is_cut = False

    def cut(self) -> None:
        """Pull it out."""
        self._set("down")
        self._is_cut = True

    def mend(self) -> None:
        """Put it in again."""
        if self._is_cut:
            self._set("up")
            self._is_cut = False

    def _set(self, state: str) -> None:
        ip("-n", self._switch, "link", "set", self._port, state)


class NamespacedHosts(Hosts):
    """Hosts that a switch connects."""

    def __init__(self, home: Path) -> None:
        self._prefix = f"ps{os.getpid()}"
        self._switch = f"{self._prefix}-switch"
        self._made: list[str] = []
        try:
            self._make()
            self._ask_watcher = threading.Lock()
            super().__init__(home)
        except BaseException:
            self._remove()
            raise

    def _make(self) -> None:
        self._add(self._switch)
        ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self._switch, "link", "set", "bridge", "up")
        for number, host in enumerate(EVERYBODY):
            space = self._add(f"{self._prefix}-{host}")
            ip("link", "add", "eth0", "netns", space, "type", "veth", "peer", "name", host,
               "netns", self._switch)  # fmt: skip
            ip("-n", self._switch, "link", "set", host, "master", "bridge", "up")
            ip("-n", space, "address", "add", f"10.111.0.{number + 1}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", space, "link", "set", device, "up")

    def _add(self, space: str) -> str:
        ip("netns", "add", space)
        self._made.append(space)
        return space

    def _remove(self) -> None:
        while self._made:
            ip("netns", "del", self._made.pop())

    def _choose_addresses(self, draw: random.Random) -> dict[str, str]:
        return {name: f"10.111.0.{rank + 1}:{PORT}" for rank, name in enumerate(NAMES)}

    def _as_seen_by(self, host: str, text: str) -> str:
        """All see the same addresses here."""
        self.links[host, host] = Cable(self._switch, host)  # type: ignore[assignment]
        return text

    def _python(self, host: str) -> list[str]:
        return ["ip", "netns", "exec", f"{self._prefix}-{host}", sys.executable]

    def _begin_looking(self) -> None:
        self._watcher = subprocess.Popen(
            [*self._python(WATCHER), str(SUPPORT / "looking_process.py"), str(self.config.path),
             str(LOOK_SECONDS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def look(self) -> dict[str, dict[str, Any] | None]:
        """See `Hosts.look`; somebody with a cable of its own looks."""
        assert self._watcher.stdin is not None
        assert self._watcher.stdout is not None
        with self._ask_watcher:
            self._watcher.stdin.write("\n")
            self._watcher.stdin.flush()
            found: dict[str, dict[str, Any] | None] = json.loads(self._watcher.stdout.readline())
        return found

    def _end_looking(self) -> None:
        assert self._watcher.stdin is not None
        assert self._watcher.stdout is not None
        self._watcher.stdin.close()
        self._watcher.wait(20)
        self._watcher.stdout.close()

    def close(self) -> None:
        super().close()
        self._remove()
