"""Spans of batches, as a collector gets them over OTLP."""

from __future__ import annotations

import gzip
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from serving import SMALL, free_workers, serving, small_model

import privserve as ps
from privserve.party import spans

otlp = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")


class Collector:
    """Takes what is sent to /v1/traces."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        taken = self.requests

        class Taking(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                taken.append(otlp.ExportTraceServiceRequest.FromString(body))
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Taking)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def spans(self) -> list[tuple[dict[str, Any], Any]]:
        """What each resource says of itself, and a span of it."""
        return [
            (values(resource.resource.attributes), span)
            for request in list(self.requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def close(self) -> None:
        """Take nothing any more; idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


def values(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    one = Collector()
    yield one
    one.close()


def test_each_batch_is_a_span_with_its_stages(
    collector: Collector, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(spans.ENDPOINT, collector.url)
    began = time.time_ns()
    with ps.Cluster(*free_workers()) as cluster, small_model() as model:
        model.share(cluster, report=lambda line: None)
        with serving(cluster, model), ps.Client(cluster.config.path, timeout=20) as client:
            for rows in (1, 2, 3):
                client.query_model(np.repeat(SMALL, rows, axis=0))
        session = cluster.models()[0].session
    # The parties are gone: they sent what they had.
    found = collector.spans()
    assert {told["service.name"] for told, _ in found} == {"privserve"}
    for party in ("alice", "bob"):
        mine = [span for told, span in found if told["privserve.party"] == party]
        attributes = [values(span.attributes) for span in mine]
        assert [a["privserve.rows"] for a in attributes] == [1, 2, 3], party
        for span, told in zip(mine, attributes, strict=True):
            assert span.name == "privserve.batch"
            assert began < span.start_time_unix_nano < span.end_time_unix_nano < time.time_ns()
            took = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
            stages = [told[f"privserve.{stage}_ms"] for stage in ("packs", "exchanges", "compute")]
            assert sum(stages) == pytest.approx(took, abs=1e-3)
            assert told["privserve.queue_ms"] >= 0
            assert (told["privserve.model"], told["privserve.session"]) == ("model", session)
            assert told["privserve.queries"] == 1
    assert not [told for told, _ in found if told["privserve.party"] == "carol"]


def test_a_collector_that_is_away_keeps_no_party_from_its_end(
    collector: Collector, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector.close()
    monkeypatch.setenv(spans.ENDPOINT, collector.url)
    with ps.Cluster(*free_workers()) as cluster, small_model() as model:
        model.share(cluster, report=lambda line: None)
        with serving(cluster, model), ps.Client(cluster.config.path, timeout=20) as client:
            client.query_model(SMALL)
        processes = dict(cluster.cells[0]._processes)
        cluster.stop()
    assert {process.returncode for process in processes.values()} == {0}, "none was killed"


def test_without_the_packages_a_party_says_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(spans.ENDPOINT, "http://localhost:1")
    monkeypatch.setattr(spans, "NEEDED", "no_such_package_anywhere")
    with caplog.at_level(logging.WARNING, "privserve"):
        spans.send_spans("bob")()
    assert "pip install 'privserve[otel]'" in caplog.text
    assert spans.spans_of("m", "s") is None
    monkeypatch.delenv(spans.ENDPOINT)
    spans.send_spans("bob")()
    assert spans.spans_of("m", "s") is None
