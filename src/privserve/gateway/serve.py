"""The gateway's process: its client, its two fronts, what it says on start, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from privserve.addresses import bind, join_address, split_address
from privserve.async_client import AsyncClient
from privserve.config import ClusterConfig, read_config
from privserve.errors import ConfigError
from privserve.gateway.http_front import create_app
from privserve.gateway.upstreams import Upstreams

if TYPE_CHECKING:
    import grpc.aio

SHUTDOWN_SECONDS = 5
MAX_CONNECTIONS = 4096


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    config: Path
    key: Path | None
    http: str
    grpc: str | None
    tls: tuple[Path, Path] | None
    """Certificates and key."""
    origins: tuple[str, ...]
    timeout: float


def say(line: str) -> None:
    """Tell whoever started the gateway, at once, also through a pipe."""
    print(line, flush=True)


def run(settings: Settings) -> None:
    """Run the gateway until SIGINT or SIGTERM. Raises ConfigError for what cannot be used."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr)
    config = read_config(settings.config)
    asyncio.run(_serve(settings, config))


async def _serve(settings: Settings, config: ClusterConfig) -> None:
    def connect(model: str | None) -> AsyncClient:
        return AsyncClient(config, key=settings.key, timeout=settings.timeout, model=model)

    upstream = Upstreams(connect, settings.timeout, say)
    try:
        http = _http_server(settings, upstream)
        with contextlib.closing(
            bind(split_address(settings.http), "the gateway", "--http")
        ) as sock:
            grpc_server, grpc_port = _grpc_server(settings, upstream)
            _introduce(settings, config, sock.getsockname()[1], grpc_port)
            await _until_stopped(upstream, http, sock, grpc_server)
    finally:
        await upstream.close()
    say("stopped")


async def _until_stopped(
    upstream: Upstreams,
    http: uvicorn.Server,
    sock: socket.socket,
    grpc_server: grpc.aio.Server | None,
) -> None:
    """Serve until SIGINT or SIGTERM; what is under way then has some seconds to end."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        http.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    watching = asyncio.create_task(upstream.watch())
    try:
        if grpc_server is not None:
            await grpc_server.start()
        # uvicorn would take the signals for itself and raise them again afterwards.
        await http._serve([sock])
    finally:
        watching.cancel()
        if grpc_server is not None:
            await grpc_server.stop(SHUTDOWN_SECONDS)


def _http_server(settings: Settings, upstream: Upstreams) -> uvicorn.Server:
    certificate, key = settings.tls or (None, None)
    config = uvicorn.Config(
        create_app(upstream, settings.origins),
        ssl_certfile=certificate,
        ssl_keyfile=key,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_keep_alive=60,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    try:
        config.load()
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"--tls-cert {certificate} and --tls-key {key} are no certificate and its key: "
            f"{error.strerror or error}"
        ) from None
    return uvicorn.Server(config)


def _grpc_server(settings: Settings, upstream: Upstreams) -> tuple[grpc.aio.Server | None, int]:
    """The gRPC server and its port, where one is asked for."""
    if settings.grpc is None:
        return None, 0
    try:  # only where it is asked for: it is an extra, and takes long to load
        from privserve.gateway.grpc_front import create_server
    except ModuleNotFoundError as error:
        if error.name not in ("grpc", "grpc.aio", "google", "google.protobuf"):
            raise
        raise ConfigError(
            "--grpc needs grpcio: pip install 'privserve[gateway]' (HTTP works without)"
        ) from None
    tls = None
    if settings.tls is not None:
        certificate, key = settings.tls
        tls = (key.read_bytes(), certificate.read_bytes())
    return create_server(upstream, settings.grpc, tls)


def _introduce(settings: Settings, config: ClusterConfig, http_port: int, grpc_port: int) -> None:
    """Say what this process is, what it sees, and where it listens."""
    parties = ", ".join(f"{party.name} at {party.address}" for party in config.compute)
    say("privserve gateway: THIS PROCESS SEES ALL INPUTS AND ANSWERS IN PLAINTEXT.")
    say("  Run it at the organisation whose data they are, never on a party's host.")
    say(f"  cluster {config.cluster} ({config.path}): {parties}")
    say("  asking which models they serve")
    secured = settings.tls is not None
    host = split_address(settings.http)[0]
    say(f"  HTTP at {'https' if secured else 'http'}://{join_address(host, http_port)}")
    addresses = [host]
    if settings.grpc is not None:
        host = split_address(settings.grpc)[0]
        say(f"  gRPC at {join_address(host, grpc_port)}{' (TLS)' if secured else ''}")
        addresses.append(host)
    if any(not is_loopback(host) for host in addresses):
        how = "anybody who reaches it can ask the model in this client's name"
        if not secured:
            how += ", and inputs and answers cross the network in plaintext (see --tls-cert)"
        say(f"  WARNING: it listens beyond this host: {how}.")
    home = config.path.parent  # where a party's files are, or a directory for each of them
    if any(p.key.is_file() or (home / p.name / p.key.name).is_file() for p in config.parties):
        say(
            "  WARNING: a party's key lies beside this cluster.toml. On a party's host the gateway "
            "shows that party every plaintext; this is for trying things out only."
        )


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this host only; a name other than localhost cannot."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
