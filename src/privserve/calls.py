"""HTTPS calls to a party: who is trusted, and which error an answer stands for."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx

from privserve.errors import BY_CODE, ClusterError, ConfigError, InputError, QueryError


def tls_context(ca: Path) -> ssl.SSLContext:
    """Return a TLS 1.3 context that trusts the cluster's own authority and nobody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(ca)
    except (OSError, ssl.SSLError):
        raise ConfigError(
            f"{ca} is missing or holds no certificate; copy it from where the cluster was made"
        ) from None
    return context


def raise_for_answer(response: httpx.Response, who: str) -> None:
    """Raise the typed error that a party's HTTP answer stands for, if it is one."""
    if response.is_success:
        return
    try:
        body = response.json()
        message, code = str(body["error"]), str(body["code"])
    except (ValueError, KeyError, TypeError):
        message, code = (
            f"{who} answers HTTP {response.status_code}; is it privserve?",
            QueryError.code,
        )
    if code == InputError.code:
        raise InputError(f"{who} refuses: {message}")
    raise BY_CODE.get(code, QueryError)(message, response.status_code)


def unreachable(who: str, address: str, error: Exception) -> ClusterError:
    """Return the error for a party that HTTP cannot reach."""
    if isinstance(error, httpx.TimeoutException):
        return ClusterError(f"{who} at {address} did not answer in time; is the cluster alive?")
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return ClusterError(
            f"{who} at {address} belongs to another cluster than the ca.pem in use (its "
            "certificate does not verify); take cluster.toml and ca.pem from the running cluster"
        )
    return ClusterError(
        f"cannot reach {who} at {address}; is the cluster running? Start one with "
        "`python -m privserve.launch --parties 3`"
    )
