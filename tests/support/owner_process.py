"""The model owner's command in a process that has loaded all it needs, to be started at once.

Reads a command line of `privserve.launch` per line, as JSON, runs it as the command does, and says
what it ended with.
"""

from __future__ import annotations

import contextlib
import json
import sys

from privserve import launch, model, serving  # noqa: F401  (loaded before anybody waits for it)
from privserve.engines import load_engine


def main() -> None:
    load_engine("ottt").OPS  # noqa: B018  (and with it what the first use loads)
    launch.say("ready")
    with contextlib.suppress(KeyboardInterrupt):  # that came when nothing ran
        for line in sys.stdin:
            launch.say("began")
            try:
                code = launch.main(json.loads(line))
            finally:
                sys.stderr.flush()
            launch.say(f"ended with {code}")


if __name__ == "__main__":
    main()
