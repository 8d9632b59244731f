"""Driving a study for a person: workers, observers, and what is said before, meanwhile and at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo.cli.interrupts import Interrupts
from hpo.cli.options import program
from hpo.core.errors import ExitCode

if TYPE_CHECKING:
    from hpo.executors import Executor
    from hpo.executors.spark import Cluster
    from hpo.launch import Driven, Request
    from hpo.search.pruning import Judge
    from hpo.study import Ending, Fate, Limits
    from hpo.tracking.mlflow import MlflowObserver
    from hpo.tracking.tensorboard import TensorBoardObserver


@dataclass(frozen=True, slots=True)
class How:
    """Where trials run and where they are shown. ``slots``: the devices of each worker; without any, people
    start workers themselves. ``cluster``: where trials run in place of here."""

    slots: list[tuple[str, ...]]
    isolate: bool
    inline: bool
    tracking_uri: str | None
    experiment: str | None
    tensorboard: bool
    tensorboard_folder: Path | None
    cluster: Cluster | None = None


def drive(request: Request, how: How, interrupts: Interrupts, command: str) -> tuple[int, dict[str, Any]]:
    """Drive the study to an end; returns the exit code and what ``--json`` prints. ``command``: to go on."""
    from hpo.launch import driving

    with driving(request) as driven:
        return _drive(driven, request.limits, how, interrupts, command)


def _drive(
    driven: Driven, limits: Limits, how: How, interrupts: Interrupts, command: str
) -> tuple[int, dict[str, Any]]:
    from rich.console import Console

    from hpo.core.errors import StoreError
    from hpo.search import Grid
    from hpo.stores import best_of, unfinished_points
    from hpo.study import Ending, Fate, Study
    from hpo.tracking.progress import Progress

    identity, store, before = driven.identity, driven.store, best_of(driven.store)
    points, space = driven.points, driven.task.space
    rows = None if points is None else points.rows(space, identity.seed)
    tensorboard = _tensorboard(driven, how)
    mlflow = _mlflow(driven, how)
    progress = Progress(
        Console(stderr=True),
        identity.study,
        limits.max_evals,
        counts=store.record().counts,
        best=None if before is None else before.loss,
        parallelism=len(how.slots),
        points=unfinished_points(store),
    )
    ending = None
    with _logged_to(progress.say):
        progress.say(_opening(driven, how))
        if limits.max_evals is not None and (have := _ended(driven)) >= limits.max_evals:
            progress.say(f"it has {have} trials already; for 20 more: --max-evals {have + 20}")
        for warning in driven.warnings:
            progress.say(f"warning: {warning}")
        try:
            # Nobody can take a trial back that runs right here: --inline leaves a Ctrl-C earlier.
            with (
                interrupts.gently(progress.say, patience=2 if how.inline else 3),
                contextlib.closing(_executor(driven, how, limits, interrupts, progress.say)) as executor,
            ):
                if how.cluster or not how.slots:
                    progress.count_workers = lambda: executor.slots
                study = Study(
                    store=store,
                    space=space,
                    algorithm=driven.algorithm,
                    executor=executor,
                    limits=limits,
                    seed=identity.seed,
                    work_folder=driven.settings.work_folder,
                    judge=_judge(driven),
                    observers=[one for one in (progress, mlflow, tensorboard) if one is not None],
                    begin_run=mlflow.begin if mlflow else None,
                    repeats=identity.repeats,
                )
                if points is not None and rows is not None:
                    fates = study.enqueue(rows, interrupts)
                    progress.say(f"{points.path}: {_said(fates, len(rows))}")
                    new = [i for i, fate in enumerate(fates) if fate is Fate.NEW]
                    for line in points.drawn(space, rows, new):
                        progress.say(line)
                for line in driven.taken.said() if driven.taken is not None else ():
                    progress.say(line)
                if isinstance(driven.algorithm, Grid):
                    progress.say(driven.algorithm.size(space))
                ending = study.run(interrupts)
                if study.exhausted is not None and ending is Ending.DONE:
                    progress.say(f"done: {study.exhausted.message}")
        finally:
            with contextlib.suppress(StoreError):  # if it is what has failed, the next driver does it
                store.recall()
            progress.close()
            if tensorboard is not None:
                tensorboard.close()
                progress.say(f"TensorBoard: tensorboard --logdir {shlex.quote(str(tensorboard.folder))}")
            if ending is None:  # an error passes through here: say at least how to go on
                _close(mlflow, ending, progress.say)
                _say_how_to_go_on(driven, mlflow, progress.say, command)
        code = _conclude(driven, ending, interrupts, mlflow, progress.say, command)
    return code, _document(driven, mlflow)


def _said(fates: Sequence[Fate], points: int) -> str:
    """What becomes of a person's points."""
    from hpo.study import Fate

    count = Counter(fates)
    new, waiting, twice, had = (count[fate] for fate in (Fate.NEW, Fate.WAITING, Fate.TWICE, Fate.HAD))
    return "; ".join(
        [
            f"{new} of {points} points are tried first" if new or not count else "none of its points is new",
            *([f"{waiting} still {'waits' if waiting == 1 else 'wait'}"] if waiting else []),
            *([f"{twice} {'is' if twice == 1 else 'are'} in the file more than once"] if twice else []),
            *([f"the study has had {had}"] if had else []),
            *([f"{points - len(fates)} were not reached"] if len(fates) < points else []),
        ]
    )


