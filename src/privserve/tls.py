"""Whom a TLS context of ours trusts: the cluster's own authority, and not whom it revoked."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REVOKED_FILE = "revoked.pem"
"""Beside ca.pem: the authority's list of certificates that count no more. There may be none."""

REVOKED = "certificate revoked"
"""What OpenSSL says of such a certificate, and we as well."""


class ListContext(ssl.SSLContext):
    """A context that can be told of revoked certificates without a file, which OpenSSL needs.

    `revoked` holds their numbers, and may be replaced at any time; handshakes from then on go by
    it, whatever the files of `trust` say.
    """

    revoked: frozenset[int] = frozenset()

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        """Do the handshake; SSLCertVerificationError where the other side is on the list."""
        stream = super().wrap_socket(*args, **options)
        try:
            self.refuse_revoked(stream.getpeercert() or {})
        except ssl.SSLCertVerificationError:
            stream.close()
            raise
        return stream

    def refuse_revoked(self, shown: Mapping[str, Any]) -> None:
        """Raise SSLCertVerificationError for a verified certificate that is on the list.

        For whoever does the handshake in memory, where no method of ours sees its end.
        """
        if int(str(shown.get("serialNumber", "0")), 16) in self.revoked:
            raise ssl.SSLCertVerificationError(1, REVOKED)


def revoked_files(ca: Path, state: Path | None = None) -> list[Path]:
    """Where lists may lie: beside `ca`, put there by people, and in `state`, kept by a party.

    The last one is where a party keeps what it is told.
    """
    return [place / REVOKED_FILE for place in (ca.parent, state) if place is not None]


def trust(context: ssl.SSLContext, ca: Path, state: Path | None = None) -> None:
    """Have `context` trust the authority of `ca`, but for what it revoked, with TLS 1.3 only.

    Of several lists, see `revoked_files`, OpenSSL goes by the one that was signed last. May be
    called again when the files changed; handshakes from then on go by them. Raises OSError
    (ssl.SSLError among them) where a file cannot be used.
    """
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(ca)
    for revoked in revoked_files(ca, state):
        if revoked.exists():
            context.load_verify_locations(revoked)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
