"""cluster.toml: who the parties are, where they are reached, and which files prove it.

    cluster = "4b1f0c..."               # an id; every certificate carries it
    ca = "ca.pem"                       # signs every party's certificate
    owner = "9m3K..."                   # the model owner's public key: it signs what it asks for

    [[party]]                           # in order; the last one is the dealer
    name = "alice"
    address = "localhost:4000"          # where everybody reaches it; a list: where they may try
    listen = "0.0.0.0:4000"             # where it listens, where that is another; may be a list
    cert = "alice.pem"
    key = "alice.key"                   # only on alice's host

    [[cell]]                            # the parties once more, elsewhere; the above are cell 0
    alice = "localhost:4010"            # or a list, as above
    bob = {address = "b.example:4010", listen = "0.0.0.0:4010"}
    carol = "localhost:4012"

In each cell a party has the same name, key and certificate. File names are relative to
cluster.toml. Clients, the model owner and the other parties come to one port. A file of an older
version has `http` for it, and `peer` for a second port, which is not used any more.
"""

from __future__ import annotations

import base64
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from privserve.addresses import split_address
from privserve.errors import ConfigError
from privserve.sharing import MAX_COMPUTE_PARTIES

DOMAIN = "privserve.invalid"
OWNER_KEY_BYTES = 32
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")

MOST_CELLS = 64

ORIGIN = re.compile(r"(?:https://[a-z0-9.-]+|http://(?:localhost|127\.0\.0\.1))(?::[0-9]{1,5})?")
NO_ORIGIN = "null"
"""What a page has that was opened as a file, or in a frame without rights."""

EXTRA_NAMES = ("dave", "erin", "frank", "grace", "heidi", "ivan", "judy", "karl", "laura")


def party_names(count: int) -> list[str]:
    """Return names for `count` >= 3 parties; the dealer, always carol, comes last."""
    if count < 3:
        raise ConfigError(
            f"a cluster needs at least 3 parties (two that compute, one dealer), not {count}"
        )
    if count > MAX_COMPUTE_PARTIES + 1:
        raise ConfigError(_too_many(count))
    extra = [*EXTRA_NAMES, *(f"party{i}" for i in range(3 + len(EXTRA_NAMES), count + 1))]
    return ["alice", "bob", *extra[: count - 3], "carol"]


def _too_many(count: int) -> str:
    return (
        f"a cluster has at most {MAX_COMPUTE_PARTIES} compute parties and a dealer, since ranges "
        f"leave room for the rounding of that many; these are {count} parties"
    )


@dataclass
class Timeouts:
    """Seconds that a party waits."""

    connect: float = 60.0
    """For the other parties to join a session."""
    peer: float = 3.0
    """For a sign of life from another party; they come four times as often."""
    share: float = 10.0
    """For a query's shares to reach all compute parties."""
    drain: float = 10.0
    """For its queries to be answered, once it is told to end."""


@dataclass(frozen=True)
class Watching:
    """How parties that are started here may be watched."""

    metrics_port: int | None = None
    """Of the first party's metrics, on this host alone; the others' follow. 0: any free ones."""
    log_json: bool = False
    """Whether logs are a JSON object a line."""
    log_queries: bool = False
    """Whether there is a line for each query."""

    def options(self, rank: int) -> list[str]:
        """Return what the command line of the party at this place says of it."""
        options = []
        if self.metrics_port is not None:
            options.append(f"--metrics=localhost:{self.metrics_port and self.metrics_port + rank}")
        if self.log_json:
            options.append("--log-json")
        return [*options, "--log-queries"] if self.log_queries else options


def checked_origin(text: str) -> str:
    """Return an origin as browsers send it; raises ConfigError for one that is not to be let in."""
    if text != NO_ORIGIN and not ORIGIN.fullmatch(text):
        raise ConfigError(
            f"--web-origin: {text!r} is no origin of a page; write https://HOST[:PORT] without a "
            "path, http://localhost:PORT, or null for pages that are opened as files"
        )
    return text


@dataclass(frozen=True)
class Browsers:
    """How browsers on this machine may ask parties that are started here."""

    ports: tuple[int, ...] = ()
    """Of localhost, one for each compute party."""
    origins: tuple[str, ...] = ()
    """Of the pages that may ask."""

    def options(self, rank: int) -> list[str]:
        """Return what the command line of the party at this place says of it."""
        if rank >= len(self.ports):
            return []
        origins = [f"--web-origin={origin}" for origin in self.origins]
        return [f"--web=localhost:{self.ports[rank]}", *origins]


