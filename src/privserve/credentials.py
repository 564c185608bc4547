"""Who may ask: clients' keys, what each party is shown of them, and how much each may ask.

A client has one random key of 256 bits. What it shows to a party is derived from it with HKDF
(RFC 5869) for this cluster and this party: nobody can go from one party's credential to another
one's, so a party cannot ask in a client's name, which would take a share at every party. Parties
are told only the SHA-256 of their credential. The model owner keeps a table of names, digests
and limits, `clients.json`, and no client's key.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privserve.config import LABEL, ClusterConfig
from privserve.errors import ConfigError, InputError, PrivserveError

SCHEME = "PrivserveClient"
CONTEXT = "privserve client credential 1"
KEY_BYTES = 32
CLIENTS_FILE = "clients.json"
KEY_FILE = "client.key"
DEFAULT_CLIENT = "default"
ANONYMOUS = "anonymous"
"""What those are called who show no credential, where everybody is let in."""
MOST_ENTRIES = 10_000
MOST_MODELS = 64
"""That one client's limits name."""
MODEL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Limits:
    """How much a client may ask; None is no limit."""

    rows: int | None = None
    """In total, for as long as the parties run."""
    rows_per_minute: int | None = None
    rows_per_query: int | None = None
    expires: str | None = None
    """The last day on which it may ask, as 2027-01-31 (UTC)."""
    models: tuple[str, ...] | None = None
    """The names of those that it may ask; None: all."""

    def may_ask(self, model: str) -> bool:
        """Whether the client may ask this model."""
        return self.models is None or model in self.models

    def part(self, cell: int, cells: int) -> Limits:
        """Return what of this one of so many cells lets the client have; all of them this much."""

        def split(rows: int | None) -> int | None:
            return None if rows is None else rows // cells + (cell < rows % cells)

        return replace(self, rows=split(self.rows), rows_per_minute=split(self.rows_per_minute))

    def is_over(self, today: datetime.date) -> bool:
        """Whether the client's time is up."""
        return self.expires is not None and today > datetime.date.fromisoformat(self.expires)


@dataclass(frozen=True)
class Entry:
    """A client as one party is told of it."""

    name: str
    digest: str
    """SHA-256 of its credential for this party, in hex."""
    limits: Limits


@dataclass(frozen=True)
class ClientKey:
    """A client's name and secret key."""

    name: str
    key: bytes = field(repr=False)

    @classmethod
    def fresh(cls, name: str) -> ClientKey:
        """A client with a new key."""
        return cls(checked_name(name), secrets.token_bytes(KEY_BYTES))

    @classmethod
    def read(cls, path: Path) -> ClientKey:
        """The key of a file that `to_text` wrote; raises ConfigError."""
        try:
            name, text = path.read_text().split()
            key = base64.urlsafe_b64decode(text)
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, binascii.Error):
            name, key = "", b""
        if len(key) != KEY_BYTES or not LABEL.fullmatch(name):
            raise ConfigError(f"{path} holds no client's key; ask the model owner for a new one")
        return cls(name, key)

    def to_text(self) -> str:
        """What goes into the client's file; secret."""
        return f"{self.name} {base64.urlsafe_b64encode(self.key).decode()}\n"

    def credential(self, cluster: str, party: str) -> bytes:
        """What the client shows to `party`, and to nobody else: 32 bytes."""
        info = f"{CONTEXT}\n{self.name}\n{party}".encode()
        return HKDF(SHA256(), KEY_BYTES, cluster.encode(), info).derive(self.key)

    def authorization(self, cluster: str, party: str) -> str:
        """The header that goes along with each query to `party`."""
        shown = base64.urlsafe_b64encode(self.credential(cluster, party)).decode()
        return f"{SCHEME} {self.name}.{shown}"

    def digests(self, config: ClusterConfig) -> dict[str, str]:
        """By compute party: what that party is told of the client."""
        return {
            party.name: digest(self.credential(config.cluster, party.name))
            for party in config.compute
        }


def digest(credential: bytes) -> str:
    """What a party keeps; the credential has 256 bits of entropy."""
    return hashlib.sha256(credential).hexdigest()


def shown(header: str) -> tuple[str, bytes] | None:
    """The name and credential of an Authorization header; None where it is not of this kind."""
    scheme, _, rest = header.partition(" ")
    name, _, text = rest.partition(".")
    try:
        return (name, base64.b64decode(text, b"-_", True)) if scheme == SCHEME else None
    except (ValueError, binascii.Error):
        return None


def checked_name(name: str) -> str:
    """The name; raises ConfigError for one that a client cannot have."""
    if not LABEL.fullmatch(name) or name == ANONYMOUS:
        raise ConfigError(
            f"'{name}' cannot be a client's name; use lower-case letters, digits and '-', at most "
            "32 of them"
        )
    return name


