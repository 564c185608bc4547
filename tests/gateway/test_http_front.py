"""The HTTP front on the wire: statuses, bodies, browsers, clients that leave."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import logging
import socket
import ssl
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gateway_process import GatewayProcess, gateway
from serving import SMALL, Digits, free_workers, serving, small_model

import privserve as ps
from privserve.gateway.refusals import note_bug

INFER = "/v2/models/digits-model/infer"
PAGE = "https://app.example"


@contextlib.contextmanager
def connected(address: str) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        yield connection
    finally:
        connection.close()


def ask(
    address: str, method: str, path: str, body: Any = None, headers: Any = None
) -> tuple[int, dict[str, str], Any]:
    """One request: (status, headers, JSON of the answer, where there is one)."""
    with connected(address) as connection:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        text = answer.read()
        heads = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, heads, json.loads(text) if text else None


def request_of(x: np.ndarray, name: str = "input_layer") -> bytes:
    tensor = {"name": name, "shape": list(x.shape), "datatype": "FP32", "data": x.tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


ONE = request_of(np.zeros((1, 28, 28, 1)))


def test_the_paths_of_the_protocol_are_there(digits: Digits, front: GatewayProcess) -> None:
    model = "/v2/models/digits-model"
    for path, key in {
        "/v2": "extensions",
        "/v2/health/live": "live",
        model: "inputs",
        f"{model}/versions/1": "inputs",
    }.items():
        status, _, said = ask(front.http, "GET", path)
        assert status == 200
        assert said[key]
    ready = ("/v2/health/ready", f"{model}/ready", f"{model}/versions/1/ready")
    for path in ready:
        assert ask(front.http, "GET", path)[0] == 503, "it is shared, and not served"
    with digits.serving():
        for path in ready:
            status, _, said = ask(front.http, "GET", path)
            assert (status, said["ready"]) == (200, True)
        for path in (f"{model}/infer", f"{model}/versions/1/infer"):
            status, _, said = ask(front.http, "POST", path, ONE)
            assert (status, said["model_version"]) == (200, "1")
            assert "id" not in said
    for path in (f"{model}/versions/2", f"{model}/versions/2/ready", "/v2/models/other/ready"):
        assert ask(front.http, "GET", path)[0] == 404


BOMB = gzip.compress(bytes(100 << 20))
REFUSED: dict[str, tuple[str, str, Any, dict[str, str], int, str]] = {
    "an unknown path": ("GET", "/v1/models", None, {}, 404, "not part of"),
    "a GET of infer": ("GET", INFER, None, {}, 405, "not part of"),
    "a POST of metadata": ("POST", "/v2", b"{}", {}, 405, "not part of"),
    "another type": ("POST", INFER, ONE, {"Content-Type": "text/html"}, 415, "'text/html'"),
    "another packing": ("POST", INFER, ONE, {"Content-Encoding": "br"}, 415, "gzip or deflate"),
    "no gzip": ("POST", INFER, ONE, {"Content-Encoding": "gzip"}, 400, "Content-Encoding says"),
    "half a gzip": (
        "POST",
        INFER,
        gzip.compress(ONE)[:-9],
        {"Content-Encoding": "gzip"},
        400,
        "cut off",
    ),
    "a bomb": ("POST", INFER, BOMB, {"Content-Encoding": "gzip"}, 413, "fewer rows"),
    "a long body": ("POST", INFER, None, {"Content-Length": "999999999"}, 413, "fewer rows"),
    "no JSON": ("POST", INFER, b"{", {}, 400, "JSON"),
    "a head that is no number": (
        "POST",
        INFER,
        ONE,
        {"Inference-Header-Content-Length": "-1"},
        400,
        "not a number of bytes",
    ),
    "a head beyond the body": (
        "POST",
        INFER,
        ONE,
        {"Inference-Header-Content-Length": "99999999"},
        400,
        "99999999 bytes",
    ),
    "another model": ("POST", "/v2/models/other/infer", ONE, {}, 404, "'digits-model'"),
    "another version": ("POST", INFER.replace("/infer", "/versions/9/infer"), ONE, {}, 404, "'9'"),
    "a page's request": ("POST", INFER, ONE, {"Origin": PAGE}, 403, "--cors"),
    "a preflight": (
        "OPTIONS",
        INFER,
        None,
        {"Origin": PAGE, "Access-Control-Request-Method": "POST"},
        403,
        "--cors",
    ),
}


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "words"), REFUSED.values(), ids=REFUSED
)
def test_a_request_that_cannot_be_answered_has_its_status_and_cause(
    front: GatewayProcess,
    method: str,
    path: str,
    body: Any,
    headers: dict[str, str],
    status: int,
    words: str,
) -> None:
    got, heads, said = ask(front.http, method, path, body, headers)
    assert got == status
    assert list(said) == ["error"]
    assert words in said["error"]
    if status == 405:
        assert set(heads["allow"].split(", ")) <= {"POST", "GET", "HEAD"}
    assert "access-control-allow-origin" not in heads
    assert ask(front.http, "GET", "/v2/health/live")[0] == 200


@pytest.mark.parametrize(
    ("packing", "pack"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda plain: zlib.compress(plain, wbits=-15)),
        ("", lambda plain: (plain[i : i + 1000] for i in range(0, len(plain), 1000))),
    ],
    ids=["gzip", "zlib", "bare deflate", "chunked"],
)
def test_bodies_come_packed_and_in_pieces(
    digits: Digits, front: GatewayProcess, packing: str, pack: Any
) -> None:
    headers = {"Content-Encoding": packing} if packing else {}
    with digits.serving():
        assert ask(front.http, "POST", INFER, pack(ONE), headers)[0] == 200


def test_a_connection_takes_one_request_after_another(
    digits: Digits, front: GatewayProcess
) -> None:
    with digits.serving(), connected(front.http) as connection:
        for body, status in ((ONE, 200), (b"{", 400), (ONE, 200)):
            connection.request("POST", INFER, body)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status


def test_pages_are_answered_where_they_are_named(digits: Digits) -> None:
    named = ("--cors", PAGE, "--cors", "http://localhost:3000")
    with digits.serving(), gateway(digits.cluster.config.path, *named) as front:
        for page in (PAGE, "http://localhost:3000"):
            status, heads, _ = ask(front.http, "POST", INFER, ONE, {"Origin": page})
            assert (status, heads["access-control-allow-origin"]) == (200, page)
            asks = {"Origin": page, "Access-Control-Request-Method": "POST"}
            asks["Access-Control-Request-Headers"] = "content-type,inference-header-content-length"
            with connected(front.http) as connection:
                connection.request("OPTIONS", INFER, headers=asks)
                assert connection.getresponse().status == 200
        for page in ("https://app.example.evil", "http://app.example", "null"):
            status, heads, _ = ask(front.http, "POST", INFER, ONE, {"Origin": page})
            assert status == 403
            assert "access-control-allow-origin" not in heads
        front.stop()


def test_tls_protects_both_fronts(digits: Digits) -> None:
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    home = digits.cluster.config.path.parent / "alice"  # any certificate for localhost would do
    files = ("--tls-cert", str(home / "alice.pem"), "--tls-key", str(home / "alice.key"))
    ca = digits.cluster.config.ca
    with gateway(digits.cluster.config.path, *files) as front:
        http_port, grpc_port = (a.rpartition(":")[2] for a in (front.http, front.grpc))
        secure = http.client.HTTPSConnection(
            f"localhost:{http_port}", timeout=30, context=ssl.create_default_context(cafile=str(ca))
        )
        secure.request("GET", "/v2/health/live")
        assert secure.getresponse().status == 200
        secure.close()
        trusted = grpc.ssl_channel_credentials(ca.read_bytes())
        with grpc.secure_channel(f"localhost:{grpc_port}", trusted) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=30).live
        front.stop()


def test_who_leaves_withdraws_the_query_and_who_asks_too_much_is_told(tag: str) -> None:
    with ps.Cluster(*free_workers()) as cluster, small_model() as model:
        model.share(cluster, options={"max_delay_ms": 3000})
        name = model.converted.inputs[0].name
        one = request_of(SMALL, name)
        path = f"/v2/models/{model.name}/infer"
        with gateway(cluster.config.path) as front, serving(cluster, model, num_requests=1):
            host, _, port = front.http.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=30) as leaves:
                head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(one)}\r\n\r\n"
                leaves.sendall(head.encode() + one)
                # Asked over the same lanes: the parties have the query by then.
                assert ask(front.http, "GET", f"/v2/models/{model.name}/ready")[0] == 200
            # The one row that is served is still there.
            assert ask(front.http, "POST", path, one)[0] == 200
            assert ask(front.http, "POST", path, one)[0] == 429
            most = 16 * 1024
            for rows, status in ((most + 1, 413), (most, 429)):
                x = np.zeros((rows, 4), np.float32)
                tensor = {
                    "name": name,
                    "shape": list(x.shape),
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": x.nbytes},
                }
                said = json.dumps({"inputs": [tensor]}).encode()
                length = {"Inference-Header-Content-Length": str(len(said))}
                assert ask(front.http, "POST", path, said + x.tobytes(), length)[0] == status
            front.stop()


def test_the_gateways_log_holds_no_value(digits: Digits) -> None:
    marker = 7654.125
    with digits.serving(), gateway(digits.cluster.config.path) as front:
        asked = [
            (request_of(digits.images[:1]), 200),
            (request_of(np.full((1, 28, 28, 1), marker)), 422),
            (request_of(np.full((1, 28, 27, 1), marker)), 400),
            (request_of(np.full((1, 28, 28, 1), marker))[:-4], 400),
            (request_of(np.zeros((1, 28, 28, 1)), name=str(marker)), 400),
        ]
        for body, status in asked:
            assert ask(front.http, "POST", INFER, body)[0] == status
        with connected(front.http) as connection:
            connection.putrequest("POST", INFER)
            connection.putheader("Content-Length", "100000")
            connection.endheaders(str(marker).encode())
        assert ask(front.http, "GET", "/v2/health/live")[0] == 200
        said = front.stop()
    assert "7654" not in said
    assert said.splitlines()[-1] == "stopped"
    assert "PLAINTEXT" in said


def test_a_bug_is_logged_by_its_place_and_not_by_its_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    try:
        float("a secret 7654")
    except ValueError as error:
        with caplog.at_level(logging.ERROR):
            note_bug(error)
    assert "ValueError" in caplog.text
    assert "test_http_front.py" in caplog.text
    assert "7654" not in caplog.text
