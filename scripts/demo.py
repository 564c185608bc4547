"""The whole of privserve in one run: `make demo`.

Converts the sample model, launches three parties that serve three queries, asks them from
a separate process, and leaves nothing behind.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUERIES = 3


def main() -> int:
    """Run the demonstration; returns the exit code."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="privserve-demo-") as home:
        model = Path(home) / "model.onnx"
        step("1. Convert a Keras model")
        convert = [sys.executable, str(ROOT / "scripts/convert.py")]
        subprocess.run(
            [*convert, str(ROOT / "examples/digits-model.h5"), "-o", str(model)], check=True
        )
        step(f"2. Launch alice, bob and carol, and serve {QUERIES} queries")
        launch = [sys.executable, "-m", "privserve.launch", "--parties", "3", "--port", "0"]
        cluster = subprocess.Popen(
            [*launch, "--model", str(model), "--num-requests", str(QUERIES)],
            cwd=home,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert cluster.stdout is not None
        try:
            for line in cluster.stdout:
                print(line, end="", flush=True)
                if line.startswith("serving"):
                    break
            step("3. Ask from another process, with real handwritten digits")
            query = [sys.executable, str(ROOT / "scripts/query.py"), "--count", str(QUERIES)]
            config = str(Path(home) / ".privserve" / "cluster.toml")
            asked = subprocess.run([*query, "--config", config], check=False).returncode
            for line in cluster.stdout:
                print(line, end="", flush=True)
            served = cluster.wait()
        finally:
            cluster.terminate()
            cluster.wait()
    step(f"Done in {time.monotonic() - started:.0f} s; all parties are gone")
    return asked or served


def step(title: str) -> None:
    """Announce what happens next."""
    print(f"\n--- {title}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    except KeyboardInterrupt:
        sys.exit(130)
