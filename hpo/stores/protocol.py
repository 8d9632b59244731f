"""Where studies are kept: what every store must do; `hpo.testing.StoreContract` checks that it does.

A `Catalog` is a place (one file, one database) with any number of studies; a `Store` is one study in
it. The store is authoritative: what MLflow shows is a projection of it.

Every write that a reader could notice takes the next *revision* of its study, so that ``changes(since)``
counts revisions and never compares clocks. A claim's *token* is compared on every write of a worker: who
lost the claim can't overwrite its successor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hpo.core.study import Driver, Identity, StudyRecord, WorkerRecord
from hpo.core.trial import Answer, Changes, Claim, Failed, Outcome, Point, Report, State, Trial, Verdict


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a study. ``trial``: its trial's number, None for the study's own; ``sha256`` of the bytes."""

    name: str
    trial: int | None
    sha256: str
    size: int


class Catalog(Protocol):
    """The studies of one place. One handle serves one thread.

    ``url``: its address, the same from every working directory.
    """

    url: str

    def names(self) -> list[str]:
        """The studies' names, oldest first."""

    def create(self, identity: Identity) -> Store:
        """Keep a new study; if it exists by now, its store, whatever its identity."""

    def open(self, study: str) -> Store:
        """The study's store; raises NoSuchStudy."""

    def close(self) -> None: ...


class Store(Protocol):
    """One study. One handle serves one thread; ``Catalog.open`` is cheap."""

    url: str
    study: str

    # --- the study
    def record(self) -> StudyRecord: ...

    def lead(self, driver: Driver, instead_of: Driver | None = None) -> Driver:
        """Become the driver if nobody is, or if ``instead_of`` still is. Returns who is the driver now."""

    def resign(self, driver: Driver) -> None:
        """Be the driver no more; nothing happens if somebody else is by now."""

    def use_snapshot(self, sha256: str) -> None:
        """Trials claimed from now on run this code."""

    def note(self, name: str, value: Any) -> None:
        """Keep a small JSON value with the study: where MLflow is, which revision it has reached."""

    # --- the driver's side of trials
    def add(self, number: int, point: Point, params: Mapping[str, Any], run_id: str | None = None) -> None:
        """A new waiting trial. ``params`` is for people to read; workers compute theirs from the point.
        ``run_id``: the MLflow run made for it, which every claim on it carries."""

    def add_all(self, trials: Iterable[tuple[int, Point, Mapping[str, Any]]]) -> None:
        """`add` each of them, number, point and params; all or, if this fails, none."""

    def track(self, number: int, run_id: str | None) -> None:
        """From the trial's next claim on, this is its MLflow run. No revision: nobody needs to be told."""

    def lose(self, worker: str, failure: Failed, retries: int) -> list[int]:
        """The worker is dead: each trial it held is offered again, or failed when more than ``retries``
        workers have died on it. Returns their numbers."""

    def expire(self, lease_seconds: float, retries: int) -> list[int]:
        """`lose` the workers of claims whose heartbeat has not moved for the lease, as this handle's own
        monotonic clock saw it (machines' clocks differ). Call it regularly; the first call only looks."""

    def recall(self, numbers: Sequence[int] | None = None) -> list[int]:
        """Take running trials (all of them by default) back from their workers and offer them again;
        it does not count against retries. Returns their numbers."""

    def stop(self, number: int, verdict: Verdict | None = None) -> None:
        """The running trial's next `report` or `renew` answers stop, unless the verdict spares it; the
        verdict is kept with it. On one that does not run any more, this does nothing. No revision: the
        trial's end tells of it."""

    # --- the worker's side
    def announce(self, worker: str, offers: Mapping[str, Any]) -> None:
        """A worker is there and idle, and says what it has: host, pid, GPUs. Each call moves its counter."""

    def retire(self, worker: str) -> None:
        """The worker is gone: `workers` names it no more. One that nobody knows is no error."""

    def workers(self) -> list[WorkerRecord]:
        """The workers that have announced themselves and not been retired, by name."""

    def claim(
        self,
        worker: str,
        number: int | None = None,
        *,
        gpus: Sequence[str] = (),
        wait_seconds: float = 0.0,
        token: str | None = None,
    ) -> Claim | None:
        """The waiting trial of that number, or the first one; None if there is none, nor within
        ``wait_seconds``. One worker gets it. ``gpus``: the devices that it has for the trial. ``token``: the
        claim's own, made up by who may have to ask twice: while a trial runs under it, that very claim is
        the answer."""

    def renew(self, claim: Claim) -> Answer:
        """The worker lives. Raises ClaimLost."""

    def report(
        self, claim: Claim, epoch: int, loss: float | None, metrics: Mapping[str, float], *, time: float
    ) -> Answer:
        """Keep an epoch; the same epoch again replaces it, and what an earlier attempt reported of later
        epochs goes: a retry that begins anew begins a new curve. One that is told again as it was, by a
        training that goes on from a checkpoint, is no change. Raises ClaimLost."""

    def finish(self, claim: Claim, outcome: Outcome) -> None:
        """The trial has ended, and its checkpoints go: nobody continues it. Raises ClaimLost; finishing again
        with the same claim does nothing."""

    def release(self, claim: Claim) -> None:
        """Hand the trial back, to be offered again; it does not count against retries. Raises ClaimLost."""

    # --- reading
    def changes(self, since: int, limit: int | None = None) -> Changes:
        """What happened after that revision, in the order of revisions. With ``limit``, at most about
        that many rows, and the revision up to which they are complete."""

    def trial(self, number: int) -> Trial:
        """Raises NoSuchTrial."""

    def trials(self, *states: State) -> Iterator[Trial]:
        """Trials in these states (all by default) by number."""

    def reports(self, number: int) -> list[Report]:
        """The epochs of a trial, by epoch."""

    def losses(self) -> Iterator[tuple[int, int, float | None]]:
        """Number, epoch and loss of every report, by trial and epoch: less than `reports` of all trials."""

    def best(self) -> Trial | None:
        """The completed trial of lowest loss; the earlier of equals."""

    # --- files: artifacts, checkpoints, snapshots (core/files.py has their names)
    def put_files(
        self,
        files: Mapping[str, Path],
        trial: int | None = None,
        *,
        drop: Collection[str] = (),
        claim: Claim | None = None,
    ) -> list[StoredFile]:
        """Keep copies of files under these names, in place of those of the same names, and forget those in
        ``drop``: all at once or not at all. With a ``claim``, only while it holds: raises ClaimLost."""

    def get_file(self, name: str, path: Path, trial: int | None = None) -> bool:
        """Write the file to ``path``; False if there is none or its bytes are no longer what was kept."""

    def files(self, trial: int | None = None) -> list[StoredFile]:
        """The trial's files, or the study's own, by name."""

    def close(self) -> None: ...
