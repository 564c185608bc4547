"""The programs that pages tell to run, and which options each of them has."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from serving import ROOT

from privserve.commands import COMMANDS


class Found(BaseException):
    """Carries a program's parser out of it, past everything that catches errors."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


THIN = {"scripts.convert": "privserve.convert", "scripts.query": "privserve.query"}
"""Programs that are others by another name."""


@functools.cache
def parser_of(module: str) -> argparse.ArgumentParser | None:
    """The parser of a program's command line; None for one that takes no options."""
    module = THIN.get(module, module)
    file = ROOT / f"{module.replace('.', '/')}.py"
    if file.exists() and "ArgumentParser" not in file.read_text(encoding="utf-8"):
        return None  # to ask it would be to run it
    with mock.patch.object(sys, "path", [str(ROOT / "scripts"), *sys.path]):  # as for a script
        program = importlib.import_module(module)
    if not hasattr(program, "main") and not hasattr(program, "parse"):
        program = importlib.import_module(f"{module}.__main__")
    enter = getattr(program, "parse", None) or program.main

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        raise Found(parser)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(argparse.ArgumentParser, "parse_args", stop))
        stack.enter_context(mock.patch.object(sys, "argv", [module]))
        try:
            enter([]) if inspect.signature(enter).parameters else enter()
        except Found as found:
            return found.parser
    return None


def options(parser: argparse.ArgumentParser) -> set[str]:
    """All options of a program, those of its subcommands included."""
    found = set(parser._option_string_actions)
    for of in subcommands(parser).values():
        found |= options(of)
    return found


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The subcommands of a program by their names."""
    actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(actions[0].choices) if actions else {}


def program_in(words: list[str]) -> tuple[str, list[str]] | None:
    """Which of our programs a command runs, as a module, and the words after it; None: none."""
    for number, word in enumerate(words):
        rest = words[number + 1 :]
        if number == 0 and Path(word).name == "privserve" and rest and rest[0][0] != "-":
            return COMMANDS[rest[0]][0] if rest[0] in COMMANDS else rest[0], rest[1:]
        if Path(word).name in ("python", "python3") and rest[:1] == ["-m"] and len(rest) > 1:
            return (rest[1], rest[2:]) if rest[1].startswith("privserve") else None
        if Path(word).name == "python" and rest and rest[0].startswith("scripts/"):
            return rest[0].removesuffix(".py").replace("/", "."), rest[1:]
    return None


def is_there(module: str) -> bool:
    """Whether there is such a program."""
    return module in {of for of, *_ in COMMANDS.values()} or any(
        (ROOT / folder / f"{module.replace('.', '/')}.py").exists() for folder in ("src", ".")
    )


def strange_options(module: str, words: list[str]) -> Iterator[str]:
    """The options among the words of a command that its program does not have."""
    parser = parser_of(module)
    known = options(parser) if parser else set()
    if module == "privserve.bench":
        others = (parser_of(f"{module}.{name}") for name in ("load", "network"))
        known |= set[str]().union(*(options(other) for other in others if other))
    for word in words:
        option = word.partition("=")[0].rstrip(",.:")
        if option.startswith("--") and option not in known:
            yield option
