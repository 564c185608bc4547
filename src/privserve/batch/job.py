"""The whole of a batch job: rows are read, asked for and written, and a journal knows how far."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Generator
from typing import Any, TextIO

from privserve.batch.asking import Answered, Asker, Patience, served
from privserve.batch.journal import check_same
from privserve.batch.layout import Layout
from privserve.batch.progress import Progress
from privserve.batch.results import Results
from privserve.batch.settings import Say, Settings, asking, cluster_asker, shapes, source_for
from privserve.batch.sources import Source
from privserve.errors import ConfigError, PrivserveError
from privserve.served_model import ServedModel


def run(settings: Settings, stream: TextIO | None = None) -> None:
    """Do a job, or what is left of it.

    stream: takes what is said, by default standard error. Raises what `Asking.answers` does,
    ConfigError, and OSError of files; what was answered before is kept, and the same call goes on.
    """
    with contextlib.closing(cluster_asker(settings)) as asker:
        ask_for_all(settings, asker, sys.stderr if stream is None else stream)


def ask_for_all(settings: Settings, asker: Asker, stream: TextIO) -> None:
    """See `run`."""

    def say(line: str) -> None:
        print(line, file=stream, flush=True)

    home = settings.input.resolve()
    if home in settings.output.resolve().parents or home == settings.output.resolve():
        raise ConfigError(f"{settings.output} is among the rows of {settings.input}; name another")
    model = served(asker, Patience(settings.patience, say))
    source = source_for(settings, model)
    layout = Layout(
        settings.output, shapes(model.description["outputs"]), source.rows, settings.part_rows
    )
    facts = {
        "input": source.identity,
        "model": about(model),
        "options": {**layout.options(), "logits": settings.logits},
    }
    with Results(layout, facts, settings.restart) as results:
        if results.journal.finished:
            say(f"all rows are in {settings.output} already; --restart asks for them anew")
            return
        results.check_space()
        if results.done:
            say(f"going on after {results.done:,} rows")
        _go_on(settings, asker, source, results, stream)
        if results.journal.bad_rows:
            say(f"{results.journal.bad_rows:,} rows are NaN; {results.bad_path} says why")
        say(f"{source.rows:,} rows are in {settings.output}")


def about(model: ServedModel) -> dict[str, Any]:
    """Return what a client can tell a model by, and sharing it anew does not change; JSON."""
    outputs = model.description["outputs"]
    return {
        "name": model.name,
        "inputs": [[t["name"], list(t["shape"])] for t in model.description["inputs"]],
        "outputs": [[t["name"], list(t["shape"]), t["activation"]] for t in outputs],
    }


def _go_on(
    settings: Settings, asker: Asker, source: Source, results: Results, stream: TextIO
) -> None:
    """Ask for the rows that are left; whatever ends that, what was answered is on disk."""
    progress = Progress(results.done, source.rows, stream)
    try:
        with contextlib.closing(_answers(settings, asker, source, results, progress.say)) as found:
            for answered in found:
                if not any(s.startswith(answered.sharing) for s in results.journal.sessions):
                    _note_sharing(results, asker, answered, progress.say)
                results.append(answered.outputs, answered.bad, source.where)
                results.commit(now=False)
                progress.update(results.done)
        results.finish()
    except (PrivserveError, OSError, KeyboardInterrupt):
        with contextlib.suppress(OSError):
            results.commit()
        done = results.journal.done
        progress.end(done)
        progress.say(
            f"{done:,} rows are kept, {source.rows - done:,} are left: the same command goes on"
        )
        raise
    progress.end(results.done)


def _answers(
    settings: Settings, asker: Asker, source: Source, results: Results, say: Say
) -> Generator[Answered]:
    if settings.ray_actors is not None:
        # Only where it is needed: an extra, and slow to load.
        from privserve.batch.ray_data import answers

        return answers(settings, results.done, source.rows)

    def sleep(seconds: float) -> None:
        results.commit()  # a cluster that is away may be so for long
        time.sleep(seconds)

    patience = Patience(settings.patience, say, sleep)
    return asking(settings, asker, source, patience).answers(results.done, source.rows)


def _note_sharing(results: Results, asker: Asker, answered: Answered, say: Say) -> None:
    """Remember of which sharings rows were asked, and tell of another one.

    A client cannot see whether a model that was shared anew has other weights. Raises ConfigError
    where it can see that it is another one.
    """
    known = results.journal.sessions
    if known:
        now = {**results.journal.facts, "model": about(asker.model(again=True))}
        check_same(results.journal, now)
        say(
            f"the model was shared anew before row {answered.start:,}; if it is not the same "
            "model as before, ask for all rows anew with --restart"
        )
    known.append(answered.sharing)
