"""A span for each batch, for an OpenTelemetry collector (the extra `otel`).

Where OTEL_EXPORTER_OTLP_ENDPOINT names a collector, which is how every program that knows
OpenTelemetry is told of one, a compute party sends it when each batch ran and what its stages took.
The other variables of OpenTelemetry's hold as well, OTEL_TRACES_SAMPLER among them. A span has the
numbers that metrics have, and no query's id: a batch is of several clients.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from privserve.party.statistics import RunTime, Traced
from privserve.party.turns import Piece

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
NEEDED = "opentelemetry.exporter"
FLUSH_SECONDS = 1.0
"""How long a party that ends waits for its last spans to be taken."""
log = logging.getLogger("privserve")
_tracers: list[Tracer] = []
"""What makes spans: one, or none where nobody asked for them."""


def send_spans(party: str) -> Callable[[], None]:
    """Send spans of all sessions that begin from now on, if a collector is named.

    Returns what ends that.
    """
    if not os.environ.get(ENDPOINT):
        return lambda: None
    if not _is_installed():
        log.warning(
            "%s: %s is set, but no span is sent: that takes pip install 'privserve[otel]'",
            party,
            ENDPOINT,
        )
        return lambda: None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME", "privserve")
    resource = Resource.create({"service.name": name, "privserve.party": party})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracers[:] = [provider.get_tracer("privserve")]

    def end() -> None:
        _tracers.clear()
        # It tries for longer than a party may take to end where the collector is away.
        last = threading.Thread(target=provider.shutdown, daemon=True)
        last.start()
        last.join(FLUSH_SECONDS)

    return end


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec(f"{NEEDED}.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False


def spans_of(model: str, session: str) -> Traced | None:
    """Return what makes the spans of a session's batches; None where nobody asked for them."""
    if not _tracers:
        return None
    tracer = _tracers[0]

    def trace(batch: Sequence[Piece], took: RunTime) -> None:
        ended = time.time_ns()
        whole = took.inputs + took.engine + took.outputs
        queued = max(query.begun_ns - query.since_ns for query, _, _ in batch)
        tracer.start_span(
            "privserve.batch",
            start_time=ended - whole,
            attributes={
                "privserve.model": model,
                "privserve.session": session,
                "privserve.queries": len(batch),
                "privserve.rows": sum(piece.rows for piece in batch),
                "privserve.queue_ms": queued / 1e6,
                "privserve.packs_ms": took.packs / 1e6,
                "privserve.exchanges_ms": took.exchanges / 1e6,
                "privserve.compute_ms": took.computing / 1e6,
            },
        ).end(ended)

    return trace