@dataclass(frozen=True)
class PartyConfig:
    """One party's entry in cluster.toml."""

    name: str
    addresses: tuple[str, ...]
    """Where clients and the other parties reach it; they try one after the other."""
    listen: tuple[str, ...]
    """Where it listens itself, which is elsewhere behind a NAT or in a container."""
    cert: Path
    key: Path

    @property
    def address(self) -> str:
        """The first of its addresses, which people are told."""
        return self.addresses[0]

    @property
    def endpoint(self) -> tuple[str, int]:
        """That address' host and port."""
        return split_address(self.address)


@dataclass(frozen=True)
class ClusterConfig:
    """One cell of a cluster, which may be all there is; the last party is the dealer."""

    parties: tuple[PartyConfig, ...]
    """Of this cell."""
    cluster: str
    ca: Path
    owner: bytes
    """The model owner's Ed25519 public key, 32 bytes."""
    path: Path
    state: Path | None = None
    """A directory that a party keeps in what it is told while it runs; None: that of `path`."""
    cell: int = 0
    """Which one this is."""
    by_cell: tuple[tuple[PartyConfig, ...], ...] = ()
    """The parties of all cells; empty where there is one."""

    @property
    def cells(self) -> tuple[ClusterConfig, ...]:
        """All cells of the cluster, by their numbers."""
        cells = enumerate(self.by_cell or (self.parties,))
        return tuple(replace(self, parties=parties, cell=number) for number, parties in cells)

    def of_cell(self, number: int) -> ClusterConfig:
        """Return one of `cells`; raises ConfigError for a number that none has."""
        cells = self.cells
        if not 0 <= number < len(cells):
            raise ConfigError(
                f"{self.path} has no cell {number}; its cells are 0 to {len(cells) - 1}"
            )
        return cells[number]

    @property
    def compute(self) -> tuple[PartyConfig, ...]:
        """The compute parties, the leader first."""
        return self.parties[:-1]

    @property
    def dealer(self) -> PartyConfig:
        """The dealer."""
        return self.parties[-1]

    def identity(self, name: str) -> str:
        """The name that the certificate of party `name` has to carry, whatever its address."""
        return identity(name, self.cluster)

    def rank(self, name: str) -> int:
        """Return the position of party `name`; the dealer's is the number of compute parties."""
        for index, party in enumerate(self.parties):
            if party.name == name:
                return index
        known = ", ".join(p.name for p in self.parties)
        raise ConfigError(f"{self.path} knows no party '{name}'; it has: {known}")

    def role(self, name: str) -> str:
        """Return "dealer" or "compute"."""
        return "dealer" if self.rank(name) == len(self.parties) - 1 else "compute"


def read_config(path: str | Path) -> ClusterConfig:
    """Read and check a cluster.toml; raises ConfigError saying what to mend."""
    path = Path(path)
    try:
        text = path.read_bytes().decode()
        table = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {path}; start a cluster with `python -m privserve.launch --parties 3` "
            "or name its cluster.toml with --config"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from None
    entries = table.get("party")
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise ConfigError(f"{path} has no [[party]] tables")
    parties = tuple(_party(path, entry) for entry in entries)
    if len(parties) < 3:
        raise ConfigError(f"{path} names {len(parties)} parties; a cluster needs at least 3")
    if len(parties) > MAX_COMPUTE_PARTIES + 1:
        raise ConfigError(f"{path}: {_too_many(len(parties))}")
    names = [p.name for p in parties]
    if len(set(names)) != len(names):
        raise ConfigError(f"{path} uses a party's name twice: {', '.join(names)}")
    cluster = _text(path, table, "cluster")
    for label in (cluster, *names):
        if not LABEL.fullmatch(label):
            raise ConfigError(
                f"{path}: '{label}' cannot be a name; use lower-case letters, digits and '-'"
            )
    further = _cells(path, table.get("cell", []), parties)
    return ClusterConfig(
        parties=parties,
        cluster=cluster,
        ca=path.parent / _text(path, table, "ca"),
        owner=_public_key(path, _text(path, table, "owner")),
        path=path,
        by_cell=(parties, *further),
    )


def _cells(
    path: Path, entries: object, parties: tuple[PartyConfig, ...]
) -> tuple[tuple[PartyConfig, ...], ...]:
    """The parties of the cells after cell 0; raises ConfigError."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{path}: cells are [[cell]] tables, with an address for each party")
    if len(entries) >= MOST_CELLS:
        raise ConfigError(f"{path}: a cluster has at most {MOST_CELLS} cells")
    names = [party.name for party in parties]
    seen = {address: party.name for party in parties for address in party.addresses}
    cells = []
    for number, entry in enumerate(entries, 1):
        if set(entry) != set(names):
            raise ConfigError(
                f"{path}: cell {number} has to give an address to each of {', '.join(names)}, and "
                f"not to {', '.join(entry) or 'nobody'}"
            )
        cell = tuple(_moved(path, party, entry[party.name]) for party in parties)
        for party in cell:
            for address in party.addresses:
                if address in seen:
                    raise ConfigError(
                        f"{path}: {party.name} of cell {number} has the address {address}, and so "
                        f"has {seen[address]} of another cell; each party of a cell is a process "
                        "of its own"
                    )
        seen |= {address: party.name for party in cell for address in party.addresses}
        cells.append(cell)
    return tuple(cells)


def _moved(path: Path, party: PartyConfig, given: object) -> PartyConfig:
    """A party of cell 0 at the address that another cell's table gives."""
    entry = given if isinstance(given, dict) else {"address": given}
    addresses = _addresses(path, entry, "address")
    listen = _addresses(path, entry, "listen") if "listen" in entry else addresses
    return replace(party, addresses=addresses, listen=listen)


def identity(name: str, cluster: str) -> str:
    """What a certificate calls party `name`: in a domain that no host can be in (RFC 6761)."""
    return f"{name}.{cluster}.{DOMAIN}"


def _public_key(path: Path, text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        key = b""
    if len(key) != OWNER_KEY_BYTES:
        raise ConfigError(f"{path}: 'owner' is not an Ed25519 public key in base 64")
    return key


def _party(path: Path, entry: dict[str, object]) -> PartyConfig:
    name = _text(path, entry, "name")
    addresses = _addresses(path, entry, "http" if "address" not in entry else "address")
    return PartyConfig(
        name=name,
        addresses=addresses,
        listen=_addresses(path, entry, "listen") if "listen" in entry else addresses,
        cert=path.parent / _text(path, entry, "cert", f"{name}.pem"),
        key=path.parent / _text(path, entry, "key", f"{name}.key"),
    )


def _addresses(path: Path, table: dict[str, object], key: str) -> tuple[str, ...]:
    """One address, or a list of them."""
    found = table.get(key)
    listed = found if isinstance(found, list) else [found]
    addresses = tuple(text for text in listed if isinstance(text, str))
    if not listed or len(addresses) < len(listed):
        raise ConfigError(f"{path}: '{key if found else 'address'}' is missing or no address")
    for address in addresses:
        split_address(address)
    return addresses


def _text(path: Path, table: dict[str, object], key: str, default: str | None = None) -> str:
    value = table.get(key, default)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{path}: '{key}' is missing or not a text")
    return value


def format_config(
    parties: Sequence[tuple[str, str]],
    cluster: str,
    owner: bytes,
    further: Sequence[Sequence[tuple[str, str]]] = (),
) -> str:
    """Return cluster.toml for pairs of name and address, with the default file names.

    further: likewise, of the cells after cell 0.
    """
    lines = [
        "# A privserve cluster: compute parties first, the dealer last.",
        f"cluster = {json.dumps(cluster)}",
        'ca = "ca.pem"',
        f"owner = {json.dumps(base64.b64encode(owner).decode())}",
    ]
    for name, address in parties:
        lines += ["", "[[party]]"]
        lines += [
            f"{key} = {json.dumps(value)}"
            for key, value in (
                ("name", name),
                ("address", address),
                ("cert", f"{name}.pem"),
                ("key", f"{name}.key"),
            )
        ]
    for cell in further:
        lines += ["", "[[cell]]", *(f"{name} = {json.dumps(address)}" for name, address in cell)]
    return "\n".join(lines) + "\n"
