"""The sample classifier and its digits, where privserve is installed: copies of examples/.

See examples/README.md for where they come from, and digits-LICENSE for the digits' licence.
"""

from __future__ import annotations

from pathlib import Path

DIGITS = Path(__file__).parent / "digits.npz"
"""images: float32 or uint8[N, 28, 28, 1], labels."""
DIGITS_MODEL = Path(__file__).parent / "digits-model.h5"
