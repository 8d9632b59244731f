"""One trial, wherever it runs: claim, run, report, finish."""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import shutil
import sys
import time
import traceback
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpo.core.errors import ClaimLost, OutsideSpace, StoreError, StoreUnreachable, TrialPruned
from hpo.core.files import ARTIFACTS, CHECKPOINT, LOG, TRACKED, is_below
from hpo.core.plain import plain
from hpo.core.trial import (
    Answer,
    Claim,
    Completed,
    Failed,
    Kind,
    Outcome,
    Pruned,
    Trial,
    trial_seed,
)
from hpo.delivery import Delivery
from hpo.diagnosis.epochs import Evidence, diagnose
from hpo.keeper import Keeper
from hpo.loading import Task, describe_exception
from hpo.run import Run, complain
from hpo.stores import Store
from hpo.training.hardware import Monitor

REASON_CHARACTERS = 2000
RUN_ID = re.compile(r"\w{1,64}")  # as MLflow writes them
FINISH_RETRY_SECONDS = (0.1, 0.5, 2.0, 5.0, 10.0)  # how long a result waits for a store that fails


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where and as whom a worker works.

    ``worker``: its name, unlike any other's. ``folder``: where trials keep their files meanwhile.
    ``code``: the root of the code that runs, to name places in it. ``is_apart``: whether the worker is a
    process of its own; then prints go to the trial's log, and Ctrl-C is none of its business.
    ``tracking_uri``: the MLflow server on which the driver makes trials' runs, if there is one.
    """

    worker: str
    folder: Path
    code: Path
    study_seed: int
    gpus: tuple[str, ...] = ()
    is_apart: bool = True
    tracking_uri: str | None = None


def run_one(
    store: Store, number: int | None, task: Task, place: Workplace, keeper: Keeper | None = None
) -> int | None:
    """Claim a trial (the first waiting one, if ``number`` is None), run it and store how it ended.

    Whatever the objective does ends as an outcome in the store; only KeyboardInterrupt passes, where the
    worker is no process of its own, after the trial was handed back. Returns the trial's number, None if
    there was nothing to claim.
    """
    claim = store.claim(place.worker, number, gpus=place.gpus)
    if claim is None:
        return None
    folder = trial_folder(place.folder, claim.number, claim.attempt)
    try:
        if keeper:
            keeper.watch(claim, folder / LOG)
        _run_claimed(store, claim, task, place, folder, keeper)
    except ClaimLost as lost:
        complain(f"{lost}; its result is dropped")
    except KeyboardInterrupt:
        with contextlib.suppress(ClaimLost):
            store.release(claim)
        raise
    finally:
        if keeper:
            keeper.rest()
        shutil.rmtree(folder, ignore_errors=True)
    return claim.number


def trial_folder(folder: Path, number: int, attempt: int) -> Path:
    """Where an attempt keeps its files while it runs."""
    return folder / "trials" / f"{number:05d}.{attempt}"


def keep_log(store: Store, number: int, folder: Path) -> Trial:
    """Keep what a trial printed in this folder before its worker died, and clear its files away; returns the
    trial."""
    trial = store.trial(number)
    left = trial_folder(folder, number, trial.attempts)
    log = left / LOG
    if log.exists() and log.stat().st_size:
        with contextlib.suppress(StoreError, OSError):
            store.put_files({LOG: log}, number)
    shutil.rmtree(left, ignore_errors=True)
    return trial


def _run_claimed(
    store: Store, claim: Claim, task: Task, place: Workplace, folder: Path, keeper: Keeper | None
) -> None:
    run = Run(
        number=claim.number,
        seed=trial_seed(place.study_seed, claim.number),
        directory=folder / "artifacts",
        checkpoint_directory=folder / "checkpoint",
        gpus=place.gpus,
        attempt=claim.attempt,
    )
    shutil.rmtree(folder, ignore_errors=True)  # of a study that was deleted by hand
    run.directory.mkdir(parents=True)
    run.checkpoint_directory.mkdir()
    log = folder / LOG
    checkpoints = _Checkpoints(store, claim, run.checkpoint_directory)
    Delivery(f"trial {claim.number}").make(checkpoints.restore)

    def tell(epoch: int, loss: float | None, metrics: Mapping[str, float], when: float) -> Answer:
        return store.report(claim, epoch, loss, metrics, time=when)

    def send(epoch: int, loss: float | None, metrics: Mapping[str, float], when: float) -> Answer:
        checkpoints.keep()
        return tell(epoch, loss, metrics, when)

    run.send = send
    tracked = folder / "mlflow"
    captured = _captured(log) if place.is_apart else contextlib.nullcontext()
    with _as_it_was(), captured, logging_to(_where_to_log(claim, place, tracked)):
        with Monitor(place.gpus) as monitor:
            run.system = monitor.take
            outcome = _execute(task, claim, run, place)
        outcome = _timed(outcome, run, monitor)
    if keeper:
        keeper.watch(claim, log, is_timed=False)  # it has returned: storing what it left may take its time
    run.send = tell  # nobody continues it: its checkpoints go
    _deliver(store, claim, run, log, tracked, outcome)


def _execute(task: Task, claim: Claim, run: Run, place: Workplace) -> Outcome:
    """Call the objective; every way it can end is an outcome. The traceback goes to standard error."""
    worker = os.getpid()
    try:
        # A store carries points, not parameters: what lies outside the space is refused here.
        task.space.check(claim.point)
        params = task.space.params(claim.point)
        random.seed(run.seed)
        np.random.seed(run.seed)
        return judge(task(params, run))
    except TrialPruned:
        return Pruned(run.last_loss)
    except ClaimLost:
        raise
    except FloatingPointError as error:  # a training that noticed its own divergence
        return Failed(Kind.NAN, str(error)[:REASON_CHARACTERS])
    except OutsideSpace as error:
        return Failed(Kind.EXCEPTION, f"OutsideSpace: {error}")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int | str | None) else type(error.code).__name__
        return Failed(Kind.EXIT, f"the objective called sys.exit({code!r})"[:REASON_CHARACTERS])
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and not place.is_apart:
            raise
        with contextlib.suppress(Exception):  # a full disk, or a standard error that is none
            traceback.print_exc()
        kind = Kind.OUT_OF_MEMORY if _is_out_of_memory(error) else Kind.EXCEPTION
        return Failed(kind, describe_exception(error, place.code)[:REASON_CHARACTERS])
    finally:
        if os.getpid() != worker:
            # A child that the objective forked has come back here: the trial is its parent's.
            _flush()
            os._exit(0)


def _timed(outcome: Outcome, run: Run, monitor: Monitor) -> Outcome:
    """The outcome with where its epochs' time went, unless the objective told that itself."""
    if isinstance(outcome, Failed) or "epoch_time" in outcome.result:
        return outcome
    try:
        epoch_time = run.clock.summary()
        if epoch_time is None:
            return outcome
        epoch_time["gpu"] = monitor.gpu()
        cause, advice = diagnose(Evidence.of(epoch_time, gpus=run.gpus))
        return replace(
            outcome, result={**outcome.result, "epoch_time": epoch_time | {"cause": cause, "advice": advice}}
        )
    except Exception as error:  # a clock is no reason to lose a training
        complain(f"the epochs of trial {run.number} are not explained: {type(error).__name__}: {error}")
        return outcome


