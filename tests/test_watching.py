"""Watching a cluster that runs: what its parties' metrics and logs say, and what they do not."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import numpy as np
import pytest
from scraped import json_lines, log_of, metrics_url, scrape
from serving import ROOT, SMALL, client_headers, free_workers, serving, small_model, wait_until
from several import net, numbers_for

import privserve as ps
from privserve import clients, sharing
from privserve.calls import tls_context
from privserve.cluster import Cluster
from privserve.config import Watching

DASHBOARD = ROOT / "deploy" / "grafana" / "privserve.json"
PARTIES = ("alice", "bob", "carol")
SPLIT: list[np.ndarray] = []
"""Every share that was made in this process, of weights and queries."""


@pytest.fixture(scope="module")
def watched() -> Iterator[tuple[ps.Cluster, ps.SecureModel]]:
    """A cluster that is watched in every way, its model, and clients 'default' and 'lab'."""
    split = sharing.split

    def recorded(*given: Any, **more: Any) -> list[np.ndarray]:
        shares = split(*given, **more)
        SPLIT.extend(share.copy() for share in shares)
        return shares

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "split", recorded)
        watching = Watching(metrics_port=0, log_json=True, log_queries=True)
        with Cluster(*free_workers(), watching=watching) as cluster, small_model() as model:
            add = ["--config", str(cluster.config.path), "add", "lab", "--rows", "5"]
            model.share(cluster, report=lambda line: None)
            assert clients.main(add) == 0
            yield cluster, model


def as_lab(cluster: ps.Cluster) -> ps.Client:
    home = cluster.config.path.parent / "clients" / "lab"
    return ps.Client(home / "cluster.toml", timeout=20)


def refused(client: ps.Client, rows: int) -> type[BaseException]:
    with pytest.raises(ps.QueryError) as caught:
        client.query_model(np.repeat(SMALL, rows, axis=0))
    return type(caught.value)


def test_the_numbers_are_those_that_were_asked(
    watched: tuple[ps.Cluster, ps.SecureModel],
) -> None:
    cluster, model = watched
    before, began = {name: scrape(cluster, name) for name in PARTIES}, time.monotonic()
    assert before["alice"]("privserve_serving", model="model") == 0
    default = ps.Client(cluster.config.path, timeout=20)
    with serving(cluster, model), default, as_lab(cluster) as lab:
        for _ in range(3):
            default.query_model(SMALL)
        default.query_model(np.repeat(SMALL, 4, axis=0))
        lab.query_model(np.repeat(SMALL, 2, axis=0))
        assert refused(lab, 4) is ps.LimitReached  # 3 of its 5 are left
        during = scrape(cluster, "alice")
        assert during("privserve_serving", model="model") == 1
        assert during("privserve_query_lanes_open") == 2
        assert during("privserve_queries_waiting", model="model") == 0
    assert before["carol"]("privserve_party_info", party="carol", role="dealer", version="0.1.0")
    assert refused_when_idle(cluster) is ps.NotServing
    for name in ("alice", "bob"):
        now = {
            outcome: number
            for outcome, number in outcomes(scrape(cluster, name).samples).items()
            if number != outcomes(before[name].samples).get(outcome, 0)
        }
        assert now == {"answered": 5, "limit_reached": 1, "not_serving": 1}, name
        after = scrape(cluster, name)
        of = {"model": "model"}
        assert after("privserve_rows_total", **of) == 9
        assert after("privserve_query_seconds_count", **of) == 5
        assert after("privserve_query_seconds_bucket", le="+Inf", **of) == 5
        batches = after("privserve_batches_total", **of)
        assert 1 <= batches <= 5
        for stage in ("packs", "exchanges", "compute"):
            assert after("privserve_stage_seconds_count", stage=stage, **of) == batches
        whole = after("privserve_query_seconds_sum", **of)
        stages = ("queue", "packs", "exchanges", "compute")
        parts = [after("privserve_stage_seconds_sum", stage=stage, **of) for stage in stages]
        assert 0 < sum(parts) <= whole, "a query took what its stages took, and a bit more"
        assert whole < 5 * (time.monotonic() - began), "five queries, in seconds"
        assert parts[2] > 0, "exchanges take time"
        assert parts[3] > 0, "and so does computing"
        assert after("privserve_exchanges_total", **of) > 0
        assert 0 < after("privserve_pool_packs", **of) <= after("privserve_pool_slots", **of)
        assert after("privserve_sessions", state="loaded", **of) == 1
        assert 89 < after("privserve_certificate_days_left") <= 90
    alice = scrape(cluster, "alice")
    assert alice("privserve_client_rows_total", client="default") == 7
    assert alice("privserve_client_rows_total", client="lab") == 2
    assert alice("privserve_client_limit_rows", client="lab") == 5
    bob, carol = scrape(cluster, "bob"), scrape(cluster, "carol")
    assert "privserve_client_rows_total" not in bob.text, "the leader alone counts"
    assert "privserve_queries" not in carol.text
    assert "privserve_rows" not in carol.text
    sent = alice("privserve_sent_bytes_total", model="model", peer="bob")
    assert sent > before["alice"]("privserve_sent_bytes_total", model="model", peer="bob")
    # What one sent has arrived at the other, but for a heartbeat under way.
    got = bob("privserve_received_bytes_total", model="model", peer="alice")
    assert abs(sent - got) < 200


def refused_when_idle(cluster: ps.Cluster) -> type[BaseException]:
    with ps.Client(cluster.config.path, timeout=20) as client:
        return refused(client, 1)


def outcomes(samples: Any) -> dict[str, float]:
    return {
        dict(labels)["outcome"]: number
        for (name, labels), number in samples.items()
        if name == "privserve_queries_total"
    }


def test_queries_that_no_session_takes_are_counted_by_why(
    watched: tuple[ps.Cluster, ps.SecureModel],
) -> None:
    cluster, _ = watched
    session = cluster.models()[0].session
    party = cluster.config.compute[0]
    before = scrape(cluster, "alice").samples

    def ask(version: str, headers: dict[str, str]) -> int:
        path = f"https://{party.address}/v2/models/model/versions/{version}/infer"
        with httpx.Client(verify=tls_context(cluster.config.ca), trust_env=False) as http:
            extensions = {"sni_hostname": cluster.config.identity("alice")}
            return http.post(path, json={}, headers=headers, extensions=extensions).status_code

    shown = client_headers(cluster.config, "alice")
    assert ask("0" * 32, shown) == 409
    assert ask(session, {}) == 401
    assert ask(session, shown) == 400
    after = scrape(cluster, "alice").samples
    grown = {
        (dict(labels)["model"], dict(labels)["outcome"]): number - before.get((name, labels), 0)
        for (name, labels), number in after.items()
        if name == "privserve_queries_total" and number != before.get((name, labels), 0)
    }
    assert grown == {
        ("", "stale_session"): 1,
        ("model", "unknown_client"): 1,
        ("model", "bad_input"): 1,
    }


def test_a_party_may_be_scraped_while_queries_run_and_counts_never_fall(
    watched: tuple[ps.Cluster, ps.SecureModel],
) -> None:
    """Also where the model is replaced, and its session before forgotten."""
    cluster, _ = watched
    over, errors = threading.Event(), []
    seen: list[float] = []

    def ask() -> None:
        with ps.Client(cluster.config.path, model="four", timeout=20) as client:
            while not over.is_set():
                with contextlib.suppress(ps.NotServing):
                    client.query_model(numbers_for("four"))

    def guarded() -> None:
        try:
            ask()
        except BaseException as error:
            errors.append(error)

    first, second = net("four"), net("four", 2)
    first.share(cluster, report=lambda line: None)
    thread = threading.Thread(target=guarded)
    servers = []
    try:
        for model in (first, second):
            if model is second:
                second.share(cluster, report=lambda line: None)
            servers.append(threading.Thread(target=serve_quietly, args=(model,)))
            servers[-1].start()
            if model is first:
                thread.start()
            start = scrape(cluster, "bob")("privserve_rows_total", model="four")

            def has_grown(least: float = start + 20) -> bool:
                seen.append(scrape(cluster, "bob")("privserve_rows_total", model="four"))
                return seen[-1] >= least or bool(errors)

            wait_until(has_grown, "rows are counted while queries run")
        servers[0].join(20)
        wait_until(
            lambda: len([m for m in cluster.models() if m.name == "four"]) == 1, "one is unloaded"
        )
        has_grown()
    finally:
        over.set()
        thread.join(20)
        second.stop()
        for server in servers:
            server.join(20)
    assert not errors, errors
    assert seen == sorted(seen), "the sum over both sessions never fell"
    cluster.stop_model("four")
    bob = scrape(cluster, "bob")
    assert bob("privserve_rows_total", model="four") >= seen[-1], "also when it is over"
    assert bob("privserve_sessions", model="four", state="ended") == 1
    assert bob("privserve_sessions", model="four", state="loaded") == 0


def serve_quietly(model: ps.SecureModel) -> None:
    with contextlib.suppress(ps.ClusterError, ps.QueryError):
        model.serve()


def test_only_metrics_are_answered_and_strangers_are_no_surprise(
    watched: tuple[ps.Cluster, ps.SecureModel],
) -> None:
    cluster, _ = watched
    url = metrics_url(cluster, "carol")
    assert url.startswith("http://127.0.0.1:"), "on this host alone"
    for path, method, status in (("/", "GET", 404), ("/metrics", "POST", 405)):
        asked = urllib.request.Request(url.replace("/metrics", path), method=method)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(asked, timeout=10)
        assert caught.value.code == status
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=accept), timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert answer.read().endswith(b"# EOF\n")


WORDS = re.compile(r"\b(?:privserve|process)_[a-z_]+\b")


def test_every_query_of_the_dashboard_names_what_a_party_has(
    watched: tuple[ps.Cluster, ps.SecureModel],
) -> None:
    board = json.loads(DASHBOARD.read_text())
    known = frozenset().union(*(scrape(watched[0], name).names for name in PARTIES))
    expressions = [t["expr"] for panel in board["panels"] for t in panel.get("targets", [])]
    named = {word for expression in expressions for word in WORDS.findall(expression)}
    assert named <= known, named - known
    assert len(named) > 15
    for expression in expressions:
        assert expression.count("(") == expression.count(")"), expression
        assert '{job="$job"' in expression
    for variable in board["templating"]["list"]:
        assert set(WORDS.findall(str(variable.get("definition", "")))) <= known


def test_the_dashboard_has_what_an_importer_asks_for() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert board["uid"] == "privserve"
    assert board["id"] is None, "or it would take another one's place"
    assert isinstance(board["schemaVersion"], int)
    assert board["title"]
    variables = {v["name"]: v for v in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            refs = [target["refId"] for target in panel["targets"]]
            assert refs
            assert len(set(refs)) == len(refs)
            assert panel["description"]
    used = set(
        re.findall(r"\$([a-z]+)\b", " ".join(re.findall(r'"expr": (.*)', DASHBOARD.read_text())))
    )
    assert used <= set(variables), "other variables are Grafana's own, which begin with __"


def test_logs_are_json_with_the_queries_ids_and_hold_no_share(
    watched: tuple[ps.Cluster, ps.SecureModel],
) -> None:
    """The last one, for its cluster's bad end is logged as well."""
    cluster, model = watched
    with serving(cluster, model), ps.Client(cluster.config.path, timeout=20) as client:
        client.query_model(np.repeat(SMALL, 3, axis=0))
    logs = {name: json_lines(log_of(cluster, name)) for name in PARTIES}
    for name, lines in logs.items():
        for line in lines:
            assert line["party"] == name
            assert datetime.fromisoformat(line["time"]).utcoffset() is not None
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
            assert line["level"] in ("info", "warning")
            assert line["event"]
        loaded = next(line for line in lines if "is loaded" in line["event"])
        assert re.fullmatch("[0-9a-f]{32}", loaded["session"])
        assert loaded["model"] == "model"
    asked = {name: [line for line in logs[name] if "request" in line] for name in logs}
    assert asked["carol"] == [], "the dealer sees no query"
    last = {name: asked[name][-1] for name in ("alice", "bob")}
    assert last["alice"]["request"] == last["bob"]["request"], "one id at all parties"
    for line in last.values():
        told = {key: line[key] for key in ("client", "rows", "outcome", "model")}
        assert told == {"client": "default", "rows": 3, "outcome": "answered", "model": "model"}
        assert 0 < line["ms"] < 20_000
    assert {"answered", "limit_reached", "not_serving"} <= {q["outcome"] for q in asked["alice"]}
    text = "".join(log_of(cluster, name).read_text() for name in PARTIES)
    check_no_share(text, SPLIT)


def check_no_share(text: str, shares: list[np.ndarray]) -> None:
    """Fail where a log has a word of a share, in any writing that comes to mind."""
    words = np.concatenate([share.ravel() for share in shares]).astype("<i8")
    assert len(words) > 100
    for word in words[:: len(words) // 2000 + 1]:
        if abs(int(word)) < 1 << 40:
            continue  # as few of the random ones are, and might stand there by chance
        raw = word.tobytes()
        for written in (str(word), str(word.view("<u8")), raw.hex(), raw[::-1].hex()):
            assert written not in text
        assert f"{word.view('<u8'):x}" not in text
        assert base64.b64encode(raw).decode()[:10] not in text
        assert repr(raw)[2:-1] not in text


def test_the_check_for_shares_finds_one() -> None:
    shares = [np.arange(200) * 0x0123456789ABCDE + (1 << 50)]
    check_no_share("nothing of theirs", shares)
    for found in (str(shares[0][7]), shares[0][7].tobytes().hex()):
        with pytest.raises(AssertionError):
            check_no_share(f'{{"event": "x {found} y"}}', shares)
