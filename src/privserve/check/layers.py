"""What each layer of a model costs on shares, and how far its values are off there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converters import Converted, LayerRow
from privserve.convert import ShownLayer
from privserve.engines import Prepared
from privserve.engines.ottt.costs import Cost, cost_of_op
from privserve.validation import read_program

Floats = NDArray[np.float64]

REST = "(between layers)"
"""What belongs to no layer: strict inputs, outputs that are brought to one step."""


@dataclass
class Error:
    """How far values are off, over all rows."""

    largest: float = 0.0
    low: float = np.inf
    high: float = -np.inf

    def add(self, got: Floats, meant: Floats) -> None:
        """Count one row's values in."""
        if meant.size:
            self.largest = max(self.largest, float(np.abs(got - meant).max()))
            self.low, self.high = min(self.low, meant.min()), max(self.high, meant.max())

    @property
    def spread(self) -> float:
        """Of the values in plain float, over all rows."""
        return max(0.0, float(self.high - self.low))

    @property
    def relative(self) -> float:
        """The largest error as a part of the spread, or of the magnitude where that is 0."""
        return self.largest / (self.spread or max(abs(self.low), abs(self.high), 1e-30))


@dataclass(frozen=True)
class CheckedLayer:
    """One layer: who runs it, what it costs a query, and how far its values are off."""

    name: str
    class_name: str
    shape: tuple[int | None, ...]
    parameters: int
    runs_on: str
    exchanges: int
    bytes_online: int
    """That a party sends to each other one."""
    bytes_dealt: int
    error: Error | None
    """None where its values are not computed as such: they are part of another layer's."""


def costs(prepared: Prepared, rows: Iterable[LayerRow]) -> dict[str, Cost]:
    """Return what each layer costs per query, by its name; REST for what is of none of them."""
    of_node = {node: row.name for row in rows for node in row.nodes}
    program = read_program(prepared.description)
    found: dict[str, Cost] = {}
    for op in program.ops:
        name, one = of_node.get(op.layer, REST), cost_of_op(program, op)
        before = found.get(name, Cost(0, 0, 0))
        found[name] = Cost(
            before.exchanges + one.exchanges,
            before.bytes_online + one.bytes_online,
            before.bytes_dealt + one.bytes_dealt,
        )
    return found


def told_tensors(prepared: Prepared, converted: Converted) -> dict[str, str]:
    """Return by layer which tensor of the model is its value, where the program has that."""
    program = read_program(prepared.description)
    # A ReLU that a dense layer follows, say, has no value of its own.
    computed = {op.output for op in program.ops} | {port.value for port in program.inputs}
    numbers = {name: n for name, n in prepared.tensors.items() if n in computed}
    made = {node.name: list(node.output) for node in converted.onnx.graph.node}
    found: dict[str, str] = {}
    for row in converted.layers:
        outputs = [name for node in row.nodes for name in made.get(node, [])]
        known = [n for n in outputs if n in numbers and program.values[numbers[n]].size]
        if known:
            found[row.name] = known[-1]
    return found


def checked(
    shown: Sequence[ShownLayer], spent: Mapping[str, Cost], errors: Mapping[str, Error]
) -> list[CheckedLayer]:
    """Return the table's rows, the last of them what is between layers, if that costs anything."""
    free = Cost(0, 0, 0)
    rows = []
    for one in shown:
        cost = spent.get(one.name, free)
        rows.append(
            CheckedLayer(
                one.name,
                one.class_name,
                one.shape,
                one.parameters,
                one.runs_on,
                cost.exchanges,
                cost.bytes_online,
                cost.bytes_dealt,
                errors.get(one.name),
            )
        )
    rest = spent.get(REST, free)
    if rest != free:
        rows.append(
            CheckedLayer(
                REST, "", (), 0, "ottt", rest.exchanges, rest.bytes_online, rest.bytes_dealt, None
            )
        )
    return rows
