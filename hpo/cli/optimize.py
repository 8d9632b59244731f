"""`hpo optimize`: drive a study."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpo.cli.interrupts import Interrupts
from hpo.cli.options import Duration, echo_json, json_option, program, store_option
from hpo.core.errors import ExitCode

if TYPE_CHECKING:
    from hpo.executors import Executor
    from hpo.launch import Driven
    from hpo.search.pruning import Judge
    from hpo.study import Ending, Fate, Limits
    from hpo.tracking.mlflow import MlflowObserver
    from hpo.tracking.tensorboard import TensorBoardObserver


@click.command(
    epilog="\b\nExamples:\n  hpo optimize spaces/digits_mlp.py --max-evals 20\n"
    "  hpo optimize spaces/digits_mlp.py --max-evals 100 --gpus 0,1 --set epochs=30\n"
    "  hpo optimize spaces/digits_mlp.py --study longer --max-evals 50 --warm-start digits_mlp\n"
    "  hpo optimize spaces/classifiers.py --study repeated --max-evals 60 --points known.csv --repeats 3"
)
@click.argument("file", metavar="FILE.py[:OBJECTIVE]")
@click.option("--max-evals", type=click.IntRange(min=1), help="Stop after so many ended trials in all.")
@click.option(
    "--timeout",
    type=Duration(),
    help="Stop after this time (2h, 30m); running trials run again when you continue.",
)
@click.option("--study", help="The study's name.  [default: the file's name]")
@store_option
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Trials at a time.  [default: one for each entry of --gpus, else 1]",
)
@click.option("--gpus", help="A worker for each entry: 0,1 is two workers; 0+1,2+3 two workers of two GPUs.")
@click.option(
    "--algo",
    "algorithm",
    help="auto (gp up to 300 trials, tpe from there), gp, tpe, random, quasirandom, grid (grid:7 for 7 levels"
    " of continuous parameters), or a hyperopt algorithm as module:function.  [default: auto]",
)
@click.option(
    "--pruner",
    help="Stops hopeless trials early by the losses they report: auto, median, asha, hyperband, none."
    "  [default: the study's, else none]",
)
@click.option(
    "--seed", type=click.IntRange(min=0), help="Seed of the search.  [default: random, kept in the study]"
)
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Fix a parameter, or an argument of the objective.",
)
@click.option(
    "--repeats",
    type=click.IntRange(min=1, max=1000),
    help="Evaluate each point in so many trials, each with its own seed; search on their mean.  [default: 1]",
)
@click.option(
    "--noisy",
    "is_noisy",
    is_flag=True,
    help="The objective is noisy: a point that was tried may be tried again.",
)
@click.option(
    "--points",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Try the points of this file first: JSON, JSON lines or CSV.",
)
@click.option(
    "--warm-start",
    metavar="STUDY",
    help="Begin at an earlier study's best points; STORE_URL#STUDY names one in another store.",
)
@click.option("--trial-timeout", type=Duration(), help="Kill a trial that takes longer.")
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="How often a trial runs again when its worker dies.",
)
@click.option(
    "--max-failures",
    type=click.FloatRange(0, 1),
    default=0.9,
    show_default=True,
    help="Stop when more than this share of this run's trials has failed, from the tenth on.",
)
@click.option("--isolate", is_flag=True, help="A fresh process for every trial.")
@click.option("--inline", is_flag=True, help="Run trials in this process, to debug them.")
@click.option(
    "--lease",
    type=Duration(),
    default="30s",
    show_default=True,
    help="How long a worker may be silent before its trial is given to another.",
)
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    help="MLflow's database or server, or none.  [default: mlflow.db beside the store]",
)
@click.option(
    "--experiment", envvar="MLFLOW_EXPERIMENT_NAME", help="MLflow's experiment.  [default: the study's name]"
)
@click.option(
    "--tensorboard",
    is_flag=True,
    help="Write TensorBoard's event files, to tensorboard/STUDY beside the store.",
)
@click.option(
    "--tensorboard-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="The same, to this folder.",
)
@click.option(
    "--take-over",
    is_flag=True,
    help="Drive the study although another host's hpo seems to: only if that one is dead.",
)
@json_option
def optimize(
    file: str,
    store: str,
    sets: tuple[str, ...],
    workers: int | None,
    gpus: str | None,
    max_evals: int | None,
    timeout: float | None,
    max_failures: float,
    retries: int,
    lease: float,
    isolate: bool,
    inline: bool,
    tracking_uri: str | None,
    experiment: str | None,
    tensorboard: bool,
    tensorboard_dir: Path | None,
    as_json: bool,
    trial_timeout: float | None,
    **asked: Any,
) -> int:
    """Search for the best parameters of a training function.

    FILE.py has a `space` (a hyperopt expression) and an `objective(params, run)` that returns a loss.
    The same command again continues the study: --max-evals counts all its ended trials.
    Ctrl-C finishes the running trials, a second one hands them back, a third leaves at once.
    """
    if not 1 <= lease <= 86400:
        raise click.UsageError("--lease is from 1s to 1d")
    if math.isnan(max_failures):
        raise click.UsageError("--max-failures is a share from 0 to 1")
    if asked["warm_start"] == "":
        raise click.UsageError("--warm-start is empty: name a study, as `hpo show` lists them")
    if asked["points"] == Path():
        raise click.UsageError("--points is empty: name a JSON, JSON lines or CSV file")
    how = How(
        worker_slots(workers, gpus),
        isolate,
        inline,
        tracking_uri,
        experiment,
        tensorboard or tensorboard_dir is not None,
        tensorboard_dir,
    )
    if inline and (len(how.slots) > 1 or gpus or isolate or trial_timeout):
        raise click.UsageError(
            "--inline runs one trial at a time here: no --workers, --gpus, --isolate, --trial-timeout"
        )

    from hpo.launch import Request, driving
    from hpo.loading import parse_settings
    from hpo.study import Limits

    request = Request(
        file=file,
        store=store,
        settings=parse_settings(sets),
        limits=Limits(max_evals, timeout, max_failures, retries, lease),
        trial_timeout_seconds=trial_timeout,
        **asked,
    )
    with Interrupts() as interrupts:
        try:
            with driving(request) as driven:
                return _drive(driven, request.limits, how, interrupts, as_json)
        except KeyboardInterrupt:
            return interrupts.exit_code


def worker_slots(workers: int | None, gpus: str | None) -> list[tuple[str, ...]]:
    """The devices of each worker: ``0+1,2+3`` is ``[("0", "1"), ("2", "3")]``; no GPUs are empty tuples."""
    if gpus is None:
        return [()] * (workers or 1)
    slots = [tuple(device.strip() for device in entry.split("+")) for entry in gpus.split(",")]
    for device in (device for slot in slots for device in slot):
        if not GPU.fullmatch(device):
            raise click.UsageError(f"--gpus {gpus}: {device!r} names no GPU; write 0,1 or 0+1,2+3")
    if workers is not None and workers != len(slots):
        raise click.UsageError(
            f"--workers {workers} does not match --gpus {gpus}, which names {len(slots)} workers;"
            " leave --workers out, or name a GPU for each (0,0 puts two on one)"
        )
    return slots


GPU = re.compile(r"\d+|(GPU|MIG)-[0-9a-fA-F/-]+")  # an index or a UUID, as nvidia-smi lists them


@dataclass(frozen=True, slots=True)
class How:
    """Where trials run and where they are shown. ``slots``: the devices of each worker."""

    slots: list[tuple[str, ...]]
    isolate: bool
    inline: bool
    tracking_uri: str | None
    experiment: str | None
    tensorboard: bool
    tensorboard_folder: Path | None


def _drive(driven: Driven, limits: Limits, how: How, interrupts: Interrupts, as_json: bool) -> int:
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
    # Standard output is the document's alone: an objective that runs --inline prints elsewhere.
    aside = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    with aside, _logged_to(progress.say):
        progress.say(_opening(driven, how.slots))
        if limits.max_evals is not None and (have := _ended(driven)) >= limits.max_evals:
            progress.say(f"it has {have} trials already; for 20 more: --max-evals {have + 20}")
        for warning in driven.warnings:
            progress.say(f"warning: {warning}")
        try:
            # Nobody can take a trial back that runs right here: --inline leaves a Ctrl-C earlier.
            with (
                interrupts.gently(progress.say, patience=2 if how.inline else 3),
                contextlib.closing(_executor(driven, how)) as executor,
            ):
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
                _say_how_to_go_on(driven, mlflow, progress.say)
        code = _conclude(driven, ending, interrupts, mlflow, progress.say)
    if as_json:
        echo_json(_document(driven, mlflow))
    return code


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


def _executor(driven: Driven, how: How) -> Executor:
    from hpo.tracking.mlflow import is_http

    settings = driven.settings
    if how.tracking_uri and is_http(how.tracking_uri):
        settings = replace(settings, tracking_uri=how.tracking_uri)
    if how.inline:
        from hpo.executors.inline import InlineExecutor
        from hpo.executors.processes import worker_name

        return InlineExecutor(driven.store, driven.task, settings, worker_name(os.getpid()))
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
    _say_how_to_go_on(driven, mlflow, say, is_done=ending is Ending.DONE)
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


def _opening(driven: Driven, slots: list[tuple[str, ...]]) -> str:
    identity = driven.identity
    what = "new study" if driven.is_new else "continuing study"
    workers = f"{len(slots)} worker{'s' if len(slots) > 1 else ''}"
    if slots[0]:
        workers += f" on GPUs {', '.join('+'.join(slot) for slot in slots)}"
    how = f"algorithm {identity.algorithm}, pruner {driven.pruner}, seed {identity.seed}"
    return f"{what} {identity.study}: {how}, {workers}"


def _ended(driven: Driven) -> int:
    counts = driven.store.record().counts
    return counts["completed"] + counts["pruned"] + counts["failed"]


def _say_how_to_go_on(
    driven: Driven, mlflow: MlflowObserver | None, say: Callable[[str], None], *, is_done: bool = False
) -> None:
    if not is_done:
        say(f"continue: {shlex.join([program(), *sys.argv[1:]])}")
    say(f"trials:   {_show_command(driven)}")
    if mlflow is not None:
        url = mlflow.location.url if mlflow.location else None
        say(f"MLflow:   {url or f'{program()} ui{_where(driven)}'}")


def _show_command(driven: Driven) -> str:
    return f"{program()} show {driven.identity.study}{_where(driven)}"


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
