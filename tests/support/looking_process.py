"""Looks at a cluster's parties whenever it is given a line, and says what each said, as JSON.

For hosts whose network the test itself has no part in.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from privserve.config import read_config
from privserve.onlooker import Onlooker


def main(config: str, seconds: float) -> None:
    onlooker = Onlooker(read_config(Path(config)), seconds)
    for _ in sys.stdin:
        seen = onlooker.look()
        told = {one.party.name: None if one.status is None else dict(one.status) for one in seen}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
    onlooker.close()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
