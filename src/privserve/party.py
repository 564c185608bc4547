"""One party's process: a listener for its peers, an HTTP front, at most one session.

    python -m privserve.party --name bob --config cluster.toml

runs a party in the foreground until it is interrupted (`python -m privserve.launch
--party bob` is the same). `Cluster` starts its local parties this way too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import logging
import resource
import signal
import socket
import ssl
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvicorn

from privserve.config import ClusterConfig, read_config
from privserve.connections import ForgottenWhenLost
from privserve.errors import ConfigError, NotServing, PrivserveError, QueryError
from privserve.http import create_app
from privserve.queries import Pending
from privserve.quiet import SaidOften
from privserve.session import (
    ComputeSession,
    LeaderSession,
    Seat,
    Session,
    SessionSpec,
    Timeouts,
    open_session,
)
from privserve.transport import Listener

log = logging.getLogger("privserve")

SHUTDOWN_SECONDS = 5
MAX_DESCRIPTORS = 65536
BACKLOG = 128
"""asyncio tries, and complains, this often when no descriptor is free."""


class Party:
    """What the HTTP front may ask of a party. Thread-safe."""

    def __init__(
        self, config: ClusterConfig, name: str, peer_socket: socket.socket, timeouts: Timeouts
    ) -> None:
        """peer_socket: bound to the party's peer address."""
        self.config = config
        self.me = config.parties[config.rank(name)]
        self.role = config.role(name)
        self._listener = Listener(config, self.me, peer_socket)
        self._seat = Seat(config, self.me, self._listener, timeouts)
        self._session: Session | None = None
        self._lock = threading.Lock()

    @property
    def session(self) -> Session | None:
        """The current session, if a model was ever shared."""
        return self._session

    def is_owner(self, token: str) -> bool:
        """Whether `token` is the model owner's; takes the same time for any answer."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        return hmac.compare_digest(digest, self.config.owner_token_sha256)

    def load(self, spec: SessionSpec) -> None:
        """Begin a session with `spec`, ending the one before; returns before it is ready."""
        with self._lock:
            if self._session is not None:
                self._session.end("the model owner shares another model")
            self._session = open_session(self._seat, spec)
            self._session.start()

    def unload(self) -> None:
        """End the session; shares and randomness are forgotten."""
        with self._lock:
            if self._session is not None:
                self._session.end("the model owner stopped the model")

    def leader(self) -> LeaderSession:
        """The leader's loaded session; raises QueryError at any other party."""
        session = self._session
        if session is None or session.state != "loaded":
            raise NotServing("no model is shared; the model owner has to call share()", 409)
        if not isinstance(session, LeaderSession):
            leader = self.config.compute[0]
            raise QueryError(f"{leader.name} at {leader.http} leads; ask it to serve", 409)
        return session

    def compute_session(self, model: str | None = None) -> ComputeSession:
        """The loaded session, to describe it or to query it; NotServing without one."""
        if self.role == "dealer":
            compute = " and ".join(f"{p.name} ({p.http})" for p in self.config.compute)
            raise QueryError(
                f"{self.me.name} is the dealer: it never sees a model or a query; "
                f"send the shares to {compute}",
                403,
            )
        session = self._session
        if session is None:
            raise NotServing("no model is shared; the model owner has to call share() first")
        if session.state == "loading":
            raise NotServing("the model is still being set up; try again in a moment")
        if session.state != "loaded":
            raise NotServing(f"{session.reason}; the model owner has to share the model again")
        if model is not None and model != session.spec.model:
            raise QueryError(f"there is no model '{model}'; '{session.spec.model}' is served", 404)
        assert isinstance(session, ComputeSession)
        return session

    def submit(self, model: str, query: Pending) -> None:
        """Take this party's share of a query; see `ComputeSession.submit`."""
        self.compute_session(model).submit(query)

    def status(self) -> dict[str, Any]:
        """Public facts about the party."""
        session = self._session
        facts = {
            "party": self.me.name,
            "role": self.role,
            "state": "idle",
            "memory_available": available_memory(),
        }
        return {**facts, **session.status()} if session is not None else facts

    def close(self) -> None:
        """End the session and free the peer port."""
        with self._lock:
            if self._session is not None:
                self._session.end(f"{self.me.name} was shut down")
        self._listener.close()


