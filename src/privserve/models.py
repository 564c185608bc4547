"""See which models a cluster has, and stop one: python -m privserve.models

python -m privserve.models --config cluster.toml            list them
python -m privserve.models --config cluster.toml stop NAME  have every party forget one

Run where the model owner's files are. `launch --config cluster.toml --model FILE` adds a model, or
replaces the one that has its name.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from privserve.cluster import Cluster
from privserve.command_lines import models as command_line
from privserve.exit_codes import exit_code
from privserve.shared_models import SharedModel
from privserve.terminal import table

HEAD = ("model", "engine", "state", "served", "answered", "limit", "memory")
NUMBERS = range(4, 7)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options, checked."""
    return command_line.parser().parse_args(arguments)


def run(options: argparse.Namespace) -> str:
    """Do what was asked for; returns what to tell."""
    cluster = Cluster.connect(options.config, wait=False)
    try:
        if options.command == "stop":
            cluster.stop_model(options.name)
            said = f"'{options.name}' is stopped at all parties"
            return json.dumps({"said": said}) if options.json else said
        models = cluster.models()
        return json.dumps([asdict(model) for model in models]) if options.json else listed(models)
    finally:
        cluster.stop()


def listed(models: Sequence[SharedModel]) -> str:
    """The models as a table, and below it why those are over that are."""
    if not models:
        return "no model is shared"
    rows: list[tuple[str, ...]] = [HEAD, *(_row(model) for model in models)]
    names, right = [model.name for model in models], NUMBERS
    if any(model.cell for model in models):
        rows = [("cell", *HEAD), *((str(m.cell), *_row(m)) for m in models)]
        names, right = [f"cell {m.cell}: {m.name}" for m in models], range(5, 8)
    reasons = [f"{n}: {m.reason}" for n, m in zip(names, models, strict=True) if m.reason]
    return "\n".join([*table(rows, right=right), *reasons])


def _row(model: SharedModel) -> tuple[str, ...]:
    is_own = model.place == "current" or not model.is_alive
    state = model.state if is_own else f"{model.state}, {model.place}"
    known = [size for size in model.memory.values() if size is not None]
    memory = f"{max(known) / 1e9:.2f} GB" if known and model.is_alive else "-"
    limit = "-" if model.limit is None else f"{model.limit:,}"
    served = "yes" if model.serving else "no"
    return (model.name, model.engine, state, served, f"{model.answered:,}", limit, memory)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse(arguments)

    def work() -> int:
        print(run(options))
        return 0

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
