"""The options of `privserve check`."""

from __future__ import annotations

import argparse
from pathlib import Path

from privserve import usage
from privserve.command_lines.convert import add_source

ROWS = 10


def parser() -> argparse.ArgumentParser:
    """Return the options of `privserve check`."""
    parser = usage.parser(
        "check",
        "Say what serving a model takes: converts it, names who runs each layer and what that "
        "costs, and runs samples in plain float and on shares, all parties in this process, to say "
        "how far outputs and layers are off. Nothing is started, and nothing leaves this machine. "
        "Exit code: 0 where it can be served as said, 1 where something is to be changed first, 2 "
        "where it cannot be served at all.",
        {
            "check model.h5": "on made-up inputs",
            "check model.h5 --samples x.npy": "on your own, which is what counts",
            "check deep.keras --samples x.npy --calibration c.npy": "ranges guessed from c.npy",
        },
    )
    add_source(parser)
    parser.add_argument(
        "--samples",
        type=Path,
        metavar="FILE",
        help=f"inputs like those to come: .npy, or .npz with an array per input; {ROWS} are run",
    )
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help=f"to run ({ROWS})")
    parser.add_argument(
        "--input-range", metavar="LOW,HIGH", help="as for launch (default: the samples', or -8,8)"
    )
    parser.add_argument("--fraction-bits", type=int, help="of the fixed point, as for launch")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="inputs to guess ranges from, as for launch",
    )
    usage.add_json(parser)
    return parser
