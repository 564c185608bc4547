"""What runs where: parties need Linux, whoever asks them does not."""

from __future__ import annotations

import sys

from privserve.errors import ConfigError

EVERYWHERE = "privserve.Client, and the commands check, convert, query, models and status"


def needs_linux(what: str) -> str:
    """Return what to tell somebody who wants to run `what` on another system."""
    names = {"darwin": "macOS", "win32": "Windows"}
    here = names.get(sys.platform, sys.platform)
    return (
        f"{what} needs Linux, and this is {here}: parties pass sockets to each other's processes, "
        "lock files and read /proc as Linux has it. Run it on a Linux host, in a container "
        f"(deploy/) or in WSL 2; what asks parties needs no Linux: {EVERYWHERE}"
    )


def require_linux(what: str) -> None:
    """Raise ConfigError where this is not Linux, before anything is half started."""
    if sys.platform != "linux":
        raise ConfigError(needs_linux(what))
