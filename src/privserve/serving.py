"""Serve the models that a command line names, until their limits or Ctrl-C, and say how it goes."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from privserve.errors import ClusterError, ConfigError, PrivserveError, QueryError
from privserve.tending import SERVE

if TYPE_CHECKING:
    from privserve.cluster import Cluster
    from privserve.model import SecureModel

DEFAULT_MODEL = Path("model.onnx")
NAME = re.compile(r"[A-Za-z0-9_.-]+")
"""Of a model, before its file."""
LOOK_SECONDS = 0.5
"""So often the main thread can be interrupted while others serve."""


def named_files(given: Sequence[str] | None) -> list[tuple[str | None, Path]]:
    """Return the name and the file of each --model; None: it is called as its file.

    Raises ConfigError where two would have one name.
    """
    if given is None:
        if not DEFAULT_MODEL.exists():
            raise ConfigError(
                "there is no ./model.onnx; make one with `privserve convert model.h5` or "
                "name a model with --model"
            )
        return [(None, DEFAULT_MODEL)]
    found: list[tuple[str | None, Path]] = []
    for text in given:
        name, equals, path = text.partition("=")
        is_named = equals and NAME.fullmatch(name) and not Path(text).exists()
        found.append((name, Path(path)) if is_named else (None, Path(text)))
    names = [name or path.stem for name, path in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two models are called '{name}'; name one: --model NAME=FILE")
    return found


def keep(cluster: Cluster) -> None:
    """Keep parties, on which another program serves its model by now, until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            cluster.check_processes()
            time.sleep(LOOK_SECONDS)


def serve_all(
    models: Sequence[SecureModel],
    limit: int | None,
    where: Path,
    say: Callable[[str], None],
    on_owner_loss: str = SERVE,
) -> None:
    """Serve `limit` rows of each model, or until Ctrl-C; `say` is called with lines of progress.

    where: the cluster.toml that clients need. Raises KeyboardInterrupt where a limit was left
    unreached, and what the first model's serving ended with that did not end well.
    """
    many = f"{limit} rows" if limit else "queries until Ctrl-C"
    ask = f"privserve query --config {where}"
    if len(models) == 1:
        say(f"serving {many}; ask with: {ask}")
        _serve(models[0], limit, say, on_owner_loss)
        return
    names = ", ".join(f"'{model.name}'" for model in models)
    say(f"serving {many} of each of {names}; ask with: {ask} --model NAME")
    _serve_together(models, limit, say, on_owner_loss)


def _serve_together(
    models: Sequence[SecureModel],
    limit: int | None,
    say: Callable[[str], None],
    on_owner_loss: str,
) -> None:
    failed: list[PrivserveError] = []

    def serve(model: SecureModel) -> None:
        try:
            _serve(model, limit, say, on_owner_loss, f"{model.name}: ")
        except PrivserveError as error:
            failed.append(error)
            say(f"  {model.name}: {error}")

    threads = [threading.Thread(target=partial(serve, model), daemon=True) for model in models]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(LOOK_SECONDS)
    except KeyboardInterrupt:
        for model in models:
            with contextlib.suppress(ClusterError, QueryError):
                model.stop_serving()
        for thread in threads:
            thread.join()
        if limit is not None:
            raise
    if failed:
        raise failed[0]


def _serve(
    model: SecureModel,
    limit: int | None,
    say: Callable[[str], None],
    on_owner_loss: str,
    who: str = "",
) -> None:
    """Serve one model; who: how its lines begin."""
    answered = model.serve(
        limit,
        report=lambda n: say(f"  {who}answered {n}" + (f"/{limit}" if limit else "")),
        tell=lambda line: say(f"  {line}"),
        on_owner_loss=on_owner_loss,
    )
    if limit and answered == limit:
        say(f"{who}the limit of {limit} rows is reached")
    else:
        say(f"{who}stopped after {answered} rows")
