"""How a client joins an output, and what a model's last layer may be for it to compute that.

All of them can be inverted, a softmax up to a constant, which the parties hide. So what goes in
tells a client no more than what comes out, and none has to be computed on shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privserve import sharing
from privserve.errors import ClusterError
from privserve.fixedpoint import RingArray, decode
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


def normalised_axis(activation: Mapping[str, Any] | None, axes: int) -> int | None:
    """Return which of an output's `axes` axes, the batch axis included, it is normalised along.

    None where it is not: then nothing is added to the output by the parties.
    """
    if activation is None or activation["op"] not in NORMALISING:
        return None
    return int(activation["axis"]) % axes


def joined(
    shares: Sequence[RingArray],
    activation: Mapping[str, Any] | None,
    fraction_bits: int,
    *,
    logits: bool = False,
) -> Floats:
    """Join an output's shares, int64[B, *shape] each, and apply its activation.

    The parties hide a constant mod 2^64 in what is normalised along an axis; so there differences
    from the axis' first element are taken, in the ring, before anything is decoded.
    logits: what goes into the activation, if it can be told: of a softmax it is log-probabilities.
    Raises ClusterError for an activation that is not in APPLIED.
    """
    elements = sharing.join(shares)
    axis = normalised_axis(activation, elements.ndim)
    if axis is not None:
        elements = elements - elements.take([0], axis=axis)
    values = decode(elements, fraction_bits)
    if not logits:
        return apply_activation(values, activation)
    return values if axis is None else apply_activation(values, {"op": "LogSoftmax", "axis": axis})


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
