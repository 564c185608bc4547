"""Let clients in, and turn them away: python -m privserve.clients

python -m privserve.clients add lab --rows 10000      make clients/lab, to be handed to the client
python -m privserve.clients list
python -m privserve.clients limit lab --rows-per-minute 600
python -m privserve.clients revoke lab

Run where the model owner's files are (--config). Parties that run are told at once; others when
a model is shared next. A client's key is in the directory that `add` makes, and nowhere else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from privserve.cluster import Cluster
from privserve.command_lines import clients as command_line
from privserve.config import ClusterConfig, read_config
from privserve.credentials import (
    KEY_FILE,
    ClientKey,
    ClientTable,
    Limits,
    checked_limits,
    checked_name,
)
from privserve.errors import ClusterError, ConfigError, QueryError
from privserve.exit_codes import exit_code
from privserve.files import write_file
from privserve.terminal import table as text_table

CLIENTS_DIRECTORY = "clients"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options, checked."""
    return command_line.parser().parse_args(arguments)


def run(options: argparse.Namespace) -> str:
    """Do what was asked for; returns what to tell."""
    config = read_config(options.config)
    known = ClientTable.read(config)
    if options.command == "list":
        return as_json(known) if options.json else listed(known)
    name = checked_name(options.name)
    if options.command == "add":
        key = ClientKey.fresh(name)
        known.add(key, _limits(options))
        home = write_client(config, key)
        with _whole_or_gone(home):
            write_file(known.path, known.to_text().encode())
        said = f"hand {home} to the client: with it, privserve.Client('{name}/cluster.toml') asks"
    elif options.command == "limit":
        known.limit(name, _limits(options))
        said = f"client '{name}' has other limits"
    else:
        known.revoke(name)
        said = f"client '{name}' is let in no more"
    if options.command != "add":
        write_file(known.path, known.to_text().encode())
    said = f"{said}; {tell(config, known)}"
    return json.dumps({"said": said}) if options.json else said


def _limits(options: argparse.Namespace) -> Limits:
    return checked_limits({key: getattr(options, key) for key in asdict(Limits())})


def listed(known: ClientTable) -> str:
    """The clients as a table."""
    head = ("client", "rows", "rows per minute", "rows per query", "expires", "models")
    rows: list[Sequence[str]] = [head]
    for name, limits in known.limits.items():
        numbers = (limits.rows, limits.rows_per_minute, limits.rows_per_query)
        shown = ("no limit" if n is None else f"{n:,}" for n in numbers)
        models = "all" if limits.models is None else ", ".join(limits.models)
        rows.append((name, *shown, limits.expires or "never", models))
    return "\n".join(text_table(rows, right=range(1, 4)))


def as_json(known: ClientTable) -> str:
    """The clients as JSON, by name; null: no limit."""
    return json.dumps({name: asdict(limits) for name, limits in known.limits.items()})


def write_client(config: ClusterConfig, key: ClientKey) -> Path:
    """Make the directory that a client needs: cluster.toml, ca.pem and its key."""
    home = config.path.parent / CLIENTS_DIRECTORY / key.name
    if home.exists():
        raise ConfigError(f"{home} is there already; move it away, or name the client differently")
    home.mkdir(parents=True, mode=0o700)
    with _whole_or_gone(home):
        shutil.copy(config.path, home / "cluster.toml")
        shutil.copy(config.ca, home / "ca.pem")
        write_file(home / KEY_FILE, key.to_text().encode(), secret=True)
    return home


@contextlib.contextmanager
def _whole_or_gone(home: Path) -> Iterator[None]:
    """Remove a client's directory where the disk takes no more: it would be in the way."""
    try:
        yield
    except OSError:
        shutil.rmtree(home, ignore_errors=True)
        raise


def tell(config: ClusterConfig, known: ClientTable) -> str:
    """Tell the parties, if they run; returns what came of it."""
    cluster = Cluster.connect(config.path, wait=False)
    try:
        cluster.tell_clients(known)
    except (ClusterError, QueryError) as error:
        return f"it holds once a model is shared again, since now {error}"
    finally:
        cluster.stop()
    return "the parties know"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse(arguments)

    def work() -> int:
        print(run(options))
        return 0

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
