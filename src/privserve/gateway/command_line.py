"""The options of `privserve gateway`."""

from __future__ import annotations

import argparse
from pathlib import Path

from privserve import usage

DEFAULT_CONFIG = Path(".privserve/cluster.toml")
DEFAULT_HTTP = "127.0.0.1:8000"


def parser() -> argparse.ArgumentParser:
    """Return the options of `privserve gateway`."""
    parser = usage.parser(
        "gateway",
        "Answer plain inference requests by private queries of a cluster's model. Runs at the "
        "client's organisation: this process sees inputs and answers, and no party does.",
        {
            "gateway --config lab/cluster.toml": f"HTTP at {DEFAULT_HTTP}",
            "gateway --http 127.0.0.1:8000 --grpc 127.0.0.1:8001": "and gRPC: privserve[gateway]",
        },
    )
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, help="the client's cluster.toml"
    )
    parser.add_argument("--key", type=Path, help="client.key (default: beside cluster.toml)")
    parser.add_argument(
        "--http", default=DEFAULT_HTTP, metavar="HOST:PORT", help=f"default: {DEFAULT_HTTP}"
    )
    parser.add_argument(
        "--grpc", metavar="HOST:PORT", help="also gRPC, such as 127.0.0.1:8001 (default: no)"
    )
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="PEM; for HTTP and gRPC")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM")
    parser.add_argument(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="whose pages browsers may ask from, such as https://app.example; more than once for "
        "several (default: nobody's)",
    )
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="of a query (60)"
    )
    return parser
