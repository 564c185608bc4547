"""A party's process: its sockets, the server of its HTTP front, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import os
import resource
import signal
import socket
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from privserve.addresses import bind, join_address, split_address
from privserve.authority import WARN_DAYS
from privserve.config import ClusterConfig, Timeouts
from privserve.errors import ConfigError
from privserve.party.connections import ForgottenWhenLost
from privserve.party.front_door import FrontDoor
from privserve.party.http import create_app
from privserve.party.keep import Keep
from privserve.party.lanes import PROTOCOL as PARTIES
from privserve.party.party import Party
from privserve.party.spans import send_spans
from privserve.party.web_door import open_web
from privserve.query_frames import PROTOCOL as QUERIES
from privserve.tls import revoked_files

if TYPE_CHECKING:
    from privserve.party.plain_door import PlainDoor

log = logging.getLogger("privserve")

SHUTDOWN_SECONDS = 5
LEAVE_SECONDS = 0.2
CERTIFICATE_SECONDS = 30.0
"""Between two looks at the certificate files."""
MAX_DESCRIPTORS = 65536
MAX_CONNECTIONS = 8192


@dataclass(frozen=True)
class Doors:
    """What a party listens on besides its own port, each already bound; None: it has none."""

    metrics: socket.socket | None = None
    """Where it is scraped."""
    web: socket.socket | None = None
    """Where browsers ask it."""
    origins: tuple[str, ...] = ()
    """Of the pages that these browsers may show."""


def allow_descriptors() -> None:
    """Raise the soft limit of open files to the hard one: each client takes one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, MAX_DESCRIPTORS)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def run_party(
    config: ClusterConfig,
    name: str,
    sockets: Sequence[socket.socket] = (),
    lifeline: int | None = None,
    timeouts: Timeouts | None = None,
    doors: Doors | None = None,
    keep: Keep | None = None,
) -> None:
    """Run party `name` until it is told to end, or until `lifeline` reaches its end.

    SIGTERM has it answer the queries that it has, for `timeouts.drain` seconds at most, before it
    ends; SIGINT, and a second SIGTERM, ends it at once.

    sockets: to listen on, already bound; where there are none, the party's own `listen` is bound.
    lifeline: a descriptor whose other end the starting process holds; at its end, that process is
    gone. doors: what else it listens on. keep: where the party keeps its shares.
    """
    me = config.parties[config.rank(name)]
    for file in (config.ca, me.cert, me.key):
        if not file.is_file():
            raise ConfigError(
                f"{file} is missing; copy the directory that was made for {name} as a whole"
            )
    _check_state(config, name)
    sockets = sockets or [bind(split_address(address), name, "--listen") for address in me.listen]
    try:
        timeouts = timeouts or Timeouts()
        party = Party(config, name, timeouts, keep)
        settings = uvicorn.Config(
            create_app(party),
            http=ForgottenWhenLost,
            ssl_certfile=str(me.cert),
            ssl_keyfile=str(me.key),
            log_config=None,  # its own would go past the filter of what is said often
            log_level="warning",
            access_log=False,
            ws="none",
            lifespan="off",
            timeout_keep_alive=60,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        settings.load()
    except ssl.SSLError as error:
        raise ConfigError(f"the certificate files of {name} do not fit: {error.reason}") from None
    if settings.ssl is not None:
        settings.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
        party.contexts.append(settings.ssl)
    server = uvicorn.Server(settings)
    end_spans = send_spans(name) if party.role == "compute" else lambda: None
    log.info("%s (%s) is reached at %s", name, party.role, " and ".join(me.addresses))
    try:
        asyncio.run(_serve(server, party, sockets, lifeline, doors or Doors(), timeouts.drain))
    finally:
        party.close()
        end_spans()


def _check_state(config: ClusterConfig, name: str) -> None:
    """Refuse a state directory that cannot be used; say what a read-only directory means."""
    if config.state is not None:
        if not config.state.is_dir() or not os.access(config.state, os.W_OK):
            raise ConfigError(f"--state-dir: {config.state} is no directory that {name} may write")
    elif not os.access(config.ca.parent, os.W_OK):
        log.warning(
            "%s cannot write %s, so it cannot keep a list of revoked certificates; name a "
            "directory that it may write with --state-dir",
            name,
            config.ca.parent,
        )


async def _serve(
    server: uvicorn.Server,
    party: Party,
    sockets: Sequence[socket.socket],
    lifeline: int | None,
    further: Doors,
    drain_seconds: float,
) -> None:
    loop, context = asyncio.get_running_loop(), server.config.ssl
    assert context is not None  # its files are checked by now

    def http() -> asyncio.BaseProtocol:
        return ForgottenWhenLost(server.config, server.server_state, server.lifespan.state)

    others = {QUERIES: party.lanes.welcome, PARTIES: party.meet}
    doors = [FrontDoor(sock, context, http, others) for sock in sockets]

    def shut() -> None:
        for door in doors:
            door.close()

    def stop() -> None:
        shut()
        if lifeline is not None:
            loop.remove_reader(lifeline)
        # Queries in flight get their error now, so that their connections can be closed.
        threading.Thread(target=party.close, daemon=True).start()
        server.should_exit = True
        # Answers that are written by now are to leave before their connections are cut.
        loop.call_later(LEAVE_SECONDS if party.is_draining else 0, abort_idle)

    def drain() -> None:
        party.drain(drain_seconds)
        with contextlib.suppress(RuntimeError):  # the loop is closed: it was told to end at once
            loop.call_soon_threadsafe(stop)

    def end() -> None:
        if party.is_draining or not drain_seconds:
            stop()
            return
        party.is_draining = True
        log.info(
            "%s is being stopped: it answers what it has, for %g s at most; a second signal ends "
            "it at once",
            party.me.name,
            drain_seconds,
        )
        threading.Thread(target=drain, name="drain", daemon=True).start()

    def abort_idle() -> None:
        # An idle client does not answer TLS' goodbye, and uvicorn would wait for it.
        for connection in list(server.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            transport = getattr(connection, "transport", None)
            if transport is not None and (cycle is None or cycle.response_complete):
                transport.abort()
        loop.call_later(0.1, abort_idle)

    loop.add_signal_handler(signal.SIGINT, stop)
    loop.add_signal_handler(signal.SIGTERM, end)
    watching = asyncio.create_task(_watch_certificates(party))
    plain = await _open_further(party, further)
    if lifeline is not None:
        # Nothing is ever written to it: it becomes readable at its end.
        loop.add_reader(lifeline, stop)
    # uvicorn would take the signals for itself and raise them again afterwards.
    try:
        await server._serve([])
    finally:
        shut()
        watching.cancel()
        for opened in plain:
            opened.close()


async def _open_further(party: Party, doors: Doors) -> list[PlainDoor]:
    opened = []
    if doors.metrics is not None:
        opened.append(await _open_metrics(party, doors.metrics))
    if doors.web is not None:
        opened.append(await open_web(create_app(party), doors.web, doors.origins))
        log.info(
            "%s: pages of %s may ask at http://%s, in plain HTTP on this host",
            party.me.name,
            " and ".join(doors.origins),
            join_address(*doors.web.getsockname()[:2]),
        )
    return opened


async def _open_metrics(party: Party, sock: socket.socket) -> PlainDoor:
    """Be scraped; what that takes is not loaded before, since it takes a while."""
    from privserve.party.metrics_door import open_metrics

    door = await open_metrics(party, sock)
    address = join_address(*sock.getsockname()[:2])
    if not ipaddress.ip_address(sock.getsockname()[0]).is_loopback:
        log.warning(
            "%s: whoever reaches http://%s/metrics reads the names of models and clients, and how "
            "much each asks: it is plain HTTP, and asks for no key",
            party.me.name,
            address,
        )
    log.info("%s: metrics are at http://%s/metrics", party.me.name, address)
    return door


async def _watch_certificates(party: Party) -> None:
    """Read renewed certificates without a restart; warn when the end comes near."""
    lists = revoked_files(party.config.ca, party.config.state)
    files, warned = (party.me.cert, *lists), math.inf
    seen = [_changed(file) for file in files]
    while True:
        try:
            left = party.certificate_days_left()
            if left < WARN_DAYS and left < warned - 1:
                warned = left
                log.warning(
                    "%s: this party's certificate is good for %.1f more days; have the model "
                    "owner renew it with `python -m privserve.certify`",
                    party.me.name,
                    left,
                )
            await asyncio.sleep(CERTIFICATE_SECONDS)
            if (now := [_changed(file) for file in files]) != seen:
                await asyncio.to_thread(party.read_certificates)
                seen = now
                log.info("%s: the certificate files were read again", party.me.name)
        except (OSError, ValueError) as error:  # half copied, or not for this key: next time
            log.warning("%s: the certificate files cannot be used: %s", party.me.name, error)
            await asyncio.sleep(CERTIFICATE_SECONDS)


def _changed(file: Path) -> float:
    """When a file was changed; 0 where there is none."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
