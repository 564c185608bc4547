"""The lowerings of the ONNX ops, by family; they register when this is imported."""

from privserve.compiler.ops import (
    activations,
    functions,
    linear,
    movement,
    pooling,
    reductions,
    resampling,
)
from privserve.compiler.registry import LOWERINGS, lower

__all__ = [
    "LOWERINGS",
    "activations",
    "functions",
    "linear",
    "lower",
    "movement",
    "pooling",
    "reductions",
    "resampling",
]
