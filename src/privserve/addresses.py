"""Addresses as people write them, host:port, and the sockets that listen there."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from privserve.errors import ConfigError


def split_address(address: str) -> tuple[str, int]:
    """Return ("localhost", 4000) from "localhost:4000"; IPv6 as "[::1]:4000"."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"'{address}' is not an address; write host:port, like localhost:4000")
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """Return the inverse of `split_address`: IPv6 in brackets, as URLs have it too."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def connect(addresses: Sequence[str], seconds: float) -> socket.socket:
    """Return a connection to the first of the addresses that takes one within `seconds`.

    Raises the last one's OSError.
    """
    failure: OSError | None = None
    for address in addresses:
        try:
            return socket.create_connection(split_address(address), timeout=seconds)
        except OSError as error:
            failure = error
    raise failure or OSError("there is no address")


def reachable(addresses: Sequence[str], seconds: float) -> str:
    """Return the first of the addresses that takes a connection; the first of all where none does.

    One address alone is not tried.
    """
    for address in addresses if len(addresses) > 1 else ():
        try:
            connect([address], seconds).close()
        except OSError:
            continue
        return address
    return addresses[0]


def bind(address: tuple[str, int], what: str, option: str = "--port") -> socket.socket:
    """Return a listening-ready socket, or raise a ConfigError that names port and remedy.

    what: listens there; option: of the command line, which says where.
    """
    host, port = address
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # With the protocol named: asyncio sets TCP_NODELAY only where it knows that it is TCP,
        # and without it every second answer waits 40 ms for an acknowledgement.
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # or `[::]` would take the port from `0.0.0.0`
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
    except socket.gaierror:
        raise ConfigError(f"{what}: the host '{host}' is not known here") from None
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(
                f"{what}: this host has no address {host}. Where others reach it at another one "
                "than it has itself (NAT, a container, a published port), say where it listens: "
                f'listen = "0.0.0.0:{port}" in its cluster.toml, or --listen'
            ) from None
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(
            f"{what}: cannot listen on {join_address(host, port)} ({why.lower()}); stop what uses "
            f"that port or choose another with {option}"
        ) from None
    return sock
