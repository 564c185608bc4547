"""One cell's parties as their owner's program sees them: how they are called, and its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from privserve.addresses import bind, join_address, reachable, split_address
from privserve.calls import raise_for_answer, tls_context, unreachable
from privserve.config import Browsers, ClusterConfig, PartyConfig, Timeouts, Watching
from privserve.errors import ClusterError, OwnerOnly
from privserve.owner_calls import Boot, Signer
from privserve.party_process import last_words, log_of, start_party
from privserve.shared_models import SharedModel, put_together

START_SECONDS = 60.0
STOP_SECONDS = 8.0
POLL_SECONDS = 0.1
CONNECT_SECONDS = 5.0
WRITE_SECONDS = 10.0
"""For a party to take some more of a call: a model may take as long as it takes."""
SAY_SECONDS = 10.0
"""So often it is said whom a cluster waits for."""
MINUTE = 60.0
MOST_DEATHS = 3
"""A party that ends this often within a minute is not started again."""
STARTED_AGAIN = "starting it again"


class Cell:
    """The parties of one cell; those that were started here have processes. Thread-safe."""

    def __init__(
        self,
        names: Sequence[str],
        number: int = 0,
        timeouts: Timeouts | None = None,
        watching: Watching | None = None,
        state: Sequence[str] = (),
        browsers: Browsers | None = None,
    ) -> None:
        """Of the parties that are started here: timeouts, watching, the options of their command
        lines that say where they keep their state, and how browsers ask them."""
        self.names = list(names)
        self.number = number
        self._timeouts = timeouts or Timeouts()
        self._watching = watching or Watching()
        self._state = state
        self._browsers = browsers or Browsers()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lifelines: list[int] = []
        self._deaths: dict[str, list[float]] = {}
        """By party: when its process was found to have ended."""
        self._reviving = threading.Lock()
        self._is_over = False
        """Whether nothing is started here any more."""
        self._config: ClusterConfig | None = None
        self._http: httpx.Client | None = None

    @property
    def config(self) -> ClusterConfig:
        """This cell's addresses and files."""
        if self._config is None:
            raise ClusterError("the cluster is not running; call start() first")
        return self._config

    @property
    def process_ids(self) -> dict[str, int]:
        """By party: the process that was started here for it."""
        return {name: process.pid for name, process in self._processes.items()}

    @property
    def who(self) -> str:
        """How lines about this cell begin; empty where there is no other one."""
        return f"cell {self.number}: " if len(self.config.by_cell) > 1 else ""

    def open(self, config: ClusterConfig, signer: Signer) -> None:
        """Call the parties of this cell's `config` from now on."""
        self._config, self._signer, self._is_over = config, signer, False
        self.connect_anew()

    def connect_anew(self) -> None:
        """Forget all connections, and go by the files as they are now: some may be revoked."""
        if self._http is not None:
            self._http.close()
        self._boots: dict[str, Boot] = {}
        self._reached: dict[str, str] = {}
        self._http = httpx.Client(
            verify=tls_context(self.config.ca),
            timeout=httpx.Timeout(60.0, connect=CONNECT_SECONDS, write=WRITE_SECONDS),
            trust_env=False,
        )

    def spawn(self, name: str, directory: Path, listening: int, *, again: bool = False) -> None:
        """Start a party; see `start_party`."""
        place = self._place(name)
        options = [*self._watching.options(place), *self._state, *self._browsers.options(place)]
        process, held = start_party(
            name, directory, listening, self._timeouts, options, cell=self.number, again=again
        )
        self._processes[name] = process
        self._lifelines.append(held)

    def _place(self, name: str) -> int:
        """The party's place among those of all cells."""
        return self.number * len(self.names) + self.names.index(name)

    def wait_all(
        self, report: Callable[[str], None], enough: threading.Event | None = None
    ) -> bool:
        """Wait until all parties answer, or until `enough` is set; whether they do."""
        return all(self.wait_alive(p, report=report, enough=enough) for p in self.config.parties)

    def wait_alive(
        self,
        party: PartyConfig,
        seconds: float = START_SECONDS,
        report: Callable[[str], None] = lambda line: None,
        enough: threading.Event | None = None,
    ) -> bool:
        """Wait until a party answers, or until `enough` is set; whether it does.

        One that was started here has `seconds` for it, another one for ever.
        """
        managed = party.name in self._processes
        began = told = time.monotonic()
        while True:
            self.check_processes(party.name)
            try:
                self.call(party, "GET", "/v2/health/live")
                return True
            except ClusterError as error:
                if "certificate does not verify" in str(error):
                    raise
                now, why = time.monotonic(), str(error)
            if managed and now - began > seconds:
                raise ClusterError(
                    f"{party.name} did not come up at {party.address} within {seconds:g} s; "
                    f"see {self.log(party.name)}"
                )
            if enough is not None and enough.is_set():
                return False
            if not managed and now - told >= SAY_SECONDS:
                told = now
                waited = f"waiting for {party.name} for {now - began:.0f} s"
                report(f"{self.who}{waited}: {why}")
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
        last = last_words(self.log(name).read_text(errors="replace"))
        return f"{name} ended with code {process.returncode}: {last}"

    def revive(self, tell: Callable[[str], None]) -> None:
        """Start the parties again that were started here and have ended, at the same ports.

        tell: called with a line for each. Raises ClusterError where one ends for the third time
        within a minute.
        """
        with self._reviving:
            for name in self.names:
                if self._is_over:
                    raise ClusterError("the cluster was stopped meanwhile")
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
                    self.spawn(name, self.config.path.parent, sock.fileno(), again=True)
                self._boots.pop(name, None)

    def log(self, name: str) -> Path:
        """Return where a party that was started here writes its log."""
        return log_of(name, self.config.path.parent, self.number)

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
            # A party that was started again has another name for its process; or it takes higher
            # numbers only, since this host's clock was set back.
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
            facts = about.json()
            if facts.get("cell", 0) != self.number:
                raise ClusterError(
                    f"{party.name} at {party.address} was started in cell {facts['cell']}, and "
                    f"{self.config.path} has it in cell {self.number}: start it with --cell "
                    f"{self.number}"
                )
            self._boots[party.name] = Boot.read(facts)
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
        said = {p.name: self.call(p, "GET", path).json() for p in parties}
        return put_together(said, self.number)

    def stop(self) -> None:
        """Stop every party that was started here, and forget the cell; idempotent."""
        self.let_go()
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

    def let_go(self) -> None:
        """Have every party end that was started here; `stop` waits for it."""
        with self._reviving:  # another thread may be starting one again
            self._is_over = True
            for held in self._lifelines:
                os.close(held)
            self._lifelines.clear()
