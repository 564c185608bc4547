"""Serves a random graph and judges the answers: against the derived bound, and by the spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import reference_program
from ottt_session import Session, as_sent
from random_graphs import Graph

from privserve.activations import apply_activation
from privserve.compiler.ranges import synthetic_samples
from privserve.compiler.simulate import simulate
from privserve.engines import Prepared, ottt
from privserve.errors import ModelError
from privserve.fixedpoint import encode
from privserve.program import Lift, Program
from privserve.validation import read_program

PARTIES = 2
ROWS = 6
OF_SPREAD = 0.01
"""What users are promised: `accuracy.TOLERABLE`, of the outputs' spread or said otherwise."""


@dataclass
class Verdict:
    """What became of a graph; errors are the worst of its rows that are answered."""

    seed: int
    refused: str = ""
    warned: bool = False
    """The model's owner is told that answers are inexact."""
    flagged: int = 0
    answered: int = 0
    over_bound: float = 0.0
    """error / bound"""
    of_spread: float = 0.0
    """error / spread"""

    @property
    def fault(self) -> str:
        """What is wrong with it, "" where nothing is."""
        if self.over_bound > 1:
            return "over its bound"
        if self.of_spread > OF_SPREAD and not self.warned:
            return "over 1 % of the spread in silence"
        return ""


def judge(graph: Graph, *, served: bool, rows: int = ROWS, hostile: int = 0) -> Verdict:
    """Compile, answer `rows` inputs, compare.

    served: by parties, with shares that they round as a client gets them; else by the simulation,
    whose only differences are the luck of truncations, of a lookup's mask and of that rounding.
    hostile: so many rows of any ring elements more, to a program of strict inputs; they have to be
    answered as the inputs that they are lifted to.
    """
    verdict = Verdict(graph.seed)
    x = graph.inputs(rows)
    with reference_program.tails_recorded() as tails:
        try:
            prepared = ottt.prepare(
                graph.model, input_range=graph.input_range, strict_inputs=hostile > 0
            )
        except ModelError as error:
            verdict.refused = str(error)
            return verdict
    program = read_program(as_sent(prepared.description))
    verdict.warned = any("INEXACT" in note for note in program.notes)
    encoded = encode(x, program.fraction_bits)
    if program.lift is not None:
        sent = hostile_inputs(program.lift, (hostile, *graph.shape), graph.seed)
        taken = reference_program.each(lambda v: reference_program.lifted(v, program.lift), sent)
        encoded = np.concatenate([encoded, sent])
        x = np.concatenate([x, taken.astype(np.float64) * 2.0**-program.fraction_bits])
    ideal, clear = graph.ideal(x)
    clear[rows:] = False  # outputs beyond the declared range have a spread of their own
    if served:
        answers, left = _served(prepared, encoded)
    else:
        answers, left = _simulated(program, prepared.parameters, encoded)
    # As users are told: over samples of the declared range. Six rows may happen to lie together.
    samples = synthetic_samples(graph.shape, *program.input_range, 8)
    spreads = [_spread(y) for y in graph.ideal(np.concatenate([x[:rows], samples]))[0]]
    for i in range(len(x)):
        if left[i]:
            verdict.flagged += 1
            continue
        row = reference_program.run(
            program, prepared.parameters, [encoded[i]], parties=PARTIES, tails=tails
        )
        verdict.answered += 1
        ports = zip(program.outputs, answers, ideal, row.outputs, row.errors, spreads, strict=True)
        for port, got, meant, center, error, spread in ports:
            final, bound = _at_the_client(port.activation, got[i], center, error)
            off = np.abs(final - meant[i].reshape(final.shape))
            verdict.over_bound = max(verdict.over_bound, float((off / bound).max()))
            if clear[i]:
                verdict.of_spread = max(verdict.of_spread, float(off.max()) / spread)
    return verdict


def hostile_inputs(lift: Lift, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Elements that no client of ours sends: any words, and both sides of all borders."""
    draw = np.random.default_rng(seed + 10**10)
    sent = draw.integers(-(2**63), 2**63 - 1, shape, endpoint=True)
    size = 2**lift.bits
    borders = [lift.start + n * size // 2 + step for n in range(-4, 9) for step in (-1, 0, 1)]
    borders += [2**63 - 1, -(2**63), 2**40, -(2**40)]
    edged = draw.random(shape) < 0.4
    sent[edged] = draw.choice(np.array(borders, np.int64), int(edged.sum()))
    return sent


def _spread(y: np.ndarray) -> float:
    """How far outputs lie apart; their magnitude, or 1, if they are the same for every input.

    What differs by less than 1e-30 does so by the underflow of some exponential only.
    """
    magnitude, spread = float(np.abs(y).max()), float(np.ptp(y))
    if spread > max(1e-9 * magnitude, 1e-30):
        return spread
    return magnitude if magnitude > 1e-30 else 1.0


def _at_the_client(
    activation: Any, got: np.ndarray, center: np.ndarray, error: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """An answer and its bound after the activation that the client applies.

    What was meant lies within `error` of `center`, and so does what was served.
    """
    if activation is None:
        return got, error

    def apply(x: np.ndarray) -> np.ndarray:
        return np.asarray(apply_activation(x[None], activation)[0])

    if activation["op"] == "Softmax":  # no entry moves by more than half of 2 max |error|
        return apply(got), np.full(got.shape, error.max())
    if activation["op"] == "LogSoftmax":
        return apply(got), np.full(got.shape, 2 * error.max())
    return apply(got), apply(center + error) - apply(center - error) + 1e-12


def _served(prepared: Prepared, encoded: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    with (
        mock.patch.object(ottt, "prepare", return_value=prepared),  # it was compiled once already
        Session(None, PARTIES, {"pool_queries": 2}) as session,
    ):
        answers = session.answer_elements(encoded)
        left = np.zeros(len(encoded), bool)
        if session.program.guards:
            left = answers.pop().reshape(len(encoded), -1).any(1)
    return answers, left


def _simulated(
    program: Program, parameters: Any, encoded: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    result = simulate(program, parameters, [encoded])
    guarded = [result.left[layer] for layer in program.guards if layer in result.left]
    left = np.logical_or.reduce([np.zeros(len(encoded), bool), *guarded])
    step = 2.0**-program.output_fraction_bits
    return [y * step for y in result.outputs], left


def summary(verdicts: list[Verdict]) -> str:
    """The figures to report."""
    answered = [v for v in verdicts if v.answered]
    worst = max(answered, key=lambda v: v.over_bound)
    silent = [v for v in answered if not v.warned] or answered
    wide = max(silent, key=lambda v: v.of_spread)
    return (
        f"{len(verdicts)} graphs, {sum(v.answered for v in verdicts)} rows answered: worst "
        f"error / bound {worst.over_bound:.3g} (seed {worst.seed}), worst error / spread "
        f"{wide.of_spread:.3g} (seed {wide.seed}); {sum(bool(v.refused) for v in verdicts)} "
        f"refused, {sum(v.warned for v in verdicts)} warned of, "
        f"{sum(v.flagged for v in verdicts)} rows flagged"
    )
