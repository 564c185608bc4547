"""The command `privserve`: one name for the programs that `python -m privserve.NAME` runs.

Nothing is loaded but what is asked for: `privserve --help` and `privserve COMMAND --help` have to
answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import argparse


class Command(NamedTuple):
    """One command: its program's module, the module of its options, and what it does."""

    program: str
    options: str
    about: str
    linux: bool = False
    """Whether it needs Linux; see `platforms`."""


def _flat(name: str, about: str, *, linux: bool = False, program: str | None = None) -> Command:
    """A command that is one module."""
    line = f"privserve.command_lines.{name}"
    return Command(f"privserve.{program or name}", line, about, linux)


def _package(name: str, about: str, *, linux: bool = False) -> Command:
    """A command that is a package, with options of its own."""
    return Command(f"privserve.{name}", f"privserve.{name}.command_line", about, linux)


COMMANDS = {
    "check": _package("check", "say what serving a model takes, how exact it is, and how to do it"),
    "convert": _flat("convert", "convert a Keras model file to ONNX, say who runs which layer"),
    "launch": _flat(
        "launch", "launch the parties of a cluster, share a model and serve it", linux=True
    ),
    "query": _flat("query", "ask a served model about pictures or arrays"),
    "batch": _package("batch", "ask for many rows of a file, with checkpoints", linux=True),
    "models": _flat("models", "list the models of a cluster, stop one"),
    "status": _flat("status", "show all parties and models of a cluster, once or --watch"),
    "clients": _flat("clients", "let clients in, limit them, turn them away", linux=True),
    "certs": _flat(
        "certs", "sign, renew and revoke the parties' certificates", linux=True, program="certify"
    ),
    "gateway": _package(
        "gateway", "answer plain inference requests by private queries", linux=True
    ),
    "party": _package("party", "run one party in the foreground", linux=True),
    "bench": _package("bench", "measure engines and clusters on this machine", linux=True),
    "completion": _flat("completion", "print what has a shell complete these commands"),
}
"""By name."""
ALIASES = {"certify": "certs"}
"""Former names."""
FAILED = 2
HELP = ("-h", "--help")
OWN_OPTIONS = {"--load", "--network"}
"""Benchmarks with options of their own, which they have to be asked for."""


def usage() -> str:
    """Say which commands there are."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {one.about}" for name, one in COMMANDS.items()]
    head = "usage: privserve COMMAND [options]\n\nServe a trained network so that nobody who runs "
    head += "the servers learns the input, the\nprediction or the weights.\n\ncommands:"
    examples = """
examples:
  privserve check model.h5      is it fit to be served, at what cost, how exact?
  privserve launch --parties 3 --model model.h5      serve it from this machine
  privserve query digit.png     ask it, in another terminal"""
    more = "`privserve COMMAND --help` says more of each."
    return "\n".join([head, *lines, examples, "", more])


def options_of(name: str) -> argparse.ArgumentParser:
    """Return the options of a command; its program is not loaded."""
    from importlib import import_module

    found: argparse.ArgumentParser = import_module(COMMANDS[name].options).parser()
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that is named first, with the rest of the command line."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    name = ALIASES.get(given[0], given[0]) if given else None
    if name in COMMANDS:
        return _run(name, given[1:])
    if name in HELP:
        print(usage())
        return 0
    if name == "--version":
        from importlib.metadata import version

        print(f"privserve {version('privserve')}")
        return 0
    why = f"there is no command {name!r}" if given else "no command was named"
    print(f"{usage()}\n\nerror: {why}", file=sys.stderr)
    return FAILED


def _run(name: str, rest: list[str]) -> int:
    """Run a command as `python -m` does: some programs have an end of their own there."""
    if any(one in HELP for one in rest) and not OWN_OPTIONS & set(rest):
        options_of(name).parse_args(rest)
    if COMMANDS[name].linux and sys.platform != "linux":
        from privserve.platforms import needs_linux

        print(f"error: {needs_linux(f'privserve {name}')}", file=sys.stderr)
        return FAILED
    import runpy

    sys.argv = [f"privserve {name}", *rest]
    runpy.run_module(COMMANDS[name].program, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
