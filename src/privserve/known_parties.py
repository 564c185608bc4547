"""Whom a client asks, as its files or addresses say, and what it shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from privserve.calls import introduced
from privserve.config import ClusterConfig, read_config
from privserve.credentials import KEY_FILE, ClientKey
from privserve.errors import ConfigError
from privserve.lane_connection import Peer


class Known(NamedTuple):
    """A party as files or addresses tell of it."""

    name: str
    addresses: tuple[str, ...]
    identity: str


def resolve(cluster: Any, ca: str | Path | None) -> tuple[list[list[Known]], Path, Path]:
    """Return each cell's compute parties, the ca.pem, and where the files are."""
    if isinstance(cluster, str | Path):
        cluster = read_config(cluster)
    config = getattr(cluster, "config", cluster)
    if isinstance(config, ClusterConfig):
        cells = [
            [Known(p.name, p.addresses, config.identity(p.name)) for p in cell.compute]
            for cell in config.cells
        ]
        return cells, Path(ca or config.ca), config.path.parent
    if isinstance(config, Sequence) and config and ca is not None:
        met = introduced([str(address) for address in config], Path(ca))
        found = [Known(name, (address,), identity) for name, address, identity in met]
        return [found], Path(ca), Path(ca).parent
    raise ConfigError(
        "name the cluster: a cluster.toml, a started Cluster, or the compute parties' addresses "
        "with ca="
    )


def client_key(given: str | Path | None, beside: Path) -> ClientKey | None:
    """Return the key of the file that was named, or of the one beside the cluster's other files."""
    if given is None:
        given = beside / KEY_FILE
        if not given.exists():
            return None
    return ClientKey.read(Path(given))


def authorization(client: ClientKey | None, identity: str) -> str:
    """Return what shows the client to the party of this identity; empty for no client."""
    if client is None:
        return ""
    party, cluster = identity.split(".")[:2]
    return client.authorization(cluster, party)


def check_roles(peers: Sequence[Peer], about: Sequence[Mapping[str, Any]]) -> None:
    """Raise ConfigError unless these are all compute parties of one cluster, as they say."""
    expected = about[0].get("compute_parties", [])
    for peer, facts in zip(peers, about, strict=True):
        if facts.get("role") != "compute":
            raise ConfigError(
                f"{facts.get('party')} at {peer.address} is the dealer and takes no queries; "
                f"name the compute parties ({', '.join(expected)}) instead"
            )
    found = [str(facts.get("party")) for facts in about]
    if sorted(found) != sorted(expected):
        raise ConfigError(
            f"a query needs every compute party ({', '.join(expected)}), "
            f"but the addresses given are those of {', '.join(found)}"
        )
