"""docs/onnx.md says what the code does."""

from __future__ import annotations

from golden import ROOT

from converters.onnx_ops import OPERATORS
from privserve.compiler.ops import LOWERINGS
from scripts import onnx_table


def test_the_table_of_operators_is_current() -> None:
    assert (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8") == onnx_table.text()


def test_every_operator_that_converts_is_in_it_with_whether_ottt_runs_it() -> None:
    table = (ROOT / "docs" / "onnx.md").read_text()
    for name in OPERATORS:
        assert f"| {name} | {'yes' if name in LOWERINGS else ''} |" in table
