"""Fixtures of the converters' tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden import THIRD_PARTY


@pytest.fixture
def third_party() -> Path:
    """Model files by other people, which are not part of this repository."""
    if not THIRD_PARTY.is_dir():
        pytest.skip("the third-party model files are not here")
    return THIRD_PARTY
