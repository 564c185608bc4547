"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_file(path: Path, content: bytes, secret: bool = False) -> None:
    """Write a file whole or not at all; a secret one with mode 0600 from the start."""
    partial = path.with_name(path.name + ".part")
    partial.unlink(missing_ok=True)
    mode = 0o600 if secret else 0o644
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    partial.replace(path)
