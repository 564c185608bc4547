"""Plays a cell of the table of faults on hosts, and holds it against what the table says.

Whatever the cell: each query ends by its deadline with a right answer or a typed error, nobody
innocent is blamed, counts agree with what clients got, logs tell of no surprise, and afterwards
the model is served as before.
"""

from __future__ import annotations

import re
import sys
import time
from typing import Any

import numpy as np
from fault_checks import (
    ANSWERS,
    CLIENTS,
    HEALED_SECONDS,
    TYPED,
    Mark,
    Witness,
    blamed,
    brief,
    check_counts,
    check_logs,
    hold,
    settle,
    stop_serving,
)
from fault_table import (
    AGAIN,
    BATCH,
    ENDED,
    HEALS,
    OWN,
    PARTIES,
    TOLD,
    UNAFFECTED,
    Cell,
)
from faults import FAULTS
from host_processes import Process
from hosts import (
    BYSTANDER,
    CLIENT,
    MEET_SECONDS,
    PEER_SECONDS,
    QUERY_SECONDS,
    Hosts,
)
from serving import wait_until

from privserve.replacing import UNLOAD_SECONDS

SLACK_SECONDS = 1.5
"""On a busy machine, beyond a deadline."""
NOTICED_SECONDS = PEER_SECONDS + 4
"""Until others know of a party that is lost."""
BATCH_ROWS = 4000
TOLD_SECONDS = MEET_SECONDS + UNLOAD_SECONDS + PEER_SECONDS + 4
"""Until the owner is told who is missing, after it has told the others to forget the model."""
FULL_DISK = "full disk"
LINK_SECONDS = 0.1
"""One way between parties while the owner shares: so it takes long enough to be struck."""


