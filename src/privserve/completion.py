"""What has a shell complete `privserve`: made of the commands' own options, with no package for it.

Everything is in the text that is printed: completing starts no Python. bash and zsh share one
function, which zsh runs by its bashcompinit.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module

from privserve.command_lines import completion as command_line

FILES = "<files>"
"""Stands for files among what an option takes."""


@dataclass
class Completed:
    """What may follow one command, or one of the things that it does."""

    about: str
    words: dict[str, str] = field(default_factory=dict)
    """Options and commands, and what they are for."""
    values: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By option what it takes; none where it takes something that nobody can list."""
    takes_files: bool = False


def completed(parser: argparse.ArgumentParser, about: str) -> dict[str, Completed]:
    """Return what may follow, by what is typed so far after the command: "" or "add", ..."""
    found = {"": Completed(about)}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {one.dest: one.help or "" for one in action._choices_actions}
            for name, part in action.choices.items():
                found[""].words[name] = helps.get(name, "")
                found[name] = completed(part, helps.get(name, ""))[""]
        elif action.help != argparse.SUPPRESS:
            _add(found[""], action)
    return found


def _add(one: Completed, action: argparse.Action) -> None:
    """Add an option, or an argument without a name."""
    if not action.option_strings:
        one.words |= {str(choice): "" for choice in action.choices or ()}
        one.takes_files |= not action.choices and _names_a_file(action)
        return
    for name in action.option_strings:
        if name.startswith("--") or len(action.option_strings) == 1:
            one.words[name] = action.help or ""
        if action.nargs != 0:
            choices = tuple(map(str, action.choices or ()))
            one.values[name] = choices or ((FILES,) if _names_a_file(action) else ())


def _names_a_file(action: argparse.Action) -> bool:
    """Whether an option takes a file or a directory; of --model one cannot tell but by its text."""
    return getattr(action.type, "__name__", "") == "Path" or "FILE" in str(action.metavar)


def all_completed() -> dict[str, dict[str, Completed]]:
    """Return what may follow each command; loads all commands' options, not their programs."""
    commands = import_module("privserve.commands")
    return {
        name: completed(commands.options_of(name), one.about)
        for name, one in commands.COMMANDS.items()
    }


def for_bash() -> str:
    """Return the text for bash."""
    lines = [_HEAD_OF_BASH, "    case $at in", f"    '') words={_quoted(all_completed())} ;;"]
    for name, parts in all_completed().items():
        for part, one in parts.items():
            key = f"{name} {part}".strip()
            takes = "files=yes; " if one.takes_files else ""
            lines.append(f"    {key!r}) {takes}words={_quoted(one.words)}")
            lines += ["        case $before in", *_values(one), "        esac ;;"]
    return "\n".join([*lines, "    esac", _TAIL_OF_BASH])


def _values(one: Completed) -> Iterator[str]:
    for option, values in one.values.items():
        if values == (FILES,):
            yield f"        {option}) words=; files=yes ;;"
        else:
            yield f"        {option}) words={_quoted(values)}; files= ;;"


def _quoted(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))


_HEAD_OF_BASH = r"""# Completes privserve's commands, by `privserve completion`.
_privserve() {
    local now=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
    local at= words= files= word known
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        [[ $word == certify ]] && word=certs
        if [[ -z $at ]]; then
            [[ $word == -* ]] || at=$word
        else
            case " $_privserve_parts " in *" $at/$word "*) at="$at $word" ;; esac
        fi
    done"""

_TAIL_OF_BASH = r"""    COMPREPLY=($(compgen -W "$words" -- "$now"))
    if [[ -n $files && $now != -* ]]; then
        local IFS=$'\n'
        COMPREPLY+=($(compgen -f -- "$now"))
        compopt -o filenames 2> /dev/null
    fi
}"""


def text_for(shell: str) -> str:
    """Return what to print for a shell."""
    if shell == "fish":
        return for_fish()
    parts = [f"{n}/{part}" for n, parts in all_completed().items() for part in parts if part]
    known = f"_privserve_parts={_quoted(parts)}"
    text = f"{known}\n{for_bash()}\ncomplete -F _privserve privserve\n"
    if shell == "bash":
        return text
    return f"autoload -U +X bashcompinit && bashcompinit\n{text}"


def for_fish() -> str:
    """Return the text for fish, which shows what each option is for."""
    lines = ["# Completes privserve's commands, by `privserve completion`."]
    begin = "complete -c privserve"
    for name, parts in all_completed().items():
        about = shlex.quote(parts[""].about)
        lines.append(f"{begin} -f -n __fish_use_subcommand -a {name} -d {about}")
        for part, one in parts.items():
            where = f"__fish_seen_subcommand_from {name}"
            where += f"; and __fish_seen_subcommand_from {part}" if part else ""
            lines += _fish_lines(f"{begin} -n {shlex.quote(where)}", one)
    return "\n".join([*lines, ""])


def _fish_lines(begin: str, one: Completed) -> Iterator[str]:
    """What fish is told of one command; begin: that, and after what it holds."""
    if one.takes_files:
        yield f"{begin} -F"
    for word, about in one.words.items():
        said = f" -d {shlex.quote(about)}" if about else ""
        if not word.startswith("-"):
            yield f"{begin} -f -a {word}{said}"
            continue
        flag = f"-l {word[2:]}" if word.startswith("--") else f"-s {word[1:]}"
        takes = ""
        if word in one.values:
            values = one.values[word]
            is_files = values == (FILES,)
            takes = " -r -F" if is_files else " -x" + (f" -a {_quoted(values)}" if values else "")
        yield f"{begin} {flag}{takes}{said}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = command_line.parser().parse_args(arguments)
    print(text_for(options.shell), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
