"""The options of one party's process."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from privserve import usage
from privserve.config import Timeouts


def parser() -> argparse.ArgumentParser:
    """Return the options of `privserve party`."""
    parser = usage.parser(
        "party",
        "Run one party in the foreground until it is interrupted; `privserve launch --party` is "
        "the same.",
        {"party --name bob --config bob/cluster.toml": "on bob's host"},
    )
    parser.add_argument("--name", required=True, help="which party of cluster.toml this is")
    parser.add_argument("--config", type=Path, default=Path("cluster.toml"))
    parser.add_argument(
        "--cell", type=int, default=0, metavar="N", help="of which cell of cluster.toml (0)"
    )
    parser.add_argument(
        "--listen",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="where it listens, where that is not its address (repeat for several)",
    )
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="where it keeps what it is told, where that is not beside the cluster.toml: the "
        "list of revoked certificates and, sealed with a key, its shares of models",
    )
    parser.add_argument(
        "--listen-fd", type=int, action="append", default=[], help=argparse.SUPPRESS
    )
    parser.add_argument("--lifeline-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--metrics",
        metavar="[HOST:]PORT",
        help="answer Prometheus at http://HOST:PORT/metrics, plain and to whoever asks, so on this "
        "host alone (localhost) if no HOST is named; 0: any free port",
    )
    parser.add_argument(
        "--web",
        metavar="PORT",
        help="let browsers ask at http://localhost:PORT, for pages of --web-origin alone",
    )
    parser.add_argument(
        "--web-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="with --web: of a page that may ask, such as https://digits.example (may be repeated)",
    )
    parser.add_argument("--log-json", action="store_true", help="log a JSON object a line")
    parser.add_argument(
        "--log-queries", action="store_true", help="log each query: who, how many rows, outcome"
    )
    for name, default in asdict(Timeouts()).items():
        parser.add_argument(
            f"--{name}-timeout", type=float, default=default, help=argparse.SUPPRESS
        )
    parser.add_argument("--state-key-file", type=Path, metavar="FILE", help="with the key for that")
    parser.add_argument("--state-key-command", metavar="COMMAND", help="that prints the key")
    return parser
