"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError in the block name this file, which one of a descriptor does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_file(path: Path, content: bytes, secret: bool = False, durable: bool = False) -> None:
    """Write a file whole or not at all; a secret one with mode 0600 from the start.

    durable: once this returns, the file is there also after the machine has lost its power.
    """
    partial = path.with_name(path.name + ".part")
    partial.unlink(missing_ok=True)
    mode = 0o600 if secret else 0o644
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with naming(path), os.fdopen(descriptor, "wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    partial.replace(path)
    if durable:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable, as `os.fsync` does for what a file holds."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
