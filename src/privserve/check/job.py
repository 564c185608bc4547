"""Checks one model: converts it, compiles it as `launch` would, and runs samples both ways."""

from __future__ import annotations

import math
import shlex
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from converters import Converted
from privserve.check.layers import Error, checked, costs, told_tensors
from privserve.check.rehearsal import OPTIONS, PARTIES, Rehearsal
from privserve.check.report import Report
from privserve.compiler.accuracy import affordable
from privserve.compiler.input_scaling import default_range
from privserve.compiler.ranges import synthetic_samples
from privserve.compiler.simulate import simulate
from privserve.convert import layer_rows
from privserve.engines import Prepared, load_engine
from privserve.errors import InputError, ModelError
from privserve.fixedpoint import encode
from privserve.inputs import by_name
from privserve.launch import parse_range, read_samples
from privserve.model import DEFAULT_ENGINE, SecureModel
from privserve.party.free_memory import available_memory
from privserve.terminal import progress
from privserve.validation import read_program

Floats = NDArray[np.float64]

USED = 8
"""Made-up inputs that the compiler guesses ranges from; those that are tried come after them."""
PROBES = 16
"""Made-up inputs of the whole declared range, of a model whose ranges are guessed."""
SPARE = 0.9
"""Of the memory that is free, what a rehearsal may take."""


def check(converted: Converted, options: Namespace) -> Report:
    """Return what is found of a converted model; options: of `privserve check`.

    Raises ConfigError for files that cannot be read, ModelError for samples of another shape.
    """
    report = Report(converted.source, notes=list(converted.notes))
    given = _samples(converted, read_samples(options.samples, "--samples"), "--samples")
    calibration = read_samples(options.calibration)
    input_range = _input_range(converted, given, options, report)
    model = SecureModel(converted, options.model.stem)
    with progress("trying which engine runs which layer"):
        shown = layer_rows(converted)
    try:
        with progress("compiling, and measuring how exact it is"):
            prepared = model.prepare(
                DEFAULT_ENGINE,
                input_range=input_range,
                fraction_bits=options.fraction_bits,
                calibration=calibration,
            )
    except ModelError as error:
        report.layers = checked(shown, {}, {})
        _refused(model, error, input_range, options, report)
        return report
    report.notes += prepared.description["notes"]
    report.memory = load_engine(prepared.engine).memory(prepared.description, PARTIES)
    rows = _rows(converted, prepared, given, options.rows)
    report.are_samples = given is not None
    errors: dict[str, Error] = {}
    if (lack := _lacking(prepared)) is None:
        _run(converted, prepared, rows, errors, report)
    else:
        report.notes.append(lack)
        report.notes += prepared.report
    report.layers = checked(shown, costs(prepared, converted.layers), errors)
    _probe(prepared, calibration is not None, report)
    report.serve = _command(options, input_range)
    report.judge()
    return report


# -- inputs ---------------------------------------------------------------------------------


def _samples(converted: Converted, given: Any, option: str) -> list[Floats] | None:
    """The samples, one array per input in the model's order, as launch takes calibration."""
    if given is None:
        return None
    shapes = {tensor.name: tensor.shape[1:] for tensor in converted.inputs}
    try:
        arrays = [np.asarray(one, np.float64) for one in by_name(shapes, given).values()]
    except (InputError, TypeError, ValueError) as error:
        raise ModelError(f"{option}: {error}") from None
    for array, (name, shape) in zip(arrays, shapes.items(), strict=True):
        if array.shape[1:] != shape or not len(array) or len(array) != len(arrays[0]):
            raise ModelError(
                f"{option}: input '{name}' has the shape {array.shape}; the model takes (B, "
                f"{', '.join(map(str, shape))}), as many rows of each input"
            )
        if not np.isfinite(array).all():
            raise ModelError(f"{option}: input '{name}' holds NaN or infinity")
    return arrays


