"""The one exception that a conversion ends with when it cannot succeed."""

from __future__ import annotations


class ConversionError(Exception):
    """The file cannot be converted; the message is one line: cause, place, remedy.

    Code deep inside raises it with the cause alone; each level on the way up adds
    its own place in front (`at`), so that the user reads "file: layer: cause".
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

    def at(self, place: str) -> ConversionError:
        """Return the same error with `place` in front."""
        return ConversionError(f"{place}: {self}")
