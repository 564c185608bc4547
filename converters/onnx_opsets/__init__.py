"""Nodes of any opset from 7 to the newest as nodes of opset 17, one small function per operator.

What moved between attribute and input, what was split off as an operator of its own, and what
is a combination of others. `onnx_rewrite` applies these; whatever has no entry means the same
in all opsets.
"""

from converters.onnx_opsets import (
    axes,
    bounds,
    composites,
    learners,
    padding,
    resizing,
    versions,
)
from converters.onnx_opsets.rules import RULES, Scope, has_rule, rewritten

__all__ = [
    "RULES",
    "Scope",
    "axes",
    "bounds",
    "composites",
    "has_rule",
    "learners",
    "padding",
    "resizing",
    "rewritten",
    "versions",
]
