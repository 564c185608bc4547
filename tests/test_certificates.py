from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from privserve.certificates import OWNER_KEY, write_cluster
from privserve.config import read_config
from privserve.credentials import KEY_FILE
from privserve.owner_calls import load_owner_key

PARTIES = [
    ("alice", "localhost:1"),
    ("bob", "[::1]:3"),
    ("carol", "carol.example.org:5"),
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_cluster(tmp_path / "cluster", PARTIES).parent


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_secret_files_can_be_read_by_their_owner_alone(home: Path) -> None:
    secret = {home / OWNER_KEY, home / KEY_FILE, *home.glob("*/*.key")}
    assert len(secret) == 5
    for path in home.rglob("*"):
        if path.is_file():
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o600 if path in secret else 0o644) & ~_umask(), path
    assert stat.S_IMODE(home.stat().st_mode) & 0o077 == 0


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_every_party_gets_its_own_key_and_no_other(home: Path) -> None:
    for name, *_ in PARTIES:
        files = {path.name for path in (home / name).iterdir()}
        assert files == {"cluster.toml", "ca.pem", f"{name}.pem", f"{name}.key"}


def test_the_authority_signed_every_party_by_its_name_and_hosts(home: Path) -> None:
    authority = certificate(home / "ca.pem")
    config = read_config(home / "cluster.toml")
    hosts = {"alice": {"localhost"}, "bob": {"::1"}, "carol": {"carol.example.org"}}
    for name, *_ in PARTIES:
        signed = certificate(home / name / f"{name}.pem")
        signed.verify_directly_issued_by(authority)
        names = signed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert {str(n.value) for n in names} == {config.identity(name)} | hosts[name]
        assert not signed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_authoritys_key_is_kept_nowhere(home: Path) -> None:
    authority = certificate(home / "ca.pem").public_key()
    assert isinstance(authority, ec.EllipticCurvePublicKey)
    kept = []
    for path in home.rglob("*"):
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes():
            key = serialization.load_pem_private_key(path.read_bytes(), None)
            if path.name != OWNER_KEY:
                kept.append(key.public_key().public_numbers())  # type: ignore[union-attr]
    assert len(kept) == 3  # the parties', beside the owner's
    assert authority.public_numbers() not in kept


def test_the_parties_know_the_owners_public_key_and_nothing_else_of_it(home: Path) -> None:
    key = load_owner_key(home / OWNER_KEY)
    assert read_config(home / "cluster.toml").owner == key.public_key().public_bytes_raw()
    secret = (home / OWNER_KEY).read_bytes().splitlines()[1]
    assert [p for p in home.rglob("*") if p.is_file() and secret in p.read_bytes()] == [
        home / OWNER_KEY
    ]


def test_every_cluster_has_an_id_an_authority_and_an_owners_key_of_its_own(tmp_path: Path) -> None:
    homes = [write_cluster(tmp_path / name, PARTIES).parent for name in ("one", "two")]
    configs = [read_config(home / "cluster.toml") for home in homes]
    assert len({config.cluster for config in configs}) == 2
    assert len({config.owner for config in configs}) == 2
    assert len({(home / "ca.pem").read_bytes() for home in homes}) == 2


def test_writing_again_replaces_all_files_and_leaves_no_part_behind(home: Path) -> None:
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    write_cluster(home, PARTIES)
    after = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert before.keys() == after.keys()
    assert all(before[path] != after[path] for path in before)
