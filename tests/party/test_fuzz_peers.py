"""What a party can send to another one, whose certificate says that it is one.

Covered here: the first frame of a connection, with no certificate, another cluster's, one of
another party than it names, and a right one; every reader of control messages (hello, facts, signs
of life, notes, orders); then whole sessions in which one party, in each role, sends one bad frame
at a random point of a random lane: its JSON changed, its bytes damaged, its length a lie, half of
it, more than it. The others end the session with a reason that names the party, or go on and
answer; they live, hold no more than before, and take part in the next session.

What it takes more than one bad frame for is in test_bad_peers. The lane of the crypten engine
(engines/crypten/compat) is not covered here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import socket
import ssl
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import case, cases, lying_frame, mutant
from raw_http import Front
from rogue import LANES, Plan, Rogue, framed
from serving import make_config, wait_until
from stage import NAMES, SPARE, Stage, X
from test_fuzz_calls import LOAD, Material

from privserve import fixedpoint, oip, sharing
from privserve.config import ClusterConfig, read_config
from privserve.credentials import KEY_FILE, ClientKey
from privserve.errors import BadFrame, PrivserveError
from privserve.party.computing import ComputeSession
from privserve.party.lanes import PROTOCOL, Listener, client_context
from privserve.party.messages import (
    hear,
    read_facts,
    read_hello,
    read_notes,
    read_order,
    read_sign,
)
from privserve.party.pending import Pending
from privserve.party.roles import LeaderSession
from privserve.party.session import Session
from privserve.party.session_spec import SessionSpec

# -- the first frame ------------------------------------------------------------------------


class Callers:
    """TLS contexts of those who may dial a peer's port: by whom they are."""

    def __init__(self, stage: Stage, home: Path) -> None:
        self.contexts: dict[str, ssl.SSLContext] = {}
        for name in NAMES:
            own = read_config(stage.home / name / "cluster.toml")
            self.contexts[name] = client_context(own, own.parties[own.rank(name)])
        other = make_config(home, [p.address for p in stage.config.parties])
        self.contexts["other"] = self._nobody(stage.config)
        self.contexts["other"].load_cert_chain(home / "bob" / "bob.pem", home / "bob" / "bob.key")
        self.contexts["nobody"] = self._nobody(stage.config)
        assert other.cluster != stage.config.cluster

    @staticmethod
    def _nobody(config: ClusterConfig) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(config.ca)
        context.set_alpn_protocols([PROTOCOL])
        return context


