"""The options of `privserve bench`, but for those of `--load`, which are in `load`."""

from __future__ import annotations

import argparse
from pathlib import Path

from privserve import usage
from privserve.bench.options import numbers
from privserve.samples import DIGITS_MODEL


def parser() -> argparse.ArgumentParser:
    """Return the options of `privserve bench`."""
    parser = usage.parser(
        "bench",
        "Measure engines on this machine. Every engine and party count gets its own processes on "
        "TLS channels, all of them alive during the whole run; measurements go round robin, and "
        "every figure is a median. HTTP is not in them; --load measures what clients see.",
        {
            "bench": "both engines, three and four parties, several batches: minutes",
            "bench --engine ottt --batch 1 --parties 3": "one point",
            "bench --large resnet50": "single queries through a large network",
            "bench --load --clients 1,64 --json": "many clients at a whole cluster",
            "bench --network lan --network wan": "parties and client apart",
        },
    )
    parser.add_argument("--engine", type=lambda t: t.split(","), default=["crypten", "ottt"])
    parser.add_argument("--batch", type=numbers, default=[1, 8, 32, 128], metavar="1,8,...")
    parser.add_argument(
        "--parties", type=numbers, default=[3, 4], metavar="3,4", help="with dealer"
    )
    parser.add_argument("--model", type=Path, default=DIGITS_MODEL)
    parser.add_argument("--rounds", type=int, default=3, help="of the round robin")
    parser.add_argument("--sizes", action="store_true", help="also wider models and a ResNet-20")
    parser.add_argument(
        "--large",
        action="append",
        metavar="MODEL",
        help="instead, single queries through resnet50, mobilenetv2, densenet121 or a file",
    )
    parser.add_argument(
        "--load",
        action="store_true",
        help="instead, many clients at a whole cluster; `--load --help` says more",
    )
    parser.add_argument(
        "--network",
        action="store_true",
        help="instead, a cluster whose parties are apart; `--network --help` says more",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw latency and throughput")
    return parser
