"""How a party's process is started here, so that it ends when whoever started it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from privserve.config import Timeouts
from privserve.errors import ClusterError


def start_party(
    name: str,
    directory: Path,
    listening: int,
    timeouts: Timeouts,
    options: Sequence[str] = (),
    *,
    cell: int = 0,
    again: bool = False,
) -> tuple[subprocess.Popen[bytes], int]:
    """Start a party of the cluster in `directory`; returns it, and our end of its lifeline.

    listening: the descriptor of its port, which is bound. options: of its command line, besides.
    cell: of which it is. again: it goes on with its log.
    """
    config = directory.resolve() / name / "cluster.toml"
    ends, held = os.pipe()
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if again else os.O_TRUNC)
    log = os.open(log_of(name, directory, cell), flags, 0o600)
    command = [sys.executable, "-m", "privserve.party", "--name", name, "--config", str(config)]
    command += ["--listen-fd", str(listening), "--lifeline-fd", str(ends)]
    for what, seconds in asdict(timeouts).items():
        command += [f"--{what}-timeout", str(seconds)]
    command += ["--cell", str(cell)] if cell else []
    command += options
    try:
        process = subprocess.Popen(
            command,
            pass_fds=(listening, ends),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C in a terminal is for the launching program, which then stops us. A session
            # of its own would do that too, but Linux shares the cores out between those, and
            # what is made ahead for queries (see `engines.ottt.refill`) would hold others up.
            process_group=0,
            env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
        )
    except OSError as error:
        os.close(held)
        raise ClusterError(f"{name} cannot be started: {error.strerror}") from None
    finally:
        os.close(ends)
        os.close(log)
    return process, held


def log_of(name: str, directory: Path, cell: int = 0) -> Path:
    """Return where a party that is started here writes its log."""
    return directory / name / (f"party-{cell}.log" if cell else "party.log")


def state_options(
    directory: Path | None, key_file: Path | None, key_command: str | None
) -> list[str]:
    """Return a party's options for where it keeps its state."""
    given = {
        "--state-dir": directory,
        "--state-key-file": key_file,
        "--state-key-command": key_command,
    }
    return [f"{option}={value}" for option, value in given.items() if value is not None]


def last_words(log: str) -> str:
    """Return what a log ends with, which may be JSON."""
    lines = log.strip().splitlines() or ["it said nothing"]
    try:
        return str(json.loads(lines[-1])["event"])
    except (ValueError, KeyError, TypeError):
        return lines[-1]
