"""The loop: propose a trial as soon as a worker is free, learn from what ended, stop when it is time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hpo.core.errors import OutsideSpace, SearchExhausted, SpaceError
from hpo.core.files import CHECKPOINT
from hpo.core.history import Array, History
from hpo.core.repeats import Repeats
from hpo.core.trial import Changes, Failed, Kind, Point, State, Trial
from hpo.executors import Died, Executor
from hpo.executors.deaths import mourn
from hpo.search import Algorithm
from hpo.search.pruning import Judge
from hpo.search.seen import Seen
from hpo.space import Space
from hpo.stores import Store
from hpo.tracking import Observer

logger = logging.getLogger("hpo.study")

WAIT_SECONDS = 0.1  # how late the loop sees an epoch to judge, or a Ctrl-C; ended trials wake it at once
ADDED_AT_ONCE = 500  # points of a person's: a transaction, and how late a Ctrl-C is seen among them
MIN_ENDED_FOR_SHARE = 10  # a share of failures says nothing before


@dataclass(frozen=True, slots=True)
class Limits:
    """When a study stops. ``max_evals``: ended trials of every state; None for no limit."""

    max_evals: int | None = None
    timeout_seconds: float | None = None
    max_failures: float = 0.9
    retries: int = 1
    lease_seconds: float = 30.0


class Ending(Enum):
    """Why the loop ended."""

    DONE = auto()
    DRAINED = auto()
    CANCELLED = auto()
    TIMEOUT = auto()
    FAILURES = auto()


class Fate(Enum):
    """What becomes of a point that a person brings."""

    NEW = auto()
    TWICE = auto()  # an earlier point of the same file
    WAITING = auto()  # from an earlier call
    HAD = auto()


BeginRun = Callable[[int, str | None], str | None]
"""``begin_run(number, instead_of)`` makes a trial's MLflow run, in place of an earlier attempt's; or None."""


class Wish(Protocol):
    """What the person at the keyboard wants by now."""

    def is_drain(self) -> bool: ...

    def is_cancel(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Open:
    """A trial that has not ended: its row of the space and its state as last seen."""

    row: Array
    state: State


@dataclass
class Study:
    """One driver's view of a study. `run` is the loop.

    Holds no more of an ended trial than its row in the history: memory grows by some hundred bytes a trial.
    ``work_folder``: where this machine's workers keep their trials' files. ``judge``: stops trials early.
    ``begin_run``: makes the run that a trial's objective may log to, where tracking has one beforehand.
    ``repeats``: trials of each point; the search sees their mean. ``exhausted``: what the search says when it
    has nothing left to propose.
    """

    store: Store
    space: Space
    algorithm: Algorithm
    executor: Executor
    limits: Limits
    seed: int
    work_folder: Path
    judge: Judge | None = None
    observers: Sequence[Observer] = ()
    begin_run: BeginRun | None = None
    repeats: int = 1
    clock: Callable[[], float] = time.monotonic
    history: History = field(init=False)
    failed: int = field(default=0, init=False)
    exhausted: SearchExhausted | None = field(default=None, init=False)
    _ended: set[int] = field(default_factory=set, init=False)
    _ended_before: tuple[int, int] = field(default=(0, 0), init=False)
    _open: dict[int, _Open] = field(default_factory=dict, init=False)
    _submitted: set[int] = field(default_factory=set, init=False)
    _revision: int = field(default=0, init=False)
    _next_number: int = field(default=0, init=False)
    _points: Repeats = field(init=False)

    def __post_init__(self) -> None:
        self.history = History(len(self.space.columns))
        self._points = Repeats(self.repeats)
        self._revision = self.store.record().revision
        for trial in self.store.trials():
            self._absorb(trial)
        if self.judge is not None:
            self.judge.restore(self.store.trials(), self.store.losses())
        self._ended_before = (len(self._ended), self.failed)

    def enqueue(self, rows: Array, wish: Wish) -> list[Fate]:
        """Trials for these points, which run before the search proposes any; returns what becomes of each.

        A point that the study has had already is not tried again. A wish ends it early: then there are fewer
        fates than points.

        Args: rows: ``(points, columns)``, valid rows of the space.
        """
        # An unfinished point without open trials is in neither of the following.
        self.store.add_all([self._open_trial(row) for row in self._lacking()])
        pending = self._pending()
        before, waiting = Seen(np.concatenate([self.history.rows, pending])), Seen(pending)
        mine = Seen(rows[:0])
        fates: list[Fate] = []
        for start in range(0, len(rows), ADDED_AT_ONCE):
            if wish.is_drain() or wish.is_cancel():
                break
            some, trials = rows[start : start + ADDED_AT_ONCE], []
            news = zip(before.is_new(some).tolist(), waiting.is_new(some).tolist(), strict=True)
            for row, (is_new, is_not_waiting) in zip(some, news, strict=True):
                if not mine.is_new(row[np.newaxis]).all():
                    fates.append(Fate.TWICE)
                    continue
                mine.add(row)
                fates.append(Fate.NEW if is_new else Fate.HAD if is_not_waiting else Fate.WAITING)
                if is_new:
                    trials += [self._open_trial(row) for _ in range(self.repeats)]
            self.store.add_all(trials)
        return fates

    def run(self, wish: Wish) -> Ending:
        """Drive the study until a limit or a wish ends it; the executor is closed by the caller.

        Raises StoreError when the store fails; nothing that ended before is lost by it.
        """
        started = self.clock()
        expire_at = started
        while True:
            self._catch_up()
            ending = self._ending(wish, started)
            if ending in (Ending.CANCELLED, Ending.TIMEOUT, Ending.FAILURES):
                self._cancel()
                return ending
            if ending is None:
                self._feed()
            else:
                self._submitted -= set(self.executor.withdraw())
            # Workers of their own may not have come yet: what is left to do waits for them.
            is_over = ending is not None or (self.exhausted is not None and not self._open)
            if is_over and not self._busy():
                return ending or Ending.DONE
            for event in self.executor.wait(WAIT_SECONDS):
                if event.number is not None:
                    self._submitted.discard(event.number)
                if isinstance(event, Died):
                    mourn(self.store, event, self.work_folder, self.limits.retries)
            if self.clock() >= expire_at:
                # Whoever was silent so long is not trusted to speak again.
                if expired := self.store.expire(self.limits.lease_seconds, self.limits.retries):
                    self.executor.cancel(expired)
                    self._submitted -= set(expired)
                expire_at = self.clock() + self.limits.lease_seconds / 10

    def _catch_up(self) -> None:
        changes = self.store.changes(self._revision)
        self._revision = changes.revision
        for trial in changes.trials:
            self._absorb(trial)
        if self.judge is not None:
            for ruling in self.judge.rule(changes):
                self.store.stop(ruling.number, ruling.verdict)
        self._tell(changes)

    def _absorb(self, trial: Trial) -> None:
        if trial.number in self._ended:
            return
        self._next_number = max(self._next_number, trial.number + 1)
        known = self._open.pop(trial.number, None)
        row = self._row(trial) if known is None else known.row
        if trial.state.has_ended:
            self._ended.add(trial.number)
            self.failed += trial.state is State.FAILED
            point = self._points.add(trial.number, trial.loss)
            if row is not None and point is not None:
                self.history.append(point.number, row, point.loss)
        elif row is not None:
            self._open[trial.number] = _Open(row, trial.state)
        elif (claim := self.store.claim("driver", trial.number)) is not None:
            self.store.finish(
                claim, Failed(Kind.EXCEPTION, "OutsideSpace: the store's point is none of the space")
            )

    def _row(self, trial: Trial) -> Array | None:
        """The trial's point as a row; None where somebody has put a point into the store that is none."""
        try:
            if not trial.state.has_ended:
                self.space.check(trial.point)
            return self.space.row(trial.point)
        except (OutsideSpace, AttributeError, TypeError, ValueError):
            return None

    def _tell(self, changes: Changes) -> None:
        for observer in self.observers:
            try:
                observer.update(changes)
            except Exception:  # what only watches never ends a study
                logger.exception("%s failed", type(observer).__name__)

    def _ending(self, wish: Wish, started: float) -> Ending | None:
        """Why no more trials are to start, None while they are."""
        ended, limits = len(self._ended), self.limits
        if wish.is_cancel():
            return Ending.CANCELLED
        if limits.max_evals is not None and ended >= limits.max_evals:
            return Ending.DONE
        if limits.timeout_seconds is not None and self.clock() - started >= limits.timeout_seconds:
            return Ending.TIMEOUT
        # Those of an earlier call don't count: what failed them may have been mended since.
        ended_now, failed_now = ended - self._ended_before[0], self.failed - self._ended_before[1]
        if ended_now >= MIN_ENDED_FOR_SHARE and failed_now > limits.max_failures * ended_now:
            return Ending.FAILURES
        return Ending.DRAINED if wish.is_drain() else None

    def _feed(self) -> None:
        """A trial for every free worker, and none earlier: the later it is proposed, the more it knows."""
        while self.executor.free():
            max_evals = self.limits.max_evals
            if max_evals is not None and len(self._ended) + len(self._busy()) >= max_evals:
                return
            offered = (n for n, trial in self._open.items() if trial.state is State.WAITING)
            number = min((n for n in offered if n not in self._submitted), default=None)
            if number is None:
                number = self._propose()
                if number is None:
                    return
            elif self.begin_run is not None:
                self._begin_again(number, self.begin_run)
            self._submitted.add(number)
            self.executor.submit(number)

    def _propose(self) -> int | None:
        """A trial where the search wants one; None where it has nothing left."""
        if self.exhausted is not None:
            return None
        row = self._repeated()
        if row is None:
            rng = np.random.default_rng([self.seed, self._next_number])
            try:
                [row] = self.algorithm.propose(self.space, self.history, self._pending(), rng, 1)
            except SearchExhausted as exhausted:
                self.exhausted = exhausted
                return None
        begin_run = self.begin_run
        return self._add(row, begin_run(self._next_number, None) if begin_run else None)

    def _repeated(self) -> Array | None:
        """The point that the next trial repeats; None where it is to begin another."""
        first = self._points.first(self._next_number)
        return None if first == self._next_number else self._row(self.store.trial(first))

    def _lacking(self) -> list[Array]:
        """The rows of the trials that the last point lacks."""
        row = self._repeated()
        return [] if row is None else [row] * (-self._next_number % self.repeats)

    def _pending(self) -> Array:
        """``(points, columns)``: the points of waiting and running trials."""
        rows = list({self._points.first(number): trial.row for number, trial in self._open.items()}.values())
        return np.array(rows).reshape(len(rows), len(self.space.columns))

    def _add(self, row: Array, run_id: str | None = None) -> int:
        """A new waiting trial; returns its number."""
        number, point, params = self._open_trial(row)
        self.store.add(number, point, params, run_id)
        return number

    def _open_trial(self, row: Array) -> tuple[int, Point, Mapping[str, Any]]:
        """The next trial, for the store to add: its number, point and readable parameters."""
        number = self._next_number
        point = self.space.point(row)
        try:
            params = self.space.readable(point)
        except SpaceError:  # an expression that fails at this point fails this trial, in its worker
            params = dict(point)
        self._open[number] = _Open(row, State.WAITING)
        self._next_number += 1
        return number, point, params

    def _begin_again(self, number: int, begin_run: BeginRun) -> None:
        """A run for a trial that is offered again: the one it has, unless its curve begins anew there."""
        trial = self.store.trial(number)
        has_checkpoint = any(file.name.startswith(CHECKPOINT) for file in self.store.files(number))
        if trial.run_id is None or (trial.epochs and not has_checkpoint):
            self.store.track(number, begin_run(number, trial.run_id))

    def _busy(self) -> set[int]:
        """The trials that were submitted, and those that workers of their own have taken."""
        return self._submitted | {n for n, trial in self._open.items() if trial.state is State.RUNNING}

    def _cancel(self) -> None:
        """Kill what runs and hand it back: it is offered again when the study goes on."""
        self.executor.cancel()
        self.store.recall(sorted(self._busy()))
        self._submitted.clear()
        self._catch_up()