def checked_limits(given: Mapping[str, Any], least: int = 1) -> Limits:
    """Limits from fields; raises InputError for what is none.

    least: 0 for a cell's part of limits, which may be nothing.
    """
    known = {key: given.get(key) for key in asdict(Limits())}
    for key in ("rows", "rows_per_minute", "rows_per_query"):
        value = known[key]
        if value is not None and (type(value) is not int or value < least):
            raise InputError(f"'{key}' must be a positive whole number or null")
    if known["expires"] is not None:
        try:
            datetime.date.fromisoformat(known["expires"])
        except (TypeError, ValueError):
            raise InputError("'expires' must be a day such as 2027-01-31, or null") from None
    if known["models"] is not None:
        known["models"] = _checked_models(known["models"])
    return Limits(**known)


def _checked_models(given: object) -> tuple[str, ...]:
    if (
        not isinstance(given, list | tuple)
        or not 1 <= len(given) <= MOST_MODELS
        or not all(isinstance(name, str) and MODEL_NAME.fullmatch(name) for name in given)
    ):
        raise InputError(
            f"'models' must be a list of 1 to {MOST_MODELS} names of models (letters, digits, '_', "
            "'.' and '-'), or null for all"
        )
    return tuple(given)


# -- the owner's table ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    digests: Mapping[str, str]
    limits: Limits


class ClientTable:
    """The clients of a cluster, in its owner's `clients.json`."""

    def __init__(self, config: ClusterConfig, known: Mapping[str, _Known]) -> None:
        self._config = config
        self._known = dict(known)
        self.path = config.path.parent / CLIENTS_FILE

    @classmethod
    def empty(cls, config: ClusterConfig) -> ClientTable:
        """A new cluster's, with no client."""
        return cls(config, {})

    @classmethod
    def read(cls, config: ClusterConfig) -> ClientTable:
        """The table beside cluster.toml; raises ConfigError."""
        path = config.path.parent / CLIENTS_FILE
        try:
            known = {
                checked_name(name): _Known(
                    dict(fields["digests"]), checked_limits(fields["limits"])
                )
                for name, fields in json.loads(path.read_bytes()).items()
            }
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        except (PrivserveError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is no table of clients: {error}") from None
        return cls(config, known)

    @property
    def limits(self) -> dict[str, Limits]:
        """By client."""
        return {name: known.limits for name, known in self._known.items()}

    def add(self, key: ClientKey, limits: Limits) -> None:
        """Enter a client; raises ConfigError for a name in use."""
        if key.name in self._known:
            raise ConfigError(f"there is a client '{key.name}' already; revoke it or name another")
        if len(self._known) >= MOST_ENTRIES:
            raise ConfigError(f"{self.path} has {MOST_ENTRIES} clients; revoke some")
        self._known[key.name] = _Known(key.digests(self._config), limits)

    def revoke(self, name: str) -> None:
        """Strike a client out; raises ConfigError for one that is not there."""
        self._of(name)
        del self._known[name]

    def limit(self, name: str, limits: Limits) -> None:
        """Give a client other limits."""
        self._known[name] = replace(self._of(name), limits=limits)

    def _of(self, name: str) -> _Known:
        if name not in self._known:
            known = ", ".join(self._known) or "none"
            raise ConfigError(f"there is no client '{name}'; there are: {known}")
        return self._known[name]

    def to_text(self) -> str:
        """What goes into clients.json; nothing of it is secret."""
        fields = {
            name: {"digests": dict(known.digests), "limits": asdict(known.limits)}
            for name, known in self._known.items()
        }
        return json.dumps(fields, indent=1) + "\n"

    def entries(self, party: str, cell: int = 0, cells: int = 1) -> list[dict[str, Any]]:
        """What `party` is told in one of this many cells, JSON-able; the dealer is told nobody."""
        return [
            {
                "name": name,
                "digest": known.digests[party],
                **asdict(known.limits.part(cell, cells)),
            }
            for name, known in self._known.items()
            if party in known.digests
        ]


def read_entries(given: object) -> list[Entry]:
    """A party's reading of `ClientTable.entries`; raises InputError."""
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) > MOST_ENTRIES:
        raise InputError(f"'clients' must be a list of at most {MOST_ENTRIES} clients")
    entries = []
    for fields in given:
        name = fields.get("name") if isinstance(fields, dict) else None
        told = fields.get("digest") if isinstance(fields, dict) else None
        if not isinstance(name, str) or not LABEL.fullmatch(name):
            raise InputError("a client has no name, or one that it cannot have")
        if not isinstance(told, str) or not DIGEST.fullmatch(told):
            raise InputError(f"client '{name}' has no digest")
        entries.append(Entry(name, told, checked_limits(fields, 0)))
    if len({entry.name for entry in entries}) != len(entries):
        raise InputError("two clients have one name")
    return entries
