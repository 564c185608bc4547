"""Launch a cluster and serve a model from the command line.

python -m privserve.launch --parties 3                    all parties on this machine
python -m privserve.launch --party bob --config cluster.toml    one party, on its own host
python -m privserve.launch --config cluster.toml          share a model on running parties, beside
                                                          others, or in place of one of its name
python -m privserve.launch --init DIR --hosts a:4000,b:4000,c:4000    files for several hosts

Half of this file is the table of its options.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from privserve.addresses import join_address
from privserve.config import Timeouts, Watching, party_names
from privserve.engines import OPTIONS
from privserve.errors import ConfigError, ModelReplaced
from privserve.exit_codes import exit_code
from privserve.interrupts import keep_interrupts
from privserve.launch_files import join_cluster, write_files
from privserve.web_options import add_web, check_web

if TYPE_CHECKING:
    from privserve.cluster import Cluster
    from privserve.model import SecureModel
    from privserve.web_page import WebPage

DEFAULT_DIRECTORY = Path(".privserve")
DEFAULT_PORT = 4000


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m privserve.launch",
        description="Launch the parties of a cluster, share a model among them and serve it.",
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


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line's options."""
    parser = _parser()
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(_with_ranges(given))
    if options.num_requests is not None and options.num_requests < 1:
        parser.error("--num-requests must be at least 1")
    for option, value in (("max_batch", options.max_batch), ("max_delay_ms", options.max_delay)):
        low, high = OPTIONS[option]
        if value is not None and not low <= value <= high:
            name = option.removesuffix("_ms").replace("_", "-")
            parser.error(f"--{name} goes from {low} to {high}")
    if options.parties is not None and options.parties < 3:
        parser.error("--parties must be at least 3: two that compute, and the dealer")
    if options.parties is not None and (options.config or options.party):
        parser.error("--parties launches a new cluster; leave --config and --party away")
    if options.party and not options.config:
        parser.error("--party needs --config, the cluster.toml that was made for that party")
    if options.cells is not None and (options.config or options.party or options.cells < 1):
        parser.error("--cells goes with --parties, and is at least 1")
    for option in ("listen", "metrics", "cell", "drain_timeout"):
        if getattr(options, option) not in (None, []) and not options.party:
            parser.error(f"--{option.replace('_', '-')} goes with --party")
    if options.metrics_port is not None and (options.party or options.config):
        parser.error("--metrics-port goes with --parties; see --metrics for --party")
    if (options.log_json or options.log_queries) and options.config and not options.party:
        parser.error("--log-json and --log-queries are for parties that are started here")
    check_web(parser, options)
    if options.peer_timeout is not None and not 0.5 <= options.peer_timeout <= 3600:
        parser.error("--peer-timeout goes from 0.5 to 3600 seconds")
    if options.drain_timeout is not None and not 0 <= options.drain_timeout <= 3600:
        parser.error("--drain-timeout goes from 0 to 3600 seconds")
    for option in ("peer_timeout", "state_dir", "state_key_file", "state_key_command"):
        if getattr(options, option) is not None and options.config and not options.party:
            name = option.replace("_", "-")
            parser.error(f"--{name} goes with --party or --parties: it is the parties' own")
    if bool(options.init) != bool(options.hosts):
        parser.error("--init and --hosts go together")
    if options.invite and not options.init:
        parser.error("--invite goes with --init")
    return options


def _with_ranges(arguments: list[str]) -> list[str]:
    """The arguments with `--input-range -8,8` as one, or argparse takes -8,8 for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--input-range" and not argument.startswith("--"):
            joined[-1] = f"--input-range={argument}"
        else:
            joined.append(argument)
    return joined


def parse_range(text: str | None) -> tuple[float, float] | None:
    """Return (0.0, 1.0) from "0,1"."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--input-range takes two numbers, such as 0,1; not '{text}'") from None
    return low, high


def read_samples(path: Path | None) -> Any:
    """Read the array of an .npy file, or the arrays of an .npz file by name."""
    if path is None:
        return None
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
        return found if isinstance(found, np.ndarray) else {n: found[n] for n in found.files}
    except FileNotFoundError:
        raise ConfigError(f"--calibration: there is no {path}") from None
    except (OSError, EOFError, ValueError, BadZipFile) as error:
        raise ConfigError(f"--calibration: {path} is no .npy or .npz file: {error}") from None


def run_one_party(options: argparse.Namespace) -> int:
    """Run one party of an existing cluster until it is interrupted."""
    from privserve.party.__main__ import main as party_main
    from privserve.party_process import state_options

    given = [f"--listen={address}" for address in options.listen]
    given += [f"--cell={options.cell}"] if options.cell else []
    given += [f"--metrics={options.metrics}"] if options.metrics else []
    given += [] if options.web is None else [f"--web={options.web}"]
    given += [f"--web-origin={origin}" for origin in options.web_origin]
    given += _watching(options).options(0)
    if options.peer_timeout is not None:
        given.append(f"--peer-timeout={options.peer_timeout}")
    if options.drain_timeout is not None:
        given.append(f"--drain-timeout={options.drain_timeout}")
    given += state_options(options.state_dir, options.state_key_file, options.state_key_command)
    return party_main(["--name", options.party, "--config", str(options.config), *given])


