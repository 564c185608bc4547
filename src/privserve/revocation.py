"""What a client knows of revoked certificates: the newest list that the authority signed.

Any party hands it out, and none can make one up or hide what another one shows. It is kept in
memory: a client's directory may be read-only, and the next client asks again.
"""

from __future__ import annotations

from pathlib import Path

from privserve.authority import check_revoked, known_revoked
from privserve.calls import tls_context
from privserve.errors import ClusterError, ConfigError


class Revocations:
    """The newest list that was seen, and the TLS context that goes by it."""

    def __init__(self, ca: Path) -> None:
        """Begin with the list beside `ca`, if there is one; raises ConfigError."""
        self.context = tls_context(ca)
        self._ca = ca
        self._newest = known_revoked(ca)

    def learn(self, pem: bytes, party: str) -> bool:
        """Take what `party` hands out, and return whether it is newer than what was known.

        pem: empty where it knows of none. Connections that were made before go on: whoever has
        them closes them. Raises ClusterError for a list that the cluster's authority did not sign.
        """
        if not pem:
            return False
        try:
            listed = check_revoked(pem, self._ca)
        except ConfigError as error:
            raise ClusterError(
                f"what {party} hands out as the list of revoked certificates is none: {error}"
            ) from None
        if self._newest is not None and not listed.is_newer(self._newest):
            return False
        self._newest = listed
        self.context.revoked = frozenset(listed.serials)
        return True
