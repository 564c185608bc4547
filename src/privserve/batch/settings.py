"""What a job is told, and what is made of that: also in each of Ray's actors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from privserve.batch.asking import Asker, Asking, ClusterAsker, Patience, served
from privserve.batch.command_line import DEFAULT_CONFIG, RAY_ROWS
from privserve.batch.opening import open_source
from privserve.batch.pace import Pace
from privserve.batch.sources import Source
from privserve.description import TensorDescription
from privserve.errors import ConfigError
from privserve.served_model import ServedModel

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What a job is told."""

    input: Path
    output: Path
    config: Path = DEFAULT_CONFIG
    key: Path | None = None
    model: str | None = None
    """Its name, where the cluster has several."""
    columns: tuple[str, ...] = ()
    """Of Parquet; see `parquet.columns_for`."""
    logits: bool = False
    rows_per_query: int | None = None
    queries: int | None = None
    """Under way at a time."""
    part_rows: int | None = None
    on_bad_row: Literal["stop", "nan"] = "stop"
    patience: float = 60.0
    timeout: float = 60.0
    restart: bool = False
    ray_actors: int | None = None
    """Ask from as many actors on a Ray cluster."""
    ray_rows: int = RAY_ROWS
    """Of one task of an actor."""


def cluster_asker(settings: Settings) -> ClusterAsker:
    """Return who asks the cluster of the settings."""
    return ClusterAsker(
        settings.config, settings.key, settings.timeout, settings.logits, settings.model
    )


def source_for(settings: Settings, model: ServedModel) -> Source:
    """Return the rows of a job."""
    return open_source(settings.input, shapes(model.description["inputs"]), settings.columns)


def shapes(tensors: Sequence[TensorDescription]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of inputs or outputs by name, without the batch axis."""
    return {tensor["name"]: tuple(tensor["shape"]) for tensor in tensors}


def asking(settings: Settings, asker: Asker, source: Source, patience: Patience) -> Asking:
    """Return what asks for a source's rows as the settings say."""
    model = served(asker, patience)
    wanted = settings.rows_per_query
    if wanted is not None and wanted > model.max_rows:
        raise ConfigError(
            f"a query of this model holds at most {model.max_rows} rows, not {wanted}; lower "
            "--rows-per-query, or leave it away"
        )
    pace = Pace(
        model.max_rows,
        8 * sum(math.prod(shape) for shape in shapes(model.description["inputs"]).values()),
        settings.timeout,
        rows=settings.rows_per_query,
        in_flight=settings.queries,
    )
    return Asking(asker, source, pace, settings.on_bad_row, patience)
