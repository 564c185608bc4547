"""HTTPS calls to a party: who is trusted, and which error an answer stands for."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from privserve.addresses import split_address
from privserve.config import DOMAIN
from privserve.errors import (
    BY_CODE,
    ClusterError,
    ConfigError,
    InputError,
    NoAnswer,
    PartyRevoked,
    PrivserveError,
    QueryError,
)
from privserve.tls import REVOKED, ListContext, trust

if TYPE_CHECKING:
    import httpx


def tls_context(ca: Path) -> ListContext:
    """Return a TLS 1.3 context that trusts the cluster's own authority and nobody else."""
    context = ListContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        trust(context, ca)
    except (OSError, ssl.SSLError):
        raise ConfigError(
            f"{ca} is missing or holds no certificate; copy it from where the cluster was made"
        ) from None
    return context


def identity_at(address: str, ca: Path, seconds: float = 5.0) -> str:
    """The identity that whoever listens at `address` proves to have in its cluster.

    For those who know addresses only: whom they mean is what they find, but it is a party
    that the cluster's authority signed. Raises ClusterError.
    """
    unnamed = tls_context(ca)
    unnamed.check_hostname = False
    try:
        with (
            socket.create_connection(split_address(address), timeout=seconds) as raw,
            unnamed.wrap_socket(raw) as stream,
        ):
            entries = (stream.getpeercert() or {}).get("subjectAltName", ())
    except OSError as error:
        raise unreachable(f"the party at {address}", address, error) from None
    names = [str(entry[1]) for entry in entries if entry[0] == "DNS"]
    found = [name for name in names if name.endswith(f".{DOMAIN}") and name.count(".") == 3]
    if len(found) != 1:
        raise ClusterError(f"what listens at {address} is no party of a privserve cluster")
    return found[0]


def introduced(addresses: Sequence[str], ca: Path) -> list[tuple[str, str, str]]:
    """Return (name, address, identity) of who is at each address, by certificates.

    Raises ConfigError unless they are different parties of one cluster.
    """
    found: list[tuple[str, str, str]] = []
    for address in addresses:
        identity = identity_at(address, ca)
        name, cluster = identity.split(".")[:2]
        for other, at, known in found:
            if known == identity:
                raise ConfigError(f"{address} and {at} are one party, {other}; name each once")
            if known.split(".")[1] != cluster:
                raise ConfigError(f"{address} and {at} belong to different clusters")
        found.append((name, address, identity))
    return found


def raise_for_answer(response: httpx.Response, who: str) -> None:
    """Raise the typed error that a party's HTTP answer stands for, if it is one."""
    if response.is_success:
        return
    try:
        body = response.json()
    except ValueError:
        body = None
    raise refusal(body, who, response.status_code)


def refusal(body: object, who: str, status: int | None = None) -> PrivserveError:
    """Return the typed error for what `who` refused with: {"error", "code", "status"}.

    status: of the HTTP answer; None where the body has it.
    """
    fields = body if isinstance(body, dict) else {}
    message, code = fields.get("error"), fields.get("code")
    if status is None:
        status = fields["status"] if type(fields.get("status")) is int else QueryError.status
    if not isinstance(message, str) or not isinstance(code, str):
        return QueryError(f"{who} answers HTTP {status}; is it privserve?", status)
    if code == InputError.code:
        return InputError(f"{who} refuses: {message}")
    return BY_CODE.get(code, QueryError)(message, status)


def unreachable(who: str, address: str, error: Exception, *, is_late: bool = False) -> ClusterError:
    """Return the error for a party that cannot be reached; is_late: it gave no answer in time."""
    if is_late or isinstance(error, TimeoutError):
        return NoAnswer(f"{who} at {address} did not answer in time; is the cluster alive?")
    if REVOKED in str(error):
        return PartyRevoked(
            f"{who} at {address} shows a certificate that the cluster's authority revoked, so it "
            "was sent nothing: whoever listens there may have stolen it. Ask the model owner"
        )
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return ClusterError(
            f"{who} at {address} belongs to another cluster than the ca.pem in use (its "
            "certificate does not verify); take cluster.toml and ca.pem from the running cluster"
        )
    return ClusterError(f"cannot reach {who} at {address}; {_advice(who, address)}")


def _advice(who: str, address: str) -> str:
    """What to do about a party that is not there: it may have been started in either way."""
    one = f"`python -m privserve.launch --party {who} --config {who}/cluster.toml`"
    if " " in who:  # no name is known
        one = "`python -m privserve.launch --party NAME --config NAME/cluster.toml`"
    host, _ = split_address(address)
    if host in ("localhost", "127.0.0.1", "::1"):
        return (
            "is the cluster running? `python -m privserve.launch --parties N` starts all parties "
            f"on this machine, and {one} this one"
        )
    return f"check that the network lets you through, and that it runs there: {one}"
