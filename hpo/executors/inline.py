"""Trials in the driver's own process, one at a time: for debuggers and notebooks."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from hpo.executors.protocol import Event, Finished, WorkerSettings
from hpo.loading import Task
from hpo.stores import Store
from hpo.worker import Workplace, run_one


class InlineExecutor:
    """No keeper and no time-out: while a trial runs, nobody is there to expire its claim."""

    def __init__(self, store: Store, task: Task, settings: WorkerSettings, worker: str) -> None:
        self._store = store
        self._task = task
        self._place = Workplace(
            worker=worker,
            folder=settings.work_folder,
            code=Path(settings.code),
            study_seed=settings.study_seed,
            is_apart=False,
            tracking_uri=settings.tracking_uri,
        )
        self._submitted: list[int] = []

    @property
    def slots(self) -> int:
        return 1

    def free(self) -> int:
        return self.slots - len(self._submitted)

    def submit(self, number: int) -> None:
        if self._submitted:
            raise IndexError("the one worker is busy")
        self._submitted.append(number)

    def wait(self, seconds: float) -> list[Event]:
        events: list[Event] = []
        while self._submitted:
            number = self._submitted.pop()
            run_one(self._store, number, self._task, self._place)
            events.append(Finished(number))
        return events

    def withdraw(self) -> list[int]:
        taken, self._submitted = self._submitted, []
        return taken

    def cancel(self, numbers: Collection[int] | None = None) -> None:
        self._submitted.clear()

    def close(self) -> None:
        self._submitted.clear()
