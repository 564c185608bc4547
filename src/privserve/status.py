"""See all parties of a cluster and their models: privserve status

privserve status --config cluster.toml            one look
privserve status --config cluster.toml --watch    again every 2 s, until Ctrl-C
privserve status --config cluster.toml --json     for programs

Where the model owner's key lies beside cluster.toml parties tell all; else what they tell anybody.
The exit code is 0 where all parties are up and every model is loaded at each, else 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from privserve.command_lines import status as command_line
from privserve.config import read_config
from privserve.exit_codes import exit_code
from privserve.onlooker import Onlooker, Seen
from privserve.shared_models import SharedModel, put_together
from privserve.terminal import table

WATCH_SECONDS = 2.0
CLEAR = "\033[H\033[J"
UNKNOWN = "-"
PARTIES = ("party", "role", "address", "lanes", "memory", "host has", "certificate", "state")
MODELS = ("model", "served", "answered", "limit", "waiting", "rows/s", "p50", "now", "state")
NUMBERS = {PARTIES: range(3, 7), MODELS: range(2, 8)}
"""Which columns are numbers."""


@dataclass(frozen=True)
class PartyRow:
    """One party, as it is shown."""

    name: str
    role: str
    address: str
    up: bool
    state: str
    """Whether it is up, and a model is loaded there; or why it could not be asked."""
    lanes: int | None = None
    memory: int | None = None
    """Bytes that its process takes."""
    memory_available: int | None = None
    """Bytes that its host could give."""
    certificate_days_left: float | None = None
    cell: int = 0


@dataclass(frozen=True)
class ModelRow:
    """One model, as it is shown; None: that is not known, or is not so."""

    name: str
    session: str | None
    place: str
    state: str
    reason: str
    stopped: bool
    """Whether its owner wants it no more."""
    serving: bool | None
    answered: int | None = None
    limit: int | None = None
    waiting: int | None = None
    rows_per_second: float | None = None
    """While batches ran, the last thousand of them: what the model can do."""
    p50_ms: float | None = None
    """Half of these took no longer."""
    rows_per_second_now: float | None = None
    """Since the look before this one."""
    cell: int = 0


@dataclass(frozen=True)
class Look:
    """All parties and models at one time."""

    parties: list[PartyRow]
    models: list[ModelRow]
    is_owner: bool
    rows: Mapping[str, int]
    """By session: rows that were evaluated."""
    at: float

    @property
    def is_well(self) -> bool:
        """Whether all parties are up, and each has every model but for those that were stopped."""
        wanted = (m for m in self.models if m.place == "current" and not m.stopped)
        return all(p.up for p in self.parties) and all(m.state == "loaded" for m in wanted)


def look(onlooker: Onlooker, before: Look | None = None) -> Look:
    """Ask all parties. before: the last look, for how much was evaluated since."""
    seen, at = onlooker.look(), time.monotonic()
    parties = [_party(one) for one in seen]
    models: list[ModelRow] = []
    rows: dict[str, int] = {}
    for cell in dict.fromkeys(one.cell for one in seen):
        of_cell = [one for one in seen if one.cell == cell]
        if onlooker.is_owner:
            costs = of_cell[0].costs
            rows |= {session: int(cost.get("rows", 0)) for session, cost in costs.items()}
            models += _models(of_cell, rows, before, at)
        else:
            models += _public_models(of_cell)
    return Look(parties, models, onlooker.is_owner, rows, at)


def _models(
    seen: Sequence[Seen], rows: Mapping[str, int], before: Look | None, at: float
) -> list[ModelRow]:
    """The models of one cell, as its parties tell the owner."""
    told = {s.party.name: s.status for s in seen if s.status is not None}
    leader = seen[0]
    listed = leader.status["models"] if leader.status else []
    waiting = {str(facts["session"]): facts.get("waiting") for facts in listed}
    return [
        _model(
            model,
            leader.costs.get(model.session, {}),
            waiting.get(model.session),
            _now(model, rows, before, at),
        )
        for model in put_together(told, leader.cell)
    ]


def _now(
    model: SharedModel, rows: Mapping[str, int], before: Look | None, at: float
) -> float | None:
    """Rows per second since the look before."""
    if before is None or model.session not in rows:
        return None
    return (rows[model.session] - before.rows.get(model.session, 0)) / max(1e-3, at - before.at)


def _party(seen: Seen) -> PartyRow:
    party = seen.party
    if not seen.is_up:
        why = f"down: {seen.why}"
        return PartyRow(party.name, seen.role, party.address, False, why, cell=seen.cell)
    models = seen.status["models"] if seen.status else []
    state = "up" if seen.is_ready else "up, no model is loaded"
    if not seen.is_ready and any(model.get("draining") for model in models):
        state = "up, takes no more queries since a party is being stopped"
    if seen.status is None:
        return PartyRow(party.name, seen.role, party.address, True, state, cell=seen.cell)
    told = seen.status
    return PartyRow(
        party.name,
        seen.role,
        party.address,
        True,
        state,
        told.get("lanes", {}).get("open"),
        told.get("memory_used"),
        told.get("memory_available"),
        told.get("certificate_days_left"),
        seen.cell,
    )


def _model(
    model: SharedModel, cost: Mapping[str, Any], waiting: int | None, now: float | None
) -> ModelRow:
    recent = [(int(rows), float(seconds)) for rows, seconds in cost.get("recent", ())]
    spent = sum(seconds for _, seconds in recent)
    return ModelRow(
        name=model.name,
        session=model.session,
        place=model.place,
        state=model.state,
        reason=model.reason,
        stopped=model.is_stopped,
        serving=model.serving,
        answered=model.answered,
        limit=model.limit,
        waiting=waiting,
        rows_per_second=sum(rows for rows, _ in recent) / spent if spent else None,
        p50_ms=1000 * statistics.median(s for _, s in recent) if recent else None,
        rows_per_second_now=now,
        cell=model.cell,
    )


def _public_models(seen: Sequence[Seen]) -> list[ModelRow]:
    """The models that parties tell anybody of: loaded where all that are up have them."""
    up = [one for one in seen if one.is_up]
    serving = seen[0].public.get("serving") if seen[0].is_up else None
    names = dict.fromkeys(name for one in up for name in one.public.get("models", []))
    rows = []
    for name in names:
        missing = [s.party.name for s in up if name not in s.public.get("models", [])]
        state, reason = ("failed", f"{missing[0]} does not have it") if missing else ("loaded", "")
        is_served = None if serving is None else name in serving
        cell = seen[0].cell
        rows.append(ModelRow(name, None, "current", state, reason, False, is_served, cell=cell))
    return rows


# -- showing --------------------------------------------------------------------------------


def shown(found: Look) -> str:
    """Return both tables, and what to do where something is missing."""
    cells = {party.cell for party in found.parties}
    lines = _table(PARTIES, [(p.cell, _party_cells(p)) for p in found.parties], cells)
    if found.models:
        lines += ["", *_table(MODELS, [(m.cell, _model_cells(m)) for m in found.models], cells)]
        lines += [f"{_where(m, cells)}{m.name}: {m.reason}" for m in found.models if m.reason]
    elif any(party.up for party in found.parties):
        lines += ["", "no model is shared"]
    if not found.is_owner:
        lines += ["", "more is told to who has owner.key beside cluster.toml, the model owner"]
    return "\n".join(lines)


def _table(
    head: tuple[str, ...], rows: Sequence[tuple[int, tuple[str, ...]]], cells: set[int]
) -> list[str]:
    """A table's lines; which cell each row is of comes first where there are several."""
    numbers = NUMBERS[head]
    if len(cells) == 1:
        return table([head, *(row for _, row in rows)], numbers)
    shifted = range(numbers.start + 1, numbers.stop + 1)
    return table([("cell", *head), *((str(cell), *row) for cell, row in rows)], shifted)