def _watching(options: argparse.Namespace) -> Watching:
    return Watching(options.metrics_port, options.log_json, options.log_queries)


def launch(options: argparse.Namespace) -> int:
    """Start (or join) a cluster, share the model, serve it."""
    from privserve.credentials import Limits
    from privserve.engines import load_engine
    from privserve.model import DEFAULT_ENGINE, load_model
    from privserve.serving import keep, named_files, serve_all

    engine = options.engine or DEFAULT_ENGINE
    ranges: dict[str, Any] = {
        "input_range": parse_range(options.input_range),
        "fraction_bits": options.fraction_bits,
        "calibration": read_samples(options.calibration),
        "range_check": not options.no_range_check,
        "strict_inputs": options.open if options.strict_inputs is None else options.strict_inputs,
    }
    models = []
    for name, path in named_files(options.model):
        say(f"reading {path}")
        models.append(load_model(path, name=name))
    if options.dry_run:
        for model in models:
            prepared = model.prepare(engine, **ranges)
            summary = load_engine(prepared.engine).summary(prepared.description)
            print("\n".join([summary, *prepared.report]))
        return 0
    page = _page(options)
    cluster, where = _cluster(options, page)
    try:
        if not options.config:
            many = f", {len(cluster.cells)} of each" if len(cluster.cells) > 1 else ""
            say(f"starting {len(cluster.names)} parties{many}")
            cluster.start(report=lambda line: say(f"  {line}"))
        for model in models:
            say(f"sharing '{model.name}' with the {engine} engine")
            model.share(
                cluster,
                engine=engine,
                **ranges,
                force=options.force,
                everybody=Limits() if options.open else None,
                options=_batching(options),
                report=lambda line: say(f"  {line}"),
            )
        if page is not None:
            first = models[0].name if len(models) > 1 else ""
            page.serve(cluster.config.cluster, is_open=options.open, model=first)
            say(f"page for browsers on this machine: {page.origin}/ (SHA-256 {page.sha256})")
            if not options.open:
                say(f"  it asks for a client's key: {where.parent / 'client.key'}")
        try:
            serve_all(models, options.num_requests, where, say, options.on_owner_loss)
        except ModelReplaced as error:
            if options.config:
                raise
            say(f"{error}; the parties stay up until Ctrl-C")
            keep(cluster)
        _stop(models)
    finally:
        if options.config:
            _stop(models)  # the parties go on, and with them other models
        if page is not None:
            page.close()
        cluster.stop()
    return 0


def _stop(models: Sequence[SecureModel]) -> None:
    for model in models:
        model.stop()


def _batching(options: argparse.Namespace) -> dict[str, Any]:
    """How queries are put together, where the command line says so."""
    chosen = {"max_batch": options.max_batch, "max_delay_ms": options.max_delay}
    return {name: value for name, value in chosen.items() if value is not None}


def _page(options: argparse.Namespace) -> WebPage | None:
    """The page for browsers, where the command line asks for one; it is not served yet."""
    from privserve.web_page import WebPage

    if options.web is None:
        return None
    return WebPage(options.web, (options.parties or 3) - 1, options.web_origin)


def _cluster(options: argparse.Namespace, page: WebPage | None) -> tuple[Cluster, Path]:
    """The cluster to serve on, and its cluster.toml; a new one is not started yet."""
    from privserve.cluster import Cluster, Worker

    if options.config:
        return Cluster.connect(options.config, report=say), options.config
    names = party_names(options.parties or 3)
    ports = [options.port and options.port + i for i in range(len(names))]
    workers = [Worker(join_address(options.host, port)) for port in ports]
    timeouts = Timeouts(peer=options.peer_timeout or Timeouts.peer)
    cluster = Cluster(
        *workers,
        cells=options.cells or 1,
        directory=fresh_directory(DEFAULT_DIRECTORY),
        timeouts=timeouts,
        watching=_watching(options),
        state_dir=options.state_dir,
        state_key_file=options.state_key_file,
        state_key_command=options.state_key_command,
        browsers=None if page is None else page.browsers,
    )
    return cluster, DEFAULT_DIRECTORY / "cluster.toml"


def fresh_directory(directory: Path) -> Path:
    """Remove what an earlier cluster left in our own directory."""
    if (directory / "cluster.toml").is_file():
        shutil.rmtree(directory)
    return directory


def say(line: str) -> None:
    """Print progress to stdout at once, also through a pipe."""
    print(line, flush=True)


def _show_warning(message: Warning | str, *_: object) -> None:
    say(f"warning: {message}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse(arguments)
    if options.party:
        return run_one_party(options)
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    keep_interrupts()  # `kill` and a closed terminal end the cluster as Ctrl-C does

    def work() -> int:
        if options.init:
            return write_files(options.init, options.hosts, options.invite)
        if options.join:
            return join_cluster(options.join, options.to)
        return launch(options)

    return exit_code(work, interrupted="interrupted; everything is stopped")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # All processes are gone by now; skip the teardown of torch's threads.
    os._exit(code)
