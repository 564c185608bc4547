"""How our command lines present themselves: a name, what they are for, and examples."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 96
JSON_HELP = "print JSON, for programs"

Examples = Mapping[str, str]
"""What to type, after `privserve`, and what it does."""


def parser(name: str, about: str, examples: Examples) -> argparse.ArgumentParser:
    """Return the parser of the command `privserve NAME`; about: one paragraph."""
    return argparse.ArgumentParser(prog=f"privserve {name}", **_texts(about, examples))


def add_command(
    commands: Any, name: str, about: str, examples: Examples
) -> argparse.ArgumentParser:
    """Add one of the things that a command can do; commands: what `add_subparsers` returned."""
    one: argparse.ArgumentParser = commands.add_parser(
        name, help=about, **_texts(f"{about[0].upper()}{about[1:]}.", examples)
    )
    return one


def add_json(whole: argparse.ArgumentParser, *parts: argparse.ArgumentParser) -> None:
    """Add --json to a command, and to those of the things it does after which it may stand."""
    whole.add_argument("--json", action="store_true", help=JSON_HELP)
    for part in parts:
        part.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


def with_values(arguments: Sequence[str], *options: str) -> list[str]:
    """Return the arguments with `--input-range -8,8` as one, or argparse takes -8,8 for an option.

    options: those whose values may begin with a minus.
    """
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in options and not argument.startswith("--"):
            joined[-1] = f"{joined[-1]}={argument}"
        else:
            joined.append(argument)
    return joined


def _texts(about: str, examples: Examples) -> dict[str, Any]:
    typed = [f"privserve {one}" for one in examples]
    width = min(max(map(len, typed)), 56)
    lines = [
        f"  {what.ljust(width)}  {does}" if len(what) <= width else f"  {what}\n      {does}"
        for what, does in zip(typed, examples.values(), strict=True)
    ]
    return {
        "description": textwrap.fill(" ".join(about.split()), WIDTH),
        "epilog": "\n".join(["examples:", *lines]),
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }
