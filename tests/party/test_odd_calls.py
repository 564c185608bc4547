"""Calls that are rightly signed and hold something odd: each was an internal error, or worse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from raw_http import Answer, Front
from serving import wait_until
from stage import Stage
from test_fuzz_calls import LOAD, Material

from privserve import oip
from privserve.authority import Authority, check_revoked
from privserve.credentials import read_entries
from privserve.engines import read_options
from privserve.errors import ConfigError, InputError

ENTRY = {"name": "lab", "digest": "0f" * 32}


@pytest.mark.parametrize("digest", ["é" * 64, "0F" * 32, "0" * 63, "g" * 64, 5, None])
def test_a_digest_that_is_none_is_refused(digest: object) -> None:
    """One with an accent in it was taken, and every query of that client was an internal error."""
    with pytest.raises(InputError, match="client 'lab' has no digest"):
        read_entries([{**ENTRY, "digest": digest}])


def test_limits_that_are_none_are_not_quoted() -> None:
    """Lists nested this deep can be read and not be written."""
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    for key in ("rows", "expires"):
        with pytest.raises(InputError, match=f"'{key}' must be"):
            read_entries([{**ENTRY, key: deep}])


@pytest.mark.parametrize(
    "options",
    [
        *({"max_batch": value} for value in ("x", 0, -5, 1e400, True, None, 10**6)),
        *({"max_batch": 0}, {"max_delay_ms": 0.5}, {"max_delay_ms": -1}, {"max_delay_ms": 10_001}),
        *({"piece_bytes": 0}, {"pool_bytes": "1"}, {"description": 1}, {"mesh": {}}, [], None),
    ],
)
def test_an_option_that_is_none_is_refused_before_a_session_begins(options: object) -> None:
    with pytest.raises(ConfigError, match="option"):
        read_options(options)


def test_options_that_are_some_are_taken() -> None:
    given = {
        "max_batch": 3,
        "max_delay_ms": 5,
        "pool_queries": 7,
        "pool_bytes": 1 << 20,
        "ready_packs": 0,
    }
    assert read_options(given) == given
    assert read_options({}) == {}


def test_a_certificate_beside_a_list_of_revoked_ones_is_not_kept(tmp_path: Path) -> None:
    """A thief of the owner's key alone could have parties trust an authority of his own."""
    authority, rogue = Authority.fresh("c"), Authority.fresh("c")
    pem = {a: a.certificate.public_bytes(serialization.Encoding.PEM) for a in (authority, rogue)}
    (tmp_path / "ca.pem").write_bytes(pem[authority])
    listed = authority.revoked([7])
    for sent in (listed + pem[rogue], pem[rogue] + listed, listed + b"-----BEGIN X509 CRL-----\n"):
        assert check_revoked(sent, tmp_path / "ca.pem").pem == listed


class Owner:
    """The model's owner, who says odd things to alice."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.front, self.material = stage, Front(stage.config), Material(stage)

    def call(self, target: str, body: bytes, *headers: tuple[str, str]) -> Answer:
        shown = self.stage.owner.sign("alice", "POST", target, body)
        return self.front.ask("alice", "POST", target, [("Authorization", shown), *headers], body)

    def load(self, change: Callable[[dict[str, Any]], None]) -> Answer:
        message = json.loads(json.dumps(self.material.message("alice")))
        change(message)
        parts, headers = oip.format_message(message, self.material.tensors("alice"), "inputs")
        body = b"".join(bytes(part) for part in parts)
        return self.call(LOAD, body, (oip.HEADER_LENGTH, headers[oip.HEADER_LENGTH]))

    def status(self) -> dict[str, Any]:
        shown = self.stage.owner.sign("alice", "GET", "/privserve/status", b"")
        answer = self.front.ask(
            "alice", "GET", "/privserve/status", [("Authorization", shown)], b""
        )
        assert answer.status == 200, answer
        found: dict[str, Any] = json.loads(answer.body)
        return found


def set_engine(message: dict[str, Any]) -> None:
    message["engine"] = "\ud800"


def set_session(message: dict[str, Any]) -> None:
    message["session"] = "s" * 5000


def set_batch(message: dict[str, Any]) -> None:
    message["options"] = {"max_batch": "many"}


@pytest.mark.parametrize("change", [set_engine, set_session, set_batch])
def test_an_odd_load_is_refused_and_leaves_the_session_alone(
    stage: Stage, change: Callable[[dict[str, Any]], None]
) -> None:
    stage.model.share(stage.cluster, report=lambda line: None)
    owner = Owner(stage)
    answer = owner.load(change)
    assert answer.status == 400, answer
    assert owner.status()["state"] == "loaded"
    stage.unload()


def test_a_description_with_text_that_is_no_text_is_told_as_it_is(stage: Stage) -> None:
    """Lone surrogates are JSON, and no UTF-8: status and metadata were internal errors."""
    owner = Owner(stage)

    def odd(message: dict[str, Any]) -> None:
        message["description"]["ops"][0]["kind"] = "\ud800\n" * 5000

    assert owner.load(odd).status == 202
    wait_until(lambda: owner.status()["state"] == "failed", "it is refused")
    assert "does not know the op" in owner.status()["reason"]
    assert "\n" not in owner.status()["reason"]
    stage.check_log("alice")


def test_a_list_of_revoked_certificates_that_is_no_text_is_refused(stage: Stage) -> None:
    owner = Owner(stage)
    for words in ("\ud800", "é", "", 5):
        answer = owner.call("/privserve/revoked", json.dumps({"revoked": words}).encode())
        assert answer.status == 400, answer
    stage.check_log("alice")