class Play:
    """One cell on its way."""

    def __init__(self, hosts: Hosts, cell: Cell) -> None:
        self.hosts, self.cell = hosts, cell
        self.fault = FAULTS[cell.fault]
        self.victim = cell.victim
        self.first = "" if cell.phase != "healing" else "bob" if self.victim != "bob" else "carol"
        """Who is away before, where another one is to come back."""
        self.allowed = {name for name in (self.victim, self.first) if name in PARTIES}
        self.at = 0.0
        """When it was struck."""

    def run(self) -> None:
        """Play it, from a cluster that is well to one that is."""
        settle(self.hosts)
        self.mark = Mark(self.hosts)
        self.logs = [len(process.lines) for _, process in self.hosts.logs]
        self.session = self._session()
        self.witness = Witness(self.hosts)
        began = self.at = time.monotonic()
        try:
            getattr(self, f"_begin_{self.cell.phase}")()
            self.at = time.monotonic()
            self.fault.strike(self.hosts, self.victim)
            if self.cell.phase == "idle":
                self._ask()
            {
                HEALS: self._heals,
                UNAFFECTED: self._unaffected,
                TOLD: self._told,
                ENDED: self._ended,
                AGAIN: self._again,
                OWN: self._own,
                BATCH: self._batch,
            }[self.cell.outcome]()
            self._end(began)
        except Exception as error:
            error.add_note(self._story(began))
            raise

    def _end(self, began: float) -> None:
        """Hold what happened against what may, and have all be well again."""
        self._tidy()
        self._check(began)
        settle(self.hosts)
        check_counts(self.hosts)

    def _tidy(self) -> None:
        self.witness.close()
        for link in self.hosts.links.values():
            link.mend()

    def _story(self, began: float) -> str:
        """What all said meanwhile, for who reads that a test failed."""
        self._tidy()
        lines = [f"struck {self.at - began:.1f} s after the cell began"]
        for name, process in self.hosts.logs:
            said = [line for line in process.since(began) if line[:1] != "{"]
            lines += [f"{name}:", *(f"    {line[:300]}" for line in said[-25:])]
        for name, reasons in self.witness.reasons(began).items():
            lines += [f"{name}'s status:", *(f"    {reason}" for reason in reasons)]
        return "\n".join(lines)

    def _session(self) -> str:
        status = self.hosts.status("alice")
        assert status is not None
        return str(status["session"])

    # -- before ---------------------------------------------------------------------------

    def _begin_idle(self) -> None:
        pass

    def _begin_answering(self) -> None:
        self._ask()
        self._answers(CLIENTS, 5)

    def _begin_sharing(self) -> None:
        """The owner's command begins anew; it has sent the model, and all set it up."""
        stop_serving(self.hosts)
        self._ask()
        for ends, link in self.hosts.links.items():
            if not set(ends) - set(PARTIES):
                link.delay = LINK_SECONDS
        if self.cell.fault == FULL_DISK:  # what is set up is written by then
            self.fault.strike(self.hosts, self.victim)
            self.hosts.share()
            return
        since = self.hosts.share()
        loading = {(name, "loading") for name in PARTIES}
        wait_until(lambda: loading <= self.witness.states(since), "the model is being shared")
        time.sleep(2 * LINK_SECONDS)  # the owner has heard that, too
        for link in self.hosts.links.values():
            link.mend()

    def _begin_healing(self) -> None:
        self._ask()
        self._answers(CLIENTS, 5)
        at = time.monotonic()
        self.hosts.kill(self.first)
        wait_until(lambda: self._others_wait(at), f"{self.first} is missed", NOTICED_SECONDS)

    def _come_back(self) -> None:
        """Whoever was away before comes back."""
        if self.first:
            self.hosts.start_again(self.first)

    # -- what it comes to -----------------------------------------------------------------

    def _heals(self) -> None:
        if not self.first:
            wait_until(lambda: self._others_wait(self.at), "it is missed", NOTICED_SECONDS)
            knew = time.monotonic()
            for name in CLIENTS:
                wait_until(lambda n=name: self._failed(n, self.at), f"{name} is told", 10)
            # By now each other party gives the reason, whatever they saw of it themselves.
            wait_until(
                lambda: all(
                    any(self.victim in why for why in self.witness.reasons(self.at)[name])
                    for name in PARTIES
                    if name != self.victim
                ),
                f"all know it is {self.victim}",
                10,
            )
            assert knew - self.at < NOTICED_SECONDS
        else:
            self._come_back()
            if self.cell.fault == FULL_DISK:  # it is there, and finds out with an answer
                wait_until(lambda: self._says(" cannot write "), "it says so", HEALED_SECONDS)
            else:
                time.sleep(PEER_SECONDS / 2)  # for which it has to be missed
                assert not self.hosts.is_served
        self.fault.mend(self.hosts, self.victim)
        self._is_served_again()
        assert self._session() == self.session, "its owner had to share it"

    def _unaffected(self) -> None:
        self._come_back()
        if self.cell.phase == "sharing":
            if self.cell.fault in ("stopped", "cut off"):
                time.sleep(PEER_SECONDS + 1)
                self.fault.mend(self.hosts, self.victim)
            self.hosts.owner.wait_for("serving queries", self.at)
        elif self.first:
            self._is_served_again()
        since = time.monotonic()
        self._answers(CLIENTS, ANSWERS, since)
        if self.cell.fault in ("stopped", "cut off"):
            time.sleep(max(0.0, self.at + PEER_SECONDS + 1 - time.monotonic()))
        self.fault.mend(self.hosts, self.victim)
        self._answers(CLIENTS, ANSWERS, time.monotonic())
        if self.cell.phase in ("idle", "answering"):
            for name in CLIENTS:
                assert not self._failed(name, self.at), self._failed(name, self.at)
            assert not [w for why in self.witness.reasons(self.at).values() for w in why]
        if self.cell.phase != "sharing":
            assert self._session() == self.session

    def _told(self) -> None:
        line = self.hosts.owner.wait_for("^error: |ended with", self.at, TOLD_SECONDS)
        assert line.startswith("error: "), line
        assert self.victim in line, line
        assert self.hosts.owner.wait_for("ended with", self.at) == "ended with 2"
        self.fault.mend(self.hosts, self.victim)

    def _ended(self) -> None:
        self._come_back()
        since = time.monotonic()
        for name in CLIENTS:
            wait_until(lambda n=name: self._failed(n, since), f"{name} is told", 10)
            assert self._failed(name, since)[-1]["error"] in ("NotServing", "QueryError")

    def _again(self) -> None:
        wait_until(
            lambda: all(self._failed(name, self.at) for name in CLIENTS), "clients are told", 10
        )
        self.fault.mend(self.hosts, self.victim)

    def _own(self) -> None:
        self._come_back()
        if self.first:
            self._is_served_again()
        self._answers([BYSTANDER], ANSWERS, time.monotonic())
        if self.cell.fault in ("stopped", "cut off"):
            time.sleep(max(0.0, self.at + PEER_SECONDS + 1 - time.monotonic()))
        if not self.first:
            assert not self._failed(BYSTANDER, self.at)
            assert not [w for why in self.witness.reasons(self.at).values() for w in why]
        self.fault.mend(self.hosts, self.victim)
        self.hosts.asking(CLIENT).ask()
        self._answers(CLIENTS, ANSWERS, time.monotonic())

    def _batch(self) -> None:
        """A batch job of the client's, whose disk was filled a moment after it began."""
        self.fault.mend(self.hosts, self.victim)
        asked, output = self.hosts.home / "rows.npy", self.hosts.state(CLIENT) / "answers.npy"
        rows = np.random.default_rng(2).uniform(-1, 1, (BATCH_ROWS, 4))
        np.save(asked, rows)
        command = [
            sys.executable,
            "-m",
            "privserve.batch",
            "--input",
            str(asked),
            "--output",
            str(output),
        ]
        command += ["--config", str(self.hosts.home / CLIENT / "cluster.toml")]
        job = Process([*command, "--rows-per-query", "8"], {})
        wait_until(lambda: list(self.hosts.state(CLIENT).iterdir()), "it writes")
        self.fault.strike(self.hosts, self.victim)
        line = job.wait_for("^error: ", seconds=20)
        assert re.search(rf"{output.name}.*No space left", line), line
        assert job.running.wait(10) == 2
        job.close()
        self.fault.mend(self.hosts, self.victim)
        again = Process(command, {})
        assert again.running.wait(60) == 0, again.since(0)
        again.close()
        expected = self.hosts.model.converted.predict(rows)
        assert np.abs(np.load(output) - expected).max() < 1e-2
        self.mark.besides += BATCH_ROWS
        for left in self.hosts.state(CLIENT).iterdir():
            left.unlink()

    # -- steps ----------------------------------------------------------------------------

    def _ask(self) -> None:
        for name in CLIENTS:
            if self.hosts.processes[name].is_alive:
                self.hosts.asking(name).ask()

    def _answers(self, names: Any, count: int, since: float | None = None) -> None:
        since = time.monotonic() if since is None else since
        for name in names:
            asking = self.hosts.asking(name)
            wait_until(
                lambda a=asking: a.right_since(since) >= count,
                f"{name} is answered; {asking.results[-2:]}",
                HEALED_SECONDS,
            )

    def _failed(self, name: str, since: float) -> list[dict[str, Any]]:
        """The queries of a client that failed after a time."""
        return [r for r in self.hosts.asking(name).ended_since(since) if "error" in r]

    def _says(self, words: str) -> bool:
        """Whether a party gave a reason with these words."""
        return any(words in why for said in self.witness.reasons(self.at).values() for why in said)

    def _others_wait(self, since: float) -> bool:
        states = self.witness.states(since)
        return any(state == "waiting" and name != self.victim for name, state in states)

    def _is_served_again(self) -> None:
        wait_until(
            lambda: self.hosts.is_served, f"it is served again; {brief(self.hosts)}", HEALED_SECONDS
        )
        self._answers([BYSTANDER], 3, time.monotonic())

    # -- after ----------------------------------------------------------------------------

    def _check(self, began: float) -> None:
        hold(self.hosts)
        for name in CLIENTS:
            if name == self.victim and self.cell.fault == "stopped":
                continue
            for result in self.hosts.asking(name).ended_since(began):
                took = result["ended"] - result["began"]
                assert took < QUERY_SECONDS + SLACK_SECONDS, result
                assert result.get("right", True), f"a wrong answer: {result}"
                assert "error" not in result or result["error"] in TYPED, result
        self._check_blame()
        self.mark.check(self.victim == CLIENT, self.cell.outcome)
        check_logs(self.hosts, self.logs)

    def _check_blame(self) -> None:
        """Nobody is blamed but who was struck; who is cut off itself cannot know better."""
        said = {f"{n}'s status": w for n, w in self.witness.reasons(self.at).items()}
        said |= {f"{n}'s errors": [r["text"] for r in self._failed(n, self.at)] for n in CLIENTS}
        said["owner's output"] = self.hosts.owner.since(self.at)
        for who, texts in said.items():
            if who.startswith(self.victim):
                continue
            for text in texts:
                wrong = blamed(text, self.victim) - self.allowed
                assert not wrong, f"{who} blames {wrong}: {text}"
