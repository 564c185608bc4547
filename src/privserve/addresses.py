"""Addresses as people write them, host:port, and the sockets that listen there."""

from __future__ import annotations

import socket

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
        sock.bind((host, port))
    except socket.gaierror:
        raise ConfigError(f"{what}: the host '{host}' is not known here") from None
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(
            f"{what}: cannot listen on {join_address(host, port)} ({why.lower()}); stop what uses "
            f"that port or choose another with {option}"
        ) from None
    return sock
