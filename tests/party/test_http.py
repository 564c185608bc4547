"""The HTTP front of running parties: the protocol's answers, and what it refuses."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from serving import Digits, SignedBy, client_headers, wait_until

from privserve import fixedpoint, oip, sharing
from privserve.calls import tls_context
from privserve.owner_calls import Boot

MODEL = "/v2/models/digits-model"
OWNERS_CALLS = [
    ("POST", "/v2/repository/models/digits-model/load"),
    ("POST", "/v2/repository/models/digits-model/unload"),
    ("POST", "/privserve/serve"),
    ("POST", "/privserve/extend"),
    ("POST", "/privserve/stop"),
    ("GET", "/privserve/status"),
]


class Fronts:
    """A plain HTTP client of every party: alice, bob and carol."""

    def __init__(self, digits: Digits) -> None:
        self.config = digits.cluster.config
        self.context = tls_context(self.config.ca)
        self.alice, self.bob, self.carol = (
            httpx.Client(
                base_url=f"https://{p.address}",
                verify=self.context,
                headers=client_headers(self.config, p.name),
                timeout=20,
            )
            for p in self.config.parties
        )

    @property
    def infer(self) -> str:
        """Where to ask; the path names the session that a query was encoded for."""
        version = self.alice.get(MODEL).json()["versions"][0]
        return f"{MODEL}/versions/{version}/infer"

    def owner(self, front: httpx.Client) -> SignedBy:
        """What signs calls to this front as the model owner."""
        about = front.get("/v2").json()
        return SignedBy(self.config, about["party"], Boot.read(about))

    def close(self) -> None:
        for front in (self.alice, self.bob, self.carol):
            front.close()


@pytest.fixture(scope="module")
def fronts(digits: Digits) -> Iterator[Fronts]:
    fronts = Fronts(digits)
    yield fronts
    fronts.close()


def refusal(response: httpx.Response, status: int) -> str:
    """The error's text; every refusal is JSON with a text and a code."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error", "code"}
    return body["error"]


def query_body(shape: list[int], data: list[int] | None = None, **changes: object) -> dict:
    tensor = {"name": "input_layer", "shape": shape, "datatype": "INT64", **changes}
    count = int(np.prod(shape))
    return {"inputs": [{**tensor, "data": [0] * count if data is None else data}]}


@pytest.fixture(scope="module")
def input_name(fronts: Fronts) -> str:
    return fronts.alice.get("/v2/models/digits-model").json()["inputs"][0]["name"]


def test_every_party_says_that_it_lives_and_is_ready(fronts: Fronts) -> None:
    for front in (fronts.alice, fronts.bob, fronts.carol):
        assert front.get("/v2/health/live").json() == {"live": True}
        assert front.get("/v2/health/ready").status_code == 200


def test_the_servers_metadata_name_party_role_and_model(fronts: Fronts) -> None:
    about = fronts.bob.get("/v2").json()
    assert (about["name"], about["party"], about["role"]) == ("privserve", "bob", "compute")
    assert about["compute_parties"] == ["alice", "bob"]
    assert about["models"] == ["digits-model"]
    assert "binary_tensor_data" in about["extensions"]
    assert fronts.carol.get("/v2").json()["role"] == "dealer"


def test_the_models_metadata_are_what_a_client_needs_and_alike_at_both(fronts: Fronts) -> None:
    first, second = (
        front.get("/v2/models/digits-model").json() for front in (fronts.alice, fronts.bob)
    )
    assert first == second
    assert first["platform"].startswith("privserve_")
    assert first["inputs"][0]["shape"] == [-1, 28, 28, 1]
    assert first["outputs"][0]["shape"] == [-1, 10]
    assert first["outputs"][0]["parameters"]["activation"]["op"] == "Softmax"
    assert 0 < first["outputs"][0]["parameters"]["rounded_bits"] < 64
    assert first["parameters"]["input_range"] == [-8.0, 8.0]
    assert fronts.bob.get("/v2/models/digits-model/ready").json() == {"ready": True}


