"""Descriptions with something changed, each given to parties that run: a victim for a test.

    python -m mutated_programs FIRST COUNT

prints each seed before it is tried, and what came of it: "refused" by the reader, "ran", or
"failed" with a traceback. If the process crashes, the last seed printed did it.
"""

from __future__ import annotations

import copy
import json
import random
import sys
import traceback
from functools import cache
from typing import Any

import numpy as np
from ottt_session import Session
from random_graphs import random_graph

from privserve.description import read_description
from privserve.engines import Prepared, ottt
from privserve.engines.ottt.limits import frame_limits, memory
from privserve.engines.ottt.ops.linear import geometries
from privserve.errors import InputError, ModelError
from privserve.program import OP_KINDS, Program
from privserve.validation import read_program

BASES = 60
MOST_BYTES = 1 << 30
"""What takes more memory than this is not run, though it may be valid."""
NUMBERS = [
    -1, 0, 1, 2, 3, 4, 5, 7, 8, 16, 17, 31, 32, 33, 44, 45, 62, 63, 64, 65, 255, 1 << 20, 1 << 31,
    (1 << 31) - 1, 1 << 32, 1 << 62, (1 << 63) - 1, 1 << 63, -(1 << 63), 1 << 64, 10**30,
    0.5, -0.5, 1e-300, 1e300, 2.0**-30,
]  # fmt: skip
OTHERS = [None, True, False, "", "x", "weight", [], {}, [0], [1, 1], [[0, 0]], {"op": "x"}]


@cache
def base(number: int) -> Prepared:
    """A valid program, one in three of strict inputs: a random graph's that is not refused."""
    while True:
        graph = random_graph(number)
        try:
            is_strict = number % 3 == 0
            return ottt.prepare(graph.model, input_range=graph.input_range, strict_inputs=is_strict)
        except ModelError:
            number += 1000


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key) below a JSON value."""
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    found = [(node, key) for key in keys]
    for _, key in list(found):
        found += places(node[key])
    return found


def mutated(seed: int) -> tuple[Prepared, dict[str, Any]]:
    """A valid program, and its description with one to three changes."""
    draw = random.Random(seed)
    prepared = base(seed % BASES)
    fields = copy.deepcopy(json.loads(json.dumps(prepared.description)))
    roots = [*fields["ops"] * 6, *fields["values"] * 2, fields]
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        holder, key = draw.choice(places(draw.choice(roots)) or places(fields))
        old, way = holder[key], draw.random()
        if isinstance(old, int | float) and way < 0.35:
            holder[key] = old + draw.choice([-1, 1, 2, -2, 8])
        elif isinstance(old, int | float) and way < 0.75:
            holder[key] = draw.choice(NUMBERS)
        elif way < 0.8 and isinstance(holder, list):
            del holder[key]
        elif way < 0.85 and isinstance(old, list):
            old.extend(copy.deepcopy(old[:1]) or [1])
        elif way < 0.9 and key == "kind":
            holder[key] = draw.choice(sorted(OP_KINDS))
        elif way < 0.95:
            holder[key] = copy.deepcopy(draw.choice(NUMBERS + OTHERS))
        else:
            donor, at = draw.choice(places(fields))
            holder[key] = copy.deepcopy(donor[at])
    return prepared, fields


def parameters(program: Program, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of the shapes that the program asks for; the model's own where they fit."""
    wanted: dict[str, tuple[int, ...]] = {}
    for index, geometry in geometries(program).items():
        attributes = program.ops[index].attributes
        wanted[attributes["weight"]] = geometry.weight_shape
        if attributes["bias"] is not None:
            wanted[attributes["bias"]] = (geometry.outputs,)
    for op in program.ops:
        if op.kind == "add_parameter":
            name = op.attributes["parameter"]
            wanted.setdefault(name, given[name].shape if name in given else ())
    return {
        name: given[name]
        if name in given and given[name].shape == shape
        else np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
        for name, shape in wanted.items()
    }


def attempt(seed: int) -> str:
    """Give the description of this seed to the reader and, if it passes, to parties."""
    prepared, fields = mutated(seed)
    try:
        description = dict(read_description(fields))
        program = read_program(description)
        frame_limits(description)
    except (InputError, ModelError):
        return "refused"
    if max(memory(description, 2, pool_queries=4)) > MOST_BYTES + (1 << 28):
        return "too large to try"
    changed = Prepared("ottt", description, parameters(program, prepared.parameters))
    rows = [np.zeros((2, *program.values[port.value].shape)) + 0.25 for port in program.inputs]
    try:
        with Session(changed, options={"pool_queries": 4, "ready_packs": 2}) as session:
            outputs = session.query(*rows)
    except (InputError, ModelError):
        return "refused late"
    for port, output in zip(program.outputs, outputs, strict=False):
        assert output.shape == (2, *program.values[port.value].shape)
    return "ran"


def main(first: int, count: int) -> None:
    """Try `count` seeds from `first` on."""
    for seed in range(first, first + count):
        print(seed, end=" ", flush=True)
        try:
            print(attempt(seed), flush=True)
        except Exception:
            print("failed", flush=True)
            traceback.print_exc()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
