"""The options of `privserve launch`: mostly a table."""

from __future__ import annotations

import argparse
from pathlib import Path

from privserve import usage
from privserve.web_options import add_web

DEFAULT_PORT = 4000


def parser() -> argparse.ArgumentParser:
    """Return the options of `privserve launch`."""
    parser = usage.parser(
        "launch",
        "Launch the parties of a cluster, share a model among them and serve it.",
        {
            "launch --parties 3": "all parties on this machine; shares ./model.onnx",
            "launch --parties 3 --model model.h5 --num-requests 100": "ends by itself",
            "launch --model deep.h5 --calibration x.npy": "deep: inputs like those to come",
            "launch --model model.h5 --dry-run": "what it costs and errs by; starts nothing",
            "launch --init cluster --hosts a:4000,b:4000,c:4000": "files for three hosts",
            "launch --party bob --config bob/cluster.toml": "one party, on its own host",
            "launch --config cluster/cluster.toml --model model.h5": "share on parties that run",
        },
    )
    parser.add_argument(
        "--parties", type=int, metavar="N", help="launch N parties here: N-1 compute, one deals"
    )
    parser.add_argument(
        "--cells",
        type=int,
        metavar="N",
        help="launch N sets of these parties here, among which clients spread their queries (1)",
    )
    parser.add_argument("--party", metavar="NAME", help="run this one party of --config")
    parser.add_argument(
        "--cell", type=int, metavar="N", help="with --party: of which cell of --config (0)"
    )
    parser.add_argument(
        "--listen",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="with --party: where it listens, where that is not its address (may be repeated)",
    )
    _add_watching(parser)
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the cluster.toml of an existing cluster"
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="[NAME=]FILE",
        help=".onnx, .h5 or .keras (default: model.onnx); again for several, which clients ask by "
        "NAME, the file's name if it is left away",
    )
    parser.add_argument(
        "--num-requests",
        type=int,
        metavar="N",
        help="answer N rows (images) of each model, then end (default: no end)",
    )
    _add_sharing(parser)
    parser.add_argument("--host", default="localhost", help="where the parties listen")
    parser.add_argument(
        "--port",
        type=int,
        default=DEFAULT_PORT,
        help="of the first party, the others follow; 0: any free",
    )
    parser.add_argument("--init", type=Path, metavar="DIR", help="write the files of a new cluster")
    parser.add_argument(
        "--hosts",
        action="append",
        metavar="H:P,...",
        help="with --init: each party's address; again for each further cell",
    )
    parser.add_argument(
        "--invite",
        action="store_true",
        help="with --init: write invitations, for each party to make its key on its own host",
    )
    parser.add_argument(
        "--join",
        type=Path,
        metavar="FILE",
        help="on a party's host: make its key for an invitation",
    )
    parser.add_argument(
        "--to", type=Path, default=Path(), metavar="DIR", help="with --join: where its files go"
    )
    _add_state(parser)
    add_web(parser)
    parser.add_argument(
        "--peer-timeout",
        type=float,
        metavar="SECONDS",
        help="with --party or --parties: how long a party may give no sign of life (3)",
    )
    parser.add_argument(
        "--drain-timeout",
        type=float,
        metavar="SECONDS",
        help="with --party: how long its queries may take to be answered, once SIGTERM has told it "
        "to end (10); 0: it ends at once",
    )
    parser.add_argument(
        "--on-owner-loss",
        choices=("serve", "stop"),
        default="serve",
        help="what the parties do when this program is gone for 30 s (default: serve on)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what the model would cost, start nothing"
    )
    parser.add_argument(
        "--json", action="store_true", help="say everything as JSON, an object a line"
    )
    return parser


def _add_watching(parser: argparse.ArgumentParser) -> None:
    """How parties that are started here are watched."""
    parser.add_argument(
        "--metrics",
        metavar="[HOST:]PORT",
        help="with --party: answer Prometheus there, plainly; on this host alone without HOST",
    )
    parser.add_argument(
        "--metrics-port",
        type=int,
        metavar="N",
        help="with --parties: the first party answers Prometheus at this port, the others follow",
    )
    parser.add_argument("--log-json", action="store_true", help="parties log a JSON object a line")
    parser.add_argument("--log-queries", action="store_true", help="parties log each query")


def _add_state(parser: argparse.ArgumentParser) -> None:
    """Where parties that are started here keep what they are told."""
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="with --party or --parties: where parties keep revoked certificates' list (default: "
        "beside --config) and, with a key, their shares, so that they need no owner when they are "
        "started again; the key is in PRIVSERVE_STATE_KEY or",
    )
    parser.add_argument("--state-key-file", type=Path, metavar="FILE", help="in this file, or")
    parser.add_argument("--state-key-command", metavar="COMMAND", help="what this command prints")


def _add_sharing(parser: argparse.ArgumentParser) -> None:
    """The options of how the model is shared."""
    parser.add_argument("--engine", default=None, help="ottt (default), crypten or auto")
    parser.add_argument(
        "--input-range",
        metavar="LOW,HIGH",
        help="what every input value stays within, such as 0,1 (default: -8,8)",
    )
    parser.add_argument("--fraction-bits", type=int, help="of the fixed point")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="inputs like those to come, for deep networks: .npy, or .npz with an array per input",
    )
    parser.add_argument(
        "--no-range-check",
        action="store_true",
        help="answer, wrongly, also where a value left a range that had to be guessed",
    )
    parser.add_argument(
        "--strict-inputs",
        action=argparse.BooleanOptionalAction,
        help="lift whatever a client sends to an input of the range (default: only with --open)",
    )
    parser.add_argument(
        "--profile",
        choices=("lan", "wan"),
        default="lan",
        help="what lies between the parties: over a wan ottt saves exchanges for bytes",
    )
    parser.add_argument(
        "--force", action="store_true", help="share also what the hosts seem to lack memory for"
    )
    parser.add_argument(
        "--max-batch",
        type=int,
        metavar="ROWS",
        help="rows of different queries that run together at most (128)",
    )
    parser.add_argument(
        "--max-delay",
        type=int,
        metavar="MS",
        help="milliseconds that a batch which is not full waits for more queries (0)",
    )
    parser.add_argument(
        "--open", action="store_true", help="answer everybody, not only the cluster's clients"
    )
