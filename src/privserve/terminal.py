"""What commands print: richly where a person reads it, plain lines where a program does.

rich is loaded only where stdout (or stderr, for progress) is a terminal; where it is not installed,
as in a party's image, a terminal gets the plain lines too.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from privserve import text_table

if TYPE_CHECKING:
    from rich.console import Console

FEWEST_COLUMNS = 60
"""A narrower terminal gets plain lines, which it wraps: rich would cut words into pieces."""


def is_rich(stream: TextIO) -> bool:
    """Whether a person sees what is written there, on a terminal that knows colours."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return False
    try:
        import rich  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Return the lines of a table to print: rows[0] is the head; columns in `right` are numbers."""
    if not is_rich(sys.stdout):
        return text_table.table(rows, right)
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = _console(sys.stdout)
    if console.width < FEWEST_COLUMNS:
        return text_table.table(rows, right)
    shown = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for index, head in enumerate(rows[0]):
        is_number = index in right
        shown.add_column(head, justify="right" if is_number else "left", no_wrap=is_number)
    for row in rows[1:]:
        # Text, for a layer may be called [red] and mean nothing by it.
        shown.add_row(*(Text(cell) for cell in row))
    with console.capture() as captured:
        console.print(shown)
    return captured.get().strip("\n").split("\n")


@contextlib.contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show on stderr that `what` is being done, while it is; nothing where that is no terminal.

    Yields what to call with how much of `total` is done.
    """
    if not is_rich(sys.stderr):
        yield lambda done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    counted = (*columns[:2], MofNCompleteColumn(), columns[2])
    with Progress(
        *(columns if total is None else counted),
        console=_console(sys.stderr),
        transient=True,
        redirect_stdout=False,  # or what goes into a pipe would come here
        redirect_stderr=False,
    ) as shown:
        task = shown.add_task(what.replace("[", r"\["), total=total)
        yield lambda done: shown.update(task, completed=done)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False)
