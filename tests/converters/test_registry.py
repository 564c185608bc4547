"""What stands for a name in the tables of the converters is said once."""

from __future__ import annotations

import pytest

from converters.keras_layers.operations import operation
from converters.keras_layers.registry import keras_layer
from converters.onnx_ops.registry import operator
from converters.onnx_opsets.rules import rule


@pytest.mark.parametrize(
    ("decorator", "name"),
    [(keras_layer, "Dense"), (operation, "add"), (operator, "Conv"), (rule, "Split")],
)
def test_a_second_entry_of_a_name_is_refused(decorator, name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' has an entry already"):
        decorator(name)(lambda *arguments: None)
