"""Whatever is sent to a party's front: an answer of the protocol's, never a 500."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from serving import Digits, client_headers

from privserve import oip
from privserve.calls import tls_context

MODEL = "/v2/models/digits-model"
REQUESTS = int(os.environ.get("PRIVSERVE_FUZZ_REQUESTS", "1200"))

ODD: list[object] = [
    *(None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, float("nan"), float("inf")),
    *(2**31, 2**63, -(2**63), 2**64, 10**400, "", "x", "\ud800", "\udfff\ud800", "\x00"),
    *("é" * 200, "a" * 5000, [], {}, [[]], [0] * 50, [[[[[[[[1]]]]]]]], {"a": {"b": []}}),
    *([2**31 - 1] * 16, [0, 2**31 - 1, 2**31 - 1, 2**31 - 1], [1, 28, 28, 1], [-1], ["1"]),
    *({"binary_data_size": size} for size in (10**30, -8, True, 6272)),
    *("INT64", "FP32", "../..", "input_layer"),
]
LENGTHS = [
    "0",
    "1",
    "10",
    "9" * 12,
    "9" * 4300,
    "9" * 4301,
    "9" * 20_000,
    "-1",
    "+5",
    "1e3",
    "\xb2",
    "0x10",
    "1,2",
]


@pytest.fixture(scope="module")
def fronts(digits: Digits) -> Iterator[list[httpx.Client]]:
    config = digits.cluster.config
    context = tls_context(config.ca)
    clients = [
        httpx.Client(
            base_url=f"https://{p.address}",
            verify=context,
            headers=client_headers(config, p.name),
            timeout=20,
        )
        for p in config.parties
    ]
    yield clients
    for client in clients:
        client.close()


def base(name: str) -> dict[str, object]:
    tensor = {"name": name, "shape": [1, 28, 28, 1], "datatype": "INT64", "data": [0] * 784}
    return {"id": "fuzz", "inputs": [tensor]}


def mutated(rng: random.Random, message: object, depth: int = 0) -> object:
    """The message with a few parts of it replaced, doubled, dropped or nested."""
    if rng.random() < 0.12:
        return rng.choice(ODD)
    if isinstance(message, dict):
        out = {k: mutated(rng, v, depth + 1) for k, v in message.items() if rng.random() > 0.05}
        if rng.random() < 0.15:
            out[str(rng.choice(["id", "parameters", "inputs", "outputs", "\ud800", "data"]))] = (
                rng.choice(ODD)
            )
        return out
    if isinstance(message, list) and depth < 3:
        out = [mutated(rng, v, depth + 1) for v in message]
        return out * 2 if rng.random() < 0.05 else out
    return message


def text_of(message: object) -> bytes:
    return json.dumps(message).encode()


def damaged(rng: random.Random, body: bytes) -> bytes:
    kind = rng.randrange(6)
    at = rng.randrange(len(body) + 1)
    if kind == 0:
        return body[:at]
    if kind == 1:
        return body[:at] + rng.randbytes(8) + body[at:]
    if kind == 2:
        return rng.randbytes(rng.randrange(200))
    if kind == 3:
        return b"[" * 100_000 + body
    return body


def test_no_body_and_no_header_makes_a_front_fail(
    digits: Digits, fronts: list[httpx.Client]
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    about = fronts[0].get(MODEL).json()
    name, version = about["inputs"][0]["name"], about["versions"][0]
    infer = f"{MODEL}/versions/{version}/infer"
    paths = [infer] * 8 + [
        f"{MODEL}/infer",
        f"{MODEL}/versions/%ff%fe/infer",
        "/v2/models/%00/infer",
        "/v2/models/%ed%a0%80/versions/1/infer",
        f"{MODEL}/versions/{version}/stats",
        "/v2/repository/index",
        "/privserve/serve",
        "/privserve/extend",
        "/privserve/stop",
        "/v2/repository/models/digits-model/load",
        "/%f0%28%8c%28",
    ]
    seen: dict[int, int] = {}
    with digits.serving():
        for number in range(REQUESTS):
            message = mutated(rng, base(name))
            body, headers = damaged(rng, text_of(message)), {}
            if rng.random() < 0.4:
                headers[oip.HEADER_LENGTH] = rng.choice(
                    [*LENGTHS, str(len(body)), str(len(body) // 2)]
                )
                body += struct.pack("<q", 5) * rng.randrange(800)
            if rng.random() < 0.1:
                headers["Authorization"] = rng.choice(
                    ["Bearer", "Bearer \xff", "x" * 300, "Basic a"]
                )
            path = rng.choice(paths)
            # A whole query would wait for its other share; here it only has to be taken.
            front = fronts[2] if whole(message) else rng.choice(fronts)
            encoded = {k: v.encode("latin-1", "replace") for k, v in headers.items()}
            answer = front.post(path, content=body, headers=encoded)
            seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
            assert answer.status_code < 500 or answer.status_code in (503, 504), (
                f"seed {seed}, request {number}: {path} {headers} {body[:300]!r}: {answer.text}"
            )
            if answer.headers.get("content-type") == "application/json":
                answer.json()
    assert {400, 401, 403} <= set(seen), seen


def whole(message: object) -> bool:
    try:
        (tensor,) = message["inputs"]  # type: ignore[index]
        return tensor["shape"] == [1, 28, 28, 1] and len(tensor["data"]) == 784
    except (TypeError, KeyError, ValueError):
        return False


@pytest.mark.parametrize(
    ("change", "headers"),
    [
        ({"id": "\ud800"}, {}),
        ({"id": "a\nb"}, {}),
        ({"id": "\x00"}, {}),
        ({"name": "\udfff", "datatype": "FP32"}, {}),
        ({"name": "\ud800", "shape": "x"}, {}),
        ({"name": "\ud800"}, {}),
        ({"shape": [0, 2**31 - 1, 2**31 - 1, 2**31 - 1], "data": []}, {}),
        ({"shape": [2**31 - 1] * 16, "data": []}, {}),
        ({"data": [10**4000] * 784}, {}),
        ({}, {oip.HEADER_LENGTH: "9" * 4301}),
        ({}, {oip.HEADER_LENGTH: "9" * 20_000}),
        ({}, {oip.HEADER_LENGTH: "\xb2"}),
        ({}, {"Content-Length-Odd": "9" * 5000}),
    ],
)
def test_the_oddest_queries_are_answered_at_every_party(
    digits: Digits, fronts: list[httpx.Client], change: dict, headers: dict
) -> None:
    """Each compute party gets its part of the query, so that whatever is whole is answered."""
    about = fronts[0].get(MODEL).json()
    message = base(about["inputs"][0]["name"])
    target = message if "id" in change else message["inputs"][0]  # type: ignore[index]
    target.update(change)  # type: ignore[attr-defined]
    path = f"{MODEL}/versions/{about['versions'][0]}/infer"
    encoded = {k: v.encode("latin-1") for k, v in headers.items()}
    body = json.dumps(message).encode()
    with digits.serving(), ThreadPoolExecutor(3) as pool:
        answers = list(
            pool.map(lambda front: front.post(path, content=body, headers=encoded), fronts)
        )
    for answer in answers:
        assert answer.status_code < 500, answer.text
        answer.json()


@pytest.mark.parametrize("path", ["/v2", "/v2/models/%ed%a0%80", "/v2/%c3%28", "/\\x", "/v2?a=%ff"])
def test_odd_paths_are_answered(fronts: list[httpx.Client], path: str) -> None:
    for front in fronts:
        for method in ("GET", "POST", "DELETE", "BREW"):
            assert front.request(method, path).status_code < 500


def test_after_all_that_queries_are_answered(digits: Digits) -> None:
    import privserve as ps

    with digits.serving(), ps.Client(digits.cluster) as client:
        got = client.query_model(digits.images[:4])
    assert np.array_equal(got.argmax(1), digits.labels[:4])