def judge(returned: Any) -> Outcome:
    """What an objective returned, as an outcome: a float, or a dict with ``loss`` and more that JSON holds.

    ``status`` as in hyperopt: ``ok`` or ``fail``. A loss that is NaN, infinite, missing or no number fails
    the trial, each with its own kind.
    """
    result: dict[str, Any] = {}
    loss = returned
    if isinstance(returned, Mapping):
        if returned.get("status", "ok") != "ok":
            said = returned.get("reason") or returned.get("error") or f"status {returned['status']!r}"
            return Failed(Kind.REPORTED, f"the objective reported: {said}"[:REASON_CHARACTERS])
        if returned.get("loss") is None:
            return Failed(Kind.NO_LOSS, "the objective returned a dict without a loss; return {'loss': …}")
        loss = returned["loss"]
        try:
            result = plain({key: value for key, value in returned.items() if key not in ("loss", "status")})
        except TypeError as error:
            return Failed(Kind.NOT_JSON, f"{error}; put files into run.directory instead")
    if loss is None:
        return Failed(Kind.NO_LOSS, "the objective returned None; end it with `return loss`")
    try:
        if isinstance(loss, str | bytes | bool):
            raise TypeError
        value = float(loss)
    except (TypeError, ValueError):
        shown = f"{loss!r}"[:100]
        return Failed(Kind.WRONG_TYPE, f"the loss is {shown}, a {type(loss).__name__}, no number")
    if not math.isfinite(value):
        return Failed(Kind.NAN, f"the loss is {value}")
    return Completed(value, result)


