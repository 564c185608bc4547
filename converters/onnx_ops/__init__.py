"""What each ONNX operator does, as a small torch function with ONNX's exact meaning, by family."""

from converters.onnx_ops import activations, arithmetic, movements, resizing, windows
from converters.onnx_ops.registry import OPERATORS

__all__ = ["OPERATORS", "activations", "arithmetic", "movements", "resizing", "windows"]