def test_plain_json_from_any_http_client_is_answered(
    digits: Digits, fronts: Fronts, input_name: str
) -> None:
    facts = fronts.alice.get("/v2/models/digits-model").json()["parameters"]
    shares = sharing.split(fixedpoint.encode(digits.images[:2], facts["fraction_bits"]), 2)
    answers = []
    with digits.serving(2), httpx.Client(verify=fronts.context, timeout=20) as slow:
        from concurrent.futures import ThreadPoolExecutor

        def ask(rank: int) -> dict:
            message = oip.format_json({"id": "by hand"}, {input_name: shares[rank]}, "inputs")
            party = fronts.config.compute[rank]
            headers = client_headers(fronts.config, party.name)
            url = f"https://{party.address}{fronts.infer}"
            return slow.post(url, json=message, headers=headers).json()

        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(ask, range(2)))
    parts = [
        oip.parse_message(json.dumps(answer).encode(), None, "outputs")[1] for answer in answers
    ]
    joined = sharing.join([next(iter(part.values())) for part in parts])
    differences = joined - joined[:, :1]  # in the ring: a constant mod 2^64 is added to each row
    logits = fixedpoint.decode(differences, facts["output_fraction_bits"])
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    expected = digits.model.converted.predict(digits.images[:2])
    np.testing.assert_allclose(powers / powers.sum(-1, keepdims=True), expected, atol=2e-2)
    assert all(a["id"] == "by hand" and a["model_name"] == "digits-model" for a in answers)


@pytest.mark.parametrize(
    "path", ["/", "/v2/", "/v2/health/live/", "/v1/models", "/v2/models", "/privserve", "/docs"]
)
def test_an_unknown_path_is_refused(fronts: Fronts, path: str) -> None:
    assert "not part of this server's protocol" in refusal(fronts.alice.get(path), 404)


def test_a_wrong_method_is_refused(fronts: Fronts) -> None:
    assert "not part of" in refusal(fronts.alice.get(fronts.infer), 405)
    assert "not part of" in refusal(fronts.alice.delete("/v2"), 405)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v2", "GET, HEAD"),
        ("/v2/models/stats", "GET, HEAD"),
        (f"{MODEL}/versions/1/config", "GET, HEAD"),
        (f"{MODEL}/infer", "POST"),
        ("/v2/repository/index", "POST"),
        ("/privserve/revoked", "GET, HEAD, POST"),
        ("/privserve/status", "GET, HEAD"),
        ("/openapi.json", "GET, HEAD"),
    ],
)
def test_other_methods_are_refused_with_those_that_a_path_has(
    fronts: Fronts, path: str, allowed: str
) -> None:
    for method in ("OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"):
        response = fronts.bob.request(method, path)
        assert allowed in refusal(response, 405)
        assert response.headers["Allow"] == allowed
    assert "HEAD" in allowed or fronts.bob.head(path).status_code == 405


def test_head_is_answered_as_get_is_but_for_the_body(fronts: Fronts) -> None:
    for path in (
        "/v2",
        MODEL,
        f"{MODEL}/ready",
        "/openapi.json",
        "/privserve/revoked",
        f"{MODEL}x",
    ):
        whole, head = fronts.alice.get(path), fronts.alice.head(path)
        assert (head.status_code, head.content) == (whole.status_code, b"")
        for name in ("Content-Length", "Content-Type"):
            assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "compress"])
def test_another_encoding_is_refused_with_those_that_are_read(
    fronts: Fronts, encoding: str
) -> None:
    response = fronts.alice.post(fronts.infer, content=b"", headers={"Content-Encoding": encoding})
    assert repr(encoding) in refusal(response, 415)
    assert response.headers["Accept-Encoding"] == "gzip, deflate"


