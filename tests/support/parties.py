"""Run an engine's parties as real processes over real TLS sockets, without the HTTP front."""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import tempfile
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from privserve import sharing
from privserve.certificates import write_cluster
from privserve.config import party_names, read_config
from privserve.engines import Prepared, load_engine
from privserve.errors import PeerLost
from privserve.party.lanes import Listener

SPAWN = multiprocessing.get_context("spawn")


@dataclass
class Session:
    """What the parties of one session answered and sent."""

    answers: list[list[np.ndarray]]
    """Per batch: the joined outputs."""
    stats: list[Any]
    transcripts: dict[str, list[tuple[str, str, bytes]]] = field(default_factory=dict)
    """By party: (sent | received, peer, payload), where recording was asked for."""


def listening_socket() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0))
    return sock


def _party(
    config_path: Path,
    name: str,
    sock: socket.socket,
    prepared: tuple[str, dict[str, Any]],
    shares: dict[str, np.ndarray],
    batches: list[list[np.ndarray]],
    record: bool,
    options: dict[str, Any],
    pipe: Any,
) -> None:
    transcript: list[tuple[str, str, bytes]] = []
    tap = (lambda *event: transcript.append(event)) if record else None
    try:
        config = read_config(config_path / name / "cluster.toml")
        me = config.parties[config.rank(name)]
        listener = Listener(config, me, sock, tap)
        engine = load_engine(prepared[0])
        limits = engine.frame_limits(prepared[1], **options)
        lanes = listener.open_lanes("test", engine.LANES, 60, limits=limits)
        if config.role(name) == "dealer":
            with contextlib.suppress(PeerLost):  # the session ends when its parties leave
                engine.deal(prepared[1], lanes, **options)
            pipe.send(("done", None, transcript))
            return
        compute = engine.Compute(prepared[1], shares, lanes, **options)
        outputs = [compute.run(batch) for batch in batches]
        stats = compute.stats
        compute.close()
        for lane in lanes.values():
            lane.close()
        pipe.send(("done", (outputs, stats), transcript))
    except BaseException:
        pipe.send(("failed", traceback.format_exc(), transcript))


def run_session(
    prepared: Prepared,
    batches: list[list[np.ndarray]],
    compute_parties: int = 2,
    record: bool = False,
    **options: Any,
) -> Session:
    """Share `prepared` and the ring-encoded `batches`, run them, join the answers."""
    names = party_names(compute_parties + 1)
    socks = [listening_socket() for _ in names]
    with tempfile.TemporaryDirectory() as home:
        write_cluster(
            Path(home),
            [
                (name, f"127.0.0.1:{sock.getsockname()[1]}", f"127.0.0.1:{sock.getsockname()[1]}")
                for name, sock in zip(names, socks, strict=True)
            ],
        )
        split = {k: sharing.split(v, compute_parties) for k, v in prepared.parameters.items()}
        split_batches = [[sharing.split(x, compute_parties) for x in batch] for batch in batches]
        workers = []
        for rank, (name, sock) in enumerate(zip(names, socks, strict=True)):
            mine, theirs = SPAWN.Pipe()
            dealer = rank == compute_parties
            shares = {} if dealer else {k: v[rank] for k, v in split.items()}
            inputs = [] if dealer else [[x[rank] for x in batch] for batch in split_batches]
            process = SPAWN.Process(
                target=_party,
                args=(
                    Path(home),
                    name,
                    sock,
                    (prepared.engine, prepared.description),
                    shares,
                    inputs,
                    record,
                    options,
                    theirs,
                ),
            )
            process.start()
            theirs.close()
            sock.close()
            workers.append((name, process, mine))
        results, transcripts = [], {}
        try:
            for name, _, pipe in workers:
                if not pipe.poll(120):
                    raise AssertionError(f"{name} did not finish")
                state, value, transcript = pipe.recv()
                assert state == "done", f"{name}:\n{value}"
                transcripts[name] = transcript
                results.append(value)
        finally:
            for _, process, _ in workers:
                process.join(5)
                if process.is_alive():
                    process.kill()
                    process.join()
    computed = results[:compute_parties]
    answers = [
        [sharing.join(parts) for parts in zip(*outputs, strict=True)]
        for outputs in zip(*(c[0] for c in computed), strict=True)
    ]
    return Session(answers, [c[1] for c in computed], transcripts)
