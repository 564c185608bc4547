"""Certificates that another program issues with the cluster's authority, as cert-manager does.

docs/operations.md says what they have to carry, and why they are not recommended.
"""

from __future__ import annotations

import contextlib
import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from invited import addresses, manage

from privserve.authority import Authority, check_revoked
from privserve.certificates import write_cluster
from privserve.config import ClusterConfig, identity, read_config
from privserve.party.lanes import client_context, server_context


@pytest.fixture
def made(tmp_path: Path) -> ClusterConfig:
    return read_config(write_cluster(tmp_path / "made", addresses(), keep=tmp_path / "made.secret"))


def issue(made: ClusterConfig, tmp_path: Path, name: str, *usages: x509.ObjectIdentifier) -> None:
    """Replace bob's files by what a CA issuer makes of `dnsNames: [name]` and these usages."""
    authority = Authority.load(made.path.parent, tmp_path / "made.secret")
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    usage = dict.fromkeys(
        ("data_encipherment", "key_agreement", "key_cert_sign", "crl_sign"), False
    )
    usage |= dict.fromkeys(("content_commitment", "encipher_only", "decipher_only"), False)
    signed = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=90))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=True, key_encipherment=True, **usage), critical=True
        )
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.certificate.public_key()),
            critical=False,
        )
        .sign(authority._key, hashes.SHA256())
    )
    home = made.path.parent / "bob"
    (home / "bob.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.TraditionalOpenSSL  # cert-manager's default, PKCS1
    plain = serialization.NoEncryption()
    (home / "bob.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))


def meets(made: ClusterConfig, listens: str, dials: str) -> bool:
    """Whether the two make a channel, and the one who listens sees the other's name."""
    configs = [read_config(made.path.parent / n / "cluster.toml") for n in (listens, dials)]
    server = server_context(configs[0], configs[0].parties[made.rank(listens)])
    client = client_context(configs[1], configs[1].parties[made.rank(dials)])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = server.wrap_bio(incoming, outgoing, server_side=True)
    other = client.wrap_bio(outgoing, incoming, server_hostname=made.identity(listens))
    try:
        for _ in range(4):
            for side in (other, one):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
    except ssl.SSLError:
        return False
    names = (one.getpeercert() or {}).get("subjectAltName", ())
    return ("DNS", made.identity(dials)) in names


def test_the_right_name_and_both_usages_are_all_that_a_certificate_needs(
    made: ClusterConfig, tmp_path: Path
) -> None:
    issue(made, tmp_path, identity("bob", made.cluster), Usage.SERVER_AUTH, Usage.CLIENT_AUTH)
    assert meets(made, "bob", "alice")
    assert meets(made, "alice", "bob")


def test_without_the_name_or_a_usage_nobody_meets_it(made: ClusterConfig, tmp_path: Path) -> None:
    issue(made, tmp_path, "b.example", Usage.SERVER_AUTH, Usage.CLIENT_AUTH)
    assert not meets(made, "bob", "alice")
    assert not meets(made, "alice", "bob")
    issue(made, tmp_path, identity("bob", made.cluster), Usage.SERVER_AUTH)
    assert not meets(made, "alice", "bob")


def test_revoking_does_not_know_of_it(made: ClusterConfig, tmp_path: Path) -> None:
    """The reason why docs/operations.md advises against it: should it change, so must the docs."""
    issue(made, tmp_path, identity("bob", made.cluster), Usage.SERVER_AUTH, Usage.CLIENT_AUTH)
    assert manage(made.path, tmp_path / "made.secret", "revoke", "bob") == 0
    listed = check_revoked((made.path.parent / "revoked.pem").read_bytes(), made.ca)
    theirs = x509.load_pem_x509_certificate((made.path.parent / "bob" / "bob.pem").read_bytes())
    assert len(listed.serials) == 1
    assert theirs.serial_number not in listed.serials
