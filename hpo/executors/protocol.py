"""What every executor does: it hands trials' numbers to workers and tells the driver what became of them.

An executor knows no results: a worker writes them to the store. `hpo.testing.ExecutorContract` checks it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hpo.core.trial import Failed


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker must know to run trials of one study. JSON, so that it can travel.

    ``code``: the folder with the unpacked snapshot; ``file`` and ``name``: the entry point below it;
    ``fingerprint``: of the driver's space, which must be the worker's, too; ``arguments``: what --set
    says; ``folder``: where trials keep their files meanwhile; ``tracking_uri``: the MLflow server on which
    trials' runs are made beforehand, if there is one; ``snapshot``: the hash of the code, where workers take
    trials by themselves.
    """

    store: str
    study: str
    study_seed: int
    code: str
    file: str
    name: str
    fingerprint: str
    folder: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    lease_seconds: float = 30.0
    timeout_seconds: float | None = None
    tracking_uri: str | None = None
    snapshot: str | None = None

    @property
    def work_folder(self) -> Path:
        return Path(self.folder)


@dataclass(frozen=True, slots=True)
class Finished:
    """The worker has done with this trial and takes another. None: it was to run whatever waits, and found
    nothing."""

    number: int | None


@dataclass(frozen=True, slots=True)
class Died:
    """The worker is gone, and why. ``worker``: its name; None: it is whoever runs the trial. ``number``: the
    trial it was given, None if it was idle."""

    worker: str | None
    number: int | None
    failure: Failed


Event = Finished | Died


class Executor(Protocol):
    @property
    def slots(self) -> int:
        """How many trials can run at a time now."""

    def free(self) -> int:
        """How many more trials could be submitted now."""

    def submit(self, number: int) -> None:
        """Give a trial to a free worker. Raises IndexError if none is free."""

    def wait(self, seconds: float) -> list[Event]:
        """What happened, as soon as something has; empty after so many seconds without.

        Raises LoadError, as the driver would, when a worker can't load the objective, and WorkerBroken
        when workers die again and again before they take a trial.
        """

    def withdraw(self) -> list[int]:
        """No more trials are to start: take back those that were submitted and that nobody will begin now.
        Returns their numbers."""

    def cancel(self, numbers: Collection[int] | None = None) -> None:
        """Kill the workers that are busy with these trials, all by default; `wait` tells their deaths no
        more."""

    def close(self) -> None:
        """Let idle workers go and kill busy ones."""