def test_the_owners_calls_are_not_compressed_since_their_bytes_are_signed(fronts: Fronts) -> None:
    response = fronts.alice.post(
        "/privserve/clients",
        content=gzip.compress(b"{}"),
        headers={"Content-Encoding": "gzip"},
        auth=fronts.owner(fronts.alice),
    )
    assert "known here: identity" in refusal(response, 415)
    assert response.headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "image/png"])
def test_a_body_of_another_type_is_refused_with_those_that_are_read(
    fronts: Fronts, kind: str
) -> None:
    response = fronts.alice.post(fronts.infer, content=b"", headers={"Content-Type": kind})
    assert "known here: application/json" in refusal(response, 415)
    assert response.headers["Accept"] == "application/json, application/octet-stream"


def test_a_compressed_body_is_bounded_by_what_is_in_it(fronts: Fronts) -> None:
    headers = {"Content-Encoding": "gzip"}
    bomb = gzip.compress(bytes(256 << 20))
    assert len(bomb) < 1 << 19
    assert "longer than" in refusal(
        fronts.alice.post(fronts.infer, content=bomb, headers=headers), 413
    )
    cut = gzip.compress(json.dumps(query_body([1, 28, 28, 1])).encode())[:-1]
    assert "not one whole" in refusal(
        fronts.alice.post(fronts.infer, content=cut, headers=headers), 400
    )


def test_the_index_takes_ready_and_nothing_else(fronts: Fronts) -> None:
    for front in (fronts.alice, fronts.bob, fronts.carol):
        for body in ({}, {"ready": True}, {"ready": False}):
            (entry,) = front.post("/v2/repository/index", json=body).json()
            assert (entry["name"], entry["state"]) == ("digits-model", "READY")
        for bad in ({"ready": 1}, {"read": True}, [], {"ready": None}):
            refusal(front.post("/v2/repository/index", json=bad), 400)
    assert "longer than" in refusal(
        fronts.bob.post("/v2/repository/index", content=b" " * 5000), 413
    )


def test_an_unknown_model_is_named_with_the_one_that_is_served(fronts: Fronts) -> None:
    message = refusal(fronts.alice.get("/v2/models/other"), 404)
    assert "no model 'other'; 'digits-model' is served" in message
    for suffix in ("/ready", "/config", "/stats", "/versions/1", "/versions/1/stats"):
        assert "other" in refusal(fronts.alice.get(f"/v2/models/other{suffix}"), 404)
    assert "other" in refusal(fronts.alice.post("/v2/models/other/versions/1/infer", json={}), 404)


def test_the_dealer_takes_no_query_and_says_who_does(fronts: Fronts, input_name: str) -> None:
    message = refusal(fronts.carol.post(fronts.infer, json=query_body([1, 28, 28, 1])), 403)
    assert "carol is the dealer" in message
    assert "alice" in message
    assert fronts.config.compute[1].address in message


BAD_BODIES = {
    "no JSON": (b"hello", "JSON object"),
    "nothing": (b"", "JSON object"),
    "a list": (b"[1]", "list of 'inputs'"),
    "a deep nest": (b'{"inputs": ' + b"[" * 50_000, "JSON object"),
    "no tensor": (b'{"inputs": []}', "takes the inputs"),
    "an id that is a number": (b'{"id": 5, "inputs": []}', "'id' must be a text"),
    "an id that is too long": (b'{"id": "' + b"x" * 129 + b'", "inputs": []}', "'id' must be"),
}


