"""A cluster's certificate authority: it signs parties' certificates, and lists revoked ones.

Its key is kept with the model owner, encrypted with a secret that may lie elsewhere (ca.secret), or
is thrown away where a cluster is made for trying things out. Parties make their keys on their own
hosts and send a request (PKCS #10), or are handed keys that the owner made.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from privserve.config import ClusterConfig, identity
from privserve.errors import ConfigError
from privserve.files import write_file
from privserve.tls import REVOKED_FILE, revoked_files

VALID_DAYS = 90
AUTHORITY_DAYS = 3650
WARN_DAYS = 14
CA_KEY = "ca.key"
ISSUED_FILE = "issued.json"

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class Authority:
    """Whoever holds this may let parties into the cluster."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def fresh(cls, cluster: str) -> Authority:
        """Make the authority of a new cluster."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _named(f"privserve cluster {cluster}")
        usage = dict.fromkeys(
            (
                "digital_signature",
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = _builder(subject, subject, key.public_key(), key, AUTHORITY_DAYS, is_ca=True)
        builder = builder.add_extension(
            x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, directory: Path, secret: Path) -> Authority:
        """Return the authority whose files are in `directory`; raises ConfigError."""
        try:
            certificate = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
            pem, password = (directory / CA_KEY).read_bytes(), secret.read_bytes().strip()
        except OSError as error:
            raise ConfigError(
                f"{error.filename} cannot be read: only whoever holds the authority's key and its "
                "secret can sign or revoke certificates (a cluster may have been made without)"
            ) from None
        try:
            key = serialization.load_pem_private_key(pem, password)
        except (ValueError, TypeError):
            raise ConfigError(f"{secret} is not the secret of {directory / CA_KEY}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or (
            key.public_key() != certificate.public_key()
        ):
            raise ConfigError(f"{directory / CA_KEY} is not the key of {directory / 'ca.pem'}")
        return cls(certificate, key)

    def save(self, directory: Path, secret: Path) -> None:
        """Write ca.key, encrypted with the secret of that file."""
        password = secret.read_bytes().strip()
        pem = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password),
        )
        write_file(directory / CA_KEY, pem, secret=True)

    def sign(
        self,
        name: str,
        cluster: str,
        public_key: ec.EllipticCurvePublicKey,
        hosts: Sequence[str],
        days: int = VALID_DAYS,
    ) -> x509.Certificate:
        """Return a certificate for party `name`, by its identity.

        hosts: for other programs, which know a server by its address; privserve goes by the
        identity alone.
        """
        builder = _builder(
            _named(name), self.certificate.subject, public_key, self._key, days, is_ca=False
        )
        names = [_general_name(n) for n in dict.fromkeys([identity(name, cluster), *hosts])]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def revoked(self, serials: Sequence[int]) -> bytes:
        """Return the list of these revoked certificates, signed, as PEM."""
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - datetime.timedelta(hours=1))
            .next_update(now + datetime.timedelta(days=AUTHORITY_DAYS))
        )
        for serial in serials:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            )
        listed = builder.sign(self._key, hashes.SHA256())
        return listed.public_bytes(serialization.Encoding.PEM)


def private_pem(key: PrivateKey) -> bytes:
    """Return a private key as PEM, not encrypted: for a file that its owner alone can read."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def request(name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return what a party asks the authority with, as PEM: its name and public key, signed."""
    made = x509.CertificateSigningRequestBuilder().subject_name(_named(name))
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def read_request(pem: bytes) -> tuple[str, ec.EllipticCurvePublicKey]:
    """Return the party's name and public key of a request; raises ConfigError."""
    try:
        asked = x509.load_pem_x509_csr(pem)
        (common,) = asked.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        key = asked.public_key()
        is_signed = asked.is_signature_valid
    except ValueError:
        raise ConfigError("the file holds no request for a certificate") from None
    if not is_signed or not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError("the request is not signed with the key that it names")
    return str(common.value), key


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return what people compare over another line: SHA-256 of a public key, in hex."""
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    text = hashlib.sha256(der).hexdigest()
    return " ".join(text[i : i + 4] for i in range(0, 32, 4))


def days_left(certificate: Path) -> float:
    """Return for how many days a PEM certificate is good; raises OSError or ValueError."""
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    left = found.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return left / datetime.timedelta(days=1)


@dataclass(frozen=True)
class Revoked:
    """The authority's list of certificates that count no more."""

    signed: datetime.datetime
    """When; in whole seconds."""
    serials: tuple[int, ...]
    """The certificates' numbers."""
    pem: bytes
    """The list itself, and nothing that lay beside it: a certificate that came along would be
    trusted by whoever reads both from one file."""

    def is_newer(self, other: Revoked) -> bool:
        """Whether this list came after the other one. Lists only ever grow."""
        return (self.signed, len(self.serials)) > (other.signed, len(other.serials))


def check_revoked(pem: bytes, ca: Path) -> Revoked:
    """Return what a list says; raises ConfigError unless the authority of `ca` signed it."""
    authority = x509.load_pem_x509_certificate(ca.read_bytes())
    key = authority.public_key()
    try:
        listed = x509.load_pem_x509_crl(pem)
        is_signed = isinstance(key, ec.EllipticCurvePublicKey) and listed.is_signature_valid(key)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError("this is no list of revoked certificates") from None
    if not is_signed:
        raise ConfigError("the cluster's authority did not sign this list of certificates")
    serials = tuple(one.serial_number for one in listed)
    pem = listed.public_bytes(serialization.Encoding.PEM)
    return Revoked(listed.last_update_utc, serials, pem)


def known_revoked(ca: Path) -> Revoked | None:
    """Return the list that lies beside `ca`, if there is one; raises ConfigError."""
    try:
        pem = (ca.parent / REVOKED_FILE).read_bytes()
    except FileNotFoundError:
        return None
    return check_revoked(pem, ca)


def newest_revoked(ca: Path, state: Path | None) -> bytes:
    """Return the list that a party goes by, PEM; empty where there is none.

    One that the authority did not sign counts only where there is no other: TLS does not go by
    it either, and whoever checks it says so.
    """
    found = [file.read_bytes() for file in revoked_files(ca, state) if file.exists()]
    newest: Revoked | None = None
    for pem in found if len(found) > 1 else ():
        with contextlib.suppress(ConfigError):
            listed = check_revoked(pem, ca)
            if newest is None or listed.is_newer(newest):
                newest = listed
    return newest.pem if newest is not None else b"".join(found[-1:])


# -- what was issued ------------------------------------------------------------------------


def note_issued(config: ClusterConfig, name: str, certificate: x509.Certificate) -> None:
    """Note a certificate's number, so that it can be revoked."""
    issued = read_issued(config)
    issued.setdefault(name, []).append(certificate.serial_number)
    path = config.path.parent / ISSUED_FILE
    text = json.dumps({n: [f"{s:x}" for s in serials] for n, serials in issued.items()}, indent=1)
    write_file(path, text.encode() + b"\n")


def read_issued(config: ClusterConfig) -> dict[str, list[int]]:
    """Return the numbers of all certificates, by party; raises ConfigError."""
    path = config.path.parent / ISSUED_FILE
    try:
        fields = json.loads(path.read_bytes())
        return {str(n): [int(s, 16) for s in serials] for n, serials in fields.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be used: {error}") from None


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
    days: int,
    *,
    is_ca: bool,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # An hour of tolerance for hosts whose clocks disagree.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
