"""Write docs/openapi.json: every call of a party's HTTP front, as `/openapi.json` hands it out."""

from __future__ import annotations

import json
from pathlib import Path

from privserve.party.http import document

DOCUMENT = Path(__file__).parents[1] / "docs" / "openapi.json"


if __name__ == "__main__":
    DOCUMENT.write_text(json.dumps(document(), indent=1) + "\n")
