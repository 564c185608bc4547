"""What becomes of a cluster when something breaks: what, for whom, and when; and what it comes to.

`test_fault_matrix` plays each cell, and `python tests/support/fault_table.py` writes the table for
docs/operations.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PHASES = ("idle", "answering", "sharing", "healing")
"""The model is served and nobody asks; clients ask; the owner shares it; another party is away."""
PARTIES = ("alice", "bob", "carol")
VICTIMS = (*PARTIES, "owner", "client")

FAULTS = {
    "killed": "its process is killed (`kill -9`), and started again",
    "stopped": "its process stands still (`SIGSTOP`) for longer than `--peer-timeout`, and goes on",
    "terminated": "its process is told to end (`SIGTERM`), and started again",
    "cut off": "the cable to its host is cut, and mended",
    "1 % loss": "one packet of a hundred to and from its host is lost",
    "slow": "its host is 50 ms away, over a line of 256 kB/s",
    "full disk": "the disk of its `--state-dir` is full, or of a batch job's output",
    "no memory": "it gets hardly more memory than it has (64 MB, `RLIMIT_AS`)",
    "clock": "its wall clock jumps ahead an hour, and back two",
}

HEALS, UNAFFECTED, TOLD, ENDED, AGAIN, OWN, BATCH = "HUTEAOB"
OUTCOMES = {
    HEALS: (
        "heals",
        "queries fail and name it (`NotServing`, `ClusterError`); once it is back the model is "
        "served again by itself, counts included",
    ),
    UNAFFECTED: ("nobody notices", "every query is answered, at most later"),
    TOLD: (
        "the owner is told",
        "`launch` ends with an error that names it; once it is back, the same command shares and "
        "serves",
    ),
    ENDED: (
        "the model is stopped",
        "as by Ctrl-C: clients are told that the owner has to share it",
    ),
    AGAIN: (
        "the owner begins again",
        "parties keep what they were sent, unserved; the same command shares and serves",
    ),
    OWN: (
        "it alone notices",
        "its own queries fail or wait, and its connections are made anew; nobody else's do",
    ),
    BATCH: (
        "the batch job ends",
        "with an error that names the file; started again it goes on where it was",
    ),
}

LETTERS = {
    # By fault and victim: what it comes to while idle, answering, sharing, healing.
    "killed": ("HHTH", "HHTH", "HHTH", "UUAU", "-O-O"),
    "stopped": ("HHTH", "HHTH", "HHTH", "UUUU", "-O-O"),
    "terminated": ("HHTH", "HHTH", "HHTH", "EEEE", "-O-O"),
    "cut off": ("HHTH", "HHTH", "HHTH", "UUUU", "-O-O"),
    "1 % loss": ("UUUU", "UUUU", "UUUU", "UUUU", "-U-U"),
    "slow": ("UUUU", "UUUU", "UUUU", "UUUU", "-U-U"),
    "full disk": ("-HTH", "UUTU", "UUTU", "----", "-B--"),
    "no memory": ("UUUU", "UUUU", "UUUU", "UUUU", "-U-U"),
    "clock": ("UUUU", "UUUU", "UUUU", "UUUU", "-U-U"),
}
WHY_NOT = {
    ("client", "idle"): "a client that asks nothing does nothing",
    ("client", "sharing"): "a client has no part in sharing",
    ("full disk", "alice", "idle"): "nothing is written while nobody asks",
    ("full disk", "owner"): "`launch` writes nothing",
    ("full disk", "client", "healing"): "queries write nothing, and a batch job waits",
}
"""Why there is no such cell."""


@dataclass(frozen=True)
class Cell:
    """One fault, of one victim, at one time."""

    fault: str
    victim: str
    phase: str
    outcome: str

    @property
    def name(self) -> str:
        return f"{self.fault} {self.victim} {self.phase}"


def cells() -> Iterator[Cell]:
    """Every cell that there is."""
    for fault, rows in LETTERS.items():
        for victim, letters in zip(VICTIMS, rows, strict=True):
            for phase, letter in zip(PHASES, letters, strict=True):
                if letter != "-":
                    yield Cell(fault, victim, phase, letter)


def cell(fault: str, victim: str, phase: str) -> Cell:
    """The cell of these."""
    return next(c for c in cells() if (c.fault, c.victim, c.phase) == (fault, victim, phase))


# -- the document ---------------------------------------------------------------------------------

DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"
BEGIN = "<!-- tests/support/fault_table.py writes what follows, tests/faults plays it -->"
END = "<!-- up to here -->"


def table() -> str:
    """The table as the document has it, with what its words mean, and why cells are left out."""
    lines = ["| what | whose | idle | answering | sharing | healing |", "|---" * 6 + "|"]
    for fault, rows in LETTERS.items():
        what = fault
        for victims, letters in _alike(rows):
            cells = " | ".join(_word(letter) for letter in letters)
            lines.append(f"| {what} | {victims} | {cells} |")
            what = ""
    lines += ["", "What breaks:", ""]
    lines += [f"- **{fault}**: {what}" for fault, what in FAULTS.items()]
    lines += ["", "What it comes to:", ""]
    lines += [f"- **{word}**: {meaning}" for word, meaning in OUTCOMES.values()]
    lines += ["", "What is not there (-):", ""]
    lines += [f"- {', '.join(where)}: {why}" for where, why in WHY_NOT.items()]
    return "\n".join(lines)


def _alike(rows: tuple[str, ...]) -> list[tuple[str, str]]:
    """Victims that fare alike in one line."""
    found: dict[str, list[str]] = {}
    for victim, letters in zip(VICTIMS, rows, strict=True):
        found.setdefault(letters, []).append(victim)
    return [
        (", ".join(victims).replace(", ".join(PARTIES), "any party"), letters)
        for letters, victims in found.items()
    ]


def _word(letter: str) -> str:
    return "-" if letter == "-" else OUTCOMES[letter][0]


def written(text: str) -> str:
    """The document with the table as it is now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
