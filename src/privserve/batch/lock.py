"""A file that one process at a time holds, for as long as it lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from privserve.errors import ConfigError


class Lock:
    """Keeps a second job from the same output."""

    def __init__(self, path: Path) -> None:
        """Raise ConfigError where another process holds it."""
        self._path = path
        while True:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._descriptor)
                raise ConfigError(
                    f"another job writes there now (it holds {path}); wait for it, or name another "
                    "--output"
                ) from None
            if self._is_there():
                return
            os.close(self._descriptor)  # its holder took it away meanwhile

    def _is_there(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        return False

    def release(self) -> None:
        """Let others have it."""
        if self._descriptor < 0:
            return
        try:
            self._path.unlink(missing_ok=True)
        finally:
            os.close(self._descriptor)
            self._descriptor = -1
