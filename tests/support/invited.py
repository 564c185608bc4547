"""Clusters whose parties were invited: the owner holds the authority's key, and no party's."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from privserve import certify

NAMES = ("alice", "bob", "carol")


def addresses() -> list[tuple[str, str]]:
    """Parties at free ports of this machine."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server(("localhost", 0))) for _ in NAMES]
        ports = [sock.getsockname()[1] for sock in socks]
    return [(n, f"localhost:{port}") for n, port in zip(NAMES, ports, strict=True)]


def manage(owner: Path, secret: Path, *words: str) -> int:
    return certify.main(["--config", str(owner), "--secret", str(secret), *words])


def is_up(address: tuple[str, int]) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
        return True
    return False