def _is_out_of_memory(error: BaseException) -> bool:
    """MemoryError, and what frameworks raise in its place; told by name, as no framework is imported here."""
    if isinstance(error, MemoryError) or type(error).__name__ in (
        "OutOfMemoryError",
        "ResourceExhaustedError",
    ):
        return True
    try:
        text = str(error).lower()
    except Exception:  # an exception of the user's that can't be printed
        return False
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def _deliver(store: Store, claim: Claim, run: Run, log: Path, tracked: Path, outcome: Outcome) -> None:
    """Store what the trial has left: epochs, files, and last the outcome, after which it is nobody's."""
    delivery = Delivery(f"the result of trial {claim.number}")
    try:
        delivery.make(run.flush)
    except StoreError as error:
        complain(f"the last epochs of trial {claim.number} could not be kept: {error}")
    try:
        delivery.make(lambda: _keep_files(store, claim, run.directory, log, tracked))
    except (OSError, StoreError) as error:
        # The loss is worth more than the files.
        complain(f"the files of trial {claim.number} could not be kept: {error}")
    delivery.make(lambda: _finish(store, claim, outcome))


def _finish(store: Store, claim: Claim, outcome: Outcome) -> None:
    """Store the outcome; a store that fails for a while (a full disk) must not cost a finished training."""
    for seconds in FINISH_RETRY_SECONDS:
        try:
            store.finish(claim, outcome)
            return
        except StoreUnreachable:
            raise
        except StoreError as error:
            complain(f"trial {claim.number} has ended, but: {error}; trying again")
            time.sleep(seconds)
    store.finish(claim, outcome)


def _keep_files(store: Store, claim: Claim, artifacts: Path, log: Path, tracked: Path) -> None:
    files = {
        ARTIFACTS + _name(path, artifacts): path for path in sorted(artifacts.rglob("*")) if path.is_file()
    }
    if log.exists() and log.stat().st_size:
        files[LOG] = log
    if any(tracked.glob("*/*/meta.yaml")):  # a run: MLflow makes the folder itself at every question
        files[TRACKED] = pack(tracked)
    if files:
        store.put_files(files, claim.number, claim=claim)


def pack(folder: Path) -> Path:
    """The folder as an archive beside it. Not compressed: what unpacks it need not fear how large it gets."""
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED, strict_timestamps=False) as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file() or path.is_dir():  # MLflow looks for empty folders, too
                packed.write(path, _name(path, folder))
    return archive


