"""The options of `privserve models`."""

from __future__ import annotations

import argparse
from pathlib import Path

from privserve import usage

DEFAULT_CONFIG = Path(".privserve/cluster.toml")


def parser() -> argparse.ArgumentParser:
    """Return the options of `privserve models`."""
    parser = usage.parser(
        "models",
        "See which models a cluster has, and stop one. Run where the model owner's files are.",
        {
            "models": "those of .privserve/cluster.toml",
            "models --config cluster/cluster.toml stop NAME": "have every party forget one",
        },
    )
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="the cluster.toml")
    commands = parser.add_subparsers(dest="command")
    listing = usage.add_command(
        commands,
        "list",
        "show the models, and what each takes of memory at a compute party (default)",
        {"models list --json": "for programs"},
    )
    stop = usage.add_command(
        commands, "stop", "have every party forget a model; others go on", {"models stop NAME": ""}
    )
    stop.add_argument("name")
    usage.add_json(parser, listing)
    return parser
