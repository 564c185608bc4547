"""The parties as their owner's program sees them: `Worker`, and `Cluster` with its cells."""

from __future__ import annotations

import atexit
import contextlib
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx

from privserve.addresses import bind, join_address, split_address
from privserve.cell import POLL_SECONDS, Cell
from privserve.certificates import OWNER_KEY, write_cluster
from privserve.config import (
    MOST_CELLS,
    Browsers,
    ClusterConfig,
    PartyConfig,
    Timeouts,
    Watching,
    party_names,
    read_config,
)
from privserve.credentials import ClientTable
from privserve.errors import ClusterError, ConfigError, QueryError
from privserve.owner_calls import Signer, load_owner_key
from privserve.party_process import state_options
from privserve.platforms import require_linux
from privserve.shared_models import SharedModel

HERE = ("localhost", "127.0.0.1", "::1")
"""Hosts that are this machine."""
CELL_SECONDS = 20.0
"""After this long a cluster is used of which one cell is whole; the others may come later."""


@dataclass(init=False)
class Worker:
    """One party to be: its address, and whether this process starts and stops it."""

    address: str
    auto_managed: bool

    def __init__(
        self, address: str | None = None, auto_managed: bool = True, *, host: str | None = None
    ) -> None:
        """address: host:port, for clients and the other parties; port 0 picks a free one (local
        parties only). host: the same, as PySyft's tutorials call it. Raises ConfigError for none,
        for both, and for what is no address.
        """
        if (address is None) == (host is None):
            raise ConfigError(
                "a worker has one address: Worker('localhost:4000'), or "
                "Worker(host='localhost:4000')"
            )
        self.address = str(host if address is None else address)
        self.auto_managed = auto_managed
        _, port = split_address(self.address)
        if not auto_managed and port == 0:
            raise ConfigError(f"'{self.address}': a party that is started by hand needs a port")

    @property
    def host(self) -> str:
        """The address, as PySyft's tutorials call it."""
        return self.address


