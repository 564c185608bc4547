"""A model to serve: `load_model`, and the life of its shares on a cluster.

cluster = ps.Cluster(alice, bob, carol); cluster.start()
model = ps.load_model("model.h5")
model.share(cluster)
model.serve(num_requests=3)
model.stop(); cluster.stop()
"""

from __future__ import annotations

import contextlib
import re
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import converters
from privserve import sending, tending
from privserve.cell_session import CellSession
from privserve.cluster import Cluster
from privserve.credentials import Limits
from privserve.description import SHARING_DIGITS, read_description
from privserve.engines import ENGINES, Prepared, load_engine, read_options
from privserve.errors import (
    ClusterError,
    ConfigError,
    InputError,
    ModelError,
    QueryError,
    UnknownOpError,
)
from privserve.fitting import check_memory
from privserve.inputs import Inputs, by_name
from privserve.leases import Lease, Leases
from privserve.program import PROFILES

DEFAULT_ENGINE = "ottt"
AUTO = "auto"
T = TypeVar("T", CellSession, tending.Tended)


class SecureModel:
    """A converted model, and its shares' life on a cluster."""

    def __init__(self, converted: converters.Converted, name: str) -> None:
        self.converted = converted
        self.name = name
        self._sessions: list[CellSession] = []
        """By cell, while it is shared."""
        self._tended: list[tending.Tended] = []

    def __enter__(self) -> SecureModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def prepare(
        self,
        engine: str = DEFAULT_ENGINE,
        *,
        input_range: tuple[float, float] | None = None,
        fraction_bits: int | None = None,
        calibration: Inputs | None = None,
        range_check: bool = True,
        strict_inputs: bool = False,
        profile: str = "lan",
    ) -> Prepared:
        """Return the public description and the secret parameters for `engine`; send nothing.

        engine: "ottt", "crypten", or "auto": ottt, or crypten with a warning that says why
        ottt cannot run the model. calibration, range_check, strict_inputs, profile: see `share`.
        """
        if input_range is not None:
            low, high = input_range
            if not (np.isfinite([low, high]).all() and low < high):
                raise ConfigError(
                    f"an input range needs two finite numbers, low < high: {input_range}"
                )
        if profile not in PROFILES:
            raise ConfigError(f"the profile '{profile}' is none of: {', '.join(PROFILES)}")
        options: dict[str, Any] = {
            "input_range": input_range,
            "fraction_bits": fraction_bits,
            "range_check": range_check,
            "strict_inputs": strict_inputs,
            "profile": profile,
            **({} if calibration is None else {"calibration": self._samples(calibration)}),
        }
        try:
            chosen = DEFAULT_ENGINE if engine == AUTO else engine
            return self._prepared(chosen, options)
        except UnknownOpError as error:
            if engine != AUTO:
                raise ModelError(f"{error}; {_way_out(error, chosen)}") from None
            warnings.warn(f"serving with the crypten engine, because {error}", stacklevel=3)
            return self._prepared("crypten", options)
        except ModelError as error:
            if engine != AUTO:
                raise
            warnings.warn(f"serving with the crypten engine, because {error}", stacklevel=3)
            return self._prepared("crypten", options)

    def _prepared(self, engine: str, options: dict[str, Any]) -> Prepared:
        """What the engine makes of the model; an error says where strict inputs are its cause."""
        prepare = load_engine(engine).prepare
        try:
            return prepare(self.converted.onnx, **options)
        except ModelError as error:
            if not options["strict_inputs"]:
                raise
            try:
                prepare(self.converted.onnx, **{**options, "strict_inputs": False})
            except ModelError:
                raise error from None
            raise ModelError(
                f"{error}; it fits where inputs are not strict, since these are lifted to up to "
                "twice the declared range: declare a narrower one (--input-range), or share the "
                "model without (--no-strict-inputs)"
            ) from None

    def _samples(self, given: Inputs) -> list[NDArray[np.float64]]:
        """The calibration samples, one array per input in the model's order."""
        wanted = {tensor.name: tensor.shape[1:] for tensor in self.converted.inputs}
        try:
            arrays = by_name(wanted, given)
            return [np.asarray(array, dtype=np.float64) for array in arrays.values()]
        except (InputError, TypeError, ValueError) as error:
            raise ModelError(f"calibration: {error}") from None

    def share(
        self,
        cluster: Cluster,
        *,
        engine: str = DEFAULT_ENGINE,
        input_range: tuple[float, float] | None = None,
        fraction_bits: int | None = None,
        calibration: Inputs | None = None,
        range_check: bool = True,
        strict_inputs: bool | None = None,
        profile: str = "lan",
        options: Mapping[str, Any] | None = None,
        report: Callable[[str], None] | None = None,
        force: bool = False,
        everybody: Limits | None = None,
        prepared: Prepared | None = None,
    ) -> None:
        """Split the weights here and give each compute party one share of each.

        The dealer gets the public description only. Returns when all parties are ready to
        serve. Other models of the cluster stay. One that has this model's name (`load_model(...,
        name=)`) is replaced: where it is being served it stays so until `serve` is called for this
        one, so that nobody is refused meanwhile. input_range: bounds on every input value,
        (-8, 8) when None; queries outside it are refused by the client. calibration: inputs like
        those that will be asked, as
        for `Client.query_model`, for ottt to see what values a deep network's layers take;
        they stay in this process. range_check: whether a query that leaves a guessed range is
        refused (GuessedRangeError) instead of answered wrongly; without it deep networks send
        some percent less. strict_inputs: whether the parties make an input like any other of
        whatever a client sends, so that one which does not keep to the range learns no more
        than one which does; it costs some exchanges. When None, where `everybody` may ask.
        profile: what lies between the parties, "lan" or "wan": where an exchange takes long, ottt
        saves some for more bytes.
        force: share also what the parties seem to have no memory for.
        options: of the engine and of serving, such as max_batch, the rows that run together at
        most, and max_delay_ms, how long a batch that is not full waits for more.
        everybody: what those may ask, together, who are no clients of the cluster; None: nothing.
        prepared: what `prepare` returned; the options of the engine are in it, and not read again.
        report: called with what errors to expect and with what had to be
        guessed; when None, guesses are warned of and the rest is printed. Raises ModelError if
        the engine cannot run the model and ClusterError if a party fails.
        """
        if prepared is None:
            prepared = self.prepare(
                engine,
                input_range=input_range,
                fraction_bits=fraction_bits,
                calibration=calibration,
                range_check=range_check,
                strict_inputs=everybody is not None if strict_inputs is None else strict_inputs,
                profile=profile,
            )
        _tell(prepared, report)
        chosen = read_options(dict(options or {}))
        cluster.connect_anew()
        sent = sending.Sent(self.name, prepared, chosen, everybody)
        sharing = secrets.token_hex(SHARING_DIGITS // 2)
        sessions = [CellSession(cell, sent, sharing) for cell in cluster.cells]
        self._share_in(sessions, partial(_say, report), force)

    def _share_in(
        self, sessions: list[CellSession], tell: Callable[[str], None], force: bool
    ) -> None:
        """Share in all cells, or in those in which that goes well now; see `share`."""
        well = _in_each(sessions, lambda one: one.make_way(tell), tell)
        if not force:
            sent = well[0].sent
            check_memory([one.cell for one in well], sent.prepared, sent.options, self.name)
        self._sessions = sessions
        try:
            well = _in_each(well, CellSession.send, tell)
            _in_each(well, CellSession.wait_loaded, tell)
        except BaseException:
            self.stop()
            raise

    def serve(
        self,
        num_requests: int | None = None,
        *,
        report: Callable[[int], None] = lambda answered: None,
        tell: Callable[[str], None] | None = None,
        on_owner_loss: str = tending.SERVE,
    ) -> int:
        """Answer queries until `num_requests` rows are answered; None: until interrupted.

        A request is one row, such as one image: a query for more rows than are left is refused
        and told how many are.

        report: called with the number answered so far whenever it grew. Returns how many
        were answered. May be called again; the model stays shared. Where another model of this
        name was being served when this one was shared, this one takes its place now. A party that
        is lost is waited for; one that comes back without its share gets it again from here, and
        one that was started here is started again. tell: called with a line where that happens;
        when None it is printed. on_owner_loss: "serve", or "stop" to have the parties stop serving
        when this program has not been heard of for 30 s. Raises ClusterError where serving ended
        for a reason that does not pass; ModelReplaced if another model takes this one's place.
        """
        if on_owner_loss not in (tending.SERVE, tending.STOP):
            raise ConfigError(f"on_owner_loss is 'serve' or 'stop', not {on_owner_loss!r}")
        sessions, cells = self._shared(), len(self._shared())
        leases = None if num_requests is None or cells == 1 else Leases(num_requests, cells)
        self._tended = many = [
            tending.Tended(
                cell=one.cell,
                name=self.name,
                session=one.id,
                limit=num_requests if cells == 1 else None,
                on_owner_loss=on_owner_loss,
                share_again=one.share_again,
                tell=partial(_tell_of, one.cell.who, tell or partial(_say, None)),
                lease=None if leases is None else Lease(leases, number),
            )
            for number, one in enumerate(sessions)
        ]
        _in_each(many, tending.Tended.begin)  # what cannot now is mended later
        try:
            _in_each(sessions, CellSession.take_over)
            if cells == 1:
                return tending.serve(many[0], report)
            return tending.serve_cells(many, report)
        except KeyboardInterrupt:
            answered = sum(one.total for one in many)
            with contextlib.suppress(ClusterError, QueryError):
                answered = sum(one.before for one in many) + self.stop_serving()
            if num_requests is not None:
                raise
            return answered

    def stop_serving(self) -> int:
        """Refuse further queries, so that `serve` returns; how many rows were answered."""
        sessions = self._shared()
        try:
            stopped: list[int] = []
            _in_each(sessions, lambda one: stopped.append(one.stop_serving()))
        finally:
            for one in self._tended:
                one.is_stopped.set()
        return sum(stopped)

    def _shared(self) -> list[CellSession]:
        if not self._sessions:
            raise ClusterError("the model is not shared; call share(cluster) first")
        return self._sessions

    def status(self) -> list[dict[str, Any]]:
        """Return every party's state, with this model's; of one cell after the other."""
        return [status for one in self._shared() for status in one.status()]

    def stop(self) -> None:
        """Have every party forget its share; idempotent."""
        sessions, self._sessions = self._sessions, []
        for one in sessions:
            one.stop()


def _in_each(
    many: Sequence[T], do: Callable[[T], object], tell: Callable[[str], None] = lambda line: None
) -> list[T]:
    """Do something in each of the cells; returns those in which it went well.

    tell: called with a line for each other one. Raises the first one's error where none did.
    """
    well: list[T] = []
    failed: list[tuple[T, ClusterError | QueryError]] = []
    for one in many:
        try:
            do(one)
        except (ClusterError, QueryError) as error:
            failed.append((one, error))
        else:
            well.append(one)
    if not well:
        raise failed[0][1]
    for one, why in failed:
        tell(f"note: {one.cell.who}{why}; the other cells serve meanwhile")
    return well


def _tell_of(who: str, tell: Callable[[str], None], line: str) -> None:
    tell(f"{who}{line}")


def _way_out(error: UnknownOpError, engine: str) -> str:
    """What to do about an op that `engine` does not have."""
    for other in ENGINES:
        if other != engine and error.op in load_engine(other).OPS:
            return f"use --engine {other}, or --engine auto to choose it where needed"
    return "no engine has it; replace that layer by others and retrain, or cut it off the model"


def _tell(prepared: Prepared, report: Callable[[str], None] | None) -> None:
    """Say what errors to expect, and whatever was guessed."""
    notes = [f"note: {note}" for note in read_description(prepared.description)["notes"]]
    for line in (*prepared.report, *notes):
        _say(report, line, depth=5)


def _say(report: Callable[[str], None] | None, line: str, depth: int = 4) -> None:
    if report is not None:
        report(line)
    elif line.startswith("note: "):
        warnings.warn(line.removeprefix("note: "), stacklevel=depth)
    else:
        print(line, flush=True)


def load_model(
    source: Any,
    architecture: str | Path | None = None,
    *,
    input_shape: Sequence[int] | None = None,
    name: str | None = None,
) -> SecureModel:
    """Make a model to share of a .h5, .keras or .onnx file, a torch module or a Keras model.

    architecture: the JSON (file) that goes with a weights-only file. input_shape: without
    the batch axis; needed for a torch.nn.Module. name: what clients call it; the file's
    name without its ending when None. Raises ModelError saying what cannot be converted.
    """
    try:
        converted = converters.convert(source, architecture=architecture, input_shape=input_shape)
    except converters.ConversionError as error:
        raise ModelError(str(error)) from None
    if name is None:
        name = Path(source).stem if isinstance(source, str | Path) else "model"
    return SecureModel(converted, re.sub(r"[^A-Za-z0-9_.-]+", "-", name) or "model")