def _judge(driven: Driven) -> Judge | None:
    from hpo.search.pruning import Judge, pruner

    rule = pruner(driven.pruner)
    return None if rule is None else Judge(rule, driven.identity.seed)


def _mlflow(driven: Driven, how: How) -> MlflowObserver | None:
    from hpo.tracking.mlflow import MlflowObserver, default_tracking_uri

    if (how.tracking_uri or "").strip().lower() == "none":
        return None
    store = driven.settings.store
    uri = how.tracking_uri or default_tracking_uri(store)
    return MlflowObserver(store, driven.identity.study, uri, how.experiment)


def _tensorboard(driven: Driven, how: How) -> TensorBoardObserver | None:
    from hpo.stores import file_of
    from hpo.tracking.tensorboard import TensorBoardObserver

    if not how.tensorboard:
        return None
    beside = (file_of(driven.settings.store) or Path("hpo.db")).parent / "tensorboard"
    return TensorBoardObserver(driven.store, how.tensorboard_folder or beside / driven.identity.study)


def _executor(
    driven: Driven, how: How, limits: Limits, interrupts: Interrupts, say: Callable[[str], None]
) -> Executor:
    from hpo.core.study import Terms
    from hpo.tracking.mlflow import is_http

    settings = driven.settings
    if not how.slots:
        from hpo.executors.external import ExternalExecutor

        terms = Terms(settings.lease_seconds, limits.retries, settings.timeout_seconds)
        return ExternalExecutor(driven.store, terms, _worker_command(driven))
    if how.tracking_uri and is_http(how.tracking_uri):
        settings = replace(settings, tracking_uri=how.tracking_uri)
    if how.inline:
        from hpo.executors.inline import InlineExecutor
        from hpo.executors.processes import worker_name

        return InlineExecutor(driven.store, driven.task, settings, worker_name(os.getpid()))
    if how.cluster:
        from hpo.executors.spark import SparkExecutor

        say("Spark is starting: Java here, then Python on its executors")
        with interrupts.at_once():
            executor = SparkExecutor(settings, how.cluster, isolate=how.isolate)
        say(executor.room() + (f"; its pages: {executor.pages}" if executor.pages else ""))
        return executor
    from hpo.executors.processes import ProcessExecutor

    return ProcessExecutor(settings, how.slots, isolate=how.isolate)


def _close(mlflow: MlflowObserver | None, ending: Ending | None, say: Callable[[str], None]) -> None:
    from hpo.study import Ending

    if mlflow is None:
        return
    if ending is None:
        mlflow.close(timeout=0.0, status="KILLED")
    elif not mlflow.close(status="FINISHED" if ending is Ending.DONE else "KILLED"):
        say("MLflow does not have everything yet; `hpo mlflow sync` brings the rest")


