"""The options of `privserve batch`."""

from __future__ import annotations

import argparse
from pathlib import Path

from privserve import usage

DEFAULT_CONFIG = Path(".privserve/cluster.toml")
RAY_ROWS = 4096


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("has to be at least 1")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 86_400:
        raise argparse.ArgumentTypeError("goes from 0 to 86400 seconds")
    return value


def parser() -> argparse.ArgumentParser:
    """Return the options of `privserve batch`."""
    parser = usage.parser(
        "batch",
        "Ask for many rows. Reads them in order, asks with queries of a size that it finds by "
        "itself, and writes the answers in the same order. Whatever ends it, the same command goes "
        "on where it was: no row whose answer was written is asked again, and none is left out.",
        {
            "batch --input rows.npy --output answers.npy": "",
            "batch --input rows.parquet --output answers.parquet": "needs privserve[parquet]",
            "batch --input rows/ --output answers/ --on-bad-row nan": "directories; go on",
        },
    )
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        help=".npy, .npz (an array per input), .parquet, or a directory of .npy or .parquet files",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help=".npy, .parquet, or a directory of .npy parts"
    )
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="the cluster.toml")
    parser.add_argument("--key", type=Path, help="client.key (default: beside cluster.toml)")
    parser.add_argument("--model", metavar="NAME", help="which, where several are shared")
    parser.add_argument(
        "--columns",
        default="",
        metavar="A,B,...",
        help="of Parquet: INPUT=COLUMN of lists, or a flat input's features in order (f0,f1,...)",
    )
    parser.add_argument("--logits", action="store_true", help="without the final activation")
    parser.add_argument(
        "--on-bad-row",
        choices=("stop", "nan"),
        default="stop",
        help="where a row has no answer: stop, naming it, or answer NaN and list it (stop)",
    )
    parser.add_argument(
        "--restart", action="store_true", help="forget what was done, and ask for all rows anew"
    )
    _add_pace(parser)
    return parser


def _add_pace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rows-per-query", type=_count, metavar="N", help="default: what turns out to be fastest"
    )
    parser.add_argument("--queries", type=_count, metavar="N", help="under way at a time (4)")
    parser.add_argument("--part-rows", type=_count, metavar="N", help="of each file of a directory")
    parser.add_argument(
        "--patience",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="for which a cluster that answers nothing is asked again (60)",
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="SECONDS", help="of a query"
    )
    parser.add_argument(
        "--ray",
        action="store_true",
        help="ask from actors on the Ray cluster of RAY_ADDRESS; needs privserve[ray]",
    )
    parser.add_argument("--ray-actors", type=_count, default=2, metavar="N", help="(2)")
    parser.add_argument(
        "--ray-rows",
        type=_count,
        default=RAY_ROWS,
        metavar="N",
        help=f"that an actor answers in one go ({RAY_ROWS})",
    )
