"""The parties as their owner's program sees them: `Worker`, `Cluster`."""

from __future__ import annotations

import atexit
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from privserve.addresses import bind, join_address, reachable, split_address
from privserve.calls import raise_for_answer, tls_context, unreachable
from privserve.certificates import OWNER_KEY, write_cluster
from privserve.config import (
    ClusterConfig,
    PartyConfig,
    Timeouts,
    Watching,
    party_names,
    read_config,
)
from privserve.credentials import ClientTable
from privserve.errors import ClusterError, ConfigError, OwnerOnly, QueryError
from privserve.owner_calls import Signer, load_owner_key
from privserve.party_process import last_words, start_party, state_options
from privserve.shared_models import SharedModel, put_together

START_SECONDS = 60.0
STOP_SECONDS = 8.0
POLL_SECONDS = 0.1
CONNECT_SECONDS = 5.0
SAY_SECONDS = 10.0
"""So often it is said whom a cluster waits for."""
MINUTE = 60.0
MOST_DEATHS = 3
"""A party that ends this often within a minute is not started again."""
STARTED_AGAIN = "starting it again"


@dataclass
class Worker:
    """One party to be: its address, and whether this process starts and stops it.

    address: host:port, for clients and the other parties; port 0 picks a free one (local parties
    only).
    """

    address: str
    auto_managed: bool = True

    def __post_init__(self) -> None:
        _, port = split_address(self.address)
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
        watching: Watching | None = None,
        state_dir: str | Path | None = None,
        state_key_file: str | Path | None = None,
        state_key_command: str | None = None,
    ) -> None:
        """directory: where cluster.toml and the certificates go; a temporary one when None.

        timeouts: how long the auto_managed parties wait for each other and for shares. watching:
        their metrics and logs. state_dir: where these keep their shares, sealed with the key that
        is in state_key_file, that state_key_command prints, or that is in the environment, so that
        they need no owner when they are started again.
        """
        self.names = party_names(len(workers))
        self._workers = dict(zip(self.names, workers, strict=True))
        self._directory = Path(directory) if directory is not None else None
        self._timeouts = timeouts or Timeouts()
        self._watching = watching or Watching()
        self._state = state_options(
            None if state_dir is None else Path(state_dir).resolve(),
            None if state_key_file is None else Path(state_key_file).resolve(),
            state_key_command,
        )
        self._temporary: Path | None = None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lifelines: list[int] = []
        self._deaths: dict[str, list[float]] = {}
        """By party: when its process was found to have ended."""
        self._reviving = threading.Lock()
        self._config: ClusterConfig | None = None
        self._http: httpx.Client | None = None

    @classmethod
    def connect(
        cls,
        config: str | Path,
        *,
        wait: bool = True,
        report: Callable[[str], None] = print,
    ) -> Cluster:
        """Return a cluster whose parties run already; needs owner.key beside cluster.toml.

        wait: until all of them answer. report: called with whom it waits for, every 10 s.
        """
        found = read_config(config)
        workers = [Worker(p.address, auto_managed=False) for p in found.parties]
        cluster = cls(*workers)
        cluster.names = [p.name for p in found.parties]
        cluster._open(found)
        if wait:
            for party in found.parties:
                cluster._wait_alive(party, report=report)
        return cluster

    @property
    def config(self) -> ClusterConfig:
        """The running cluster's addresses and files, as clients need them."""
        if self._config is None:
            raise ClusterError("the cluster is not running; call start() first")
        return self._config

    @property
    def process_ids(self) -> dict[str, int]:
        """By party: the process that was started here for it."""
        return {name: process.pid for name, process in self._processes.items()}

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
                address = worker.address
                if worker.auto_managed:
                    host, _ = split_address(address)
                    sockets[name] = stack.enter_context(bind(split_address(address), name))
                    address = join_address(host, sockets[name].getsockname()[1])
                parties.append((name, address))
            directory = self._directory
            if directory is None:
                directory = self._temporary = Path(tempfile.mkdtemp(prefix="privserve-"))
            path = write_cluster(directory.resolve(), parties)
            for name, sock in sockets.items():
                self._spawn(name, directory, sock.fileno())
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
            self._wait_alive(party, report=report)
            report(f"{party.name} ({self.config.role(party.name)}) is up at {party.address}")

    def _open(self, config: ClusterConfig) -> None:
        key = load_owner_key(config.path.parent / OWNER_KEY)
        if key.public_key().public_bytes_raw() != config.owner:
            raise ConfigError(
                f"{config.path.parent / OWNER_KEY} is not the key that {config.path} names; take "
                "both from the cluster as it was made"
            )
        self._signer = Signer(key, config.cluster)
        self._config = config
        self.connect_anew()

    def connect_anew(self) -> None:
        """Forget all connections, and go by the files as they are now: some may be revoked."""
        if self._http is not None:
            self._http.close()
        self._boots: dict[str, str] = {}
        self._reached: dict[str, str] = {}
        self._http = httpx.Client(
            verify=tls_context(self.config.ca),
            timeout=httpx.Timeout(60.0, connect=CONNECT_SECONDS),
            trust_env=False,
        )

    def _spawn(self, name: str, directory: Path, listening: int, again: bool = False) -> None:
        options = [*self._watching.options(self.names.index(name)), *self._state]
        process, held = start_party(
            name, directory, listening, self._timeouts, options, again=again
        )
        self._processes[name] = process
        self._lifelines.append(held)

    def _wait_alive(
        self,
        party: PartyConfig,
        seconds: float = START_SECONDS,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Wait until a party answers: `seconds` at most if it was started here, else for ever."""
        managed = party.name in self._processes
        began = told = time.monotonic()
        while True:
            self.check_processes(party.name)
            try:
                self.call(party, "GET", "/v2/health/live")
                return
            except ClusterError as error:
                if "certificate does not verify" in str(error):
                    raise
                now, why = time.monotonic(), str(error)
            if managed and now - began > seconds:
                raise ClusterError(
                    f"{party.name} did not come up at {party.address} within {seconds:g} s; "
                    f"see {self._log(party.name)}"
                )
            if not managed and now - told >= SAY_SECONDS:
                told = now
                report(f"waiting for {party.name} for {now - began:.0f} s: {why}")
            time.sleep(POLL_SECONDS)

    def check_processes(self, *names: str) -> None:
        """Raise ClusterError if a party's process (of these, or any) has ended."""
        for name in names or self.names:
            if (how := self._how_ended(name)) is not None:
                raise ClusterError(how)

    def _how_ended(self, name: str) -> str | None:
        """How a party's process ended that was started here; None where it has not."""
        process = self._processes.get(name)
        if process is None or process.poll() is None:
            return None
        if process.returncode == -signal.SIGKILL:
            return (
                f"{name} was killed (signal 9). If nobody did that, the system did, since "
                "memory ran out; a larger host, a smaller model or fewer rows may help"
            )
        last = last_words(self._log(name).read_text(errors="replace"))
        return f"{name} ended with code {process.returncode}: {last}"

    def revive(self, tell: Callable[[str], None]) -> None:
        """Start the parties again that were started here and have ended, at the same ports.

        tell: called with a line for each. Raises ClusterError where one ends for the third time
        within a minute.
        """
        with self._reviving:
            for name in self.names:
                if (how := self._how_ended(name)) is None:
                    continue
                now = time.monotonic()
                deaths = [at for at in self._deaths.get(name, []) if now - at < MINUTE]
                self._deaths[name] = [*deaths, now]
                if len(deaths) + 1 >= MOST_DEATHS:
                    raise ClusterError(f"{how} (for the third time within a minute)")
                tell(f"{how}; {STARTED_AGAIN}")
                party = self.config.parties[self.config.rank(name)]
                with bind(split_address(party.address), name) as sock:
                    self._spawn(name, self.config.path.parent, sock.fileno(), again=True)
                self._boots.pop(name, None)

    def _log(self, name: str) -> Path:
        return (self._temporary or self._directory or Path()) / name / "party.log"

    def call(
        self, party: PartyConfig, method: str, path: str, *, session: str = "", **options: Any
    ) -> httpx.Response:
        """Make one signed HTTP call to a party as the model owner; raises the error it stands for.

        session: which one the call is about; the party refuses it (StaleSession) where it has
        none of this id. options: `content` and `headers`, or `json`.
        """
        try:
            return self._signed(party, method, path, session, options)
        except OwnerOnly:
            # A party that was started again has another name for its process.
            if self._boots.pop(party.name, None) is None:
                raise
            return self._signed(party, method, path, session, options)

    def _signed(
        self, party: PartyConfig, method: str, path: str, session: str, options: dict[str, Any]
    ) -> httpx.Response:
        if self._http is None:
            raise ClusterError("the cluster is not running; call start() first")
        if party.name not in self._boots:
            about = self._send(self._http.build_request("GET", self._url(party, "/v2")), party)
            self._boots[party.name] = str(about.json().get("boot"))
        request = self._http.build_request(method, self._url(party, path), **options)
        target = request.url.raw_path.decode("ascii")
        request.headers["Authorization"] = self._signer.authorization(
            party.name, self._boots[party.name], method, target, session, request.read()
        )
        return self._send(request, party)

    def _url(self, party: PartyConfig, path: str) -> str:
        """Where to send a call; of several addresses one that took a connection."""
        if party.name not in self._reached:
            self._reached[party.name] = reachable(party.addresses, CONNECT_SECONDS)
        return f"https://{join_address(*split_address(self._reached[party.name]))}{path}"

    def _send(self, request: httpx.Request, party: PartyConfig) -> httpx.Response:
        if self._http is None:
            raise ClusterError("the cluster was stopped meanwhile")
        request.extensions["sni_hostname"] = self.config.identity(party.name)
        try:
            response = self._http.send(request)
        except httpx.TransportError as error:
            is_late = isinstance(error, httpx.TimeoutException)
            self._reached.pop(party.name, None)
            raise unreachable(party.name, party.address, error, is_late=is_late) from None
        except RuntimeError:  # closed by another thread
            raise ClusterError("the connections were made anew or closed meanwhile") from None
        raise_for_answer(response, party.name)
        return response

    def models(self) -> list[SharedModel]:
        """Return the models that are shared, and those whose sharing failed or that were stopped.

        Raises ClusterError where a party cannot be asked.
        """
        path = "/privserve/status"
        parties = self.config.parties
        return put_together({p.name: self.call(p, "GET", path).json() for p in parties})

    def stop_model(self, name: str) -> None:
        """Have every party forget a model; raises QueryError (404) where none has it.

        Raises ClusterError where a party cannot be told, once the others were.
        """
        missing: list[QueryError] = []
        lost: list[ClusterError] = []
        for party in self.config.parties:
            try:
                path = f"/v2/repository/models/{quote(name, safe='')}/unload"
                self.call(party, "POST", path)
            except QueryError as error:
                if error.status != 404:
                    raise
                missing.append(error)
            except ClusterError as error:
                lost.append(error)
        if lost:
            raise lost[0]
        if len(missing) == len(self.config.parties):
            raise missing[0]

    def tell_clients(self, table: ClientTable) -> None:
        """Tell the compute parties who their clients are from now on; raises ClusterError."""
        for party in self.config.compute:
            message = {"clients": table.entries(party.name)}
            self.call(party, "POST", "/privserve/clients", json=message)

    def tell_revoked(self, signed: str, party: str) -> list[str]:
        """Send all parties but `party` the list of revoked certificates; returns whom not."""
        missed = []
        for other in self.config.parties:
            if other.name != party:
                try:
                    self.call(other, "POST", "/privserve/revoked", json={"revoked": signed})
                except (ClusterError, QueryError):
                    missed.append(other.name)
        return missed

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
