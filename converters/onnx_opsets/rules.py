"""What a rule is, what it may know and make, and which operator has which."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from converters.onnx_nodes import Array, Nodes, attributes_of, refusal
from converters.registry import enter

LEARNERS = "ai.onnx.ml"
"""The domain of scikit-learn's operators."""

_NUMBERS = itertools.count()


@dataclass
class Scope:
    """What a rule may know and make: constants, shapes, fresh names."""

    version: int
    constants: dict[str, Array]
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """With a stand-in for the batch; only those that could be inferred."""
    types: Mapping[str, int] = field(default_factory=dict)
    makers: Mapping[str, onnx.NodeProto] = field(default_factory=dict)
    """The node that made a tensor, as it was in the file."""
    _numbers: Iterator[int] = field(default_factory=lambda: _NUMBERS)

    def constant(self, node: onnx.NodeProto, position: int) -> Array | None:
        """Return the constant at an input; None where there is no such input."""
        if position >= len(node.input) or not node.input[position]:
            return None
        if node.input[position] not in self.constants:
            raise refusal(node, f"its input {position} depends on the data, or on the batch's size")
        return self.constants[node.input[position]]

    def add(self, value: Any) -> str:
        """Return the name of a new constant, an array or a NumPy number."""
        name = self.name("constant")
        self.constants[name] = np.asarray(value)
        return name

    def name(self, what: str) -> str:
        """Return a name that nothing has yet."""
        return f"converters/{what}/{next(self._numbers)}"

    def rank(self, node: onnx.NodeProto) -> int:
        """Return the rank of a node's first input."""
        if node.input[0] not in self.shapes:
            raise refusal(node, "the shape of what it reads cannot be inferred")
        return len(self.shapes[node.input[0]])


Rule = Callable[[Scope, onnx.NodeProto, dict[str, Any]], Nodes]
RULES: dict[str, Rule] = {}
"""By the operator's name; those of other domains than ONNX' own as "domain:name"."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of some operators."""

    def register(function: Rule) -> Rule:
        enter(RULES, names, function)
        return function

    return register


def has_rule(node: onnx.NodeProto) -> bool:
    """Return whether a rule says what the node is in opset 17."""
    return _entry(node) in RULES


def rewritten(scope: Scope, node: onnx.NodeProto) -> Nodes:
    """Return the node as nodes of opset 17."""
    return RULES[_entry(node)](scope, node, attributes_of(node))


def _entry(node: onnx.NodeProto) -> str:
    return f"{LEARNERS}:{node.op_type}" if node.domain == LEARNERS else node.op_type


def ints(values: Iterable[Any]) -> Array:
    """Return whole numbers as int64[count]."""
    return np.array([int(v) for v in values], dtype=np.int64)
