"""The key of a party's state at rest: from a file, the environment or a command."""

from __future__ import annotations

import base64
import os
import shlex
import subprocess
from pathlib import Path

from privserve.errors import ConfigError

KEY_BYTES = 32
VARIABLE = "PRIVSERVE_STATE_KEY"
COMMAND_SECONDS = 60.0
HOW = "make one with `openssl rand -hex 32`"


def read_key(file: Path | None, command: str | None) -> bytes | None:
    """Return the key, from where the command line says, else from the environment.

    None where nothing is said of one. command: is run without a shell, and what it prints is the
    key, so that a KMS fits. Raises ConfigError for several ways to a key, and for what is none.
    """
    given = os.environ.get(VARIABLE)
    ways = [
        name
        for name, value in (
            ("--state-key-file", file),
            ("--state-key-command", command),
            (VARIABLE, given),
        )
        if value is not None
    ]
    if not ways:
        return None
    if len(ways) > 1:
        raise ConfigError(f"the key of a party's state is given in several ways: {', '.join(ways)}")
    if file is not None:
        return _key(_content(file), f"--state-key-file {file}")
    if command is not None:
        return _key(_output(command), f"what --state-key-command {_program(command)} printed")
    return _key((given or "").encode(), VARIABLE)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"--state-key-file {file} cannot be read: {error.strerror}") from None


def _program(command: str) -> str:
    """The command's first word: what follows may be secret."""
    try:
        return shlex.split(command)[0]
    except (ValueError, IndexError):
        raise ConfigError("--state-key-command is no command line") from None


def _output(command: str) -> bytes:
    program = _program(command)
    try:
        done = subprocess.run(
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"--state-key-command {program} took longer than {COMMAND_SECONDS:g} s"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"--state-key-command {program} cannot be run: {error.strerror}"
        ) from None
    if done.returncode:
        raise ConfigError(f"--state-key-command {program} ended with code {done.returncode}")
    return done.stdout


def _key(content: bytes, where: str) -> bytes:
    """The key in 32 bytes as they are, in 64 hexadecimal digits, or in base 64."""
    if len(content) == KEY_BYTES:
        return content
    text = content.strip()
    for read in (bytes.fromhex, lambda t: base64.b64decode(t, validate=True)):
        try:
            key = read(text.decode("ascii"))
        except ValueError:
            continue
        if len(key) == KEY_BYTES:
            return key
    raise ConfigError(
        f"{where} is no key: it has to be 32 bytes, or 64 hexadecimal digits, or these 32 bytes in "
        f"base 64; {HOW}"
    )