class Cluster:
    """The parties: workers that compute, and the dealer as the last one; in one cell or several.

    A context manager: `with Cluster(...) as cluster` starts it and always stops it.
    """

    def __init__(
        self,
        *workers: Worker,
        cells: int = 1,
        directory: str | Path | None = None,
        timeouts: Timeouts | None = None,
        watching: Watching | None = None,
        state_dir: str | Path | None = None,
        state_key_file: str | Path | None = None,
        state_key_command: str | None = None,
        browsers: Browsers | None = None,
    ) -> None:
        """cells: how many sets of such parties are started; the ports of each follow those of the
        one before, where the workers name ports.
        directory: where cluster.toml and the certificates go; a temporary one when None.

        timeouts: how long the auto_managed parties wait for each other and for shares. watching:
        their metrics and logs. state_dir: where these keep their shares, sealed with the key that
        is in state_key_file, that state_key_command prints, or that is in the environment, so that
        they need no owner when they are started again. browsers: how browsers on this machine ask
        these parties, which are of one cell.
        """
        if not 1 <= cells <= MOST_CELLS:
            raise ConfigError(f"a cluster has 1 to {MOST_CELLS} cells, not {cells}")
        if cells > 1 and browsers is not None:
            raise ConfigError("browsers ask the parties of one cell; leave `cells` away")
        if cells > 1 and not all(worker.auto_managed for worker in workers):
            raise ConfigError(
                "several cells are started here or nowhere; for parties on hosts of their own "
                "write the files with `python -m privserve.launch --init`, a --hosts for each "
                "cell, and use Cluster.connect"
            )
        self.names = party_names(len(workers))
        self._workers = dict(zip(self.names, workers, strict=True))
        self._directory = Path(directory) if directory is not None else None
        state = state_options(
            None if state_dir is None else Path(state_dir).resolve(),
            None if state_key_file is None else Path(state_key_file).resolve(),
            state_key_command,
        )
        self.cells = [
            Cell(self.names, n, timeouts, watching, state, browsers) for n in range(cells)
        ]
        self._temporary: Path | None = None
        self._by_hand: list[str] = []
        """Parties for which a command was printed."""
        self._config: ClusterConfig | None = None

    @classmethod
    def connect(
        cls,
        config: str | Path,
        *,
        wait: bool = True,
        report: Callable[[str], None] = print,
    ) -> Cluster:
        """Return a cluster whose parties run already; needs owner.key beside cluster.toml.

        wait: until all of them answer; where there are several cells, until one is whole and the
        others had CELL_SECONDS. report: called with whom it waits for, every 10 s.
        """
        found = read_config(config)
        cluster = cls(*(Worker(p.address, auto_managed=False) for p in found.parties))
        cluster.names = [p.name for p in found.parties]
        cluster.cells = [Cell(cluster.names, n) for n in range(len(found.cells))]
        cluster._open(found)
        if wait:
            cluster._wait(report)
        return cluster

    @property
    def config(self) -> ClusterConfig:
        """The running cluster's addresses and files, as clients need them."""
        if self._config is None:
            raise ClusterError("the cluster is not running; call start() first")
        return self._config

    @property
    def process_ids(self) -> dict[str, int]:
        """By party: the process that was started here for it; bob of cell 1 is "bob.1"."""
        return {
            f"{name}.{cell.number}" if cell.number else name: pid
            for cell in self.cells
            for name, pid in cell.process_ids.items()
        }

    @property
    def workers(self) -> list[Worker]:
        """The workers of cell 0, the dealer last."""
        return list(self._workers.values())

    def __enter__(self) -> Self:
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
        require_linux("starting parties")
        atexit.register(self.stop)
        try:
            self._start(report)
        except BaseException:
            self.stop()
            raise

    def _start(self, report: Callable[[str], None]) -> None:
        with contextlib.ExitStack() as stack:
            bound = [self._bind(cell, stack) for cell in self.cells]
            directory = self._directory
            if directory is None:
                directory = self._temporary = Path(tempfile.mkdtemp(prefix="privserve-"))
            first, *further = [parties for parties, _ in bound]
            path = write_cluster(directory.resolve(), first, further=further)
            self._written(path)
            for cell, (_, sockets) in zip(self.cells, bound, strict=True):
                for name, descriptor in sockets.items():
                    cell.spawn(name, directory, descriptor)
        self._open(read_config(path))
        for name, worker in self._workers.items():
            if not worker.auto_managed:
                self._by_hand.append(name)
                print(_command(name, worker.address, path.parent), flush=True)
        for cell in self.cells:
            for party in cell.config.parties:
                cell.wait_alive(party, report=report)
                role = cell.config.role(party.name)
                report(f"{cell.who}{party.name} ({role}) is up at {party.address}")

    def _written(self, path: Path) -> None:
        """Called when the cluster's files are there, before a party is started."""

    def _bind(
        self, cell: Cell, stack: contextlib.ExitStack
    ) -> tuple[list[tuple[str, str]], dict[str, int]]:
        """Bind the ports of a cell's parties; their names and addresses, and by name the ports."""
        sockets, parties = {}, []
        for name, worker in self._workers.items():
            address = worker.address
            if worker.auto_managed:
                host, port = split_address(address)
                port += cell.number * len(self.names) if port else 0
                sock = stack.enter_context(bind((host, port), name))
                sockets[name] = sock.fileno()
                address = join_address(host, sock.getsockname()[1])
            parties.append((name, address))
        return parties, sockets

    def _open(self, config: ClusterConfig) -> None:
        key = load_owner_key(config.path.parent / OWNER_KEY)
        if key.public_key().public_bytes_raw() != config.owner:
            raise ConfigError(
                f"{config.path.parent / OWNER_KEY} is not the key that {config.path} names; take "
                "both from the cluster as it was made"
            )
        signer = Signer(key, config.cluster)
        for cell, of_cell in zip(self.cells, config.cells, strict=True):
            cell.open(of_cell, signer)
        self._config = config

    def _wait(self, report: Callable[[str], None]) -> None:
        """Wait for all cells; see `connect`."""
        if len(self.cells) == 1:
            self.cells[0].wait_all(report)
            return
        enough, whole, failed = threading.Event(), [], []

        def wait(cell: Cell) -> None:
            try:
                if cell.wait_all(report, enough):
                    whole.append(cell)
            except ClusterError as error:
                failed.append(error)

        threads = [threading.Thread(target=wait, args=(c,), daemon=True) for c in self.cells]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        while any(thread.is_alive() for thread in threads):
            if whole and time.monotonic() - began > CELL_SECONDS:
                enough.set()
            time.sleep(POLL_SECONDS)
        if not whole:
            raise failed[0]
        for cell in self.cells:
            if cell not in whole:
                report(f"{cell.who}not all of its parties are there; going on without it for now")

    def connect_anew(self) -> None:
        """Forget all connections, and go by the files as they are now: some may be revoked."""
        for cell in self.cells:
            cell.connect_anew()

    def check_processes(self, *names: str) -> None:
        """Raise ClusterError if a party's process (of these, or any) has ended."""
        for cell in self.cells:
            cell.check_processes(*names)

    def call(
        self, party: PartyConfig, method: str, path: str, *, session: str = "", **options: Any
    ) -> httpx.Response:
        """Make one signed call to a party of cell 0; see `Cell.call`."""
        return self.cells[0].call(party, method, path, session=session, **options)

    def models(self) -> list[SharedModel]:
        """Return the models that are shared, and those whose sharing failed or that were stopped.

        Of one cell after the other. Raises ClusterError where a party cannot be asked.
        """
        return [model for cell in self.cells for model in cell.models()]

    def stop_model(self, name: str) -> None:
        """Have every party forget a model; raises QueryError (404) where none has it.

        Raises ClusterError where a party cannot be told, once the others were.
        """
        missing: list[QueryError] = []
        lost: list[ClusterError] = []
        path = f"/v2/repository/models/{quote(name, safe='')}/unload"
        parties = [(cell, party) for cell in self.cells for party in cell.config.parties]
        for cell, party in parties:
            try:
                cell.call(party, "POST", path)
            except QueryError as error:
                if error.status != 404:
                    raise
                missing.append(error)
            except ClusterError as error:
                lost.append(error)
        if lost:
            raise lost[0]
        if len(missing) == len(parties):
            raise missing[0]

    def tell_clients(self, table: ClientTable) -> None:
        """Tell the compute parties who their clients are from now on.

        Raises ClusterError where a cell cannot be told, once the others were.
        """
        lost: list[ClusterError] = []
        for cell in self.cells:
            try:
                for party in cell.config.compute:
                    message = {"clients": table.entries(party.name, cell.number, len(self.cells))}
                    cell.call(party, "POST", "/privserve/clients", json=message)
            except ClusterError as error:
                lost.append(error)
        if lost:
            raise lost[0]

    def tell_revoked(self, signed: str, party: str) -> list[str]:
        """Send all parties but `party` the list of revoked certificates; returns whom not."""
        missed = []
        for cell in self.cells:
            for other in cell.config.parties:
                if other.name == party:
                    continue
                try:
                    cell.call(other, "POST", "/privserve/revoked", json={"revoked": signed})
                except (ClusterError, QueryError):
                    missed.append(f"{other.name} (cell {cell.number})" if cell.who else other.name)
        return missed

    def stop(self) -> None:
        """Stop every party that was started here, and forget the cluster; idempotent.

        Prints which ones were started by hand, as `start` asked for: they run on.
        """
        atexit.unregister(self.stop)
        for cell in self.cells:
            cell.let_go()
        for cell in self.cells:
            cell.stop()
        for name in self._by_hand:
            address = self._workers[name].address
            print(f"{name} at {address} was started by hand; end it there with Ctrl-C", flush=True)
        self._by_hand.clear()
        self._config = None
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None


def _command(name: str, address: str, directory: Path) -> str:
    """What whoever starts a party by hand is told: where, and which command.

    On this machine the files are where they have to be.
    """
    host = split_address(address)[0]
    command = (
        f"python -m privserve.launch --party {name} --config {shlex.quote(f'{name}/cluster.toml')}"
    )
    if host in HERE:
        return (
            f"{name}: run in another terminal, and leave it running\n"
            f"    cd {shlex.quote(str(directory))} && {command}"
        )
    return f"{name}: copy the directory {directory / name} to {host} and run there\n    {command}"
