"""The life of a session: the time for which a model is shared, in rounds.

In a round a session opens its lanes to every other party and does its role's work (see `roles`)
until a party is lost. Channels, keys and packs are thrown away with the round; the shares of the
weights are kept, and the next round begins with everything else fresh once all parties have come
back (see `rejoining`). What does not pass, such as what parties disagree on, ends the session.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from privserve.engines import load_engine
from privserve.errors import (
    BadFrame,
    CannotCount,
    ClusterError,
    HalfFrame,
    PeerLost,
    PrivserveError,
    QueryError,
    StaleSession,
)
from privserve.party.agreement import Agreement, facts
from privserve.party.channel import Channel
from privserve.party.messages import ENDED, FAILED, WAITING, Over
from privserve.party.reasons import REPLACED, is_over, is_stopped, now, printable
from privserve.party.rejoining import FIRST_SECONDS, MOST_SECONDS, Meeting, gather, rejoin
from privserve.party.rounds import WATCHER, Round
from privserve.party.seat import Seat
from privserve.party.session_spec import SessionSpec
from privserve.party.traffic import Traffic
from privserve.party.watching import Watch

log = logging.getLogger("privserve")

ORDERS = "orders"  # leader to followers: what runs, what is refused
ARRIVALS = "arrivals"  # followers to leader: which queries have come in
WATCH = WATCHER  # everyone to everyone: signs of life, and why a round is over

LOADING, LOADED = "loading", "loaded"
OPEN_SECONDS = 15.0
"""For parties that have just met to open the lanes of their next round."""
STEADY_SECONDS = 10.0
"""A round that lasted longer was no failure from the start."""
CAUSE_SECONDS = 5.0
"""At most this long a broken channel waits for the watcher to say why: an instant, but for load."""


class _Absent(PeerLost):
    """A party did not come: that is the cause, and no consequence of another one."""


class Session(ABC):
    """One party's side of a session. Subclasses know the party's role."""

    def __init__(self, seat: Seat, spec: SessionSpec, came_back: str = "") -> None:
        """came_back: why a party that has kept its share waits for the others; "" for a session
        that begins."""
        self.spec = spec
        self.state = WAITING if came_back else LOADING
        self.reason = came_back
        self.ready = threading.Event()
        self._log = logging.LoggerAdapter(log, {"session": spec.id, "model": spec.model})
        self._config = seat.config
        self._me = seat.me
        self._listener = seat.listener
        self._keep = seat.keep
        self._timeouts = seat.timeouts
        self._n = len(seat.config.compute)
        self._round = Round(spec.id, is_first=True)
        self._watch: Watch | None = None
        self._cause, self._since = came_back, now()
        """Why the last round was over, and when."""
        self._limits: Mapping[str, int] = {}
        self._mine: dict[str, Any] = {}
        """What this party is about to run; see `agreement`."""
        self.memory: int | None = None
        """About how many bytes the model takes here, the engine included; None: not known yet."""
        self.engine_memory = 0
        """Of these, what the engine takes once for all its sessions."""
        self.is_replaced = False
        """Whether another session has its model's name."""
        self.has_left = False
        """Whether it is over here only, and the others wait."""
        self.stopping = ""
        """Why no queries are taken: a party is being stopped; empty where they are."""
        self._leaves_soon = False
        self.traffic = Traffic(self._round)
        self._was_loaded = bool(came_back)
        self._began = time.monotonic()
        self._pause = 0.0
        self._ended = threading.Event()
        self._end_lock = threading.Lock()
        self._main_thread = threading.Thread(target=self._main, name="session", daemon=True)

    def start(self) -> None:
        """Begin in the background; `state` becomes "loaded" or "failed"."""
        self._main_thread.start()

    def end(self, reason: str) -> None:
        """End the session for all parties, and wait until it has."""
        self._finish(ENDED, reason)
        self._join()

    def leave(self, reason: str) -> None:
        """End the session here; the others wait for this party to come back."""
        self.has_left = True
        self._finish(ENDED, reason, told=WAITING)
        self._join()

    def leave_soon(self) -> None:
        """Take no more queries, nor let the others; `may_leave` says when all are answered."""
        self._leaves_soon = True
        self.take_no_more(is_stopped(self._me.name))
        if self._watch is not None:
            self._watch.leave()

    @property
    def may_leave(self) -> bool:
        """Whether this party's end would break no query: none is left, here or elsewhere."""
        others = set(range(self._n)) - {self._config.rank(self._me.name)}
        watch = self._watch
        if self.state != LOADED or watch is None:
            return True
        return self.is_idle and others <= watch.idle

    @property
    def is_idle(self) -> bool:
        """Whether no query waits here or runs."""
        return True

    def take_no_more(self, why: str) -> None:
        """Refuse queries from now on, for as long as the round lasts."""
        if not self.stopping and self.state == LOADED:
            self._log.info("%s: takes no more queries: %s", self._me.name, why)
        self.stopping = self.stopping or why

    def _take_again(self) -> None:
        """Take queries in the round that begins."""
        self.stopping = ""

    def _join(self) -> None:
        thread = self._main_thread
        if thread is not threading.current_thread() and thread.ident is not None:
            thread.join(10)

    def status(self) -> dict[str, Any]:
        """Return all that its owner is told of the session, JSON-able."""
        return self.facts()

    def facts(self) -> dict[str, Any]:
        """Return public facts about the session, JSON-able and short."""
        return {
            "session": self.spec.id,
            "model": self.spec.model,
            "engine": self.spec.engine,
            "state": self.state,
            "reason": self.reason,
            "memory": self.memory,
            "replaced": self.is_replaced,
            "draining": bool(self.stopping),
        }

    @property
    def is_alive(self) -> bool:
        """Whether it is set up, or being set up, or waits for a party to come back."""
        return self.state in (LOADING, LOADED, WAITING)

    def drain(self) -> None:
        """Let another session have the model's name: what was taken is answered, no more is."""
        self.is_replaced = True

    # -- life ---------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._prepare()
            if not self._was_loaded:
                self._play()
            while (name := self._next_round()) is not None:
                with self._end_lock:
                    self._round = Round(name, is_first=False)
                    if not self._leaves_soon:
                        self._take_again()
                    self.traffic.begin(self._round)
                    if self._ended.is_set():  # meanwhile
                        self._round.finish(Over(self.reason, self.state))
                self._play()
        except Exception as error:
            self._fail(error)
        finally:
            self._release()

    def _prepare(self) -> None:
        """Find out what this party is about to run: before anybody waits for it to say so."""
        spec, engine = self.spec, load_engine(self.spec.engine)
        each, dealer = engine.memory(spec.description, self._n, **spec.options)
        self.engine_memory = engine.PROCESS_BYTES
        self.memory = dealer if self._config.role(self._me.name) == "dealer" else each
        self._limits = engine.frame_limits(spec.description, **spec.options)
        self._mine = facts(spec.engine, spec.description, spec.options)

    def _play(self) -> None:
        """Go through one round, until it is over."""
        self._began = time.monotonic()
        try:
            self._open()
            self._serve()
            # The dealer's work ends when party 0 leaves.
            self._round.over.wait(CAUSE_SECONDS)
            self._finish(WAITING, f"{self._config.parties[0].name} left without saying why")
        except Exception as error:
            self._fail_round(error)
        finally:
            self._leave_round()

    def _open(self) -> None:
        """Open the round's lanes, watched from the first one on, and agree on what runs.

        Raises PeerLost, and ClusterError for what the parties do not agree on.
        """
        round_, engine = self._round, load_engine(self.spec.engine)
        seconds = self._timeouts.connect
        if not round_.is_first:
            seconds = min(seconds, OPEN_SECONDS)
        others = [party.name for party in self._config.parties if party.name != self._me.name]
        agreement = Agreement(self._me.name, self._mine, others)
        watch = Watch(round_, agreement, self._timeouts.peer, seconds)
        watch.on_leaving = lambda party: self.take_no_more(is_stopped(party))
        watch.is_idle = lambda: self.is_idle
        if self._leaves_soon:
            watch.leave()
        self._watch = watch
        round_.spawn(lambda: self._guarded(lambda: watch.run(self._lost)), WATCHER)
        self._open_lanes([WATCH], seconds, watch.meet)
        watch.wait_agreed()
        if round_.over.is_set():
            raise PeerLost(self.reason)
        # Whoever waits for a party itself that does not come names that one before.
        self._open_lanes([ORDERS, ARRIVALS, *engine.LANES], seconds + self._timeouts.peer)

    def _open_lanes(
        self, lanes: list[str], seconds: float, met: Callable[[int, Channel], None] | None = None
    ) -> None:
        round_ = self._round
        limits = {lane: limit for lane, limit in self._limits.items() if lane in lanes}
        try:
            opened = self._listener.open_lanes(
                round_.name, lanes, seconds, round_.over, limits, met
            )
        except ClusterError as error:
            # Once all are watched, one that cannot be reached said why, or soon falls silent.
            raise (_Absent if met else PeerLost)(str(error)) from None
        for lane in opened.values():
            lane.set_patience(self._timeouts.peer)
        round_.lanes.update(opened)
        if round_.over.is_set():  # its channels were broken before these were known
            for lane in opened.values():
                lane.close()
            raise PeerLost(self.reason)

    def _lost(self, over: Over) -> None:
        """Take what the watcher says of another party."""
        self._finish(over.state, over.reason)

    def _next_round(self) -> str | None:
        """Wait for the other parties; the name of the round that begins then. None: it is over."""
        self._ended.wait(self._back_off())
        leader = self._config.parties[0]
        meeting = Meeting(
            self.spec.id,
            self._timeouts.peer,
            self._ended,
            self._waits,
            lambda names: f"{self._cause}; waiting for {names} since {self._since}",
            lambda: None if self.has_left else Over(self.reason, self.state),
        )
        others = [party for party in self._config.parties if party.name != self._me.name]
        if self._me.name == leader.name:
            found = gather(self._listener, others, meeting)
        else:
            found = rejoin(self._listener, leader, meeting)
        if isinstance(found, Over):  # for good, whatever it says
            self._finish(FAILED if found.state == WAITING else found.state, found.reason)
            return None
        return found

    def _back_off(self) -> float:
        """For how long to leave the others alone: rounds that do not last come slower."""
        lasted = time.monotonic() - self._began > STEADY_SECONDS
        self._pause = 0.0 if lasted else min(max(FIRST_SECONDS, 2 * self._pause), MOST_SECONDS)
        return self._pause

    def _waits(self, why: str) -> None:
        """Say in the session's state whom it waits for; `why` in the leader's own words."""
        with self._end_lock:
            if self.state == WAITING:
                self.reason = printable(why)

    def _fail_round(self, error: Exception) -> None:
        """Finish the round, or the session, because of what was met in the round.

        Whoever was stopped reads what came meanwhile, of which it knows nothing any more. A party
        that does not keep to the protocol shows it in the next round again.
        """
        if isinstance(error, BadFrame) and self._round.over.is_set():
            self._finish(WAITING, str(error))
        else:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Finish the round, or the session, because of what one of its threads met."""
        is_bad = isinstance(error, BadFrame) and not isinstance(error, HalfFrame)
        if isinstance(error, PeerLost) and not is_bad:
            # The watcher knows who left first and why; this thread only saw a broken pipe.
            knows = self._round.watcher is not None and not isinstance(error, _Absent)
            self._round.over.wait(CAUSE_SECONDS if knows else 0)
            self._finish(WAITING, str(error))
        elif isinstance(error, CannotCount):  # a full disk has room again, sooner or later
            self._finish(WAITING, str(error))
        elif isinstance(error, PrivserveError):
            self._finish(FAILED, str(error))
        elif isinstance(error, MemoryError):
            self._finish(
                FAILED,
                f"{self._me.name} ran out of memory; ask fewer rows at a time, or give it more",
            )
        else:
            # Frames only: an exception's message may quote the values of arrays.
            frames = "".join(traceback.format_tb(error.__traceback__))
            name = type(error).__name__
            self._log.error("%s: %s in the session\n%s", self._me.name, name, frames)
            self._finish(FAILED, f"{self._me.name} hit an internal error ({name})")

    @abstractmethod
    def _serve(self) -> None:
        """Set up and do the role's work until the round is over."""

    @abstractmethod
    def _rouse(self) -> None:
        """Have the session's thread look, where it waits for calls of other threads."""

    @abstractmethod
    def _refuse_all(self, error: QueryError) -> None:
        """Answer everything that waits with `error`, and be ready for another round."""

    def _guarded(self, target: Callable[[], None]) -> None:
        """Run `target`; what it raises ends the round, or the session."""
        try:
            target()
        except Exception as error:
            self._fail_round(error)

    def _loaded(self) -> None:
        with self._end_lock:
            if self._round.over.is_set():  # another party failed while this one was setting up
                raise PeerLost(self.reason)
            self.state, self.reason = LOADED, ""
            self._was_loaded = True
        self.ready.set()
        again = "" if self._round.is_first else ", again"
        model, engine = self.spec.model, self.spec.engine
        self._log.info("%s: model '%s' is loaded (%s)%s", self._me.name, model, engine, again)

    def _finish(self, state: str, reason: str, told: str | None = None) -> None:
        """Record why the round is over, or with it the session, and break every channel.

        The first reason counts. state: WAITING where only the round is over. told: what the others
        are told, where that is another state.
        """
        reason = printable(reason)
        with self._end_lock:
            round_ = self._round
            if state == WAITING and (not self._was_loaded or self.is_replaced):
                state = FAILED  # nobody has asked it yet, or nobody will any more
            if self._ended.is_set() or (state == WAITING and round_.over.is_set()):
                return
            self._cause = reason
            self._since = now()
            self.state, self.reason = state, reason
            if state != WAITING:
                self._ended.set()
            round_.finish(Over(reason, told or state))
        what = "waits for another round" if state == WAITING else "session over"
        self._log.info("%s: %s: %s", self._me.name, what, reason)
        self.ready.set()
        self._rouse()
        round_.part()
        self._refuse_all(self._over())
        if self._ended.is_set() and not self.has_left:
            self._forget()  # nothing can bring it back

    def _forget(self) -> None:
        """Have the party keep the session no more."""
        if self._keep is None:
            return
        try:
            self._keep.forget(self.spec.id)
        except PrivserveError as error:
            self._log.warning("%s: %s", self._me.name, error)

    @property
    def _is_open(self) -> bool:
        """Whether queries are taken."""
        return self.state == LOADED and not self._round.over.is_set()

    def _over(self) -> QueryError:
        if self.is_replaced:  # its clients are to find the other one by themselves
            return StaleSession(REPLACED)
        return is_over(self.state, self.reason)

    def _leave_round(self) -> None:
        """Throw away all that belongs to the round, but for what it counted."""
        self._round.part()
        if self._round.told is not None:
            self._listener.give_up(self._round.name, WATCH, self._round.told)
        self.traffic.end()
        self._round.release()

    def _release(self) -> None:
        """Forget the shares, once no thread uses them any more."""
        self._round.part()
        self._round.release()
        self.spec = replace(self.spec, shares={})
