"""Ask for many rows: python -m privserve.batch --input rows.npy --output answers.npy

Reads rows in order, asks for them with queries of a size that it finds by itself, and writes the
answers in the same order. Whatever ends it, the same command goes on where it was: no row whose
answer was written is asked again, and none is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from privserve.batch import command_line
from privserve.batch.job import run
from privserve.batch.settings import Settings
from privserve.exit_codes import exit_code
from privserve.interrupts import keep_interrupts


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Return the options, checked; ends the program for those of no form."""
    parser = command_line.parser()
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
