"""A transformer as KServe has them: prepares inputs, asks a predictor, interprets its answers.

    python transformer.py http://127.0.0.1:8000 MODEL

It knows HTTP and the Open Inference Protocol, and nothing of privserve. Takes POST /v1/predict with
{"instances": images of bytes}, answers {"predictions": classes}; ends with its standard input.
"""

from __future__ import annotations

import json
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PREDICTOR, MODEL = sys.argv[1:3]


def predict(instances: list[Any]) -> list[int]:
    """Scale the pixels, ask the predictor, and take the most likely class."""
    with urllib.request.urlopen(f"{PREDICTOR}/v2/models/{MODEL}", timeout=30) as answer:
        about = json.load(answer)["inputs"][0]
    pixels = [[[[value / 255] for value in row] for row in image] for image in instances]
    tensor = {
        "name": about["name"],
        "shape": [len(instances), *about["shape"][1:]],
        "datatype": "FP32",
        "data": pixels,
    }
    request = urllib.request.Request(
        f"{PREDICTOR}/v2/models/{MODEL}/infer",
        json.dumps({"inputs": [tensor]}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        output = json.load(answer)["outputs"][0]
    classes = output["shape"][1]
    rows = [output["data"][i : i + classes] for i in range(0, len(output["data"]), classes)]
    return [row.index(max(row)) for row in rows]


class Handler(BaseHTTPRequestHandler):
    """Answers predictions."""

    def do_POST(self) -> None:
        """Answer one."""
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps({"predictions": predict(sent["instances"])}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
sys.stdin.read()
server.shutdown()
server.server_close()
