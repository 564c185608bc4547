"""What a model's last layer may be, so that the client computes it on what it joined.

All of them can be inverted (a softmax up to a constant), so what goes in tells a client no more
than what comes out, and none has to be computed on shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privserve.errors import ClusterError
from privserve.functions import evaluate

Floats = NDArray[np.float64]

NORMALISING = ("Softmax", "LogSoftmax")
"""Along an axis."""

CLIENT_ACTIVATIONS = (*NORMALISING, "Sigmoid", "Tanh", "Softplus", "Softsign", "Exp")
"""By their ONNX names; of anything that goes in."""

ROOT = "Sqrt"
"""The client's as well, but only where what goes in is known not to be negative: a negative
number would tell more than the answer does."""

APPLIED = (*CLIENT_ACTIVATIONS, ROOT)
"""What a description may ask a client for."""


def apply_activation(values: Floats, activation: Mapping[str, Any] | None) -> Floats:
    """The model's last layer on what was joined.

    activation: {"op": one of APPLIED, "axis": where it is one of NORMALISING}, or None. Raises
    ClusterError for any other.
    """
    if activation is None:
        return values
    op = activation["op"]
    if op not in APPLIED:
        raise ClusterError(f"the parties ask for the unknown activation {op}")
    if op == ROOT:
        return np.sqrt(np.maximum(values, 0))  # rounding may have made a zero negative
    if op not in NORMALISING:
        return evaluate([op.lower(), "x"], values)
    axis = int(activation["axis"])
    logits = values - values.max(axis=axis, keepdims=True)
    sums = np.exp(logits).sum(axis=axis, keepdims=True)
    result: Floats = np.exp(logits) / sums if op == "Softmax" else logits - np.log(sums)
    return result
