"""The asking of a job on a Ray cluster that the user has: `map_batches` over ranges of rows.

Each actor has a client and reads the input by itself, so input, cluster.toml, ca.pem and client.key
have to be on every node at the same paths. Answers come back in order to the process of the job,
which writes them and the journal as it does without Ray. An actor's errors come back as values, or
Ray would try again what another try does not mend.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privserve import errors
from privserve.batch.asking import Answered, Asker, Asking, Outputs, Patience, served
from privserve.batch.settings import Settings, asking, cluster_asker, source_for
from privserve.errors import ClusterError, ConfigError, PrivserveError

MOST_BLOCKS = 1000
"""Of the data set: a block has several ranges where there are more."""

Batch = dict[str, NDArray[Any]]
"""A batch of Ray Data's, of one row: a range of rows of the input, or its record."""
Record = dict[str, Any]
"""A range's answers: `about` is JSON, `answers` the outputs' bytes one after the other."""


class RangeAsker:
    """An actor: answers one range of rows after the other."""

    def __init__(self, settings: Settings, asker: Asker | None = None) -> None:
        """Connect with the first range, whose record tells what goes wrong.

        asker: instead of the cluster of the settings.
        """
        self._settings, self._asker = settings, asker
        self._asking: Asking | None = None

    def __call__(self, batch: Batch) -> Batch:
        """Return the record of a range: the rows from `start` to before `stop`."""
        answered: list[Answered] = []
        error: PrivserveError | None = None
        try:
            for answer in self._ready().answers(int(batch["start"][0]), int(batch["stop"][0])):
                answered.append(answer)
        except PrivserveError as caught:
            error = caught
        # Objects: a column of fixed width would lose the zeros that bytes end with.
        return {
            name: np.array([value], dtype=object) for name, value in record(answered, error).items()
        }

    def _ready(self) -> Asking:
        if self._asking is None:
            settings = self._settings
            asker = self._asker or cluster_asker(settings)
            patience = Patience(settings.patience)
            source = source_for(settings, served(asker, patience))
            self._asking = asking(settings, asker, source, patience)
        return self._asking


def record(answered: Sequence[Answered], error: PrivserveError | None) -> Record:
    """Return what goes from an actor to the job: all answers, and what ended them."""
    about = {
        "answers": [
            {
                "start": answer.start,
                "shapes": {name: values.shape for name, values in answer.outputs.items()},
                "bad": list(answer.bad.items()),
                "sharing": answer.sharing,
            }
            for answer in answered
        ],
        "error": None if error is None else [type(error).__name__, str(error)],
    }
    data = [np.ascontiguousarray(v, "<f4") for a in answered for v in a.outputs.values()]
    return {"about": json.dumps(about), "answers": b"".join(values.tobytes() for values in data)}


def read_record(found: Record) -> Generator[Answered]:
    """Yield a record's answers, and raise its error."""
    about, data, offset = json.loads(found["about"]), found["answers"], 0
    for entry in about["answers"]:
        outputs: Outputs = {}
        for name, shape in entry["shapes"].items():
            count = int(np.prod(shape, dtype=np.int64))
            values = np.frombuffer(data, "<f4", count, offset)
            outputs[name] = values.reshape(shape)
            offset += values.nbytes
        yield Answered(entry["start"], outputs, dict(entry["bad"]), entry["sharing"])
    if about["error"] is not None:
        name, message = about["error"]
        kind = getattr(errors, name, PrivserveError)
        raise kind(message) if name != "GuessedRangeError" else errors.RangeError(message)


def in_order(records: Iterable[Record], start: int) -> Generator[Answered]:
    """Yield the answers of many records; raises ClusterError where rows are missing or twice."""
    for found in records:
        for answer in read_record(found):
            if answer.start != start:
                raise ClusterError(
                    f"Ray gave the answers to row {answer.start} where those to {start} were due"
                )
            start += len(next(iter(answer.outputs.values())))
            yield answer


def answers(settings: Settings, start: int, stop: int) -> Generator[Answered]:
    """Yield the answers to the rows from `start` to before `stop`, in order, by Ray's actors.

    Connects to the cluster that RAY_ADDRESS names, or starts one here. Raises what `Asking.answers`
    does, and ClusterError where Ray fails.
    """
    try:
        import ray
        import ray.data
    except ModuleNotFoundError:
        raise ConfigError("--ray needs Ray: pip install 'privserve[ray]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False  # the job has one of its own
    ranges = [
        {"start": first, "stop": min(stop, first + settings.ray_rows)}
        for first in range(start, stop, settings.ray_rows)
    ]
    records = ray.data.from_items(
        ranges, override_num_blocks=min(len(ranges), MOST_BLOCKS)
    ).map_batches(
        RangeAsker,
        fn_constructor_args=(settings,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=settings.ray_actors),
    )
    try:
        yield from in_order(records.iter_rows(), start)
    except ray.exceptions.RayError as error:
        raise ClusterError(f"Ray failed: {error}") from None
