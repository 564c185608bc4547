"""State at rest: what is sealed, who can read it, and what happens to who cannot."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import echo_engine
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privserve.credentials import Entry, Limits
from privserve.errors import ConfigError, QueryError
from privserve.party import sealed
from privserve.party.keep import Keep
from privserve.party.sealed import CHUNK_BYTES, derived_key, read_sealed, write_sealed
from privserve.party.session_spec import SessionSpec
from privserve.party.state_key import VARIABLE, read_key

KEY = bytes(range(32))
ABOUT = ("cluster", "bob", "a" * 32, "session")


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 200, 1234])
def test_what_is_written_is_read_whatever_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(sealed, "CHUNK_BYTES", 100)
    content = os.urandom(size)
    write_sealed(tmp_path / "f", KEY, ABOUT, [content[:7], memoryview(content)[7:]])
    assert read_sealed(tmp_path / "f", KEY, ABOUT) == content
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600
    assert content[:50] == b"" or size < 8 or content[:50] not in (tmp_path / "f").read_bytes()


def test_two_files_of_one_content_have_nothing_in_common(tmp_path: Path) -> None:
    for name in "ab":
        write_sealed(tmp_path / name, KEY, ABOUT, [bytes(1000)])
    a, b = ((tmp_path / name).read_bytes()[len(sealed.MAGIC) :] for name in "ab")
    assert len(a) == len(b)
    assert sum(x == y for x, y in zip(a, b, strict=True)) < 30


@pytest.mark.parametrize(
    ("key", "about"),
    [
        (bytes(32), ABOUT),
        (KEY, ("other", *ABOUT[1:])),
        (KEY, ("cluster", "carol", *ABOUT[2:])),
        (KEY, ("cluster", "bob", "b" * 32, "session")),
        (KEY, (*ABOUT[:3], "clients")),
    ],
)
def test_another_key_or_purpose_is_refused_and_the_file_kept(
    tmp_path: Path, key: bytes, about: tuple[str, ...]
) -> None:
    path = tmp_path / "f"
    write_sealed(path, KEY, ABOUT, [b"secret"])
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="cannot be decrypted: the key is another one"):
        read_sealed(path, key, about)
    assert path.read_bytes() == before


def test_every_byte_that_is_changed_and_every_cut_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "CHUNK_BYTES", 40)
    path = tmp_path / "f"
    write_sealed(path, KEY, ABOUT, [bytes(range(100))])
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ConfigError):
            read_sealed(path, KEY, ABOUT)
        path.write_bytes(content[:at])
        with pytest.raises(ConfigError):
            read_sealed(path, KEY, ABOUT)
    path.write_bytes(content + b"x")
    with pytest.raises(ConfigError):
        read_sealed(path, KEY, ABOUT)


def test_chunks_cannot_change_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "CHUNK_BYTES", 40)
    path = tmp_path / "f"
    write_sealed(path, KEY, ABOUT, [bytes(120)])
    content = path.read_bytes()
    head = len(sealed.MAGIC) + sealed.ID_BYTES
    each = sealed.NONCE_BYTES + sealed.LENGTH.size + 40 + sealed.TAG_BYTES
    one, two = content[head : head + each], content[head + each : head + 2 * each]
    path.write_bytes(content[:head] + two + one + content[head + 2 * each :])
    with pytest.raises(ConfigError):
        read_sealed(path, KEY, ABOUT)


def test_a_chunk_is_far_below_what_the_cipher_takes() -> None:
    assert CHUNK_BYTES < 1 << 31


def test_keys_of_different_purposes_differ() -> None:
    made = [derived_key(KEY, *p) for p in [("c", "bob", "s"), ("c", "bob", "j"), ("cb", "ob", "s")]]
    assert len(set(made)) == 3
    assert KEY not in made


# -- the key --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [KEY, KEY.hex().encode() + b"\n", b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"],
    ids=["raw", "hex", "base 64"],
)
def test_a_key_is_read_from_file_command_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    file = tmp_path / "a key"
    file.write_bytes(text)
    assert read_key(file, None) == KEY
    assert read_key(None, f"cat '{file}'") == KEY
    if text != KEY:
        monkeypatch.setenv(VARIABLE, text.decode())
        assert read_key(None, None) == KEY


def test_what_is_no_key_is_refused_and_never_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert read_key(None, None) is None
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_key(tmp_path / "none", None)
    (tmp_path / "short").write_text("5ec2e7" * 5)
    with pytest.raises(ConfigError, match="is no key") as refused:
        read_key(tmp_path / "short", None)
    assert "openssl rand -hex 32" in str(refused.value)
    assert "5ec2e7" not in str(refused.value)
    program = f"{sys.executable} -c"
    for command, why in (
        (f"{program} 'print(5)' secret-argument", "is no key"),
        (f"{program} 'raise SystemExit(3)' secret-argument", "ended with code 3"),
        ("no-such-program secret-argument", "cannot be run"),
        ("'", "is no command line"),
        ("", "is no command line"),
    ):
        with pytest.raises(ConfigError, match=why) as refused:
            read_key(None, command)
        assert "secret-argument" not in str(refused.value)
    monkeypatch.setenv(VARIABLE, KEY.hex())
    with pytest.raises(ConfigError, match="in several ways: --state-key-command, PRIVSERVE"):
        read_key(None, "true")


def test_a_command_is_not_given_to_a_shell(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read_key(None, f"echo {KEY.hex()} > {tmp_path / 'made'}; true")
    assert not (tmp_path / "made").exists()


# -- a party's state ------------------------------------------------------------------------


def a_spec(session: str = "1" * 32, model: str = "m") -> SessionSpec:
    shares = {"w": np.arange(-3, 3).reshape(2, 3), "b": np.array([1 << 62, -1])}
    everybody = Limits(rows=7, models=("m",))
    return SessionSpec(
        session, model, "echo", echo_engine.DESCRIPTION, shares, {"max_batch": 3}, everybody
    )


def keep(home: Path, key: bytes = KEY, *, leads: bool = False) -> Keep:
    return Keep(home, "cluster", "bob", key, leads=leads)


def test_a_session_is_kept_as_it_was_and_found_by_the_next_process(
    tmp_path: Path, echo: None
) -> None:
    first = keep(tmp_path)
    spec, coming = a_spec(), a_spec("2" * 32)
    first.save(spec)
    first.name("m", spec.id)
    first.save(coming)
    first.know([Entry("ann", "a" * 64, Limits(rows=9, models=("m", "n")))])
    first.close()
    second = keep(tmp_path)
    (found, is_current), (other, is_other) = second.sessions()
    assert (found.id, is_current, other.id, is_other) == (spec.id, True, coming.id, False)
    for name, share in spec.shares.items():
        np.testing.assert_array_equal(found.shares[name], share)
    for fact in ("id", "model", "engine", "options", "everybody"):
        assert getattr(found, fact) == getattr(spec, fact)
    assert second.clients() == [Entry("ann", "a" * 64, Limits(rows=9, models=("m", "n")))]
    second.forget(spec.id)
    assert [one.id for one, _ in second.sessions()] == [coming.id]
    second.close()


def test_no_share_lies_on_disk_in_clear(tmp_path: Path, echo: None) -> None:
    kept = keep(tmp_path)
    share = np.frombuffer(os.urandom(8 * 512), np.int64)
    kept.save(SessionSpec("1" * 32, "m", "echo", echo_engine.DESCRIPTION, {"w": share}))
    raw = share.tobytes()
    for path in kept.home.iterdir():
        content = path.read_bytes()
        assert not any(raw[at : at + 16] in content for at in range(0, len(raw), 16))
        assert b"echo" not in content
    kept.close()


def test_a_wrong_key_and_a_second_process_are_refused(tmp_path: Path, echo: None) -> None:
    kept = keep(tmp_path)
    kept.save(a_spec())
    kept.name("m", "1" * 32)
    with pytest.raises(ConfigError, match="in use by another process: bob runs already"):
        keep(tmp_path)
    kept.close()
    with pytest.raises(ConfigError, match="the key is another one"):
        keep(tmp_path, bytes(32))
    again = keep(tmp_path)
    assert len(again.sessions()) == 1
    again.close()


@given(st.binary(max_size=300))
def test_what_is_no_sealed_file_is_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "odd"
    for prefix in (b"", sealed.MAGIC):
        path.write_bytes(prefix + content)
        with pytest.raises(ConfigError):
            read_sealed(path, KEY, ABOUT)


def test_a_disk_that_takes_nothing_is_told_and_what_was_kept_stays(
    tmp_path: Path, echo: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keep(tmp_path)
    kept.save(a_spec())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(QueryError, match=r"bob cannot keep its state in .*No space left"):
        kept.save(a_spec("2" * 32))
    monkeypatch.undo()
    assert [spec.id for spec, _ in kept.sessions()] == ["1" * 32]
    kept.close()


def full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
