"""Launch a cluster and serve a model from the command line.

python -m privserve.launch --parties 3                    all parties on this machine
python -m privserve.launch --party bob --config cluster.toml    one party, on its own host
python -m privserve.launch --config cluster.toml          share a model on running parties, beside
                                                          others, or in place of one of its name
python -m privserve.launch --init DIR --hosts a:4000,b:4000,c:4000    files for several hosts
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from privserve import usage
from privserve.addresses import join_address
from privserve.command_lines import launch as command_line
from privserve.config import Timeouts, Watching, party_names
from privserve.engines import OPTIONS
from privserve.errors import ConfigError, ModelReplaced
from privserve.exit_codes import exit_code
from privserve.interrupts import keep_interrupts
from privserve.launch_files import join_cluster, write_files
from privserve.platforms import require_linux
from privserve.terminal import progress
from privserve.web_options import check_web

if TYPE_CHECKING:
    from privserve.cluster import Cluster
    from privserve.engines import Prepared
    from privserve.model import SecureModel
    from privserve.web_page import WebPage

Say = Callable[[str], None]

DEFAULT_DIRECTORY = Path(".privserve")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line's options."""
    parser = command_line.parser()
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(usage.with_values(given, "--input-range"))
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


def parse_range(text: str | None) -> tuple[float, float] | None:
    """Return (0.0, 1.0) from "0,1"."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--input-range takes two numbers, such as 0,1; not '{text}'") from None
    return low, high


def read_samples(path: Path | None, option: str = "--calibration") -> Any:
    """Read the array of an .npy file, or the arrays of an .npz file by name."""
    if path is None:
        return None
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
        return found if isinstance(found, np.ndarray) else {n: found[n] for n in found.files}
    except FileNotFoundError:
        raise ConfigError(f"{option}: there is no {path}") from None
    except (OSError, EOFError, ValueError, BadZipFile) as error:
        raise ConfigError(f"{option}: {path} is no .npy or .npz file: {error}") from None


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


def launch(options: argparse.Namespace, say: Say) -> int:
    """Start (or join) a cluster, share the model, serve it; say: called with lines of progress."""
    from privserve.credentials import Limits
    from privserve.model import DEFAULT_ENGINE, load_model
    from privserve.serving import keep, named_files, serve_all

    engine = options.engine or DEFAULT_ENGINE
    ranges: dict[str, Any] = {
        "input_range": parse_range(options.input_range),
        "fraction_bits": options.fraction_bits,
        "calibration": read_samples(options.calibration),
        "range_check": not options.no_range_check,
        "strict_inputs": options.open if options.strict_inputs is None else options.strict_inputs,
        "profile": options.profile,
    }
    models = []
    for name, path in named_files(options.model):
        say(f"reading {path}")
        models.append(load_model(path, name=name))
    if options.dry_run:
        for model in models:
            _show_costs(model.prepare(engine, **ranges), options.json)
        return 0
    # Before anything is started: whatever cannot be served is refused here.
    ready = []
    for model in models:
        with progress(f"compiling {model.name}"):
            ready.append(model.prepare(engine, **ranges))
    for model, prepared in zip(models, ready, strict=True):
        if prepared.description.get("guards") and options.calibration is None:
            say(_needs_calibration(model.name))
    page = _page(options)
    cluster, where = _cluster(options, say, page)
    try:
        if not options.config:
            many = f", {len(cluster.cells)} of each" if len(cluster.cells) > 1 else ""
            say(f"starting {len(cluster.names)} parties{many}")
            cluster.start(report=lambda line: say(f"  {line}"))
        for model, prepared in zip(models, ready, strict=True):
            say(f"sharing '{model.name}' with the {prepared.engine} engine")
            model.share(
                cluster,
                prepared=prepared,
                force=options.force,
                everybody=Limits() if options.open else None,
                options=_batching(options),
                report=lambda line: say(f"  {line}"),
            )
        if options.json:
            names = [model.name for model in models]
            print(json.dumps({"config": str(where), "shared": names}), flush=True)
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


def _show_costs(prepared: Prepared, as_json: bool) -> None:
    """Print what a model costs and errs by."""
    from privserve.engines import load_engine

    summary = load_engine(prepared.engine).summary(prepared.description)
    if as_json:
        told = {"engine": prepared.engine, "errors": prepared.report}
        print(json.dumps({**told, "description": prepared.description}))
    else:
        print("\n".join([summary, *prepared.report]))


def _needs_calibration(name: str) -> str:
    return (
        f"'{name}' is a deep network, and what values its layers take was guessed from made-up "
        "inputs: a query that leaves them gets no answer. Give inputs like those to come with "
        "--calibration FILE (.npy, .npz); `privserve check` says how many are answered"
    )


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


def _cluster(options: argparse.Namespace, say: Say, page: WebPage | None) -> tuple[Cluster, Path]:
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


def say_json(line: str) -> None:
    """Print progress as one JSON object."""
    print(json.dumps({"said": line.strip()}), flush=True)


def _show_warning(say: Say, message: Warning | str, *_: object) -> None:
    say(f"warning: {message}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse(arguments)
    if options.party:
        return run_one_party(options)
    speak = say_json if options.json else say
    warnings.showwarning = partial(_show_warning, speak)
    keep_interrupts()  # `kill` and a closed terminal end the cluster as Ctrl-C does

    def work() -> int:
        require_linux("launching parties")
        if options.init:
            return write_files(options.init, options.hosts, options.invite)
        if options.join:
            return join_cluster(options.join, options.to)
        return launch(options, speak)

    return exit_code(work, interrupted="interrupted; everything is stopped")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # All processes are gone by now; skip the teardown of torch's threads.
    os._exit(code)
