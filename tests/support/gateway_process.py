"""A gateway as a process of its own, as its users start it."""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

STARTS = 60.0


@dataclass
class GatewayProcess:
    """A running gateway, where it listens, and what it said so far."""

    process: subprocess.Popen[str]
    http: str = ""
    """host:port"""
    grpc: str = ""
    lines: list[str] = field(default_factory=list)
    _coming: queue.Queue[str | None] = field(default_factory=queue.Queue)

    def read(self) -> None:
        """Collect what it says; in a thread of its own."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._coming.put(line.rstrip("\n"))
        self._coming.put(None)

    def hear(self, words: str, seconds: float = STARTS) -> str:
        """Wait for a line with `words` that was not heard yet, and return it."""
        while True:
            try:
                line = self._coming.get(timeout=seconds)
            except queue.Empty:
                raise AssertionError(f"no line with {words!r} came; it said {self.lines}") from None
            assert line is not None, f"it ended without {words!r}; it said {self.lines}"
            self.lines.append(line)
            if words in line:
                return line

    def stop(self) -> str:
        """End it as Ctrl-C does; returns all that it said, standard error included."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(20) == 0, "a gateway that is interrupted ends with 0"
        while (line := self._coming.get(timeout=20)) is not None:
            self.lines.append(line)
        return "\n".join(self.lines)


@contextlib.contextmanager
def gateway(config: Path, *options: str, serves: bool = True) -> Iterator[GatewayProcess]:
    """A gateway to the cluster of `config`, on free ports; ended with the block.

    serves: wait until it has found a model.
    """
    command = [sys.executable, "-m", "privserve.gateway", "--config", str(config)]
    command += ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    running = GatewayProcess(process)
    reader = threading.Thread(target=running.read, daemon=True)
    reader.start()
    try:
        running.http = running.hear("HTTP at ").rpartition("//")[2]
        running.grpc = running.hear("gRPC at ").split()[2]
        if serves:
            running.hear("serving '")
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(20)
        reader.join(20)
        assert process.stdout is not None
        process.stdout.close()
