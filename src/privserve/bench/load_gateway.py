"""The load benchmark's gateway, and the clients that ask it: applications that know no shares."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import httptools
import numpy as np
from numpy.typing import NDArray

from privserve import oip
from privserve.addresses import connect
from privserve.calls import unreachable
from privserve.errors import ClusterError, InputError, LimitReached, NotServing, QueryError

ADDRESS_FILE = "gateway.address"
"""Beside cluster.toml: where the gateway listens, and what its model is called."""
END_SECONDS = 10.0
ANSWER_SECONDS = 60.0
FLOAT = "FP32"
BY_STATUS = {400: InputError, 429: LimitReached, 503: NotServing}
"""What a gateway, which has the protocol's errors only, refuses with."""


class _Answer:
    """What httptools reads of one answer."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.body = bytearray()
        self.is_whole = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_body(self, part: bytes) -> None:
        self.body += part

    def on_message_complete(self) -> None:
        self.is_whole = True


class GatewayAsker:
    """One application: a connection to the gateway, with float tensors as bytes.

    It costs next to nothing itself, since it is the gateway that is measured: `http.client` takes
    longer for a request than some programs in other languages and the gateway together.
    """

    def __init__(self, config: Path, key: Path) -> None:
        """config: a cluster.toml, beside which ADDRESS_FILE is. key: of no use here."""
        self._address, model = (config.parent / ADDRESS_FILE).read_text().split()
        self._sock: socket.socket | None = None
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
        said = {"Host": self._address, "Content-Length": str(len(body)), **(headers or {})}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in said.items())]
        try:
            status, answer = self._exchange("\r\n".join([*lines, "", ""]).encode() + body)
            got = memoryview(answer.body)
            length = int(answer.headers.get(oip.HEADER_LENGTH.lower().encode(), len(got)))
            fields: dict[str, Any] = json.loads(bytes(got[:length]))
        except (OSError, httptools.HttpParserError) as error:
            self.close()
            raise unreachable("the gateway", self._address, error) from None
        except ValueError:
            raise ClusterError("the gateway gave a malformed answer") from None
        if status != 200:
            why = str(fields.get("error"))
            if status in BY_STATUS:
                raise BY_STATUS[status](f"the gateway refuses: {why}")
            raise QueryError(f"the gateway refuses: {why}", status)
        return fields, got[length:]

    def _exchange(self, request: bytes) -> tuple[int, _Answer]:
        """Send a request and return the answer's status and the rest of it."""
        if self._sock is None:
            self._sock = connect([self._address], ANSWER_SECONDS)
            self._sock.settimeout(ANSWER_SECONDS)
        answer = _Answer()
        parser = httptools.HttpResponseParser(answer)
        self._sock.sendall(request)
        while not answer.is_whole:
            if not (part := self._sock.recv(1 << 16)):
                raise ConnectionError("it closed the connection")
            parser.feed_data(part)
        return parser.get_status_code(), answer

    def close(self) -> None:
        """Close the connection."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None


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
