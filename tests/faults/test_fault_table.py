"""The table of what becomes of faults: whole, and the one that people read."""

from __future__ import annotations

from itertools import product

from fault_table import (
    DOCUMENT,
    FAULTS,
    LETTERS,
    OUTCOMES,
    PHASES,
    VICTIMS,
    WHY_NOT,
    cells,
    written,
)


def test_the_document_has_the_table_that_is_played() -> None:
    text = DOCUMENT.read_text()
    assert written(text) == text, "write it: python tests/support/fault_table.py"


def test_every_fault_of_everybody_at_every_time_is_played_or_said_why_not() -> None:
    played = {(cell.fault, cell.victim, cell.phase) for cell in cells()}
    for fault, victim, phase in product(FAULTS, VICTIMS, PHASES):
        reasons = [
            where
            for where in WHY_NOT
            if set(where) <= {fault, victim, phase} or set(where) <= {fault, "any", phase}
        ]
        assert ((fault, victim, phase) in played) != bool(reasons), (fault, victim, phase, reasons)
    assert {cell.outcome for cell in cells()} <= set(OUTCOMES)
    assert LETTERS.keys() == FAULTS.keys()