@pytest.mark.parametrize(("body", "complaint"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_malformed_query_is_refused_with_its_cause(
    fronts: Fronts, body: bytes, complaint: str
) -> None:
    assert complaint in refusal(fronts.alice.post(fronts.infer, content=body), 400)


BAD_TENSORS = {
    "another image size": ({"shape": [1, 27, 28, 1]}, "must have the shape"),
    "no batch axis": ({"shape": [28, 28, 1]}, "must have the shape"),
    "no rows": ({"shape": [0, 28, 28, 1]}, "1 to 1024 rows"),
    "too many rows": ({"shape": [1025, 28, 28, 1]}, "1 to 1024 rows"),
    "a scalar": ({"shape": []}, "rows"),
    "a plaintext": ({"shape": [1, 28, 28, 1], "datatype": "FP32"}, "must be a share"),
    "too little data": ({"shape": [1, 28, 28, 1], "data": [1]}, "needs 784 integers"),
    "another name": ({"shape": [1, 28, 28, 1], "name": "y"}, "takes the inputs"),
}


@pytest.mark.parametrize(("changes", "complaint"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_a_tensor_that_does_not_fit_is_refused_with_its_cause(
    fronts: Fronts, input_name: str, changes: dict, complaint: str
) -> None:
    body = query_body(**{"name": input_name, **changes})
    assert complaint in refusal(fronts.alice.post(fronts.infer, json=body), 400)


def test_binary_data_of_the_wrong_size_is_refused(fronts: Fronts, input_name: str) -> None:
    zeros = np.zeros((1, 28, 28, 1), np.int64)
    parts, headers = oip.format_message({}, {input_name: zeros}, "inputs")
    whole = b"".join(parts)
    short = fronts.alice.post(fronts.infer, content=whole[:-1], headers=headers)
    assert "needs 6272 bytes" in refusal(short, 400)
    long = fronts.alice.post(fronts.infer, content=whole + b"x", headers=headers)
    assert "1 bytes follow" in refusal(long, 400)


def test_an_oversized_body_is_refused_by_its_announced_length(fronts: Fronts) -> None:
    party = fronts.config.compute[0]
    head = (
        f"POST {fronts.infer} HTTP/1.1\r\nHost: {party.address}\r\nContent-Length: {1 << 40}\r\n"
        f"Authorization: {client_headers(fronts.config, 'alice')['Authorization']}\r\n\r\n"
    )
    with (
        socket.create_connection(party.endpoint, timeout=10) as raw,
        fronts.context.wrap_socket(raw, server_hostname=fronts.config.identity("alice")) as sock,
    ):
        sock.sendall(head.encode())
        assert sock.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_an_oversized_body_without_a_length_is_refused_once_it_is_too_long(fronts: Fronts) -> None:
    limit = 4 << 20  # of JSON

    def chunks() -> Iterator[bytes]:
        for _ in range(2 * limit >> 20):
            yield bytes(1 << 20)

    assert "longer than" in refusal(fronts.alice.post(fronts.infer, content=chunks()), 413)
    assert fronts.alice.get("/v2/health/live").status_code == 200


def test_the_query_of_a_client_that_left_does_not_wait(
    digits: Digits, fronts: Fronts, input_name: str
) -> None:
    party = fronts.config.compute[0]
    parts, headers = oip.format_message(
        {"id": "left"}, {input_name: np.zeros((1, 28, 28, 1), np.int64)}, "inputs"
    )
    body = b"".join(parts)
    lines = [
        f"POST {fronts.infer} HTTP/1.1",
        f"Host: {party.address}",
        f"Content-Length: {len(body)}",
    ]
    given = {**headers, **client_headers(fronts.config, "alice")}
    lines += [f"{name}: {value}" for name, value in given.items()]

    def waiting() -> int:
        return digits.cluster.call(party, "GET", "/privserve/status").json()["waiting"]

    with digits.serving():
        with (
            socket.create_connection(party.endpoint, timeout=10) as raw,
            fronts.context.wrap_socket(
                raw, server_hostname=fronts.config.identity("alice")
            ) as sock,
        ):
            sock.sendall("\r\n".join([*lines, "", ""]).encode() + body)
            wait_until(lambda: waiting() == 1, "the query waits for its other share")
        wait_until(lambda: waiting() == 0, "it is withdrawn", 5)


GARBAGE = {
    "nothing": "",
    "a token": "Bearer " + "x" * 43,
    "no fields": "Privserve",
    "three fields": "Privserve 1.-." + "0" * 64,
    "no number": "Privserve x.-." + "0" * 64 + ".AAAA",
    "another number": "Privserve \u00b2.-." + "0" * 64 + ".AAAA",
    "no signature": "Privserve 1.-." + "0" * 64 + ".",
    "no base 64": "Privserve 1.-." + "0" * 64 + ".???",
    "zeros": "Privserve 1.-." + "0" * 64 + "." + "A" * 86 + "==",
}


@pytest.mark.parametrize(("method", "path"), OWNERS_CALLS)
@pytest.mark.parametrize("header", GARBAGE.values(), ids=GARBAGE)
def test_the_owners_calls_need_the_owners_signature(
    fronts: Fronts, method: str, path: str, header: str
) -> None:
    for front in (fronts.alice, fronts.bob, fronts.carol):
        headers = {b"Authorization": header.encode("latin-1")} if header else {}
        response = front.request(method, path, headers=headers)
        assert "only the model owner" in refusal(response, 401)


def test_a_share_that_is_sent_to_the_dealer_is_refused(fronts: Fronts) -> None:
    message = {"session": 16 * "5e", "engine": "crypten", "description": {}, "options": {}}
    parts, headers = oip.format_message(message, {"w": np.ones(3, np.int64)}, "inputs")
    response = fronts.carol.post(
        "/v2/repository/models/digits-model/load",
        content=b"".join(parts),
        headers=headers,
        auth=fronts.owner(fronts.carol),
    )
    assert "the dealer must never be sent a share" in refusal(response, 400)
    assert fronts.carol.get("/v2/health/ready").status_code == 200


BAD_LOADS = {
    "no session": ({"session": None}, "'session' must be 32 hexadecimal digits"),
    "no engine": ({"engine": 3}, "'engine' must be a text"),
    "no description": ({"description": "x"}, "'description' must be an object"),
    "a malformed description": ({"description": {"inputs": []}}, "'inputs' must be a list"),
    "no options": ({"options": None}, "'options' must be an object"),
}


@pytest.mark.parametrize(("changes", "complaint"), BAD_LOADS.values(), ids=BAD_LOADS)
def test_a_malformed_load_is_refused_and_the_model_stays(
    fronts: Fronts, changes: dict, complaint: str
) -> None:
    message = {
        "session": 16 * "5e",
        "engine": "crypten",
        "description": {},
        "options": {},
        **changes,
    }
    response = fronts.bob.post(
        "/v2/repository/models/digits-model/load",
        json={**message, "inputs": []},
        auth=fronts.owner(fronts.bob),
    )
    assert complaint in refusal(response, 400)
    assert fronts.bob.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize("count", [0, -1, 1.5, "3", True])
def test_a_limit_that_is_no_positive_number_is_refused(fronts: Fronts, count: object) -> None:
    response = fronts.alice.post(
        "/privserve/serve", json={"num_requests": count}, auth=fronts.owner(fronts.alice)
    )
    assert "positive whole number" in refusal(response, 400)


def test_only_the_leader_takes_the_order_to_serve(fronts: Fronts) -> None:
    for front in (fronts.bob, fronts.carol):
        response = front.post("/privserve/serve", json={}, auth=fronts.owner(front))
        assert "alice at" in refusal(response, 409)


def test_the_status_is_for_the_owner_and_shows_no_share(fronts: Fronts) -> None:
    status = fronts.alice.get("/privserve/status", auth=fronts.owner(fronts.alice)).json()
    assert (status["party"], status["role"], status["state"]) == ("alice", "compute", "loaded")
    assert "shares" not in json.dumps(status)


def test_clients_must_speak_tls_1_3(fronts: Fronts) -> None:
    context = tls_context(fronts.config.ca)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        httpx.Client(verify=context) as old,
        pytest.raises(httpx.TransportError, match=r"(?i)protocol|alert|version"),
    ):
        old.get(f"https://{fronts.config.compute[0].address}/v2")


def test_plain_http_is_not_answered(fronts: Fronts) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{fronts.config.compute[0].address}/v2")
