"""What was found of a model, and what to say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from privserve.check.layers import CheckedLayer, Error
from privserve.compiler.accuracy import TOLERABLE
from privserve.terminal import table

HEAD = ("layer", "class", "runs on", "exchanges", "B online", "B dealt", "error", "of its spread")


@dataclass
class Report:
    """What was found."""

    source: str
    layers: list[CheckedLayer] = field(default_factory=list)
    outputs: dict[str, Error] = field(default_factory=dict)
    agreed: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By output that says a class: in how many rows it was the same on shares, and of how many."""
    rows: int = 0
    """That were run on shares."""
    are_samples: bool = False
    """Whether these were the user's own."""
    left: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """By row the layers in which it left a guessed range: there is no answer to it."""
    probed: tuple[int, int] | None = None
    """Of how many made-up inputs how many left a guessed range; None: none is guessed."""
    memory: tuple[int, int] | None = None
    """Bytes at a compute party, and at the dealer."""
    notes: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    """What to do before it is served."""
    serve: str = ""
    """The command that serves it; empty where nothing does."""

    @property
    def exit_code(self) -> int:
        """0: it can be served as said; 1: change something first; 2: it cannot be served."""
        if not self.serve:
            return 2
        return 1 if self.changes else 0

    def judge(self) -> None:
        """Add what errors and left ranges ask for to what is to be done."""
        for name, error in self.outputs.items():
            if error.relative > TOLERABLE:
                self.changes.append(
                    f"output '{name}' errs by {error.relative:.1%} of its spread: narrow the "
                    "inputs' range (--input-range), or use more --fraction-bits"
                )
        if self.left:
            first = next(iter(self.left))
            kind = "your samples" if self.are_samples else "made-up inputs"
            self.changes.append(
                f"{len(self.left)} of {self.rows} of {kind} get no answer (GuessedRangeError): "
                f"row {first} left the range that was guessed for layer '{self.left[first][0]}'; "
                "give inputs like those to come with --calibration, here and to launch"
            )

    def as_json(self) -> dict[str, Any]:
        """Return all of it, for programs."""
        return {
            "source": self.source,
            "layers": [
                {
                    "name": one.name,
                    "class_name": one.class_name,
                    "shape": list(one.shape),
                    "parameters": one.parameters,
                    "runs_on": one.runs_on,
                    "exchanges": one.exchanges,
                    "bytes_online": one.bytes_online,
                    "bytes_dealt": one.bytes_dealt,
                    "error": _error(one.error),
                }
                for one in self.layers
            ],
            "outputs": {name: _error(error) for name, error in self.outputs.items()},
            "same_class": {n: {"rows": a, "of": b} for n, (a, b) in self.agreed.items()},
            "rows": self.rows,
            "own_samples": self.are_samples,
            "left_guessed_ranges": {str(row): list(names) for row, names in self.left.items()},
            "probed": None
            if self.probed is None
            else {"left": self.probed[0], "of": self.probed[1]},
            "memory": None
            if self.memory is None
            else {"compute_party": self.memory[0], "dealer": self.memory[1]},
            "notes": self.notes,
            "changes": self.changes,
            "serve": self.serve,
            "exit_code": self.exit_code,
        }

    def lines(self) -> list[str]:
        """Return all of it, for people."""
        said = [self.source]
        if self.layers:
            said += _layers(self.layers)
        if self.memory is not None:
            compute, dealer = self.memory
            said.append(
                f"memory: about {compute / 1e9:.2f} GB at each compute party, "
                f"{dealer / 1e9:.2f} GB at the dealer"
            )
        said += self._outputs()
        said += [f"note: {note}" for note in self.notes]
        said += [f"CHANGE: {change}" for change in self.changes]
        if self.serve:
            said.append(f"{'then serve' if self.changes else 'serve'} it with:  {self.serve}")
        return said

    def _outputs(self) -> list[str]:
        said = []
        kind = "your samples" if self.are_samples else "made-up inputs (give yours with --samples)"
        for name, error in self.outputs.items():
            line = (
                f"output '{name}': on shares it is off by at most {error.largest:.2g}, "
                f"{error.relative:.2g} of its spread ({error.spread:.3g}), over {self.rows} {kind}"
            )
            if name in self.agreed:
                same, of = self.agreed[name]
                line += f"; the same class in {same} of {of}"
            said.append(line)
        return said


def _layers(layers: Sequence[CheckedLayer]) -> list[str]:
    rows: list[tuple[str, ...]] = [HEAD]
    totals = [0, 0, 0]
    for one in layers:
        numbers = (one.exchanges, one.bytes_online, one.bytes_dealt)
        totals = [total + number for total, number in zip(totals, numbers, strict=True)]
        errors = ("", "")
        if one.error is not None:
            errors = (f"{one.error.largest:.2g}", f"{one.error.relative:.2g}")
        counted = tuple(f"{number:,}" if number else "" for number in numbers)
        rows.append((one.name, one.class_name, one.runs_on, *counted, *errors))
    rows.append(("total", "", "", *(f"{total:,}" for total in totals), "", ""))
    explained = (
        "per query: exchanges between the compute parties, bytes that one sends to each other one, "
        "bytes that the dealer sends; errors against plain float, none where a layer is part of "
        "the one before"
    )
    return [*table(rows, right=range(3, 8)), explained]


def _error(error: Error | None) -> dict[str, float] | None:
    if error is None:
        return None
    return {"largest": error.largest, "spread": error.spread, "relative": error.relative}