def _where(model: ModelRow, cells: set[int]) -> str:
    return f"cell {model.cell}: " if len(cells) > 1 else ""


def as_json(found: Look) -> str:
    """Return the look as one line of JSON."""
    return json.dumps(
        {
            "ok": found.is_well,
            "owner": found.is_owner,
            "parties": [asdict(party) for party in found.parties],
            "models": [asdict(model) for model in found.models],
        }
    )


def _party_cells(party: PartyRow) -> tuple[str, ...]:
    days = party.certificate_days_left
    return (
        party.name,
        party.role,
        party.address,
        _number(party.lanes),
        _bytes(party.memory),
        _bytes(party.memory_available),
        UNKNOWN if days is None else f"{days:.0f} days",
        party.state,
    )


def _model_cells(model: ModelRow) -> tuple[str, ...]:
    state = model.state if model.place == "current" else f"{model.state}, {model.place}"
    return (
        model.name,
        {None: UNKNOWN, True: "yes", False: "no"}[model.serving],
        _number(model.answered),
        _number(model.limit),
        _number(model.waiting),
        _number(model.rows_per_second),
        UNKNOWN if model.p50_ms is None else f"{model.p50_ms:.2f} ms",
        UNKNOWN if model.rows_per_second_now is None else f"{model.rows_per_second_now:,.0f}/s",
        state,
    )


def _number(number: float | None) -> str:
    return UNKNOWN if number is None else f"{number:,.0f}"


def _bytes(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number / 1e9:.2f} GB"


# -- the command ------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options, checked."""
    return command_line.parser().parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Show what was asked for; returns the exit code."""
    onlooker = Onlooker(read_config(options.config))
    found: Look | None = None
    try:
        while True:
            found = look(onlooker, found)
            text = as_json(found) if options.json else shown(found)
            clear = CLEAR if options.watch and not options.json and sys.stdout.isatty() else ""
            print(clear + text, flush=True)
            if not options.watch:
                break
            if not (clear or options.json):
                print(flush=True)
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        if not options.watch or found is None:
            raise
    finally:
        onlooker.close()
    return 0 if found.is_well else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse(arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
