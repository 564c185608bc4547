"""What those who may speak to a front can say: its clients, and the model's owner.

Covered here, with a real client's and the real owner's key, for every route that reads a body: its
JSON with values of other types and sizes at every depth, keys that are missing, new or there twice,
huge numbers, NaN, text that is no text, deep nesting; its bytes damaged, cut short or repeated;
compressed, in this or another encoding than it says;
lengths that lie; a load of shares and descriptions like that, at one party and at all of them;
tables of clients and lists of revoked certificates. test_front_fuzz asks as a client of a real
network; test_validation and mutated_programs have 100,000 descriptions of programs.

A further call is an entry of `CALLS`.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import random
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from mutations import case, cases, changed, damaged, mutant, text_of
from raw_http import Answer, Front
from serving import serving, wait_until
from stage import NAMES, Stage

from privserve import oip, sharing
from privserve.authority import Authority, check_revoked
from privserve.credentials import KEY_FILE, ClientKey, ClientTable
from privserve.engines import Prepared
from privserve.errors import ConfigError

LOAD = "/v2/repository/models/small/load"
Sent = tuple[str, str, bytes, list[tuple[str, str]]]
"""Method, target, body and headers of a call."""


class Material:
    """What is right to say to each party of a stage."""

    def __init__(self, stage: Stage, prepared: Prepared | None = None) -> None:
        self.prepared = prepared or stage.model.prepare()
        self.shares = {n: sharing.split(p, 2) for n, p in self.prepared.parameters.items()}
        self.clients = ClientTable.read(stage.config)
        self.version = "none"
        # One for all loads: what lonely sessions dial is kept for a minute, for each of them.
        self.session = uuid4().hex
        self.input = str(self.prepared.description["inputs"][0]["name"])
        self.output = str(self.prepared.description["outputs"][0]["name"])

    def message(self, party: str, session: str = "") -> dict[str, Any]:
        return {
            "session": session or self.session,
            "engine": self.prepared.engine,
            "description": self.prepared.description,
            "options": {"max_batch": 64},
            "everybody": {"rows": 3},
            "clients": self.clients.entries(party),
        }

    def tensors(self, party: str) -> dict[str, np.ndarray]:
        rank = NAMES.index(party)
        return {} if party == "carol" else {n: s[rank] for n, s in self.shares.items()}


def with_tensors(
    draw: random.Random, message: Any, tensors: dict[str, np.ndarray]
) -> tuple[bytes, list[tuple[str, str]]]:
    """A binary message, damaged in its JSON, its length or its tensors."""
    parts, _ = oip.format_message(message, tensors, "inputs")
    head, data = bytes(parts[0]), b"".join(bytes(part) for part in parts[1:])
    way = draw.random()
    if way < 0.6:
        head = text_of(draw, changed(draw, json.loads(head)))
    elif way < 0.8:
        head = damaged(draw, head)
    else:
        data = damaged(draw, data)
    odd = ["0", "1", "-1", "1e3", "9" * 19, "9" * 4301, str(len(head) + 1), str(len(head) - 1)]
    length = draw.choice(odd) if draw.random() < 0.1 else str(len(head))
    return head + data, [(oip.HEADER_LENGTH, length)]


def a_query(draw: random.Random, party: str, material: Material) -> Sent:
    target = f"/v2/models/small/versions/{material.version}/infer"
    query: dict[str, Any] = {"id": f"q{draw.random()}"}
    if draw.random() < 0.5:
        query["outputs"] = [{"name": material.output, "parameters": {"binary_data": True}}]
        query["parameters"] = {"binary_data_output": False, "timeout": 10**9, "priority": 0}
    share = np.arange(8, dtype=np.int64).reshape(2, 4)
    if draw.random() < 0.4:
        body, headers = with_tensors(draw, query, {material.input: share})
    else:
        body, headers = mutant(draw, oip.format_json(query, {material.input: share}, "inputs")), []
    if draw.random() < 0.2:
        body, headers = packed(draw, body), [*headers, ("Content-Encoding", encoding(draw))]
    return "POST", target, body, headers


def packed(draw: random.Random, body: bytes) -> bytes:
    """A body compressed in one way or another, and maybe damaged then."""
    whole = draw.choice([gzip.compress, zlib.compress])(body, draw.randrange(10))
    return damaged(draw, whole) if draw.random() < 0.3 else whole


def encoding(draw: random.Random) -> str:
    odd = ["br", "gzip, gzip", "identity", "\xff", "x" * 300, "GZIP", "deflate;q=1", "", "x-gzip"]
    return draw.choice(["gzip", "deflate"] if draw.random() < 0.8 else odd)


def a_load(draw: random.Random, party: str, material: Material) -> Sent:
    body, headers = with_tensors(draw, material.message(party), material.tensors(party))
    odd = ["/load", "/v2/repository/models/a%0ab/load", "/v2/repository/models/%00/load"]
    return "POST", draw.choice([LOAD] * 20 + odd), body, headers


def a_table(draw: random.Random, party: str, material: Material) -> Sent:
    entry = {"name": "lab", "digest": "0f" * 32, "rows": 3, "expires": "2027-01-31"}
    other = {**entry, "name": "bank", "rows_per_minute": 10}
    return "POST", "/privserve/clients", mutant(draw, {"clients": [entry, other]}), []


def a_list(draw: random.Random, party: str, material: Material) -> Sent:
    listed = STRANGE.revoked([1, 2, 3]).decode()
    if draw.random() < 0.5:
        listed = damaged(draw, listed.encode()).decode("latin-1")
    return "POST", "/privserve/revoked", mutant(draw, {"revoked": listed}), []


def a_serve(draw: random.Random, party: str, material: Material) -> Sent:
    if draw.random() < 0.5:
        extend = {
            "lease": "0f",
            "limit": 5,
            "number": draw.randrange(9),
            "final": draw.random() < 0.5,
        }
        return "POST", "/privserve/extend", mutant(draw, extend), []
    serve = {"num_requests": 5, "lease": draw.choice(["0f", None])}
    return "POST", "/privserve/serve", mutant(draw, serve), []


def without_a_body(draw: random.Random, party: str, material: Material) -> Sent:
    paths = ["/privserve/stop", "/v2/repository/models/small/unload", "/privserve/status"]
    path = draw.choice(paths)
    return (
        "GET" if "status" in path else "POST",
        path,
        draw.choice([b"", b"", b"{}", b"x" * 99]),
        [],
    )


STRANGE = Authority.fresh("another cluster")
CALLS: list[Callable[[random.Random, str, Material], Sent]] = [
    *(a_query, a_query, a_query, a_load, a_load, a_table, a_list, a_serve, without_a_body)
]


def check(answer: Answer) -> None:
    """Every answer is the protocol's, and says what is wrong in JSON."""
    assert 200 <= answer.status < 500 or answer.status in (503, 504), answer
    if answer.headers.get("content-type") == "application/json":
        said = json.loads(answer.body)
        assert answer.status < 300 or set(said) == {"error", "code"}, answer