def first_frames(stage: Stage, home: Path, usual: int, kept: Counter[str]) -> None:
    """kept: by party, how many connections were introduced rightly, each for another session."""
    callers, introduced = Callers(stage, home), set()
    for number in cases(usual):
        sent = b""
        with case(number, lambda: sent) as draw:  # noqa: B023 - said at once
            called = stage.config.parties[draw.randrange(3)]
            caller = draw.choice([*NAMES, *NAMES, "other", "nobody"])
            # Few sessions: what is rightly introduced is kept until the next of its name comes.
            hello = {
                "session": draw.choice(["a", "b"]),
                "lane": draw.choice(["watch", "online"]),
                "from": draw.choice([caller, draw.choice(NAMES)]),
            }
            payload = mutant(draw, hello) if draw.random() < 0.8 else json.dumps(hello).encode()
            sent = framed(payload) if draw.random() < 0.7 else lying_frame(draw, payload)
            if sent == framed(payload) and caller not in ("other", "nobody", called.name):
                with contextlib.suppress(BadFrame):
                    said = hear(OneFrame(payload), read_hello)  # type: ignore[arg-type]
                    if said.sender == caller:
                        introduced.add((called.name, said))
            with (
                socket.create_connection(called.endpoint, timeout=5) as raw,
                contextlib.suppress(OSError),
                callers.contexts[caller].wrap_socket(
                    raw, server_hostname=stage.config.identity(called.name)
                ) as stream,
            ):
                stream.sendall(sent)
                stream.settimeout(0.003)
                assert stream.recv(1) == b"", "whoever introduces itself learns nothing"
    for (name, _), count in Counter((party, said.sender) for party, said in introduced).items():
        kept[name] += min(count, Listener.MAX_UNCLAIMED // (len(NAMES) - 1))


def test_no_first_frame_makes_a_party_fail(stage: Stage, tmp_path: Path) -> None:
    with stage.undisturbed() as kept:
        first_frames(stage, tmp_path, 300, kept)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_no_first_frame_of_eight_thousand_makes_a_party_fail(stage: Stage, tmp_path: Path) -> None:
    with stage.undisturbed() as kept:
        first_frames(stage, tmp_path, 8_000, kept)


# -- the readers ----------------------------------------------------------------------------


class OneFrame:
    """A channel from which one frame comes."""

    peer, lane = "bob", "some lane"

    def __init__(self, payload: bytes) -> None:
        self._payload = payload

    def recv(self, within: float | None = None) -> memoryview:
        return memoryview(self._payload)

    def bad(self, why: str) -> BadFrame:
        return BadFrame(f"bob sent {why}")


GOOD: list[tuple[Any, Any]] = [
    (read_hello, {"session": "s", "lane": "watch", "from": "bob"}),
    (read_facts, {"privserve": "0.1", "wire": 2, "engine": "ottt", "program": "0f" * 32}),
    (read_sign, {"alive": True}),
    (read_sign, {"leaves": True}),
    (read_sign, {"idle": True}),
    (read_sign, {"over": "the owner left", "state": "ended"}),
    (read_sign, {"over": "the owner left", "state": "ended", "by": "alice"}),
    (read_facts, {"over": "the owner left", "state": "failed", "by": "alice"}),
    (read_notes, [["q1", 3, "default"], ["q2", 1, "default"]]),
    (read_notes, [["q1", -1, "default"]]),
    (
        read_order,
        {
            "run": [["q1", 0, 4], ["q2", 4, 5]],
            "refuse": [["q3", "not_serving", 503, "nobody serves"]] * 2,
        },
    ),
]


def messages(usual: int) -> None:
    seen = {"taken": 0, "refused": 0}
    for number in cases(usual):
        payload = b""
        with case(number, lambda: payload) as draw:  # noqa: B023 - said at once
            read, good = draw.choice(GOOD)
            payload = mutant(draw, good)
            try:
                hear(OneFrame(payload), read)  # type: ignore[arg-type]
                seen["taken"] += 1
            except BadFrame as error:
                seen["refused"] += 1
                words = str(error)
                assert words.isprintable() and len(words) < 120, "it quotes what came"  # noqa: PT018
    assert min(seen.values()) > len(cases(usual)) // 100 or len(cases(usual)) < 1000, seen


def test_every_message_is_read_or_refused() -> None:
    messages(20_000)


@pytest.mark.slow
def test_every_message_of_forty_five_thousand_is_read_or_refused() -> None:
    messages(45_000)


# -- whole sessions -------------------------------------------------------------------------

ANSWER_SECONDS = 5.0
ATTEMPTS = 6


class Play:
    """Sessions of two real parties and a rogue one."""

    def __init__(self, stage: Stage, rogue: Rogue) -> None:
        self.stage, self.rogue = stage, rogue
        self.victims = [name for name in NAMES if name != rogue.name]
        self.material = Material(stage)
        self.front = Front(stage.config)
        self.key = ClientKey.read(stage.config.path.parent / KEY_FILE)

    def owner(self, name: str, method: str, target: str, body: bytes = b"", **headers: str) -> Any:
        shown = ("Authorization", self.stage.owner.sign(name, method, target, body))
        answer = self.front.ask(name, method, target, [shown, *headers.items()], body)
        assert answer.status in (200, 202, 409), answer
        return json.loads(answer.body)

    def load(self, session: str) -> None:
        for name in self.victims:
            message, tensors = self.material.message(name, session), self.material.tensors(name)
            parts, headers = oip.format_message(message, tensors, "inputs")
            body = b"".join(bytes(part) for part in parts)
            self.owner(name, "POST", LOAD, body, **{oip.HEADER_LENGTH: headers[oip.HEADER_LENGTH]})

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.owner(name, "GET", "/privserve/status")
        return found

    def are(self, *states: str) -> bool:
        return all(self.status(name)["state"] in states for name in self.victims)

    def ask(self, session: Any, name: str) -> list[np.ndarray | None]:
        """One query: each party's share of the answer, None where there is none in time."""
        bits = self.material.prepared.description["fraction_bits"]
        shares = sharing.split(fixedpoint.encode(X, bits), 2)
        answers: list[np.ndarray | None] = [None, None]
        target = f"/v2/models/small/versions/{session.spec.id}/infer"

        def send(rank: int) -> None:
            front = Front(self.stage.config)
            tensors = {self.material.input: shares[rank]}
            body = json.dumps(oip.format_json({"id": name}, tensors, "inputs")).encode()
            shown = self.key.authorization(self.stage.config.cluster, NAMES[rank])
            answer = front.ask(NAMES[rank], "POST", target, [("Authorization", shown)], body)
            front.close()
            assert answer.status in (200, 400, 409, 413, 429, 499, 500, 503, 504), answer
            if answer.status == 200:
                _, outputs = oip.parse_message(answer.body, None, "outputs")
                answers[rank] = next(iter(outputs.values()))

        threads = [
            threading.Thread(target=send, args=(NAMES.index(victim),))
            for victim in self.victims
            if victim != "carol"
        ]
        for thread in threads:
            thread.start()
        if isinstance(session, ComputeSession):
            query = Pending(name, [shares[NAMES.index(self.rogue.name)]], len(X), self.key.name)
            with contextlib.suppress(PrivserveError, TimeoutError):
                session.submit(query)
                answers[NAMES.index(self.rogue.name)] = query.future.result(ANSWER_SECONDS)[0]
        for thread in threads:
            thread.join(ANSWER_SECONDS)
        if any(thread.is_alive() for thread in threads):
            # As above, while a query runs.
            self.unload()
            for thread in threads:
                thread.join(10)
                assert not thread.is_alive(), "a query hangs although the model was unloaded"
        return answers

    def run(self, number: int, draw: random.Random) -> Plan:
        """One session with one bad frame; all is as it should be afterwards."""
        lane = draw.choice(LANES[self.rogue.name])
        plan = self.rogue.plan = Plan(draw, lane, draw.choice([0, 0, 1, 1, 2, 3, 5, 8]))
        seed = f"{self.rogue.name}-{number}-{draw.random()}"
        session_id = hashlib.sha256(seed.encode()).hexdigest()[:32]
        self.load(session_id)
        message = self.material.message(self.rogue.name, session_id)
        spec = SessionSpec(
            session_id,
            "small",
            message["engine"],
            message["description"],
            self.material.tensors(self.rogue.name),
            message["options"],
        )
        session = self.rogue.open(spec)
        try:
            assert session.ready.wait(20)
            try:
                states = ("loaded", "failed", "ended", "waiting")
                wait_until(partial(self.are, *states), "it is up or over", 10)
            except AssertionError:
                # A party may keep the others waiting, but not longer than their owner wants.
                assert plan.sent is not None
                self.unload()
            if session.state == "loaded" and self.are("loaded"):
                self.serve(session)
                for turn in range(2):
                    self.ask_until_answered(session, plan, f"q{turn}")
        finally:
            session.end("the rogue left")
        self.check_reasons(plan)
        self.unload()  # where a loss passes the victims wait for the rogue
        return plan

    def unload(self) -> None:
        for victim in self.victims:
            self.owner(victim, "POST", "/v2/repository/models/small/unload")

    def serve(self, session: Any) -> None:
        if isinstance(session, LeaderSession):
            session.queue.serve(None)
        else:
            self.owner("alice", "POST", "/privserve/serve", b'{"num_requests": null}')

    def ask_until_answered(self, session: Session, plan: Plan, name: str) -> None:
        """One query; it is answered, and rightly, unless a bad frame was sent."""
        for attempt in range(ATTEMPTS):
            answers = self.ask(session, f"{name}-{attempt}")
            if plan.sent is not None:
                return
            if whole := [answer for answer in answers if answer is not None]:
                assert len(whole) == 2, "half an answer without a bad frame"
                self.check(whole)
                return
            # On a busy machine a query's halves may come further apart than is waited for, or a
            # party may be given up for a moment.
            over = partial(self.are, "loaded", "failed", "ended")
            wait_until(over, "no party waits for another", 30)
        raise AssertionError("no answer without a bad frame")

    def check(self, answers: list[np.ndarray]) -> None:
        bits = self.material.prepared.description["output_fraction_bits"]
        got = fixedpoint.decode(sharing.join(answers), bits)
        assert np.abs(got - self.stage.expected).max() < 1e-2, "a wrong answer without a bad frame"

    def check_reasons(self, plan: Plan) -> None:
        try:
            states = ("ended", "failed", "waiting", "idle")
            wait_until(partial(self.are, *states), "the session is over", 15)
        except AssertionError as error:
            raise AssertionError([self.status(name) for name in self.victims]) from error
        for name in self.victims:
            reason = self.status(name).get("reason", "the model owner stopped the model")
            assert len(reason) <= 2000
            assert reason.isprintable()
            for victim in self.victims:
                assert f"{victim} hit an internal error" not in reason, reason
            says_why = plan.lane == "watch" and plan.sent is not None and b"over" in plan.sent
            theirs = ("the rogue left", "the model owner stopped the model")
            is_theirs = reason.removeprefix("alice says: ").removeprefix("bob says: ") in theirs
            assert says_why or self.rogue.name in reason or is_theirs, (name, reason)


def play(stage: Stage, name: str, usual: int) -> None:
    """Sessions in which `name` is the rogue."""
    stage.check_honest()
    stage.unload()
    stage.stop(name)
    rogue = Rogue(stage, name)
    try:
        before = {victim: stage.held(victim) for victim in stage.processes}
        sizes = {victim: stage.check_log(victim) for victim in stage.processes}
        with rogue.playing():
            theatre, struck = Play(stage, rogue), 0
            for number in cases(usual):
                with case(number, lambda: rogue.plan) as draw:
                    struck += theatre.run(number, draw).sent is not None
                    for victim in stage.processes:
                        sizes[victim] = stage.check_log(victim, sizes[victim])
            theatre.front.close()
        assert struck > len(cases(usual)) // 4 or len(cases(usual)) < 10, "hardly any was bad"
        for victim, process in stage.processes.items():
            assert process.poll() is None, f"{victim} ended with {process.returncode}"
            wait_until(
                lambda v=victim: (
                    stage.held(v).threads <= before[v].threads + SPARE
                    and stage.held(v).descriptors <= before[v].descriptors + SPARE
                ),
                f"{victim} holds no more than {before[victim]}",
                20,
            )
    finally:
        rogue.close()
        stage.start(name)
        stage.wait_alive(name)
    stage.check_honest()
    stage.unload()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "bob")) for n in NAMES]
)
def test_a_party_that_sends_a_bad_frame_ends_the_session_and_nothing_else(
    stage: Stage, name: str
) -> None:
    play(stage, name, 12)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_five_hundred_bad_frames_of_a_party_end_their_sessions_and_nothing_else(
    stage: Stage, name: str
) -> None:
    play(stage, name, 500)
