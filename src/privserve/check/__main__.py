"""Say what serving a model takes, and how exact it is: privserve check model.h5"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from privserve import usage
from privserve.check import command_line
from privserve.errors import ModelError
from privserve.exit_codes import exit_code


def run(options: argparse.Namespace) -> int:
    """Check the model, and print what was found; returns the exit code."""
    import converters
    from privserve.check.job import check
    from privserve.terminal import progress

    try:
        with progress(f"converting {options.model.name}"):
            converted = converters.convert(
                options.model, options.architecture, options.input_shape, options.backend
            )
    except converters.ConversionError as error:
        raise ModelError(str(error)) from None
    report = check(converted, options)
    print(json.dumps(report.as_json()) if options.json else "\n".join(report.lines()))
    return report.exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = command_line.parser()
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(usage.with_values(given, "--input-range"))
    if options.rows < 1:
        parser.error("--rows must be at least 1")
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
