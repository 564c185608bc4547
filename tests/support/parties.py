"""Run an engine's parties as real processes over real TLS sockets, without the HTTP front."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from privserve import sharing
from privserve.bench.processes import Frame, Member, PartyProcesses
from privserve.engines import Prepared


@dataclass
class Session:
    """What the parties of one session answered and sent."""

    answers: list[list[np.ndarray]]
    """Per batch: the joined outputs."""
    stats: list[Any]
    transcripts: dict[str, list[Frame]] = field(default_factory=dict)
    """By party: (sent | received, peer, payload), where recording was asked for."""


def answer_batches(member: Member) -> None:
    """A party's process: one session, in which the batches from the pipe are answered."""
    try:
        batches = member.pipe.recv()
        lanes = member.open("test", 60)
        if member.deals:
            member.deal(lanes)
            member.pipe.send(("done", None, member.frames))
            return
        compute = member.compute(lanes)
        outputs = [compute.run(batch) for batch in batches]
        compute.close()
        for lane in lanes.values():
            lane.close()
        member.pipe.send(("done", (outputs, compute.stats), member.frames))
    except BaseException:
        member.pipe.send(("failed", traceback.format_exc(), member.frames))


def run_session(
    prepared: Prepared,
    batches: list[list[np.ndarray]],
    compute_parties: int = 2,
    record: bool = False,
    **options: Any,
) -> Session:
    """Share `prepared` and the ring-encoded `batches`, run them, join the answers."""
    split = [[sharing.split(x, compute_parties) for x in batch] for batch in batches]
    results, transcripts = [], {}
    with PartyProcesses(
        prepared, compute_parties + 1, answer_batches, options=options, record=record
    ) as processes:
        processes.start_all(prepared.parameters)
        for rank, name in enumerate(processes.names):
            dealer = rank == compute_parties
            processes.tell(name, [] if dealer else [[x[rank] for x in batch] for batch in split])
        for name in processes.names:
            state, value, transcripts[name] = processes.hear(name, 120)
            assert state == "done", f"{name}:\n{value}"
            results.append(value)
    computed = results[:compute_parties]
    answers = [
        [sharing.join(parts) for parts in zip(*outputs, strict=True)]
        for outputs in zip(*(c[0] for c in computed), strict=True)
    ]
    return Session(answers, [c[1] for c in computed], transcripts)
