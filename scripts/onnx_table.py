#!/usr/bin/env python3
"""Writes docs/onnx.md: which ONNX operators convert and run, read from the code that does it.

python scripts/onnx_table.py           writes the file
python scripts/onnx_table.py --check   exit code 1 if it is not current
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from converters.onnx_ops import OPERATORS
from converters.onnx_opsets import RULES
from converters.onnx_opsets.rules import Rule
from privserve.activations import CLIENT_ACTIVATIONS
from privserve.compiler.ops import LOWERINGS
from privserve.engines.crypten.graph import HANDLERS as CRYPTEN

TARGET = Path(__file__).resolve().parents[1] / "docs" / "onnx.md"

HEAD = """\
<!-- Written by scripts/onnx_table.py; change the operators in converters/ and src/privserve/. -->

# Which ONNX operators convert and run

Files of opset 7 to the newest are read, and become opset 17. *ottt* and *crypten*: that engine
computes the operator on shares. *client*: as the last one of the network it is left to the client,
who applies it to the joined answer; no engine needs to compute it then.

Converter and engines refuse some operators' rarer settings, by the layer's name and with the
reason; a quotient of two computed values, for one, is run by none. Who runs which layer of a model
says `python scripts/convert.py model.onnx -o converted.onnx`; what the whole costs and errs by,
`python -m privserve.launch --model model.onnx --dry-run`.

What depends on no input (constants, shapes of known sizes) is computed at conversion. All else is
refused: recurrent operators such as LSTM and GRU, loops, branches that depend on data, quantised
operators, and whatever mixes the rows of a batch.

| operator | ottt | crypten | client |
|---|---|---|---|
"""

MIDDLE = """
## Operators that become others

They run where those do that they become.

| operator | what it becomes |
|---|---|
"""

TAIL = """
## Of scikit-learn

skl2onnx writes these, of the domain `ai.onnx.ml`; they too become others.

| operator | what it becomes |
|---|---|
"""


def text() -> str:
    """The whole of docs/onnx.md."""
    read = [
        f"| {name} | {_yes(name in LOWERINGS)} | {_yes(name in CRYPTEN)} "
        f"| {_yes(name in CLIENT_ACTIVATIONS)} |\n"
        for name in _sorted(OPERATORS)
    ]
    # A rule that an operator above has as well tells opsets apart; of a name that is not above it
    # makes nothing that could be computed.
    versions = {RULES[name] for name in OPERATORS if name in RULES}
    made = {name: rule for name, rule in RULES.items() if rule not in versions}
    others = [
        _row(name, made) for name in _sorted(made) if ":" not in name and name not in OPERATORS
    ]
    learners = [_row(name, made) for name in _sorted(made) if ":" in name]
    return HEAD + "".join(read) + MIDDLE + "".join(others) + TAIL + "".join(learners)


def _row(name: str, rules: dict[str, Rule]) -> str:
    summary = (rules[name].__doc__ or "").splitlines()[0]
    return f"| {name.rpartition(':')[2]} | {summary} |\n"


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(names, key=str.lower)


def _yes(is_so: bool) -> str:
    return "yes" if is_so else ""


def main() -> int:
    """Exit code 0, or 1 where --check finds the file out of date."""
    parser = argparse.ArgumentParser(description="Writes docs/onnx.md.")
    parser.add_argument("--check", action="store_true", help="only compare")
    if not parser.parse_args().check:
        TARGET.write_text(text(), encoding="utf-8")
        return 0
    if TARGET.read_text(encoding="utf-8") == text():
        return 0
    print(f"{TARGET.name} is out of date: run python scripts/onnx_table.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
