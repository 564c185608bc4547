"""A client in a process of its own, which asks and asks, and says what came of each query.

Takes the cluster.toml, an .npz with queries x0, x1 ... and right answers y0, y1 ..., and the
seconds that a query may take. Reads "ask" and "hold" from its input, and ends with it. Says a JSON
object a line.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import numpy as np

import privserve as ps

PAUSE_SECONDS, FAILED_SECONDS = 0.01, 0.05


def main(config: str, samples: str, seconds: float) -> None:
    with np.load(samples) as found:
        count = len(found.files) // 2
        queries = [found[f"x{number}"] for number in range(count)]
        answers = [found[f"y{number}"] for number in range(count)]
    asking, over = threading.Event(), threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            if line.strip() == "ask":
                asking.set()
            else:
                asking.clear()
                say(held=True)
        over.set()
        asking.set()

    threading.Thread(target=listen, daemon=True).start()
    with ps.Client(config, timeout=seconds) as client:
        number = 0
        while True:
            if not asking.is_set():
                say(idle=True)
            asking.wait()
            if over.is_set():
                return
            number = (number + 1) % len(queries)
            began = time.monotonic()
            try:
                got = client.query_model(queries[number])
            except ps.PrivserveError as error:
                told: dict[str, Any] = {"error": type(error).__name__, "text": str(error)}
                pause = FAILED_SECONDS
            else:
                right = bool(np.abs(got - answers[number]).max() < 1e-2)
                told, pause = {"right": right}, PAUSE_SECONDS
            ended = time.monotonic()
            say(began=began, ended=ended, rows=len(queries[number]), **told)
            time.sleep(pause)


def say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")  # at once: two threads say something
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
