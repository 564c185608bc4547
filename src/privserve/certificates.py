"""The files that let a cluster's parties, owner and clients recognise each other.

One authority is made per cluster; it signs a certificate for every party, and its private
key is forgotten at once, so that no further party can ever join under its name.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from privserve.addresses import split_address
from privserve.config import ClusterConfig, PartyConfig, format_config, identity
from privserve.credentials import DEFAULT_CLIENT, KEY_FILE, ClientKey, ClientTable, Limits

VALID_DAYS = 365
OWNER_KEY = "owner.key"


def write_cluster(directory: Path, parties: Sequence[tuple[str, str, str]]) -> Path:
    """Write the files of a new cluster below `directory` and return its cluster.toml.

    parties: (name, http address, peer address), the dealer last. `directory` itself is the
    model owner's: cluster.toml, ca.pem, owner.key, clients.json and client.key, the key of a
    default client. Another client needs cluster.toml, ca.pem and a key of its own, see
    `privserve.clients`. `directory/NAME/` is what party NAME needs on its own host, its private
    key included. Keys are readable by their owner alone.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    cluster = secrets.token_hex(8)
    authority = _certificate(f"privserve cluster {cluster}", authority_key, None, None, [])
    owner = ed25519.Ed25519PrivateKey.generate()
    config = format_config(parties, cluster, owner.public_key().public_bytes_raw()).encode()
    ca_pem = authority.public_bytes(serialization.Encoding.PEM)
    write_file(directory / OWNER_KEY, _private_pem(owner), secret=True)
    write_file(directory / "ca.pem", ca_pem)
    for name, http, peer in parties:
        key = ec.generate_private_key(ec.SECP256R1())
        # Parties, owner and clients go by the identity alone. Hosts are there for other
        # programs, which know a server by its address.
        hosts = [split_address(http)[0], split_address(peer)[0]]
        certificate = _certificate(
            name, key, authority, authority_key, [identity(name, cluster), *hosts]
        )
        home = directory / name
        home.mkdir(exist_ok=True, mode=0o700)
        write_file(home / "cluster.toml", config)
        write_file(home / "ca.pem", ca_pem)
        write_file(home / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM))
        write_file(home / f"{name}.key", _private_pem(key), secret=True)
    found = ClusterConfig(
        tuple(
            PartyConfig(name, http, peer, Path(f"{name}.pem"), Path(f"{name}.key"))
            for name, http, peer in parties
        ),
        cluster,
        directory / "ca.pem",
        owner.public_key().public_bytes_raw(),
        directory / "cluster.toml",
    )
    table, client = ClientTable.empty(found), ClientKey.fresh(DEFAULT_CLIENT)
    table.add(client, Limits())
    write_file(directory / KEY_FILE, client.to_text().encode(), secret=True)
    write_file(table.path, table.to_text().encode())
    # Last, so that whoever waits for this file finds the others complete.
    write_file(found.path, config)
    return found.path


def _private_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey | None,
    hosts: Sequence[str],
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    signer = issuer_key or key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # An hour of tolerance for hosts whose clocks disagree.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if hosts:
        names = [_general_name(host) for host in dict.fromkeys(hosts)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if issuer is None:
        builder = builder.add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    return builder.sign(signer, hashes.SHA256())


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def write_file(path: Path, content: bytes, secret: bool = False) -> None:
    """Write a file whole or not at all; a secret one with mode 0600 from the start."""
    partial = path.with_name(path.name + ".part")
    partial.unlink(missing_ok=True)
    mode = 0o600 if secret else 0o644
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    partial.replace(path)