def make_calls(stage: Stage, usual: int) -> None:
    front, material = Front(stage.config), Material(stage)
    key = ClientKey.read(stage.config.path.parent / KEY_FILE)
    seen: set[tuple[str, int]] = set()
    sizes = {name: stage.check_log(name) for name in NAMES}
    for number in cases(usual):
        sent: Sent = ("", "", b"", [])
        with case(number, lambda: sent) as draw:  # noqa: B023 - said at once
            name, call = draw.choice(NAMES), draw.choice(CALLS)
            sent = call(draw, name, material)
            method, target, body, headers = sent
            if call is a_query:
                shown = key.authorization(stage.config.cluster, name)
            else:
                shown = stage.owner.sign(name, method, target, body)
            answer = front.ask(name, method, target, [*headers, ("Authorization", shown)], body)
            check(answer)
            seen.add((call.__name__, answer.status))
            sizes[name] = stage.check_log(name, sizes[name])
    front.close()
    wanted = {("a_load", 202), ("a_load", 400), ("a_table", 400), ("a_list", 400), ("a_table", 200)}
    assert wanted <= seen or len(cases(usual)) < 300, seen


def ask_queries(stage: Stage, usual: int) -> None:
    """Queries while the model is served, where what is whole is waited for and then refused."""
    stage.model.share(stage.cluster, report=lambda line: None)
    front, material = Front(stage.config), Material(stage)
    about = json.loads(front.ask("alice", "GET", "/v2/models/small", [], b"").body)
    material.version = about["versions"][0]
    key = ClientKey.read(stage.config.path.parent / KEY_FILE)
    seen: set[int] = set()
    with serving(stage.cluster, stage.model):
        for number in cases(usual):
            sent: Sent = ("", "", b"", [])
            with case(number, lambda: sent) as draw:  # noqa: B023 - said at once
                name = draw.choice(NAMES[:2])
                sent = a_query(draw, name, material)
                method, target, body, headers = sent
                shown = key.authorization(stage.config.cluster, name)
                answer = front.ask(name, method, target, [*headers, ("Authorization", shown)], body)
                check(answer)
                seen.add(answer.status)
    front.close()
    assert {400, 504} <= seen or len(cases(usual)) < 100, seen


