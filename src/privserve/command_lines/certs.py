"""The options of `privserve certs`."""

from __future__ import annotations

import argparse
from pathlib import Path

from privserve import usage

DEFAULT_CONFIG = Path(".privserve/cluster.toml")


def parser() -> argparse.ArgumentParser:
    """Return the options of `privserve certs`; `certify` is its former name."""
    parser = usage.parser(
        "certs",
        "Sign, renew and revoke the certificates of a cluster's parties. Run where the model "
        "owner's files are, with the authority's secret.",
        {
            "certs sign bob.request": "let a party in that made its key itself",
            "certs renew": "sign the keys that lie here anew",
            "certs revoke bob": "bob's certificates count no more",
            "certs list": "",
        },
    )
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="the cluster.toml")
    parser.add_argument("--secret", type=Path, help="of the authority (default: ca.secret there)")
    commands = parser.add_subparsers(dest="command", required=True)
    signing = usage.add_command(
        commands, "sign", "sign a party's request", {"certs sign bob.request --days 90": ""}
    )
    signing.add_argument("request", type=Path)
    renewing = usage.add_command(
        commands, "renew", "sign the keys that lie here anew", {"certs renew --days 90": ""}
    )
    for one in (signing, renewing):
        one.add_argument("--days", type=int, metavar="N", help="for which it is good")
    revoking = usage.add_command(
        commands, "revoke", "have a party's certificates count no more", {"certs revoke bob": ""}
    )
    revoking.add_argument("party")
    listing = usage.add_command(
        commands, "list", "show the parties' certificates", {"certs list --json": ""}
    )
    usage.add_json(parser, signing, renewing, revoking, listing)
    return parser