class _Checkpoints:
    """The checkpoint folder of a trial, mirrored in the store, all its files at once."""

    def __init__(self, store: Store, claim: Claim, folder: Path) -> None:
        self._store, self._claim, self._folder = store, claim, folder
        self._kept: dict[str, tuple[int, int]] = {}

    def restore(self) -> None:
        number = self._claim.number
        for file in self._store.files(number):
            if file.name.startswith(CHECKPOINT):
                name = file.name.removeprefix(CHECKPOINT)
                if is_below(name) and self._store.get_file(file.name, self._folder / name, number):
                    self._kept[name] = self._stamp(self._folder / name)

    def keep(self) -> None:
        """Store what has changed since the last time; forget what is gone. Raises ClaimLost."""
        found = {
            _name(path, self._folder): (path, self._stamp(path))
            for path in self._folder.rglob("*")
            if path.is_file()
        }
        stamps = {name: stamp for name, (_, stamp) in found.items()}
        if stamps != self._kept:
            changed = {n: path for n, (path, stamp) in found.items() if self._kept.get(n) != stamp}
            self._store.put_files(
                {CHECKPOINT + name: path for name, path in changed.items()},
                self._claim.number,
                drop=[CHECKPOINT + name for name in self._kept.keys() - found.keys()],
                claim=self._claim,
            )
            self._kept = stamps

    @staticmethod
    def _stamp(path: Path) -> tuple[int, int]:
        status = path.stat()
        return status.st_mtime_ns, status.st_size


def _name(path: Path, folder: Path) -> str:
    """The file's name below the folder; bytes that are no UTF-8 are shown as such."""
    return os.fsencode(path.relative_to(folder).as_posix()).decode(errors="backslashreplace")


@contextlib.contextmanager
def _as_it_was() -> Iterator[None]:
    """Put back what an objective may change for the trials after it in the same process."""
    folder, streams = os.getcwd(), (sys.stdout, sys.stderr)
    environment = dict(os.environ)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        with contextlib.suppress(OSError):
            os.chdir(folder)
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)


def file_store(folder: Path) -> dict[str, str]:
    """The environment in which MLflow keeps its runs in the folder: plain files, made in milliseconds, where
    a database takes a second."""
    return {"MLFLOW_TRACKING_URI": str(folder), "MLFLOW_ALLOW_FILE_STORE": "true"}


def _where_to_log(claim: Claim, place: Workplace, folder: Path) -> dict[str, str]:
    """What the objective logs to MLflow itself goes live to the run that the driver has made for the trial on
    a server, else to this folder; never beside the user's files, and to no other trial's run."""
    if claim.run_id is not None and place.tracking_uri is not None and RUN_ID.fullmatch(claim.run_id):
        return {"MLFLOW_TRACKING_URI": place.tracking_uri, "MLFLOW_RUN_ID": claim.run_id}
    return file_store(folder)


@contextlib.contextmanager
def logging_to(environment: Mapping[str, str]) -> Iterator[None]:
    """MLflow in this process logs where the environment says, and all it has is there when the block ends."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):  # of whatever this process was started in
        os.environ.pop(name, None)
    os.environ |= environment
    _forget_experiment()
    try:
        yield
    finally:
        if mlflow := sys.modules.get("mlflow"):
            # A run that was left open would be the next trial's, too.
            with contextlib.suppress(Exception):
                mlflow.flush_async_logging()
            with contextlib.suppress(Exception):
                while mlflow.active_run() is not None:
                    mlflow.end_run()
        _forget_experiment()


def _forget_experiment() -> None:
    """mlflow remembers the id that set_experiment found; in another trial's folder there is no such one."""
    if fluent := sys.modules.get("mlflow.tracking.fluent"):
        vars(fluent)["_active_experiment_id"] = None


@contextlib.contextmanager
def _captured(log: Path) -> Iterator[None]:
    """Standard output and error, also of C code and child processes, go to the log."""
    with open(log, "ab", buffering=0) as file:
        _flush()
        saved = [os.dup(1), os.dup(2)]
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield
        finally:
            _flush()
            for descriptor, copy in enumerate(saved, start=1):
                os.dup2(copy, descriptor)
                os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # it may be anything that the objective put there
            stream.flush()
