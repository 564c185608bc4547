"""docs/keras.md says what the code does."""

from __future__ import annotations

import subprocess
import sys

from golden import ROOT

from converters.keras_layers import LAYERS


def test_the_support_table_is_current() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "keras_table.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_layer_is_in_the_support_table_with_what_is_supported() -> None:
    table = (ROOT / "docs" / "keras.md").read_text()
    for name, kind in LAYERS.items():
        assert f" {name} " in table or f" {name}," in table
        assert kind.summary in table
        assert kind.summary.endswith((".", "invert", "n"))
