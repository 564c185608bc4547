"""How the site shows docstrings: each parameter that one speaks of begins a paragraph.

Docstrings are prose, and say `name: what it is for. other: ...` where that is needed. A function's
own parameters are what tells a name from a word before a colon.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import griffe


class Paragraphs(griffe.Extension):  # type: ignore[misc,unused-ignore]
    """Changes docstrings as they are read, for the site alone."""

    def on_function(self, *, func: Any, **_: object) -> None:
        """Part a function's docstring."""
        if func.docstring is not None:
            names = [parameter.name for parameter in func.parameters]
            func.docstring.value = parted(func.docstring.value, names)


def parted(text: str, names: Collection[str]) -> str:
    """Return a docstring with a paragraph for each of these names, and for what is raised."""
    if not names:
        return text
    one = "|".join(map(re.escape, names))
    start = r"(^|(?<=[.;])\s+|\n\s*)"
    text = re.sub(
        rf"{start}((?:{one})(?:(?:, | and )(?:{one}))*):\s+",
        lambda found: f"\n\n{_marked(found.group(2))}: ",
        text,
    )
    return re.sub(rf"{start}(?=Raises [A-Z])", "\n\n", text).strip()


def _marked(names: str) -> str:
    return re.sub(r"\w+", lambda name: name[0] if name[0] == "and" else f"**`{name[0]}`**", names)
