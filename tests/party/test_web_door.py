"""Where browsers ask a party: which pages it answers, with what, and which options it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import SMALL, Digits, client_headers, free_workers, make_config, serving, small_model
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

import privserve as ps
from privserve import fixedpoint, oip, sharing
from privserve.calls import tls_context
from privserve.cluster import Cluster
from privserve.config import Browsers, checked_origin
from privserve.errors import ConfigError
from privserve.party import __main__ as party_main
from privserve.party.web_door import allow_pages
from privserve.web_page import WebPage

PAGE = "https://digits.example"
INFER = "/v2/models/m/versions/v/infer"
CORS = "access-control-"


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope)
    status = 429 if request.url.path.endswith("/infer") else 200
    await Response(f"{request.method} {request.url.path}", status)(scope, receive, send)


def ask(method: str, path: str, app: ASGIApp = _echo, **headers: str) -> httpx.Response:
    """What the door answers to one request."""

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app=allow_pages(app, (PAGE, "http://localhost:4080")))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(asked())


def cors(response: httpx.Response) -> dict[str, str]:
    return {k.removeprefix(CORS): v for k, v in response.headers.items() if k.startswith(CORS)}


def test_a_page_that_was_named_asks_what_a_client_does() -> None:
    for method, path in (("GET", "/v2"), ("GET", "/v2/models/m"), ("POST", INFER)):
        answer = ask(method, path, Origin=PAGE)
        assert answer.text == f"{method} {path}"
        assert cors(answer) == {"allow-origin": PAGE, "expose-headers": oip.HEADER_LENGTH}
        assert answer.headers["vary"] == "Origin"


def test_a_browser_is_told_beforehand_what_it_may_send() -> None:
    said = cors(ask("OPTIONS", INFER, Origin=PAGE))
    assert said["allow-origin"] == PAGE
    assert said["allow-methods"] == "POST"
    assert set(said["allow-headers"].split(", ")) == {
        "Authorization",
        "Content-Type",
        oip.HEADER_LENGTH,
    }
    assert "allow-credentials" not in said


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "https://evil.example",
        "null",
        f"{PAGE}.evil.example",
        f"{PAGE}:444",
        "*",
        PAGE.upper(),
    ],
)
def test_no_other_page_is_answered_whatever_it_asks(origin: str | None) -> None:
    """Also none: so asks a page for which a name of its own leads here."""
    headers = {} if origin is None else {"Origin": origin}
    for method, path in (("GET", "/v2"), ("OPTIONS", INFER), ("POST", INFER), ("GET", "/x")):
        answer = ask(method, path, **headers)
        assert answer.status_code == 403
        assert cors(answer) == {}


@pytest.mark.parametrize(
    "path",
    [
        *("/openapi.json", "/privserve/status", "/privserve/stop", "/privserve/revoked"),
        *("/v2/health/live", "/v2/models/m/infer", "/v2/models/m/stats", "/v2/", "/"),
        *("/v2/repository/models/m/load", "/v2/models/m/versions/v/infer/x", "//v2"),
    ],
)
def test_no_other_call_is_there(path: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        assert ask(method, path, Origin=PAGE).status_code == 404


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=30))
def test_only_origins_are_taken_for_one(text: str) -> None:
    for made in (text, f"https://{text}", f"http://{text}", f"https://a.example{text}"):
        try:
            origin = checked_origin(made)
        except ConfigError:
            continue
        url = httpx.URL(origin) if origin != "null" else None
        assert url is None or (url.raw_path in (b"", b"/") and not url.userinfo and url.host)
        assert url is None or url.scheme == "https" or url.host in ("localhost", "127.0.0.1")
        assert "*" not in origin


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("alice", ["--web", "0.0.0.0:0", "--web-origin", PAGE], "not encrypted"),
        ("alice", ["--web", "[::]:0", "--web-origin", PAGE], "not encrypted"),
        ("alice", ["--web", "0"], "go together"),
        ("alice", ["--web-origin", PAGE], "go together"),
        ("alice", ["--web", "0", "--web-origin", "*"], "no origin"),
        ("alice", ["--web", "0", "--web-origin", f"{PAGE}/"], "no origin"),
        ("alice", ["--web", "0", "--web-origin", "http://digits.example"], "no origin"),
        ("carol", ["--web", "0", "--web-origin", PAGE], "dealer"),
    ],
)
def test_a_door_that_would_be_unsafe_is_refused(
    name: str,
    options: list[str],
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    addresses = [f"localhost:{port}" for port in (4700, 4701, 4702)]
    config = make_config(tmp_path, addresses).path.parent / name / "cluster.toml"
    assert party_main.main(["--name", name, "--config", str(config), *options]) == 2
    assert complaint in capsys.readouterr().err


def test_without_the_option_no_page_may_read_an_answer(digits: Digits) -> None:
    """The party's own port sends no such header, and refuses browsers' question beforehand."""
    config = digits.cluster.config
    for party in config.parties:
        base = f"https://{party.address}"
        with httpx.Client(base_url=base, verify=tls_context(config.ca), timeout=20) as front:
            for method, status in (("GET", 200), ("OPTIONS", 405)):
                answer = front.request(method, "/v2", headers={"Origin": PAGE})
                assert (answer.status_code, cors(answer)) == (status, {})


@pytest.fixture(scope="module")
def asked_by_pages() -> Iterator[tuple[Cluster, WebPage]]:
    web = WebPage(0, 2)
    try:
        with Cluster(*free_workers(), browsers=web.browsers) as cluster, small_model() as model:
            model.share(cluster, report=lambda line: None)
            with serving(cluster, model):
                web.serve(cluster.config.cluster, is_open=False)
                yield cluster, web
    finally:
        web.close()


def test_running_parties_answer_a_page_with_its_key_and_nobody_without(
    asked_by_pages: tuple[Cluster, WebPage],
) -> None:
    cluster, web = asked_by_pages
    config = cluster.config
    shares = sharing.split(fixedpoint.encode(SMALL), 2)
    ports = zip(config.compute, web.browsers.ports, strict=True)

    def query(port: int, share: np.ndarray, **more: str) -> httpx.Response:
        with httpx.Client(base_url=f"http://localhost:{port}", timeout=20) as page:
            origin = {"Origin": web.origin}
            (name,) = page.get("/v2", headers=origin).json()["models"]
            facts = page.get(f"/v2/models/{name}", headers=origin).json()
            path = f"/v2/models/{facts['name']}/versions/{facts['versions'][0]}/infer"
            asked = {"id": "page", "parameters": {"binary_data_output": True}}
            parts, headers = oip.format_message(
                asked, {facts["inputs"][0]["name"]: share}, "inputs"
            )
            return page.post(path, content=b"".join(parts), headers={**headers, **origin, **more})

    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(query, port, share, **client_headers(config, p.name))
            for (p, port), share in zip(ports, shares, strict=True)
        ]
        answers = [future.result() for future in futures]
    outputs = []
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert cors(answer)["allow-origin"] == web.origin
        length = answer.headers[oip.HEADER_LENGTH]
        _, tensors = oip.parse_message(answer.content, length, "outputs")
        outputs.append(next(iter(tensors.values())))
    with ps.Client(cluster, timeout=20) as client:
        bits = client.read_model().description["output_fraction_bits"]
        expected = client.query_model(SMALL)
    assert np.allclose(fixedpoint.decode(sharing.join(outputs), bits), expected, atol=0.01)
    refused = query(web.browsers.ports[0], shares[0])
    assert (refused.status_code, refused.json()["code"]) == (401, "unknown_client")
    assert cors(refused)["allow-origin"] == web.origin


def test_the_dealer_has_no_such_port_and_all_of_them_are_on_this_host(
    asked_by_pages: tuple[Cluster, WebPage],
) -> None:
    cluster, web = asked_by_pages
    assert len(web.browsers.ports) == len(cluster.config.compute)
    assert Browsers((1, 2), (PAGE,)).options(2) == []


def test_the_page_is_one_file_with_a_policy_that_names_the_parties(
    asked_by_pages: tuple[Cluster, WebPage],
) -> None:
    _, web = asked_by_pages
    parties = [f"http://localhost:{port}" for port in web.browsers.ports]
    with httpx.Client(base_url=web.origin, timeout=20) as visitor:
        page = visitor.get("/")
        policy = page.headers["content-security-policy"]
        assert f"connect-src 'self' {' '.join(parties)};" in policy
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert visitor.get("/parties.json").json()["parties"] == parties
        for other in ("/../config.py", "/page.html", "/client.key", "/parties.json/"):
            assert visitor.get(other).status_code == 404
        moved = visitor.get("/", headers={"Host": f"127.0.0.1:{web.origin.rpartition(':')[2]}"})
        assert moved.headers["location"] == f"{web.origin}/"
        assert "access-control-allow-origin" not in page.headers
