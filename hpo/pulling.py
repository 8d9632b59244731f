"""Workers that a person starts: they take the trials of a study that another process drives."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

from hpo import snapshot as snapshots
from hpo.core.errors import NoSuchStudy, StoreError, StoreUnreachable, UntrustedCode, UsageError
from hpo.core.files import snapshot_name
from hpo.core.study import SIGNATURE_NOTE, TERMS_NOTE, StudyRecord, Terms
from hpo.core.trial import Failed, State, Trial
from hpo.executors import Died, Event, WorkerSettings
from hpo.executors.deaths import mourn
from hpo.executors.processes import ProcessExecutor, worker_name
from hpo.stores import Catalog, Store, connect
from hpo.study import Wish
from hpo.trust import Trust, entry_file

SHA256 = re.compile(r"[0-9a-f]{64}")
WAIT_SECONDS = 0.2  # how late a Ctrl-C is seen
LOOK_SECONDS = 1.0  # between looks at a study that has nothing for workers yet
MAX_AWAY_SECONDS = 10.0  # between looks for a store that does not answer


class End(Enum):
    """Why a worker goes."""

    DONE = auto()  # as many trials as it was to run, or none for too long
    DRAINED = auto()
    CANCELLED = auto()


@dataclass(frozen=True, slots=True)
class Asked:
    """What `hpo worker` was asked for. ``study``: None for the only one that wants workers; ``slots``: the
    devices of each trial at a time; ``tracking_uri``: the MLflow server that trials may log to."""

    store: str
    study: str | None
    slots: list[tuple[str, ...]]
    trust: Trust
    max_trials: int | None = None
    idle_timeout_seconds: float | None = None
    tracking_uri: str | None = None


@dataclass
class Puller:
    """Runs trials until it is time to go. ``say``: tells a person what happens, a line each."""

    asked: Asked
    wish: Wish
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    _catalog: Catalog | None = field(default=None, init=False)
    _store: Store | None = field(default=None, init=False)
    _crew: _Crew | None = field(default=None, init=False)
    _taken_before: int = field(default=0, init=False)  # by crews that have been dismissed
    _idle_since: float = field(default=0.0, init=False)
    _look_at: float = field(default=0.0, init=False)
    _said: str = field(default="", init=False)

    def run(self) -> End:
        """A store that does not answer is waited for.

        Raises UntrustedCode, LoadError and WorkerBroken where no trial can be run, StoreError for a store
        that answers and can't be used.
        """
        self._idle_since = self.clock()
        away_seconds = 0.0
        with tempfile.TemporaryDirectory(prefix="hpo-worker-", ignore_cleanup_errors=True) as folder:
            try:
                while (end := self._end()) is None:
                    try:
                        self._step(Path(folder))
                        away_seconds = 0.0
                    except StoreUnreachable as error:
                        self._say_once(f"{error.message}; waiting for it")
                        away_seconds = min(2 * away_seconds + 0.5, MAX_AWAY_SECONDS)
                        self._rest(away_seconds)
                return end
            finally:
                self._dismiss()
                if self._catalog is not None:
                    self._catalog.close()

    def _end(self) -> End | None:
        is_busy = self._crew is not None and bool(self._crew.running)
        if self.wish.is_cancel():
            return End.CANCELLED
        if is_busy:
            return None
        if self.wish.is_drain():
            return End.DRAINED
        limit = self.asked.idle_timeout_seconds
        if limit is not None and self.clock() - self._idle_since >= limit:
            self.say(f"no trial for {limit:g} s: going")
            return End.DONE
        is_enough = self.asked.max_trials is not None and self._taken() >= self.asked.max_trials
        return End.DONE if is_enough else None

    def _taken(self) -> int:
        """How many trials were run, or are."""
        return self._taken_before + (0 if self._crew is None else self._crew.taken)

    def _step(self, folder: Path) -> None:
        if self._store is None:
            self._store = self._find()
            self._look_at = self.clock() + (LOOK_SECONDS if self._store is None else 0.0)
        elif self.wish.is_drain():
            if self._crew is not None:
                self._crew.withdraw()
        elif self.clock() >= self._look_at and (self._crew is None or self._crew.executor.free()):
            self._look(self._store, folder)
        if self._crew is None:
            self._rest(max(0.0, self._look_at - self.clock()))
        else:
            taken = self._crew.taken
            self._crew.wait(WAIT_SECONDS)
            if self._crew.running or self._crew.taken > taken:
                self._idle_since = self.clock()

    def _find(self) -> Store | None:
        """The study that wants workers; None while there is none. Raises UsageError for several."""
        if self._catalog is None:
            self._catalog = connect(self.asked.store)
        catalog, study = self._catalog, self.asked.study
        if study is not None:
            try:
                return catalog.open(study)
            except NoSuchStudy:
                self._say_once(f"there is no study {study!r} yet; waiting for it")
                return None
        names = [name for name in catalog.names() if _terms(catalog.open(name).record()) is not None]
        if len(names) > 1:
            raise UsageError(
                f"{len(names)} studies want workers: {', '.join(names)}", f"name one: --study {names[0]}"
            )
        if not names:
            self._say_once("no study wants workers yet; one does with: hpo optimize FILE.py --workers 0")
            return None
        return catalog.open(names[0])

    def _look(self, store: Store, folder: Path) -> None:
        """Let free slots look for trials, where the study has some for them and its code is known."""
        record = store.record()
        terms = _terms(record)
        if self._crew is not None and not self._crew.is_for(record, terms):
            self._look_at = self.clock() + LOOK_SECONDS
            self._crew.withdraw()
            if self._crew.running:
                return
            self._dismiss()
        if terms is None:
            self._look_at = self.clock() + LOOK_SECONDS
            self._say_once(f"nothing to do yet: nobody drives study {store.study} with --workers 0")
            return
        if self._crew is None:
            self._crew = self._engage(store, record, terms, folder)
        most = self.asked.max_trials
        self._crew.look_for_trials(len(self.asked.slots) if most is None else most - self._taken())
        self._said = ""

    def _engage(self, store: Store, record: StudyRecord, terms: Terms, folder: Path) -> _Crew:
        """Workers for the study's code as it is now. Raises UntrustedCode."""
        identity = record.identity
        code = _fetched(store, record, self.asked.trust, folder)
        settings = WorkerSettings(
            store=store.url,
            study=store.study,
            study_seed=identity.seed,
            code=str(code),
            file=entry_file(identity),
            name=identity.entry_point.rpartition(":")[2],
            fingerprint=identity.fingerprint,
            folder=str(folder),
            arguments=identity.arguments,
            lease_seconds=terms.lease_seconds,
            timeout_seconds=terms.timeout_seconds,
            tracking_uri=self.asked.tracking_uri,
            snapshot=code.name,
        )
        slots = self.asked.slots
        self.say(f"study {store.study}: {len(slots)} at a time, code {code.name[:12]}")
        return _Crew(store, settings, terms, ProcessExecutor(settings, slots), self.say)

    def _dismiss(self) -> None:
        if self._crew is not None:
            self._crew.close()
            self._taken_before += self._crew.taken
            self._crew = None

    def _say_once(self, text: str) -> None:
        if text != self._said:
            self.say(text)
            self._said = text

    def _rest(self, seconds: float) -> None:
        """So long, or until a signal has come."""
        until = self.clock() + seconds
        while (left := until - self.clock()) > 0:
            time.sleep(min(left, WAIT_SECONDS))
            if self.wish.is_drain() or self.wish.is_cancel():
                return


