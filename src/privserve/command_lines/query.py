"""The options of `privserve query`."""

from __future__ import annotations

import argparse
from pathlib import Path

from privserve import usage

DEFAULT_CONFIG = Path(".privserve/cluster.toml")


def parser() -> argparse.ArgumentParser:
    """Return the options of `privserve query`."""
    parser = usage.parser(
        "query",
        "Query a served model. Pictures of any size are taken: for a model of 28x28 grey ones as "
        "MNIST has digits (white on black, fitted into 20x20, centred by their mass), for others "
        "resized; stderr says what was done. Exit code: 0; 1 where a sample digit was seen "
        "wrongly; 2 where something was not answered.",
        {
            "query": "three sample digits",
            "query digit.png photo.jpg": "pictures of any size",
            "query pictures/": "all pictures and arrays of a directory",
            "query rows.npy": "arrays: a row or many, for a model of one input",
            "query inputs.npz --json": "any model: an array per input, by its name",
            "query face.jpg --pixels=-1,1": "what black and white are to the model",
        },
    )
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="pictures, .npy, .npz (an array per input), directories of these (default: samples)",
    )
    parser.add_argument("--count", type=int, default=3, help="of sample digits (default: 3)")
    parser.add_argument("--start", type=int, default=0, help="the first sample's number")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="cluster.toml")
    parser.add_argument("--model", metavar="NAME", help="which, where several are shared")
    parser.add_argument(
        "--pixels",
        metavar="BLACK,WHITE",
        help="what black and white are to the model, such as 0,1 or -1,1 (default: by its range)",
    )
    parser.add_argument(
        "--as-is", action="store_true", help="only resize pictures, also what could be digits"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object for each row")
    return parser
