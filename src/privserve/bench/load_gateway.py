"""The load benchmark's gateway, and the clients that ask it: applications that know no shares."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from privserve import oip
from privserve.addresses import split_address
from privserve.calls import unreachable
from privserve.errors import ClusterError, InputError, LimitReached, NotServing, QueryError

ADDRESS_FILE = "gateway.address"
"""Beside cluster.toml: where the gateway listens, and what its model is called."""
END_SECONDS = 10.0
ANSWER_SECONDS = 60.0
FLOAT = "FP32"
BY_STATUS = {400: InputError, 429: LimitReached, 503: NotServing}
"""What a gateway, which has the protocol's errors only, refuses with."""


class GatewayAsker:
    """One application: a connection to the gateway, with float tensors as bytes."""

    def __init__(self, config: Path, key: Path) -> None:
        """config: a cluster.toml, beside which ADDRESS_FILE is. key: of no use here."""
        self._address, model = (config.parent / ADDRESS_FILE).read_text().split()
        host, port = split_address(self._address)
        self._http = http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)
        self._path = f"/v2/models/{model}"
        described = self._call("GET", self._path)[0]
        self._input = described["inputs"][0]["name"]

    def query_model(self, x: NDArray[np.floating[Any]]) -> Any:
        """Return the prediction for the batch `x`; raises PrivserveError."""
        payload = np.ascontiguousarray(x, np.float32).tobytes()
        tensor = {
            "name": self._input,
            "shape": list(x.shape),
            "datatype": FLOAT,
            "parameters": {"binary_data_size": len(payload)},
        }
        asked = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        head = json.dumps(asked).encode()
        headers = {oip.HEADER_LENGTH: str(len(head))}
        fields, rest = self._call("POST", f"{self._path}/infer", head + payload, headers)
        outputs, start = [], 0
        for output in fields["outputs"]:
            size = output["parameters"]["binary_data_size"]
            values = np.frombuffer(rest[start : start + size], "<f4")
            outputs.append(values.reshape(output["shape"]))
            start += size
        return outputs[0] if len(outputs) == 1 else outputs

    def _call(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[dict[str, Any], memoryview]:
        """The JSON of the answer, and what is behind it."""
        try:
            self._http.request(method, path, body, headers or {})
            response = self._http.getresponse()
            got = memoryview(response.read())
            length = int(response.headers.get(oip.HEADER_LENGTH, len(got)))
            fields: dict[str, Any] = json.loads(bytes(got[:length]))
        except (OSError, http.client.HTTPException) as error:
            self._http.close()
            raise unreachable("the gateway", self._address, error) from None
        except ValueError:
            raise ClusterError("the gateway gave a malformed answer") from None
        if response.status != 200:
            said = str(fields.get("error"))
            if response.status in BY_STATUS:
                raise BY_STATUS[response.status](f"the gateway refuses: {said}")
            raise QueryError(f"the gateway refuses: {said}", response.status)
        return fields, got[length:]

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


@contextlib.contextmanager
def gateway(config: Path, key: Path, model: str) -> Iterator[int]:
    """A gateway to the cluster of `config` while the block runs; yields its process' id.

    Raises ClusterError where it does not come up.
    """
    command = [sys.executable, "-m", "privserve.gateway", "--config", str(config)]
    command += ["--key", str(key), "--http", "127.0.0.1:0"]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, process_group=0
    )
    assert process.stdout is not None
    try:
        address = _address(process.stdout)
        (config.parent / ADDRESS_FILE).write_text(f"{address} {model}\n")
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _address(said: IO[str]) -> str:
    """Where the gateway listens, once it serves."""
    address, serves = "", False
    for line in said:
        if "HTTP at " in line:
            address = line.split("//")[1].strip()
        serves |= "serving '" in line
        if address and serves:
            return address
    raise ClusterError("the gateway did not come up")
