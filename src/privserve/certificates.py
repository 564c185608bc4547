"""The files that let a cluster's parties, owner and clients recognise each other."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from privserve.addresses import split_address
from privserve.authority import (
    VALID_DAYS,
    Authority,
    fingerprint,
    note_issued,
    private_pem,
    read_request,
    request,
)
from privserve.config import ClusterConfig, PartyConfig, format_config, read_config
from privserve.credentials import DEFAULT_CLIENT, KEY_FILE, ClientKey, ClientTable, Limits
from privserve.errors import ConfigError
from privserve.files import write_file

OWNER_KEY = "owner.key"
CA_SECRET = "ca.secret"
INVITATION = "privserve_invitation"

Parties = Sequence[tuple[str, str]]
"""(name, address) of each party, the dealer last."""


def write_cluster(
    directory: Path,
    parties: Parties,
    *,
    further: Sequence[Parties] = (),
    keep: Path | None = None,
    make_keys: bool = True,
) -> Path:
    """Write the files of a new cluster below `directory` and return its cluster.toml.

    `directory` itself is the model owner's: cluster.toml, ca.pem, owner.key, clients.json and
    client.key, the key of a default client. Another client needs cluster.toml, ca.pem and a key
    of its own, see `privserve.clients`. Keys are readable by their owner alone.

    further: the same parties of the cells after cell 0, at other addresses; each party has one key
    and one certificate for all of them.
    keep: a file with a secret, made where it is not there, to keep the authority's key with; it
    is thrown away when None, and then nothing can be signed, renewed or revoked later.
    make_keys: whether `directory/NAME/` is to hold all that party NAME needs, its private key
    included; else NAME.invite is there, for the party to make its key itself (see `join`).
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    cluster, owner = secrets.token_hex(8), ed25519.Ed25519PrivateKey.generate()
    authority = Authority.fresh(cluster)
    public = owner.public_key().public_bytes_raw()
    text = format_config(parties, cluster, public, further).encode()
    ca = authority.certificate.public_bytes(serialization.Encoding.PEM)
    write_file(directory / OWNER_KEY, private_pem(owner), secret=True)
    write_file(directory / "ca.pem", ca)
    cells = tuple(_entries(cell) for cell in (parties, *further))
    config = ClusterConfig(
        cells[0],
        cluster,
        directory / "ca.pem",
        public,
        directory / "cluster.toml",
        by_cell=cells,
    )
    if keep is not None:
        if not keep.exists():
            write_file(keep, secrets.token_urlsafe(32).encode() + b"\n", secret=True)
        authority.save(directory, keep)
    for party in config.parties:
        if make_keys:
            key = ec.generate_private_key(ec.SECP256R1())
            _write_party(directory / party.name, party.name, text, ca, key)
            certificate = _sign(authority, config, party, key.public_key())
            write_file(directory / party.name / f"{party.name}.pem", certificate)
        else:
            fields = {INVITATION: 1, "party": party.name, "cluster": text.decode()}
            invitation = json.dumps({**fields, "ca": ca.decode()}, indent=1)
            write_file(directory / f"{party.name}.invite", invitation.encode() + b"\n")
    _write_clients(config)
    # Last, so that whoever waits for this file finds the others complete.
    write_file(config.path, text)
    return config.path


def _entries(parties: Parties) -> tuple[PartyConfig, ...]:
    return tuple(
        PartyConfig(name, (address,), (address,), Path(f"{name}.pem"), Path(f"{name}.key"))
        for name, address in parties
    )


def join(invitation: Path, directory: Path) -> tuple[Path, str]:
    """Make a party's directory from its invitation, on its own host: with a key made here.

    Returns the request that the model owner has to sign, and the key's fingerprint. Raises
    ConfigError for what is no invitation, and where there is a key already.
    """
    try:
        fields = json.loads(invitation.read_bytes())
        name, text, ca = fields["party"], fields["cluster"], fields["ca"]
        if fields[INVITATION] != 1 or not all(isinstance(f, str) for f in (name, text, ca)):
            raise ValueError
    except OSError as error:
        raise ConfigError(f"{invitation} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{invitation} is no invitation; ask the model owner for it") from None
    home = directory / name
    if "/" in name or name in ("", ".", "..") or (home / f"{name}.key").exists():
        raise ConfigError(f"{home} holds a key already; name another place with --to")
    key = ec.generate_private_key(ec.SECP256R1())
    _write_party(home, name, text.encode(), ca.encode(), key)
    read_config(home / "cluster.toml").rank(name)  # or it is refused before anything is sent
    asked = home / f"{name}.request"
    write_file(asked, request(name, key))
    return asked, fingerprint(key.public_key())


def sign(config: ClusterConfig, secret: Path, asked: bytes, days: int = VALID_DAYS) -> str:
    """Sign a party's request; writes NAME.pem beside cluster.toml and returns the name.

    Raises ConfigError for a party that the cluster does not have.
    """
    name, key = read_request(asked)
    party = config.parties[config.rank(name)]
    authority = Authority.load(config.path.parent, secret)
    write_file(config.path.parent / f"{name}.pem", _sign(authority, config, party, key, days))
    return name


def renew(config: ClusterConfig, secret: Path, days: int = VALID_DAYS) -> list[str]:
    """Sign the keys that lie in the parties' directories here anew; returns whose.

    Those that made their keys themselves send their requests again.
    """
    authority, renewed = Authority.load(config.path.parent, secret), []
    for party in config.parties:
        home = config.path.parent / party.name
        try:
            key = serialization.load_pem_private_key(
                (home / f"{party.name}.key").read_bytes(), None
            )
        except OSError:
            continue
        assert isinstance(key, ec.EllipticCurvePrivateKey)  # as it was written here
        certificate = _sign(authority, config, party, key.public_key(), days)
        write_file(home / f"{party.name}.pem", certificate)
        renewed.append(party.name)
    return renewed


def _sign(
    authority: Authority,
    config: ClusterConfig,
    party: PartyConfig,
    key: ec.EllipticCurvePublicKey,
    days: int = VALID_DAYS,
) -> bytes:
    rank = config.rank(party.name)
    homes = [cell.parties[rank] for cell in config.cells]
    hosts = [split_address(address)[0] for home in homes for address in home.addresses]
    certificate = authority.sign(party.name, config.cluster, key, hosts, days)
    note_issued(config, party.name, certificate)
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write_party(
    home: Path, name: str, text: bytes, ca: bytes, key: ec.EllipticCurvePrivateKey
) -> None:
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_file(home / "cluster.toml", text)
    write_file(home / "ca.pem", ca)
    write_file(home / f"{name}.key", private_pem(key), secret=True)


def _write_clients(config: ClusterConfig) -> None:
    table, client = ClientTable.empty(config), ClientKey.fresh(DEFAULT_CLIENT)
    table.add(client, Limits())
    write_file(config.path.parent / KEY_FILE, client.to_text().encode(), secret=True)
    write_file(table.path, table.to_text().encode())
