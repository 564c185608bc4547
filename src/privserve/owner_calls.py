"""The model owner's calls: signed, so that whoever receives one can do nothing else with it.

A signature covers the cluster, the party, that party's process, the method and path, the
session, a number, and the SHA-256 of the body. It is worth nothing at another party, for
another call, or a second time. It goes along as

    Authorization: Privserve NUMBER.SESSION.BODY_SHA256.SIGNATURE

with "-" for no session. The number is the owner's clock in nanoseconds, or one more than the
last one for this party, or than the one that the party tells that it takes no more (the clock may
have been set back since). A party remembers the numbers that it took, and forgets them when it
ends; so that an old call is worth nothing to the process that comes after, each process has a
random *boot* name, which `/v2` tells and which is signed too.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from privserve.errors import ConfigError, OwnerOnly
from privserve.mesh import Payload

SCHEME = "Privserve"
CONTEXT = "privserve owner call 1"
NO_SESSION = "-"
WINDOW = 1024
"""Calls of one owner may arrive in another order than they were signed in, this far apart."""
DIGEST_CHARACTERS = 64
MOST = 1 << 63
"""A number, in nanoseconds until the year 2262. A party that tells of a larger one is not believed:
what it makes of its own calls is its business, as long as numbers stay short enough to be read."""


def load_owner_key(path: Path) -> Ed25519PrivateKey:
    """The model owner's private key from a PEM file; raises ConfigError."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError:
        raise ConfigError(
            f"{path} cannot be read; only its holder, the model owner, may share models"
        ) from None
    except (ValueError, TypeError):
        raise ConfigError(
            f"{path} holds no private key; take it from the cluster's files"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} holds another kind of key than a model owner's")
    return key


@dataclass(frozen=True)
class Call:
    """What a signature covers."""

    cluster: str
    party: str
    boot: str
    method: str
    target: str
    """Path and query as they are sent."""
    session: str
    number: int
    body_sha256: str

    def statement(self) -> bytes:
        """The bytes that are signed; no field can hold a line break."""
        fields = (
            CONTEXT,
            self.cluster,
            self.party,
            self.boot,
            self.method,
            self.target,
            self.session,
            str(self.number),
            self.body_sha256,
        )
        return "\n".join(fields).encode()


@dataclass(frozen=True)
class Boot:
    """A party's process, as its `/v2` tells."""

    name: str
    above: int
    """Calls need a number above this one."""

    @classmethod
    def read(cls, facts: dict[str, Any]) -> Boot:
        """Of what `/v2` answered."""
        above = facts.get("calls_above")
        if type(above) is not int or not 0 <= above < MOST:
            above = 0
        return cls(str(facts.get("boot")), above)


class Signer:
    """Signs the owner's calls. Thread-safe."""

    def __init__(self, key: Ed25519PrivateKey, cluster: str) -> None:
        self._key = key
        self._cluster = cluster
        self._last: dict[str, int] = {}
        self._lock = threading.Lock()

    def authorization(
        self, party: str, boot: Boot, method: str, target: str, session: str, body: Payload
    ) -> str:
        """The header's value for one call; it is good for one use."""
        with self._lock:
            number = max(time.time_ns(), self._last.get(party, 0) + 1, boot.above + 1)
            self._last[party] = number
        digest = hashlib.sha256(body).hexdigest()
        named = session or NO_SESSION
        call = Call(self._cluster, party, boot.name, method, target, named, number, digest)
        signature = base64.urlsafe_b64encode(self._key.sign(call.statement())).decode()
        return f"{SCHEME} {number}.{named}.{digest}.{signature}"


@dataclass(frozen=True)
class Permission:
    """A call that the owner signed: for which session, and with which body."""

    session: str
    """Empty where none is named."""
    body_sha256: str

    def check(self, digest: str) -> None:
        """Raise OwnerOnly unless the body that came has the digest that was signed."""
        if not secrets.compare_digest(digest, self.body_sha256):
            raise OwnerOnly("the body is not the one that the model owner signed")


class Verifier:
    """One party's check of the owner's calls. Thread-safe."""

    def __init__(self, owner: bytes, cluster: str, party: str) -> None:
        """owner: the Ed25519 public key, 32 bytes."""
        self._owner = Ed25519PublicKey.from_public_bytes(owner)
        self._cluster = cluster
        self._party = party
        self.boot = secrets.token_hex(16)
        """This process; a call names it."""
        self._taken: OrderedDict[int, None] = OrderedDict()
        self._floor = 0
        self._lock = threading.Lock()

    @property
    def above(self) -> int:
        """Calls need a larger number; 0 until there were more of them than are remembered."""
        with self._lock:
            return self._floor

    def check(self, header: str, method: str, target: str) -> Permission:
        """What the owner permits by this Authorization header; raises OwnerOnly.

        Before a byte of the body is read: its digest has to be compared by the caller.
        """
        refused = OwnerOnly(
            "only the model owner may do this: with the key in owner.key, for this party and once"
        )
        scheme, _, rest = header.partition(" ")
        fields = rest.split(".")
        if scheme != SCHEME or len(fields) != 4 or not header.isascii():
            raise refused
        number, session, digest, signature = fields
        if not (number.isdecimal() and len(number) <= 20 and len(digest) == DIGEST_CHARACTERS):
            raise refused
        call = Call(
            self._cluster, self._party, self.boot, method, target, session, int(number), digest
        )
        if number != str(call.number) or "\n" in target:
            raise refused
        try:
            self._owner.verify(base64.b64decode(signature, b"-_", True), call.statement())
        except (InvalidSignature, ValueError):
            raise refused from None
        self._take(call.number)
        return Permission("" if session == NO_SESSION else session, digest)

    def _take(self, number: int) -> None:
        """Note a number that was signed; raises OwnerOnly for one that was taken before."""
        with self._lock:
            if number <= self._floor or number in self._taken:
                raise OwnerOnly("this call was made before; an owner's call is good for one use")
            self._taken[number] = None
            while len(self._taken) > WINDOW:
                oldest = min(self._taken)
                del self._taken[oldest]
                self._floor = max(self._floor, oldest)
