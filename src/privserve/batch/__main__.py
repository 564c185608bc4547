"""Ask for many rows: python -m privserve.batch --input rows.npy --output answers.npy

Reads rows in order, asks for them with queries of a size that it finds by itself, and writes the
answers in the same order. Whatever ends it, the same command goes on where it was: no row whose
answer was written is asked again, and none is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from privserve.batch.job import run
from privserve.batch.settings import Settings
from privserve.exit_codes import exit_code
from privserve.interrupts import keep_interrupts


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m privserve.batch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    parser.add_argument("--config", type=Path, default=Settings.config, help="the cluster.toml")
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
        default=Settings.patience,
        metavar="SECONDS",
        help="for which a cluster that answers nothing is asked again (60)",
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=Settings.timeout, metavar="SECONDS", help="of a query"
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
        default=Settings.ray_rows,
        metavar="N",
        help=f"that an actor answers in one go ({Settings.ray_rows})",
    )


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Return the options, checked; ends the program for those of no form."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.timeout:
        parser.error("--timeout has to be more than 0 seconds")
    return Settings(
        input=options.input,
        output=options.output,
        config=options.config,
        key=options.key,
        model=options.model,
        columns=tuple(filter(None, options.columns.split(","))),
        logits=options.logits,
        rows_per_query=options.rows_per_query,
        queries=options.queries,
        part_rows=options.part_rows,
        on_bad_row=options.on_bad_row,
        patience=options.patience,
        timeout=options.timeout,
        restart=options.restart,
        ray_actors=options.ray_actors if options.ray else None,
        ray_rows=options.ray_rows,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    settings = parse(arguments)
    keep_interrupts()

    def work() -> int:
        run(settings)
        return 0

    return exit_code(work, interrupted="interrupted")


if __name__ == "__main__":
    sys.exit(main())
