"""Parties of one cluster in this process, connected over real sockets and real TLS."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from serving import make_config

from privserve.config import ClusterConfig, read_config
from privserve.party.channel import Tap
from privserve.party.lanes import (
    LaneMesh,
    Listener,
)

LANES = ("fast", "bulk")


LARGEST = 64 << 20


class Parties:
    """A listener per party of one cluster, and the lanes that they open together."""

    def __init__(self, home: Path, count: int) -> None:
        self.socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        addresses = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in self.socks]
        self.config = make_config(home, addresses)
        self.events: list[tuple[int, str, str, bytes]] = []
        self.listeners = [
            Listener(
                self.own_config(rank), self.own_config(rank).parties[rank], sock, self.tap(rank)
            )
            for rank, sock in enumerate(self.socks)
        ]
        self.lanes: list[dict[str, LaneMesh]] = []

    def own_config(self, rank: int) -> ClusterConfig:
        name = self.config.parties[rank].name
        return read_config(self.config.path.parent / name / "cluster.toml")

    def tap(self, rank: int) -> Tap:
        return lambda way, peer, payload: self.events.append((rank, way, peer, payload))

    def open(self, session: str = "s", timeout: float = 10.0) -> None:
        def one(listener: Listener) -> dict[str, LaneMesh]:
            return listener.open_lanes(
                session, LANES, timeout, limits={"fast": LARGEST, "bulk": LARGEST}
            )

        self.lanes = at_once([lambda x=x: one(x) for x in self.listeners])

    def mesh(self, rank: int, lane: str = "fast") -> LaneMesh:
        return self.lanes[rank][lane]

    def close(self) -> None:
        for lanes in self.lanes:
            for mesh in lanes.values():
                mesh.release()
        for listener in self.listeners:
            listener.close()


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """The results of all calls, each in its own thread, as parties are on their own."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(30) for future in [pool.submit(call) for call in calls]]