def available_memory() -> int | None:
    """Bytes that this host could give a process without swapping; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def allow_descriptors() -> None:
    """Raise the soft limit of open files to the hard one: each client takes one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, MAX_DESCRIPTORS)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def bind(address: tuple[str, int], what: str) -> socket.socket:
    """A listening-ready socket, or a ConfigError that names the port and the remedy."""
    host, port = address
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # With the protocol named: asyncio sets TCP_NODELAY only where it knows that it is TCP,
        # and without it every second answer waits 40 ms for an acknowledgement.
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except socket.gaierror:
        raise ConfigError(f"{what}: the host '{host}' is not known here") from None
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(
            f"{what}: cannot listen on {host}:{port} ({why.lower()}); stop what uses that port "
            "or choose another with --port"
        ) from None
    return sock


def run_party(
    config: ClusterConfig,
    name: str,
    http_socket: socket.socket | None = None,
    peer_socket: socket.socket | None = None,
    lifeline: int | None = None,
    timeouts: Timeouts | None = None,
) -> None:
    """Run party `name` until SIGINT or SIGTERM, or until `lifeline` reaches its end.

    http_socket, peer_socket: already bound, else bound here. lifeline: a descriptor whose
    other end the starting process holds; at its end, that process is gone.
    """
    me = config.parties[config.rank(name)]
    for file in (config.ca, me.cert, me.key):
        if not file.is_file():
            raise ConfigError(
                f"{file} is missing; copy the directory that was made for {name} as a whole"
            )
    http_socket = http_socket or bind(me.http_address, f"{name} (http)")
    peer_socket = peer_socket or bind(me.peer_address, f"{name} (peer)")
    try:
        party = Party(config, name, peer_socket, timeouts or Timeouts())
        settings = uvicorn.Config(
            create_app(party),
            http=ForgottenWhenLost,
            ssl_certfile=str(me.cert),
            ssl_keyfile=str(me.key),
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_keep_alive=60,
            backlog=BACKLOG,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        settings.load()
    except ssl.SSLError as error:
        raise ConfigError(f"the certificate files of {name} do not fit: {error.reason}") from None
    if settings.ssl is not None:
        settings.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    server = uvicorn.Server(settings)
    log.info("%s (%s): clients at %s, parties at %s", name, party.role, me.http, me.peer)
    try:
        asyncio.run(_serve(server, party, http_socket, lifeline))
    finally:
        party.close()


async def _serve(
    server: uvicorn.Server, party: Party, sock: socket.socket, lifeline: int | None
) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if lifeline is not None:
            loop.remove_reader(lifeline)
        # Queries in flight get their error now, so that their connections can be closed.
        threading.Thread(target=party.close, daemon=True).start()
        server.should_exit = True
        abort_idle()

    def abort_idle() -> None:
        # An idle client does not answer TLS' goodbye, and uvicorn would wait for it.
        for connection in list(server.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            transport = getattr(connection, "transport", None)
            if transport is not None and (cycle is None or cycle.response_complete):
                transport.abort()
        loop.call_later(0.1, abort_idle)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    if lifeline is not None:
        # Nothing is ever written to it: it becomes readable at its end.
        loop.add_reader(lifeline, stop)
    # uvicorn would take the signals for itself and raise them again afterwards.
    await server._serve([sock])


def _adopt(descriptor: int | None) -> socket.socket | None:
    return None if descriptor is None else socket.socket(fileno=descriptor)


def main(arguments: list[str] | None = None) -> int:
    """The command line of one party."""
    parser = argparse.ArgumentParser(prog="python -m privserve.party", description=__doc__)
    parser.add_argument("--name", required=True, help="which party of cluster.toml this is")
    parser.add_argument("--config", type=Path, default=Path("cluster.toml"))
    parser.add_argument("--http-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--peer-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--lifeline-fd", type=int, help=argparse.SUPPRESS)
    for name, default in asdict(Timeouts()).items():
        parser.add_argument(
            f"--{name}-timeout", type=float, default=default, help=argparse.SUPPRESS
        )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.addFilter(SaidOften())
    allow_descriptors()
    for noisy in ("httpx", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        run_party(
            read_config(options.config),
            options.name,
            _adopt(options.http_fd),
            _adopt(options.peer_fd),
            options.lifeline_fd,
            Timeouts(
                connect=options.connect_timeout,
                peer=options.peer_timeout,
                share=options.share_timeout,
            ),
        )
    except PrivserveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
