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
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from privserve.cluster import Cluster
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
from privserve.text_table import table as text_table

DEFAULT_CONFIG = Path(".privserve/cluster.toml")
CLIENTS_DIRECTORY = "clients"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m privserve.clients",
        description="Let clients ask a cluster's model, limit them, and turn them away.",
    )
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="the cluster.toml")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, about in (
        ("add", "let a client in, and make its directory"),
        ("limit", "give a client other limits; those that are not named go"),
        ("revoke", "let a client in no more"),
        ("list", "show the clients and their limits"),
    ):
        one = commands.add_parser(command, help=about, description=about)
        if command != "list":
            one.add_argument("name")
        if command in ("add", "limit"):
            one.add_argument("--rows", type=int, metavar="N", help="in total")
            one.add_argument("--rows-per-minute", type=int, metavar="N")
            one.add_argument("--rows-per-query", type=int, metavar="N")
            one.add_argument("--expires", metavar="DAY", help="the last day, such as 2027-01-31")
            one.add_argument(
                "--models",
                metavar="A,B",
                type=lambda text: text.split(","),
                help="the models that it may ask, by name (default: all)",
            )
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> str:
    """Do what was asked for; returns what to tell."""
    config = read_config(options.config)
    known = ClientTable.read(config)
    if options.command == "list":
        return listed(known)
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
    return f"{said}; {tell(config, known)}"


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