def _input_range(
    converted: Converted, given: Sequence[Floats] | None, options: Namespace, report: Report
) -> tuple[float, float] | None:
    """The range to declare: what was asked for, or what holds the samples; None: the default."""
    if (asked := parse_range(options.input_range)) is not None or given is None:
        return asked
    low, high = default_range(converted.onnx.graph)
    least, most = min(float(x.min()) for x in given), max(float(x.max()) for x in given)
    if low <= least and most <= high:
        return None
    wider = (_beyond(least) if least < 0 else 0.0, _beyond(most) if most > 0 else 0.0)
    report.notes.append(
        f"your samples go from {least:g} to {most:g}, beyond the default range "
        f"[{low:g}, {high:g}]; [{wider[0]:g}, {wider[1]:g}] is declared instead (--input-range). "
        "Were they meant to be scaled, as for training?"
    )
    return wider


def _beyond(end: float) -> float:
    """A power of two that is not nearer to zero."""
    return math.copysign(2.0 ** math.ceil(math.log2(abs(end))), end)


def _rows(
    converted: Converted, prepared: Prepared, given: Sequence[Floats] | None, count: int
) -> list[Floats]:
    """The rows to run, one array per input: the samples spread over all that are given."""
    low, high = prepared.description["input_range"]
    if given is None:
        return [
            synthetic_samples(_shape(tensor.shape), low, high, USED + count)[USED:]
            for tensor in converted.inputs
        ]
    chosen = np.unique(np.linspace(0, len(given[0]) - 1, min(count, len(given[0]))).astype(int))
    for array in given:
        if array[chosen].min() < low or array[chosen].max() > high:
            raise ModelError(
                f"--samples leave the declared range [{low:g}, {high:g}]; clients would refuse "
                "them (RangeError): widen --input-range, or scale the samples as for training"
            )
    return [array[chosen] for array in given]


def _shape(shape: Sequence[int | None]) -> tuple[int, ...]:
    return tuple(d for d in shape[1:] if d is not None)


# -- running --------------------------------------------------------------------------------


def _run(
    converted: Converted,
    prepared: Prepared,
    rows: Sequence[Floats],
    errors: dict[str, Error],
    report: Report,
) -> None:
    """Run all rows in plain float and on shares; errors: by layer, filled here."""
    layers = told_tensors(prepared, converted)
    count = len(rows[0])
    report.rows = count
    report.outputs = {tensor.name: Error() for tensor in converted.outputs}
    left: dict[int, tuple[str, ...]] = {}
    same = {n: 0 for n, says in _says_class(prepared).items() if says}
    with (
        progress("setting up three parties here (compiles kernels, once)"),
        Rehearsal(prepared, sorted(set(layers.values()))) as rehearsal,
        progress("running samples on shares", count) as tell,
    ):
        for number in range(count):
            row = [array[number] for array in rows]
            answered = rehearsal.ask(row)
            tell(number + 1)
            if answered.left:
                left[number] = answered.left
                continue
            meant = _plain(converted, row, layers.values())
            for name, error in report.outputs.items():
                error.add(answered.outputs[name], meant[name])
            for name in same:
                same[name] += _is_same(answered.outputs[name], meant[name])
            for layer, tensor in layers.items():
                # Positions that no later layer reads are not computed.
                if tensor in meant and answered.tensors[tensor].size == meant[tensor].size:
                    told = answered.tensors[tensor].reshape(meant[tensor].shape)
                    errors.setdefault(layer, Error()).add(told, meant[tensor])
    report.left = left
    if len(left) == count:
        report.outputs = {}
    report.agreed = (
        {name: (n, count - len(left)) for name, n in same.items()} if report.outputs else {}
    )


def _plain(converted: Converted, row: Sequence[Floats], tensors: Any) -> Mapping[str, Floats]:
    """The model's own values for one row, float64 without the batch axis, by tensor."""
    inputs = [torch.from_numpy(x[None].astype(np.float32)) for x in row]
    names = {*tensors, *(tensor.name for tensor in converted.outputs)}
    run: Callable[..., dict[str, torch.Tensor]] = converted.module.tensors  # type: ignore[assignment]
    with torch.no_grad():
        found = run(names, *inputs)
    return {name: tensor[0].numpy().astype(np.float64) for name, tensor in found.items()}


