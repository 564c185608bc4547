"""What CrypTen can run, for those who must not import it to say so."""

from __future__ import annotations

OPS = frozenset(
    {
        "Add",
        "AveragePool",
        "BatchNormalization",
        "Concat",
        "Constant",
        "Conv",
        "Dropout",
        "Flatten",
        "Gemm",
        "GlobalAveragePool",
        "HardSwish",
        "Identity",
        "MatMul",
        "MaxPool",
        "Mul",
        "Relu",
        "Reshape",
        "Sub",
        "Transpose",
    }
)
"""ONNX ops that `crypten_graph` lowers, if their settings fit."""