def _conclude(
    driven: Driven,
    ending: Ending,
    interrupts: Interrupts,
    mlflow: MlflowObserver | None,
    say: Callable[[str], None],
    command: str,
) -> int:
    """Tell how it ended and how to go on; returns the exit code."""
    from hpo.core.plain import flat
    from hpo.core.pruning import summary
    from hpo.stores import best_of
    from hpo.study import Ending

    _close(mlflow, ending, say)
    counts, best = driven.store.record().counts, best_of(driven.store)
    if ending is not Ending.DONE:
        say(f"stopped with {_ended(driven)} trials ended; unfinished ones run when you continue")
    elif waiting := counts["waiting"]:
        what = f"point{'' if waiting == 1 else 's'}" if driven.identity.repeats == 1 else "trials"
        verb = "waits" if waiting == 1 else "wait"
        say(f"{waiting} {what} still {verb}: --max-evals {_ended(driven) + waiting}")
    if best is not None:
        say(f"best: trial {best.trial.number}, loss {best.mean}")
        for name, value in flat(best.trial.params).items():
            say(f"  {name} = {value:.6g}" if isinstance(value, float) else f"  {name} = {value}")
    if counts["pruned"] and (pruning := summary(list(driven.store.trials()))) is not None:
        say(str(pruning))
    _say_how_to_go_on(driven, mlflow, say, None if ending is Ending.DONE else command)
    match ending:
        case Ending.DRAINED | Ending.CANCELLED:
            return interrupts.exit_code
        case Ending.TIMEOUT:
            say("the study reached its --timeout")
            return ExitCode.TIMEOUT
        case Ending.FAILURES:
            say(f"stopped: too many trials failed, {counts['failed']} in all (--max-failures)")
            return ExitCode.FAILURES
    if best is None:
        what = "no trial succeeded" if driven.identity.repeats == 1 else "of no point all trials succeeded"
        say(f"{what}; see why with: {_show_command(driven)}")
        return ExitCode.NO_SUCCESS
    return ExitCode.DONE


def _document(driven: Driven, mlflow: MlflowObserver | None) -> dict[str, Any]:
    """What ``--json`` prints."""
    from hpo.stores import best_of

    counts, best = driven.store.record().counts, best_of(driven.store)
    location = mlflow.location if mlflow else None
    return {
        "study": driven.identity.study,
        "store": driven.url,
        "trials": {state: counts[state] for state in ("completed", "pruned", "failed")},
        "best": best and best.document(),
        "mlflow": location and location.document(),
    }


def _opening(driven: Driven, how: How) -> str:
    identity, slots = driven.identity, how.slots
    what = "new study" if driven.is_new else "continuing study"
    workers = f"{len(slots)} worker{'s' if len(slots) > 1 else ''}" if slots else "workers by hand"
    if how.cluster:
        workers = f"on Spark at {how.cluster.master}"
    elif slots and slots[0]:
        workers += f" on GPUs {', '.join('+'.join(slot) for slot in slots)}"
    search = f"algorithm {identity.algorithm}, pruner {driven.pruner}, seed {identity.seed}"
    return f"{what} {identity.study}: {search}, {workers}"


def _ended(driven: Driven) -> int:
    counts = driven.store.record().counts
    return counts["completed"] + counts["pruned"] + counts["failed"]


def _say_how_to_go_on(
    driven: Driven, mlflow: MlflowObserver | None, say: Callable[[str], None], command: str | None
) -> None:
    if command is not None:
        say(f"continue: {command}")
    say(f"trials:   {_show_command(driven)}")
    if mlflow is not None:
        url = mlflow.location.url if mlflow.location else None
        say(f"MLflow:   {url or f'{program()} ui{_where(driven)}'}")


def _show_command(driven: Driven) -> str:
    return f"{program()} show {driven.identity.study}{_where(driven)}"


def _worker_command(driven: Driven) -> str:
    return f"{program()} worker --store {shlex.quote(driven.url)} --study {driven.identity.study}"


def _where(driven: Driven) -> str:
    """The option that names the store, where another command needs it."""
    return "" if driven.url == "sqlite:///hpo.db" else f" --store {shlex.quote(driven.url)}"


@contextlib.contextmanager
def _logged_to(say: Callable[[str], None]) -> Iterator[None]:
    """hpo's own warnings go above the progress display, not through it."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(self.format(record))

    logger, handler = logging.getLogger("hpo"), Handler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
