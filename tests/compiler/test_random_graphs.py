"""Random graphs over all ops: answers keep a bound that follows from the program's own facts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import reference_program
from graph_judge import OF_SPREAD, Verdict, hostile_inputs, judge, summary
from graph_makers import MAKERS
from random_graphs import random_graph

from privserve.compiler.compile import compile_model
from privserve.compiler.ops import LOWERINGS
from privserve.compiler.simulate import simulate
from privserve.errors import ModelError
from privserve.fixedpoint import encode
from privserve.lift import lift_for

GRAPHS = 40
EVERY = 3
"""In the default tests one graph in so many is served by parties, the others are simulated."""

MOST_REFUSED = 0.02
"""A refusal is an answer, but not one that may hide faults."""


def check(verdicts: list[Verdict]) -> None:
    print(summary(verdicts))
    faults = [(v.seed, v.fault, v.over_bound, v.of_spread) for v in verdicts if v.fault]
    assert not faults, f"{len(faults)} of {len(verdicts)}: {faults[:20]}"
    refused = [(v.seed, v.refused) for v in verdicts if v.refused]
    assert len(refused) <= max(1, MOST_REFUSED * len(verdicts)), refused
    warned = sum(v.warned for v in verdicts)
    assert warned <= max(1, 0.05 * len(verdicts)), f"{warned} are warned of"


def test_answers_to_random_graphs_keep_their_bound_and_a_hundredth_of_the_spread() -> None:
    check([judge(random_graph(s), served=s % EVERY == 0) for s in range(GRAPHS)])


def test_answers_to_any_ring_elements_are_those_to_what_strict_inputs_lift_them_to() -> None:
    """Within the same bounds, which are computed from the interval of the lift."""
    check([judge(random_graph(30_000 + s), served=s % 4 == 0, hostile=6) for s in range(15)])


def test_whatever_a_client_sends_no_sound_bound_is_left_behind_a_lift() -> None:
    """Without strict inputs the same elements do leave them: this can fail."""
    outside = {True: 0, False: 0}
    for seed in range(31_000, 31_040):
        graph = random_graph(seed)
        for strict in outside:
            try:
                program, parameters = compile_model(
                    graph.model, input_range=graph.input_range, strict_inputs=strict
                )
            except ModelError:
                continue
            lift = program.lift or lift_for(program.input_range, program.fraction_bits)
            for row in hostile_inputs(lift, (4, *graph.shape), seed):
                left = reference_program.run(program, parameters, [row]).left - {"x"}
                if left.isdisjoint(program.guards):
                    outside[strict] += bool(left)
    assert outside[True] == 0
    assert outside[False] > 10


@pytest.mark.parametrize("seed", [104_604, 104_944])
def test_answers_keep_the_promise_also_where_a_truncation_has_bad_luck(seed: int) -> None:
    """A spline that is steep where its argument is rounded; a minimum of much coarser numbers."""
    check([judge(random_graph(seed), served=True, rows=100)])


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_every_op_keeps_its_bound_where_a_graph_begins_with_it(name: str) -> None:
    check([judge(random_graph(20_000 + s, only=name), served=False) for s in range(2)])


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("block", range(10))
def test_answers_to_ten_thousand_random_graphs_keep_their_bound(block: int) -> None:
    seeds = range(100_000 + 1000 * block, 100_000 + 1000 * (block + 1))
    check([judge(random_graph(s), served=s % 2 == 0) for s in seeds])


def test_the_random_graphs_cover_every_op_that_is_lowered() -> None:
    seen: Counter[str] = Counter()
    for seed in range(GRAPHS):
        seen.update(random_graph(seed).kinds)
    for name in MAKERS:
        seen.update(random_graph(20_000, only=name).kinds)
    assert not set(LOWERINGS) - set(seen), "give these a maker in tests/random_graphs.py"


def test_the_simulation_is_the_reference_element_by_element() -> None:
    """Also for inputs far outside the declared range, which leave ranges and wrap around."""
    compared = wrapped = 0
    for seed in range(40_000, 40_060):
        graph = random_graph(seed)
        try:
            with reference_program.tails_recorded() as tails:
                program, parameters = compile_model(graph.model, input_range=graph.input_range)
        except ModelError:
            continue
        x = encode(graph.inputs(6), program.fraction_bits)
        x[4:] = np.rint(x[4:] * 10.0 ** (3 * np.arange(1, 3)).reshape(-1, *(1,) * (x.ndim - 1)))
        result = simulate(program, parameters, [x])
        smooth = any(op.kind == "lookup" for op in program.ops)
        for i, row in enumerate(x):
            expected = reference_program.run(program, parameters, [row], tails=tails)
            left = {layer for layer, rows in result.left.items() if rows[i]}
            wrapped += bool(expected.left)
            if not smooth:
                assert left == expected.left, seed
            for got, units, error in zip(
                result.outputs, expected.units, expected.errors, strict=True
            ):
                if not smooth:
                    assert got[i].tolist() == units.tolist(), seed
                    compared += got[i].size
                elif not expected.left:
                    off = np.abs(got[i] - units.astype(np.float64))
                    step = 2.0**-program.output_fraction_bits
                    assert (off * step <= 2 * error).all(), seed
                    compared += got[i].size
    assert compared > 2000
    assert wrapped > 10


@pytest.mark.parametrize("moved_by", [0.0, 2 * OF_SPREAD, 1.0])
def test_the_judge_finds_answers_wrong_that_are_moved_by_a_part_of_the_spread(
    moved_by: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The net itself: an answer that is moved by that much has to be found wrong."""
    import graph_judge

    graph = random_graph(0)
    honest = judge(graph, served=False)
    simulated = graph_judge._simulated

    def moved(*arguments: object) -> object:
        answers, left = simulated(*arguments)  # type: ignore[arg-type]
        x = graph.inputs(graph_judge.ROWS)
        spread = np.ptp(graph.ideal(x)[0][0])
        return [a + moved_by * spread for a in answers], left

    monkeypatch.setattr(graph_judge, "_simulated", moved)
    verdict = judge(graph, served=False)
    assert not honest.fault
    assert bool(verdict.fault) == (moved_by > 0)


def test_a_factor_for_each_row_of_what_one_op_makes_at_once_is_applied() -> None:
    """Compiling ended with an error of NumPy's: three factors for an op of twelve outputs."""
    check([judge(random_graph(7235), served=True)])