def _says_class(prepared: Prepared) -> dict[str, bool]:
    """By output whether its largest element is what counts: it is a softmax's."""
    return {
        output["name"]: (output["activation"] or {}).get("op") in ("Softmax", "LogSoftmax")
        for output in prepared.description["outputs"]
    }


def _is_same(got: Floats, meant: Floats) -> bool:
    return bool((got.argmax(-1) == meant.argmax(-1)).all())


def _lacking(prepared: Prepared) -> str | None:
    """Why the samples are not run on shares here, if so."""
    free = available_memory()
    engine = load_engine(prepared.engine)
    compute, dealer = engine.memory(prepared.description, PARTIES, **OPTIONS)
    needed = PARTIES * compute + dealer
    if free is None or needed <= SPARE * free:
        return None
    return (
        f"not run on shares: that takes {needed / 1e9:.1f} GB here, and {free / 1e9:.1f} GB are "
        "free; errors are the compiler's estimates"
    )


def _probe(prepared: Prepared, is_calibrated: bool, report: Report) -> None:
    """Say how a model whose ranges are guessed fares on inputs of the whole declared range."""
    program = read_program(prepared.description)
    if not program.guards:
        return
    count = affordable(program, PROBES)
    low, high = program.input_range
    shapes = [program.values[port.value].shape for port in program.inputs]
    inputs = [
        encode(synthetic_samples(shape, low, high, USED + count)[USED:], program.fraction_bits)
        for shape in shapes
    ]
    with progress("trying inputs of the whole range"):
        found = simulate(program, prepared.parameters, inputs)
    left = np.logical_or.reduce([np.zeros(count, np.bool_), *found.left.values()])
    report.probed = (int(left.sum()), count)
    layers = list(dict.fromkeys(program.guards))
    report.notes.append(
        f"it is too deep for its values to be bounded: the ranges of {len(layers)} layers are "
        "guessed from samples, and what leaves them gets no answer (GuessedRangeError) in place of "
        f"a wrong one; of {count} made-up inputs of the whole range [{low:g}, {high:g}] "
        f"{int(left.sum())} do. With --no-range-check those answers would be wrong"
    )
    if not is_calibrated:
        report.notes.append(
            "the samples that ranges were guessed from are made up; give inputs like those to come "
            "with --calibration, here and to launch"
        )


# -- what to say ----------------------------------------------------------------------------


def _refused(
    model: SecureModel,
    why: ModelError,
    input_range: tuple[float, float] | None,
    options: Namespace,
    report: Report,
) -> None:
    """Say what to do about a model that the default engine cannot run."""
    report.changes.append(str(why))
    with warnings.catch_warnings(), progress("trying the crypten engine"):
        warnings.simplefilter("ignore")
        try:
            model.prepare("crypten", input_range=input_range, fraction_bits=options.fraction_bits)
        except ModelError:
            return
    report.changes.append("or serve it with the slower reference engine, crypten, as it is")
    report.serve = _command(options, input_range, "--engine crypten")


def _command(options: Namespace, input_range: tuple[float, float] | None, *further: str) -> str:
    """The command line that serves the model as it was checked."""
    words = ["privserve launch --parties 3", f"--model {shlex.quote(str(_served(options)))}"]
    if input_range is not None:
        words.append(f"--input-range {input_range[0]:g},{input_range[1]:g}")
    if options.fraction_bits is not None:
        words.append(f"--fraction-bits {options.fraction_bits}")
    if options.calibration is not None:
        words.append(f"--calibration {shlex.quote(str(options.calibration))}")
    converts = ""
    if _served(options) != options.model:
        converts = shlex.join(["privserve", "convert", str(options.model), *_source(options)])
        converts += " && "
    return converts + " ".join([*words, *further])


def _served(options: Namespace) -> Any:
    """The file that launch takes: the model's own, unless that needs more to be said of it."""
    return options.model.with_suffix(".onnx") if _source(options) else options.model


def _source(options: Namespace) -> list[str]:
    words = []
    if options.architecture is not None:
        words += ["--architecture", str(options.architecture)]
    if options.input_shape is not None:
        words += ["--input-shape", ",".join(map(str, options.input_shape))]
    if options.backend is not None:
        words += ["--backend", options.backend]
    return words