def _terms(record: StudyRecord) -> Terms | None:
    """On what terms the study has trials for workers; None where it has none for them now."""
    is_driven = record.driver is not None and record.snapshot is not None
    return Terms.of(record.notes.get(TERMS_NOTE)) if is_driven else None


def _fetched(store: Store, record: StudyRecord, trust: Trust, folder: Path) -> Path:
    """The folder with the study's code, which this worker may run. Raises UntrustedCode."""
    sha256 = record.snapshot
    if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
        raise UntrustedCode(f"study {store.study!r} names {sha256!r} as its code", "that is no SHA-256")
    name, archive = snapshot_name(sha256), folder / f"{sha256}.zip"
    sizes = [file.size for file in store.files() if file.name == name]
    if not sizes or sizes[0] > snapshots.TOTAL_BYTES or not store.get_file(name, archive):
        raise UntrustedCode(
            f"study {store.study!r} does not keep the code {sha256} that it names",
            "start its driver again: it keeps the code as it is then",
        )
    trust.check(record.identity, record.notes.get(SIGNATURE_NOTE), sha256, archive)
    code = folder / "code" / sha256
    if not code.exists():
        snapshots.unpack(archive, code)
    return code


@dataclass
class _Crew:
    """The processes that run trials of one study with one code. ``running``: trials, and whose they are;
    ``taken``: how many there were."""

    store: Store
    settings: WorkerSettings
    terms: Terms
    executor: ProcessExecutor
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    running: dict[int, str] = field(default_factory=dict, init=False)
    taken: int = field(default=0, init=False)
    _events: deque[Event] = field(default_factory=deque, init=False)
    _suspects: set[int] = field(default_factory=set, init=False)
    _check_at: float = field(default=0.0, init=False)

    def is_for(self, record: StudyRecord, terms: Terms | None) -> bool:
        """Whether these processes run what the study has now; without terms there is nothing to run."""
        return record.snapshot == self.settings.snapshot and terms in (None, self.terms)

    def look_for_trials(self, most: int) -> None:
        """Every free slot takes the next trial that waits, up to so many of them."""
        while self.executor.free() and self._looking() < most:
            self.executor.submit(None)

    def wait(self, seconds: float) -> None:
        """Deal with what happens meanwhile."""
        events = self.executor.wait(seconds)
        # A short trial may have begun and ended by now.
        running = {event.number: "" for event in events if event.number is not None} | self.executor.running()
        for number in sorted(running.keys() - self.running.keys()):
            self.running[number] = running[number]
            self.taken += 1
            self.say(f"trial {number} claimed")
        self._events += events
        while self._events:
            self._deal_with(self._events[0])
            self._events.popleft()  # only now: while the store is away, it is not forgotten
        if self.clock() >= self._check_at:
            self._check_at = self.clock() + self.terms.lease_seconds / 3
            self._stop_what_was_taken_back()

    def withdraw(self) -> None:
        """No slot looks for a trial any more; those that have one go on."""
        if self._looking():
            self.executor.withdraw()
            self._hand_back()

    def close(self) -> None:
        """Stop all of them; what they were running is offered again, and counts against no retries."""
        self.executor.close()
        self.running.clear()
        with contextlib.suppress(StoreError):  # then the driver sees them fall silent
            self._hand_back()

    def _looking(self) -> int:
        return self.executor.slots - self.executor.free() - len(self.executor.running())

    def _deal_with(self, event: Event) -> None:
        if isinstance(event, Died):
            mourn(self.store, event, self.settings.work_folder, self.terms.retries)
            if event.worker is not None:
                self.store.retire(event.worker)
            what = "a worker" if event.number is None else f"the worker of trial {event.number}"
            self.say(f"{what} is dead: {event.failure.reason}")
        elif event.number is not None:
            self.say(_ending(self.store.trial(event.number)))
        if event.number is not None:
            self.running.pop(event.number, None)

    def _stop_what_was_taken_back(self) -> None:
        """A claim may be lost while its trial goes on: to the driver, or for silence."""
        if not self.running:
            return
        held = {t.number for t in self.store.trials(State.RUNNING) if t.worker == self.running.get(t.number)}
        lost = self.running.keys() - held
        # One that has just ended looks the same; by the next time it has been told.
        stopped = lost & self._suspects
        self._suspects = lost - stopped
        self.executor.cancel(stopped)
        for number in sorted(stopped):
            self.store.retire(self.running.pop(number))
            self.say(f"trial {number} was taken back")

    def _hand_back(self) -> None:
        """Of those that this process has started and that run nothing it knows of, none is left in the study,
        nor what they had claimed."""
        me, busy = worker_name(os.getpid()), set(self.running.values())
        for worker in self.store.workers():
            is_mine = isinstance(worker.offers, Mapping) and worker.offers.get("started_by") == me
            if is_mine and worker.name not in busy:
                if worker.trial is not None:
                    self.store.recall([worker.trial])
                self.store.retire(worker.name)


def _ending(trial: Trial) -> str:
    took = "" if trial.seconds is None else f" in {max(0.0, trial.seconds):.1f} s"
    if isinstance(trial.error, Failed) and trial.state is State.FAILED:
        return f"trial {trial.number} failed ({trial.error.kind}): {trial.error.reason}"
    if trial.state.has_ended:
        loss = "?" if trial.loss is None else f"{trial.loss:.5g}"
        return f"trial {trial.number} {trial.state}: loss {loss}{took}"
    return f"trial {trial.number} was taken back"
