"""The options of `privserve clients`."""

from __future__ import annotations

import argparse
from pathlib import Path

from privserve import usage

DEFAULT_CONFIG = Path(".privserve/cluster.toml")


def parser() -> argparse.ArgumentParser:
    """Return the options of `privserve clients`."""
    parser = usage.parser(
        "clients",
        "Let clients ask a cluster's model, limit them, and turn them away. Run where the model "
        "owner's files are. Parties that run are told at once.",
        {
            "clients add lab --rows 10000": "make clients/lab, to be handed to the client",
            "clients limit lab --rows-per-minute 600": "other limits",
            "clients revoke lab": "let it in no more",
            "clients list": "",
        },
    )
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="the cluster.toml")
    commands = parser.add_subparsers(dest="command", required=True)
    add = usage.add_command(
        commands,
        "add",
        "let a client in, and make its directory",
        {"clients add lab --models digits --expires 2027-01-31": "one model, for a while"},
    )
    limit = usage.add_command(
        commands,
        "limit",
        "give a client other limits; those that are not named go",
        {"clients limit lab --rows 500": "500 rows in all, as fast as it likes"},
    )
    revoke = usage.add_command(
        commands, "revoke", "let a client in no more", {"clients revoke lab": ""}
    )
    listing = usage.add_command(
        commands, "list", "show the clients and their limits", {"clients list --json": ""}
    )
    for one in (add, limit, revoke):
        one.add_argument("name")
    for one in (add, limit):
        one.add_argument("--rows", type=int, metavar="N", help="in total")
        one.add_argument("--rows-per-minute", type=int, metavar="N")
        one.add_argument("--rows-per-query", type=int, metavar="N")
        one.add_argument("--expires", metavar="DAY", help="the last day, such as 2027-01-31")
        one.add_argument(
            "--models",
            metavar="A,B",
            type=lambda text: text.split(","),
            help="the models that it may ask, by name (default: all)",
        )
    usage.add_json(parser, add, limit, revoke, listing)
    return parser
