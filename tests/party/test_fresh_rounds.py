"""Nothing of a round goes into the next one: every key and every pack is new, and used once."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from serving import wait_until
from sessions import Sessions, answer, cut_off, states
from stage import model

from privserve import sharing
from privserve.engines.ottt import compute, dealer, pool
from privserve.party.session_spec import SessionSpec

ROUNDS = 4
X = np.linspace(-1, 1, 12).reshape(3, 4)


def test_no_key_and_no_pack_of_a_round_is_used_in_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[bytes] = []
    held: dict[int, tuple[bytes, bytes]] = {}
    used: list[tuple[int, int]] = []
    """Which pool, and which of its packs; each pool draws from a key of its own."""

    def fresh_key() -> bytes:
        drawn.append(key())
        return drawn[-1]

    def dealt_keys(mesh: object) -> tuple[bytes, bytes]:
        keys = dealt(mesh)  # type: ignore[arg-type]
        held[len(held)] = keys
        return keys

    def take(taken_from: pool.Pool, count: int) -> tuple[int, bool]:
        first, waited = real_take(taken_from, count)
        if taken_from not in pools:
            pools.append(taken_from)  # kept, so that no other one is taken for it
        used.extend((pools.index(taken_from), number) for number in range(first, first + count))
        return first, waited

    pools: list[pool.Pool] = []
    real_take = pool.Pool.take
    key, dealt = dealer.fresh_key, compute.dealt_keys
    monkeypatch.setattr(dealer, "fresh_key", fresh_key)
    monkeypatch.setattr(compute, "dealt_keys", dealt_keys)
    monkeypatch.setattr(pool.Pool, "take", take)
    prepared = model().prepare()
    split = {name: sharing.split(p, 2) for name, p in prepared.parameters.items()}
    sessions = Sessions(tmp_path)
    try:
        name = uuid4().hex
        for rank in range(3):
            shares = {} if rank == 2 else {n: s[rank] for n, s in split.items()}
            options = {"pool_queries": 4, "ready_packs": 1}
            spec = SessionSpec(name, "m", "ottt", prepared.description, shares, options)
            sessions.all.append(sessions.begin(rank, spec))
        wait_until(lambda: states(sessions) == ["loaded"] * 3, "it is loaded", 60)
        sessions.leader.queue.serve(None)
        for number in range(ROUNDS):
            for _ in range(5):  # the pool has four packs: their places are filled again
                answer(sessions.ask(np.zeros((1, 4), np.int64)))
            if number < ROUNDS - 1:
                rounds = [session._round for session in sessions.all]
                cut_off(sessions.all[number % 3])
                wait_until(
                    lambda r=rounds: (
                        all(s._round is not one for s, one in zip(sessions.all, r, strict=True))
                        and states(sessions) == ["loaded"] * 3
                    ),
                    "the next round",
                    30,
                )
    finally:
        sessions.close()
    assert len(drawn) == 4 * ROUNDS  # two keys for each of two parties
    assert len(set(drawn)) == len(drawn)
    told = [key for keys in held.values() for key in keys]
    assert sorted(told) == sorted(drawn)
    assert len(pools) == 2 * ROUNDS
    assert len(used) == len(set(used)) == 2 * 5 * ROUNDS
    assert {number for _, number in used} == set(range(5))
