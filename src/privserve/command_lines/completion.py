"""The options of `privserve completion`."""

from __future__ import annotations

import argparse

from privserve import usage

SHELLS = ("bash", "zsh", "fish")


def parser() -> argparse.ArgumentParser:
    """Return the options of `privserve completion`."""
    parser = usage.parser(
        "completion",
        "Print what has a shell complete privserve's commands, options and files. It is made of "
        "the options themselves: print it again after an upgrade.",
        {
            "completion bash > ~/.local/share/bash-completion/completions/privserve": "",
            "completion zsh > ~/.privserve.zsh": "and `source ~/.privserve.zsh` in ~/.zshrc",
            "completion fish > ~/.config/fish/completions/privserve.fish": "",
        },
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser
