"""What a user's program calls: `Worker`, `Cluster`, `load_model` and the model it gives.

cluster = ps.Cluster(alice, bob, carol); cluster.start()
model = ps.load_model("model.h5")
model.share(cluster)
model.serve(num_requests=3)
model.stop(); cluster.stop()
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

import converters
from privserve import oip, sharing
from privserve.certificates import OWNER_TOKEN, write_cluster
from privserve.client import Inputs, by_name, raise_for_answer, tls_context, unreachable
from privserve.config import ClusterConfig, PartyConfig, party_names, read_config, split_address
from privserve.engines import Prepared, load_engine
from privserve.errors import ClusterError, ConfigError, InputError, ModelError, QueryError
from privserve.party import bind
from privserve.session import Timeouts

DEFAULT_ENGINE = "ottt"
AUTO = "auto"
PEER_PORT_OFFSET = 100
START_SECONDS = 60.0
STOP_SECONDS = 8.0
POLL_SECONDS = 0.1
POLL_PATIENCE_SECONDS = 30.0
"""Polls may fail this long before serving is given up."""


@dataclass
class Worker:
    """One party to be: its address, and whether this process starts and stops it.

    address: host:port for clients; port 0 picks a free one (local parties only). peer:
    host:port for the other parties; the same host and port + 100 when None.
    """

    address: str
    auto_managed: bool = True
    peer: str | None = None

    def __post_init__(self) -> None:
        host, port = split_address(self.address)
        if self.peer is None:
            self.peer = f"{host}:{port + PEER_PORT_OFFSET if port else 0}"
        split_address(self.peer)
        if not self.auto_managed and port == 0:
            raise ConfigError(f"'{self.address}': a party that is started by hand needs a port")


class Cluster:
    """The parties: workers that compute, and the dealer as the last one.

    A context manager: `with Cluster(...) as cluster` starts it and always stops it.
    """

    def __init__(
        self,
        *workers: Worker,
        directory: str | Path | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        """directory: where cluster.toml and the certificates go; a temporary one when None.

        timeouts: how long the auto_managed parties wait for each other and for shares.
        """
        self.names = party_names(len(workers))
        self._workers = dict(zip(self.names, workers, strict=True))
        self._directory = Path(directory) if directory is not None else None
        self._timeouts = timeouts or Timeouts()
        self._temporary: Path | None = None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lifelines: list[int] = []
        self._config: ClusterConfig | None = None
        self._http: httpx.Client | None = None

    @classmethod
    def connect(cls, config: str | Path) -> Cluster:
        """A cluster whose parties run already; needs owner.token beside cluster.toml."""
        found = read_config(config)
        workers = [Worker(p.http, auto_managed=False, peer=p.peer) for p in found.parties]
        cluster = cls(*workers)
        cluster.names = [p.name for p in found.parties]
        cluster._open(found)
        for party in found.parties:
            cluster._wait_alive(party)
        return cluster

    @property
    def config(self) -> ClusterConfig:
        """The running cluster's addresses and files, as clients need them."""
        if self._config is None:
            raise ClusterError("the cluster is not running; call start() first")
        return self._config

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, report: Callable[[str], None] = lambda line: None) -> None:
        """Start all parties and wait until each answers.

        report: called with a line of progress. For workers that are not auto_managed, prints
        the command to run on their host and waits for them. Raises ClusterError or
        ConfigError, with everything stopped again, if a party does not come up.
        """
        if self._config is not None:
            raise ClusterError("the cluster is running already")
        atexit.register(self.stop)
        try:
            self._start(report)
        except BaseException:
            self.stop()
            raise

    def _start(self, report: Callable[[str], None]) -> None:
        with contextlib.ExitStack() as stack:
            sockets, parties = {}, []
            for name, worker in self._workers.items():
                http, peer = worker.address, worker.peer or ""
                if worker.auto_managed:
                    bound = [
                        stack.enter_context(bind(split_address(address), f"{name} ({what})"))
                        for address, what in ((http, "http"), (peer, "peer"))
                    ]
                    sockets[name] = bound
                    http, peer = (
                        f"{split_address(address)[0]}:{sock.getsockname()[1]}"
                        for address, sock in zip((http, peer), bound, strict=True)
                    )
                parties.append((name, http, peer))
            directory = self._directory
            if directory is None:
                directory = self._temporary = Path(tempfile.mkdtemp(prefix="privserve-"))
            path = write_cluster(directory.resolve(), parties)
            for name, (http_socket, peer_socket) in sockets.items():
                self._spawn(name, directory, http_socket.fileno(), peer_socket.fileno())
        self._open(read_config(path))
        for name, worker in self._workers.items():
            if not worker.auto_managed:
                own = path.parent / name / "cluster.toml"
                host = split_address(worker.address)[0]
                print(
                    f"{name}: copy the directory {own.parent} to {host} and run there\n"
                    f"    python -m privserve.launch --party {name} "
                    f"--config {shlex.quote(f'{name}/cluster.toml')}",
                    flush=True,
                )
        for party in self.config.parties:
            self._wait_alive(party)
            report(f"{party.name} ({self.config.role(party.name)}) is up at {party.http}")

    def _open(self, config: ClusterConfig) -> None:
        token_file = config.path.parent / OWNER_TOKEN
        try:
            token = token_file.read_text()
        except OSError:
            raise ConfigError(
                f"{token_file} cannot be read; only its holder, the model owner, may share models"
            ) from None
        self._http = httpx.Client(
            verify=tls_context(config.ca),
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(60.0, connect=5.0),
            trust_env=False,
        )
        self._config = config

    def _spawn(self, name: str, directory: Path, http: int, peer: int) -> None:
        """Start a party's process; it ends when our end of its lifeline does."""
        config = directory.resolve() / name / "cluster.toml"
        ends, held = os.pipe()
        log = os.open(directory / name / "party.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        command = [sys.executable, "-m", "privserve.party", "--name", name, "--config", str(config)]
        command += ["--http-fd", str(http), "--peer-fd", str(peer), "--lifeline-fd", str(ends)]
        for what, seconds in asdict(self._timeouts).items():
            command += [f"--{what}-timeout", str(seconds)]
        try:
            self._processes[name] = subprocess.Popen(
                command,
                pass_fds=(http, peer, ends),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in a terminal is for the launching program, which then stops us.
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
            )
        except OSError as error:
            os.close(held)
            raise ClusterError(f"{name} cannot be started: {error.strerror}") from None
        finally:
            os.close(ends)
            os.close(log)
        self._lifelines.append(held)

    def _wait_alive(self, party: PartyConfig, seconds: float = START_SECONDS) -> None:
        managed = party.name in self._processes
        deadline = time.monotonic() + seconds if managed else None
        while True:
            self.check_processes(party.name)
            try:
                self.call(party, "GET", "/v2/health/live")
                return
            except ClusterError as error:
                if "certificate does not verify" in str(error):
                    raise
            if deadline is not None and time.monotonic() > deadline:
                raise ClusterError(
                    f"{party.name} did not come up at {party.http} within {seconds:g} s; "
                    f"see {self._log(party.name)}"
                )
            time.sleep(POLL_SECONDS)

    def check_processes(self, *names: str) -> None:
        """Raise ClusterError if a party's process (of these, or any) has ended."""
        for name in names or self.names:
            process = self._processes.get(name)
            if process is not None and process.poll() is not None:
                if process.returncode == -signal.SIGKILL:
                    raise ClusterError(
                        f"{name} was killed (signal 9). If nobody did that, the system did, since "
                        "memory ran out; a larger host, a smaller model or fewer rows may help"
                    )
                lines = self._log(name).read_text(errors="replace").strip().splitlines()
                last = lines[-1] if lines else "it said nothing"
                raise ClusterError(f"{name} ended with code {process.returncode}: {last}")

    def _log(self, name: str) -> Path:
        return (self._temporary or self._directory or Path()) / name / "party.log"

    def call(self, party: PartyConfig, method: str, path: str, **options: Any) -> httpx.Response:
        """One HTTP call to a party as the model owner; raises the error it stands for."""
        if self._http is None:
            raise ClusterError("the cluster is not running; call start() first")
        host, port = party.http_address
        host = f"[{host}]" if ":" in host else host
        try:
            response = self._http.request(method, f"https://{host}:{port}{path}", **options)
        except httpx.TransportError as error:
            raise unreachable(party.name, party.http, error) from None
        raise_for_answer(response, party.name)
        return response

    def stop(self) -> None:
        """Stop every party that was started here, and forget the cluster; idempotent."""
        atexit.unregister(self.stop)
        for held in self._lifelines:
            os.close(held)
        self._lifelines.clear()
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        if self._http is not None:
            self._http.close()
        self._http = self._config = None
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None


class SecureModel:
    """A converted model, and its shares' life on a cluster."""

    def __init__(self, converted: converters.Converted, name: str) -> None:
        self.converted = converted
        self.name = name
        self._cluster: Cluster | None = None

    def __enter__(self) -> SecureModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def prepare(
        self,
        engine: str = DEFAULT_ENGINE,
        *,
        input_range: tuple[float, float] | None = None,
        fraction_bits: int | None = None,
        calibration: Inputs | None = None,
        range_check: bool = True,
    ) -> Prepared:
        """The public description and the secret parameters for `engine`; nothing is sent.

        engine: "ottt", "crypten", or "auto": ottt, or crypten with a warning that says why
        ottt cannot run the model. calibration, range_check: see `share`.
        """
        if input_range is not None:
            low, high = input_range
            if not (np.isfinite([low, high]).all() and low < high):
                raise ConfigError(
                    f"an input range needs two finite numbers, low < high: {input_range}"
                )
        options: dict[str, Any] = {
            "input_range": input_range,
            "fraction_bits": fraction_bits,
            "range_check": range_check,
        }
        if calibration is not None:
            options["calibration"] = self._samples(calibration)
        try:
            chosen = DEFAULT_ENGINE if engine == AUTO else engine
            return load_engine(chosen).prepare(self.converted.onnx, **options)
        except ModelError as error:
            if engine != AUTO:
                raise
            warnings.warn(f"serving with the crypten engine, because {error}", stacklevel=3)
            return load_engine("crypten").prepare(self.converted.onnx, **options)

    def _samples(self, given: Inputs) -> list[NDArray[np.float64]]:
        """The calibration samples, one array per input in the model's order."""
        wanted = {tensor.name: tensor.shape[1:] for tensor in self.converted.inputs}
        try:
            arrays = by_name(wanted, given)
            return [np.asarray(array, dtype=np.float64) for array in arrays.values()]
        except (InputError, TypeError, ValueError) as error:
            raise ModelError(f"calibration: {error}") from None

    def share(
        self,
        cluster: Cluster,
        *,
        engine: str = DEFAULT_ENGINE,
        input_range: tuple[float, float] | None = None,
        fraction_bits: int | None = None,
        calibration: Inputs | None = None,
        range_check: bool = True,
        options: Mapping[str, Any] | None = None,
        report: Callable[[str], None] | None = None,
        force: bool = False,
    ) -> None:
        """Split the weights here and give each compute party one share of each.

        The dealer gets the public description only. Returns when all parties are ready to
        serve. input_range: bounds on every input value, (-8, 8) when None; queries outside
        it are refused by the client. calibration: inputs like those that will be asked, as
        for `Client.query_model`, for ottt to see what values a deep network's layers take;
        they stay in this process. range_check: whether a query that leaves a guessed range is
        refused (GuessedRangeError) instead of answered wrongly; without it deep networks send
        some percent less. force: share also what the parties seem to have no memory for.
        report: called with what errors to expect and with what had to be
        guessed; when None, guesses are warned of and the rest is printed. Raises ModelError if
        the engine cannot run the model and ClusterError if a party fails.
        """
        prepared = self.prepare(
            engine,
            input_range=input_range,
            fraction_bits=fraction_bits,
            calibration=calibration,
            range_check=range_check,
        )
        _tell(prepared, report)
        config = cluster.config
        compute = len(config.compute)
        if not force:
            _check_memory(cluster, prepared, options or {})
        split = {name: sharing.split(p, compute) for name, p in prepared.parameters.items()}
        session = secrets.token_hex(16)
        message = {
            "session": session,
            "engine": prepared.engine,
            "description": prepared.description,
            "options": dict(options or {}),
        }

        def send(rank: int) -> None:
            shares = {name: s[rank] for name, s in split.items()} if rank < compute else {}
            parts, headers = oip.format_message(message, shares, "inputs")
            path = f"/v2/repository/models/{self.name}/load"
            cluster.call(
                config.parties[rank], "POST", path, content=b"".join(parts), headers=headers
            )

        self._cluster = cluster
        try:
            with ThreadPoolExecutor(len(config.parties)) as pool:
                list(pool.map(send, range(len(config.parties))))
            for party in config.parties:
                self._wait_loaded(cluster, party, session)
        except BaseException:
            self.stop()
            raise

    def _wait_loaded(self, cluster: Cluster, party: PartyConfig, session: str) -> None:
        while True:
            cluster.check_processes()
            status = cluster.call(party, "GET", "/privserve/status").json()
            if status.get("session") != session:
                self._cluster = None  # what is loaded there by now is not ours to stop
                raise ClusterError(f"{party.name} was given another model meanwhile")
            if status["state"] in ("failed", "ended"):
                raise ClusterError(f"the model could not be shared: {status['reason']}")
            if status["state"] == "loaded":
                return
            time.sleep(POLL_SECONDS / 2)

    def serve(
        self,
        num_requests: int | None = None,
        *,
        report: Callable[[int], None] = lambda answered: None,
    ) -> int:
        """Answer queries until `num_requests` are answered; None: until interrupted.

        report: called with the number answered so far whenever it grew. Returns how many
        were answered. May be called again; the model stays shared. Raises ClusterError if
        a party is lost.
        """
        cluster, leader = self._shared()
        cluster.call(leader, "POST", "/privserve/serve", json={"num_requests": num_requests})
        answered = 0
        try:
            while True:
                status = self._polled(cluster, leader)
                if status.get("answered", 0) > answered:
                    answered = status["answered"]
                    report(answered)
                if status["state"] != "loaded":
                    raise ClusterError(f"serving ended: {status['reason']}")
                if not status["serving"]:
                    return answered
                cluster.check_processes()
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            with contextlib.suppress(ClusterError, QueryError):
                stopped = cluster.call(leader, "POST", "/privserve/stop").json()
                answered = stopped["answered"]
            if num_requests is not None:
                raise
            return answered

    def _polled(self, cluster: Cluster, leader: PartyConfig) -> dict[str, Any]:
        """The leader's status. A poll that fails is no reason to end a cluster that serves."""
        deadline = time.monotonic() + POLL_PATIENCE_SECONDS
        while True:
            try:
                found: dict[str, Any] = cluster.call(leader, "GET", "/privserve/status").json()
                return found
            except (ClusterError, QueryError, ValueError) as error:
                cluster.check_processes()
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"{leader.name} has not said how serving goes for "
                        f"{POLL_PATIENCE_SECONDS:g} s: {error}"
                    ) from None
                time.sleep(POLL_SECONDS)

    def _shared(self) -> tuple[Cluster, PartyConfig]:
        if self._cluster is None:
            raise ClusterError("the model is not shared; call share(cluster) first")
        return self._cluster, self._cluster.config.compute[0]

    def status(self) -> list[dict[str, Any]]:
        """Every party's state and counters."""
        cluster, _ = self._shared()
        config = cluster.config
        return [cluster.call(p, "GET", "/privserve/status").json() for p in config.parties]

    def stop(self) -> None:
        """Have every party forget its share; idempotent."""
        cluster, self._cluster = self._cluster, None
        if cluster is None:
            return
        with contextlib.suppress(ClusterError):
            for party in cluster.config.parties:
                with contextlib.suppress(ClusterError, QueryError):
                    cluster.call(party, "POST", f"/v2/repository/models/{self.name}/unload")


def _check_memory(cluster: Cluster, prepared: Prepared, options: Mapping[str, Any]) -> None:
    """Raise ClusterError where parties on one host need more memory than it has."""
    config = cluster.config
    each, dealer = load_engine(prepared.engine).memory(
        prepared.description, len(config.compute), **options
    )
    hosts: dict[str, list[PartyConfig]] = {}
    for party in config.parties:
        hosts.setdefault(party.http_address[0], []).append(party)
    for host, parties in hosts.items():
        needed = sum(dealer if config.role(p.name) == "dealer" else each for p in parties)
        facts = cluster.call(parties[0], "GET", "/privserve/status").json()
        free = facts.get("memory_available")
        if free is not None and needed > free:
            names = " and ".join(p.name for p in parties)
            raise ClusterError(
                f"{names} at {host} would need about {needed / 1e9:.1f} GB of memory for this "
                f"model, and {free / 1e9:.1f} GB are free there; the system would kill a party. "
                "Use hosts with more memory, smaller inputs or a smaller model, or share it "
                "anyway with force=True (--force)"
            )


def _tell(prepared: Prepared, report: Callable[[str], None] | None) -> None:
    """Say what errors to expect, and whatever was guessed."""
    notes = [f"note: {note}" for note in prepared.description.get("notes", [])]
    for line in (*prepared.report, *notes):
        if report is not None:
            report(line)
        elif line in notes:
            warnings.warn(line.removeprefix("note: "), stacklevel=4)
        else:
            print(line, flush=True)


def load_model(
    source: Any,
    architecture: str | Path | None = None,
    *,
    input_shape: Sequence[int] | None = None,
    name: str | None = None,
) -> SecureModel:
    """A model to share: from a .h5, .keras or .onnx file, a torch module or a Keras model.

    architecture: the JSON (file) that goes with a weights-only file. input_shape: without
    the batch axis; needed for a torch.nn.Module. name: what clients call it; the file's
    name without its ending when None. Raises ModelError saying what cannot be converted.
    """
    try:
        converted = converters.convert(source, architecture=architecture, input_shape=input_shape)
    except converters.ConversionError as error:
        raise ModelError(str(error)) from None
    if name is None:
        name = Path(source).stem if isinstance(source, str | Path) else "model"
    return SecureModel(converted, re.sub(r"[^A-Za-z0-9_.-]+", "-", name) or "model")
