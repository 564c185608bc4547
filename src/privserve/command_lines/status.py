"""The options of `privserve status`."""

from __future__ import annotations

import argparse
from pathlib import Path

from privserve import usage

DEFAULT_CONFIG = Path(".privserve/cluster.toml")


def parser() -> argparse.ArgumentParser:
    """Return the options of `privserve status`."""
    parser = usage.parser(
        "status",
        "See all parties of a cluster and their models. Exit code: 0 where all are up and every "
        "model is loaded, 1 else, 2 where the files cannot be used.",
        {
            "status": "one look",
            "status --config cluster.toml --watch": "again every 2 s, until Ctrl-C",
            "status --json": "a JSON object, for programs",
        },
    )
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="the cluster.toml")
    parser.add_argument("--watch", action="store_true", help="again every 2 s, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    return parser
