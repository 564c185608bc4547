"""The processes of an engine's parties on this machine: real TLS channels, no HTTP.

What a process does is its `Body`: it opens sessions with the others, runs the engine in them and
talks to the process that started it over a pipe.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from privserve import sharing
from privserve.certificates import write_cluster
from privserve.config import ClusterConfig, party_names, read_config
from privserve.engines import Compute, Prepared, load_engine
from privserve.errors import ClusterError, PeerLost
from privserve.fixedpoint import RingArray
from privserve.party.lane_mesh import LaneMesh
from privserve.party.lanes import Listener

SPAWN = multiprocessing.get_context("spawn")
START_SECONDS = 300
END_SECONDS = 10

Frame = tuple[str, str, bytes]
"""(sent | received, peer, payload)"""


@dataclass(frozen=True)
class Member:
    """One party, as its own process sees it."""

    config: ClusterConfig
    name: str
    engine: str
    description: Mapping[str, Any]
    shares: dict[str, RingArray] = field(repr=False)
    """Of the parameters; the dealer has none."""
    options: Mapping[str, Any]
    """The engine's."""
    pipe: Connection
    """To the process that started this one."""
    listener: Listener
    frames: list[Frame] = field(repr=False)
    """What went over this party's channels so far, where that is recorded."""

    @property
    def rank(self) -> int:
        """0..n-1 for compute parties, n for the dealer."""
        return self.config.rank(self.name)

    @property
    def deals(self) -> bool:
        """Whether this is the dealer."""
        return self.config.role(self.name) == "dealer"

    def open(self, session: str, seconds: float) -> dict[str, LaneMesh]:
        """Open the lanes of a session; collective, see `Listener.open_lanes`."""
        engine = load_engine(self.engine)
        limits = engine.frame_limits(self.description, **self.options)
        return self.listener.open_lanes(session, engine.LANES, seconds, limits=limits)

    def deal(self, lanes: Mapping[str, LaneMesh]) -> None:
        """Deal randomness until the others leave, which is how such a session ends."""
        with contextlib.suppress(PeerLost):
            load_engine(self.engine).deal(self.description, lanes, **self.options)

    def compute(self, lanes: Mapping[str, LaneMesh]) -> Compute:
        """Set the engine's compute party up; collective."""
        engine = load_engine(self.engine)
        return engine.Compute(self.description, self.shares, lanes, **self.options)


Body = Callable[[Member], None]
"""What a party's process does; a function of a module, since processes are spawned."""


def _run(
    home: Path,
    name: str,
    sock: socket.socket,
    prepared: Prepared,
    options: Mapping[str, Any],
    record: bool,
    pipe: Connection,
    body: Body,
) -> None:
    """The process of party `name`; `prepared` has its shares as parameters."""
    config = read_config(home / name / "cluster.toml")
    frames: list[Frame] = []
    tap = (lambda *event: frames.append(event)) if record else None
    listener = Listener(config, config.parties[config.rank(name)], sock, tap)
    engine, description, shares = prepared.engine, prepared.description, prepared.parameters
    body(Member(config, name, engine, description, shares, options, pipe, listener, frames))


def split_parameters(
    parameters: Mapping[str, RingArray], names: Sequence[str]
) -> dict[str, dict[str, RingArray]]:
    """Split parameters among the parties `names`, the dealer last: their shares by party."""
    split = {key: sharing.split(value, len(names) - 1) for key, value in parameters.items()}
    shares = {
        name: {key: parts[rank] for key, parts in split.items()}
        for rank, name in enumerate(names[:-1])
    }
    return {**shares, names[-1]: {}}


class PartyProcesses:
    """The parties of one cluster, each a process with a pipe to this one.

    A context manager: no process and no file outlives it.
    """

    def __init__(
        self,
        prepared: Prepared,
        parties: int,
        body: Body,
        *,
        options: Mapping[str, Any] | None = None,
        record: bool = False,
    ) -> None:
        """Write the files of a cluster of `parties`, with the dealer, and bind its ports.

        options: the engine's. record: whether the members keep every frame in `Member.frames`.
        """
        self.names = party_names(parties)
        self.processes: dict[str, SpawnProcess] = {}
        self._public = Prepared(prepared.engine, prepared.description, {})
        self._body, self._options, self._record = body, dict(options or {}), record
        self._pipes: dict[str, Connection] = {}
        with contextlib.ExitStack() as stack:
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix="privserve-bench-"))
            self._home = Path(home)
            self._socks = {
                name: stack.enter_context(socket.create_server(("127.0.0.1", 0)))
                for name in self.names
            }
            where = {name: f"127.0.0.1:{s.getsockname()[1]}" for name, s in self._socks.items()}
            write_cluster(self._home, list(where.items()))
            self._stack = stack.pop_all()

    def __enter__(self) -> PartyProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, name: str, shares: Mapping[str, RingArray]) -> None:
        """Start the process of party `name`, at its address, with its shares of the parameters.

        A party that was started before begins anew: what is left of its process is killed.
        """
        if name in self.processes:
            self._pipes.pop(name).close()
            self.processes[name].kill()
            self.processes.pop(name).join()
        given = Prepared(self._public.engine, self._public.description, dict(shares))
        self._pipes[name], theirs = SPAWN.Pipe()
        with theirs:
            process = SPAWN.Process(
                target=_run,
                args=(
                    self._home,
                    name,
                    self._socks[name],
                    given,
                    self._options,
                    self._record,
                    theirs,
                    self._body,
                ),
                daemon=True,
            )
            process.start()
        self.processes[name] = process

    def start_all(self, parameters: Mapping[str, RingArray]) -> None:
        """Split `parameters` and start all parties; none is left where one cannot be started."""
        try:
            for name, shares in split_parameters(parameters, self.names).items():
                self.start(name, shares)
        except BaseException:
            self.close()
            raise

    def tell(self, name: str, order: Any) -> None:
        """Send `order` to the body of party `name`."""
        self._pipes[name].send(order)

    def hear(self, name: str, seconds: float = START_SECONDS) -> Any:
        """Return what the body of party `name` says next; ClusterError where nothing comes."""
        if not self._pipes[name].poll(seconds):
            raise ClusterError(f"{self._public.engine}: a party does not answer")
        try:
            return self._pipes[name].recv()
        except EOFError:
            raise ClusterError(
                f"{self._public.engine}: a party ended; see the messages above"
            ) from None

    def close(self) -> None:
        """End all processes, which see their pipes close, and remove the files; idempotent."""
        for pipe in self._pipes.values():
            pipe.close()
        deadline = time.monotonic() + END_SECONDS
        for process in self.processes.values():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        self._stack.close()