def test_no_call_makes_a_front_fail(stage: Stage) -> None:
    with stage.undisturbed():
        make_calls(stage, 800)


def test_no_query_makes_a_front_fail(stage: Stage) -> None:
    with stage.undisturbed():
        ask_queries(stage, 70)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_call_of_fifteen_thousand_makes_a_front_fail(stage: Stage) -> None:
    with stage.undisturbed():
        make_calls(stage, 15_000)
        ask_queries(stage, 2000)


# -- what all parties are given alike -------------------------------------------------------


def load_everywhere(stage: Stage, material: Material, usual: int) -> None:
    """A model with something wrong in it, at all parties: refused, failed with words, or served."""
    front = Front(stage.config)
    sizes = {name: stage.check_log(name) for name in NAMES}
    for number in cases(usual):
        said: list[Any] = []
        with case(number, lambda: said) as draw:  # noqa: B023 - said at once
            stage.unload()
            session = hashlib.sha256(f"{number}-{draw.random()}".encode()).hexdigest()[:32]
            description = json.loads(json.dumps(material.prepared.description))
            description = changed(draw, description) if draw.random() < 0.7 else description
            said.append(description)
            damage = draw.random() < 0.5
            for name in NAMES:
                message = {**material.message(name, session), "description": description}
                tensors = material.tensors(name)
                if damage and tensors:
                    one = draw.choice(sorted(tensors))
                    size = draw.choice([0, 1, tensors[one].size + 1])
                    tensors = {**tensors, one: np.resize(tensors[one], size)}
                parts, headers = oip.format_message(message, tensors, "inputs")
                body = b"".join(bytes(part) for part in parts)
                shown = ("Authorization", stage.owner.sign(name, "POST", LOAD, body))
                length = (oip.HEADER_LENGTH, headers[oip.HEADER_LENGTH])
                answer = front.ask(name, "POST", LOAD, [shown, length], body)
                check(answer)
                said.append((name, answer.status))
            taken = [name for name, status in said[1:] if status == 202]
            if len(taken) == len(NAMES):
                wait_until(partial(settled, stage, front, taken), "loaded, or not", 30)
            for name in NAMES:
                sizes[name] = stage.check_log(name, sizes[name])
    front.close()


def settled(stage: Stage, front: Front, names: list[str]) -> bool:
    """Whether all parties know what became of the session; it failed for a reason that is said."""
    found = []
    for name in names:
        shown = ("Authorization", stage.owner.sign(name, "GET", "/privserve/status", b""))
        found.append(json.loads(front.ask(name, "GET", "/privserve/status", [shown], b"").body))
    assert not any("internal error" in status["reason"] for status in found), found
    return all(status["state"] != "loading" for status in found)


def test_no_model_makes_a_party_fail_without_words(stage: Stage) -> None:
    with stage.undisturbed():
        load_everywhere(stage, Material(stage), 20)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_model_of_a_thousand_makes_a_party_fail_without_words(stage: Stage) -> None:
    with stage.undisturbed():
        load_everywhere(stage, Material(stage), 1000)


# -- lists of revoked certificates ----------------------------------------------------------


def test_a_damaged_list_of_revoked_certificates_is_refused_or_the_same(tmp_path: Path) -> None:
    authority = Authority.fresh("c")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.certificate.public_bytes(serialization.Encoding.PEM))
    good = authority.revoked([1, 2, 3])
    for number in cases(2000):
        with case(number) as draw:
            listed = damaged(draw, good)
            if draw.random() < 0.3:
                listed += draw.choice([good, ca.read_bytes(), struct.pack("<q", 1)])
            with contextlib.suppress(ConfigError):
                assert check_revoked(listed, ca).pem == good
