"""Workers that people start: this process gives them trials through the store, and starts nobody."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import asdict

from hpo.core.errors import StoreError
from hpo.core.study import TERMS_NOTE, Terms
from hpo.core.trial import State
from hpo.executors.protocol import Event, Finished
from hpo.stores import Store
from hpo.stores.lease import LeaseWatch

logger = logging.getLogger("hpo.executors")

LOOK_SECONDS = 0.05


class ExternalExecutor:
    """See `hpo.executors.protocol.Executor`. A trial that was submitted waits in the store until a worker
    takes it, so as many are submitted as idle workers are there, and no suggestion grows old.

    A worker is there while its announcements are seen to move within the lease; one that had announced
    itself before may be long dead, and counts when it does so again. Deaths are not told: who started the
    worker, or the silence of its claim, tells the store.

    Args: terms: what workers must know; command: what starts one; clock: seconds that never go back.
    """

    def __init__(
        self, store: Store, terms: Terms, command: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._lease_seconds = terms.lease_seconds
        self._command = command
        self._watch = LeaseWatch(clock)
        self._unmoved = {worker.name: worker.beats for worker in store.workers()}
        self._revision = store.record().revision
        self._submitted: dict[int, State] = {}
        self._idle: set[str] = set()
        self._holders: dict[int, str] = {}  # the workers of running trials
        self._has_said = False
        store.note(TERMS_NOTE, asdict(terms))

    @property
    def slots(self) -> int:
        return len(self._idle) + len(self._holders)

    def free(self) -> int:
        waiting = sum(state is State.WAITING for state in self._submitted.values())
        return max(0, len(self._idle) - waiting)

    def submit(self, number: int) -> None:
        if not self.free():
            raise IndexError("no worker is idle")
        self._submitted[number] = State.WAITING

    def wait(self, seconds: float) -> list[Event]:
        deadline = time.monotonic() + seconds
        while True:
            events = self._look()
            left = deadline - time.monotonic()
            if events or left <= 0:
                return events
            time.sleep(min(LOOK_SECONDS, left))

    def withdraw(self) -> list[int]:
        self._store.note(TERMS_NOTE, None)
        waiting = [number for number, state in self._submitted.items() if state is State.WAITING]
        for number in waiting:
            del self._submitted[number]
        return waiting

    def cancel(self, numbers: Collection[int] | None = None) -> None:
        """Nobody is killed: a worker whose trial was taken back learns it by its next sign of life."""
        if numbers is None:
            self.withdraw()
            self._submitted.clear()
            return
        for number in numbers:
            self._submitted.pop(number, None)
            if (worker := self._holders.pop(number, None)) is not None:
                self._store.retire(worker)  # it was silent too long; if it lives, it will announce itself

    def close(self) -> None:
        with contextlib.suppress(StoreError):  # the next driver does it
            self._store.note(TERMS_NOTE, None)

    def _look(self) -> list[Event]:
        changes = self._store.changes(self._revision)
        self._revision = changes.revision
        events: list[Event] = []
        for trial in changes.trials:
            if trial.number in self._submitted:
                self._submitted[trial.number] = trial.state
                if trial.state.has_ended:
                    del self._submitted[trial.number]
                    events.append(Finished(trial.number))
        self._count_workers()
        return events

    def _count_workers(self) -> None:
        workers = self._store.workers()
        self._holders = {worker.trial: worker.name for worker in workers if worker.trial is not None}
        idle = {worker.name: worker.beats for worker in workers if worker.trial is None}
        silent = self._watch.silent(idle.items(), self._lease_seconds)
        for name in silent:
            self._store.retire(name)  # or the dead would be listed for ever
        self._unmoved = {n: beats for n, beats in self._unmoved.items() if idle.get(n) == beats}
        self._idle = idle.keys() - self._unmoved.keys() - set(silent)
        if not self.slots and not self._has_said:
            logger.warning("no worker is there; start some, here or elsewhere: %s", self._command)
        self._has_said = not self.slots
