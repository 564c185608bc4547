"""A file that grows, and can be cut back to what a journal says of it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from privserve.errors import ConfigError
from privserve.files import naming

CHUNK = 1 << 20


@dataclass(frozen=True)
class Mark:
    """How far a file was written."""

    bytes: int
    sha256: str


NOTHING = Mark(0, hashlib.sha256().hexdigest())


class Appended:
    """A file that is written from front to back, with the digest of what it holds so far."""

    def __init__(self, path: Path, mark: Mark = NOTHING) -> None:
        """Go on at `mark`; what lies behind it is cut off.

        Raises ConfigError where the file is not what was written up to there.
        """
        self._path, self._digest, self._bytes = path, hashlib.sha256(), mark.bytes
        if mark.bytes:
            self._digest = digest_of(path, mark)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.ftruncate(self._descriptor, mark.bytes)
        os.lseek(self._descriptor, 0, os.SEEK_END)
        self._is_synced = True

    @property
    def mark(self) -> Mark:
        """How far it is written; on disk once it was synced."""
        return Mark(self._bytes, self._digest.hexdigest())

    def append(self, data: bytes | memoryview) -> None:
        """Write `data` at the end; OSError leaves the file with a part of them at most."""
        self._is_synced = False
        with naming(self._path):
            write_all(self._descriptor, data)
        self._digest.update(data)
        self._bytes += len(data)

    def sync(self) -> None:
        """Have what was written on disk, once this returns."""
        if not self._is_synced:
            with naming(self._path):
                os.fsync(self._descriptor)
            self._is_synced = True

    def close(self) -> None:
        """Close the file as it is."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data`; a disk that is full may have taken some of them."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def digest_of(path: Path, mark: Mark) -> hashlib._Hash:
    """Return the digest of a file up to a mark; raises ConfigError where it is another."""
    digest, left = hashlib.sha256(), mark.bytes
    try:
        with path.open("rb") as file:
            while left and (chunk := file.read(min(CHUNK, left))):
                digest.update(chunk)
                left -= len(chunk)
    except FileNotFoundError:
        left = mark.bytes
    if left or digest.hexdigest() != mark.sha256:
        raise ConfigError(
            f"{path} is not what the job wrote up to now: it was changed or taken away; put it "
            "back, or ask for all rows anew with --restart"
        )
    return digest
