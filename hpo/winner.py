"""Train the best parameters of a study for good: `hpo best STUDY --train`.

It is no trial: the search never learns of it. What it makes is a folder that says itself when it is whole;
where a command was killed, the next one goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpo import snapshot as snapshots
from hpo.core.errors import HpoError, NoTrialSucceeded, StudyChanged, TrainingFailed, UsageError
from hpo.core.files import snapshot_name
from hpo.core.plain import plain
from hpo.core.trial import Answer, Completed, Report, Trial, trial_seed
from hpo.executors.processes import environment_of_workers
from hpo.loading import EntryPoint, describe_exception, load
from hpo.run import Run
from hpo.stores import Best, Store, best_of
from hpo.training import Final
from hpo.worker import file_store, judge, logging_to

SUMMARY = "summary.json"  # written last: a folder that has it is finished
STATE = "unfinished"  # the folder with what a second start goes on from
UNHEEDED = "train with fit of hpo.training.torch or hpo.training.keras, or heed run.final: on, test, was_seen"


@dataclass(frozen=True, slots=True)
class Winner:
    """A finished training. ``loss``: where the validation data were trained on, too, that of the training.
    ``epochs``: what was reported, by epoch. Until `tidy`, what the objective logged to MLflow is there."""

    study: str
    trial: Trial
    final: Final
    folder: Path
    loss: float
    result: Mapping[str, Any]
    epochs: tuple[Report, ...]
    started: float
    ended: float

    @property
    def logged(self) -> Path:
        """The file store that the objective logged to, if it did."""
        return self.folder / STATE / "mlflow"

    def tidy(self) -> None:
        """Remove what only another start would have needed."""
        shutil.rmtree(self.folder / STATE)

    def document(self) -> dict[str, Any]:
        """What the summary holds and ``--json`` prints."""
        return {
            "study": self.study,
            "trial": self.trial.number,
            "params": dict(self.trial.params),
            "on": self.final.on,
            "loss": self.loss,
            "result": dict(self.result),
            "load": self.final.load_line,
            "folder": str(self.folder),
        }


def chosen(store: Store, number: int | None) -> Trial:
    """The trial of that number, or the first one of the best point. Raises NoSuchTrial, NoTrialSucceeded."""
    return store.trial(number) if number is not None else best(store).trial


def best(store: Store) -> Best:
    """The best point of the study. Raises NoTrialSucceeded."""
    found = best_of(store)
    if found is None:
        repeats = store.record().identity.repeats
        what = "completed trial" if repeats == 1 else f"point whose {repeats} trials have completed"
        raise NoTrialSucceeded(f"study {store.study!r} has no {what}", f"see why: hpo show {store.study}")
    return found


def train(
    store: Store,
    trial: Trial,
    final: Final,
    folder: Path,
    *,
    settings: Mapping[str, Any],
    gpus: tuple[str, ...] = (),
    say: Callable[[str], None],
) -> Winner:
    """Call the objective once more with the trial's parameters, seed and code, as ``final`` says.

    Call it before any framework is imported: it sets GPUs and threads. ``folder``: new, or one that an
    earlier call left unfinished. ``settings``: arguments of the objective that replace the study's.
    Raises TrainingFailed with what the objective raised, UsageError where it heeds no ``run.final``.
    """
    identity = store.record().identity
    arguments = {**identity.arguments, **settings}
    plan = {
        "study": store.study,
        "trial": trial.number,
        "objective": identity.entry_point,
        "seed": identity.seed,
        "code": trial.snapshot or store.record().snapshot,
        "arguments": plain(arguments),
        "on": final.on,
        "epochs": final.epochs,
    }
    attempt = _opened(folder, plan)
    os.environ |= environment_of_workers(1) | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})
    # What the objective logs to MLflow itself must not make databases in the working directory.
    logged = file_store(folder.absolute() / STATE / "mlflow")
    os.environ |= logged  # already when the file is loaded
    code = _code_of(store, plan["code"], folder / STATE / "code")
    file, _, name = identity.entry_point.rpartition(":")
    task = load(EntryPoint(code, Path(file), name), arguments)
    if task.space.fingerprint != identity.fingerprint:
        raise StudyChanged(
            f"the search space is not the one of trial {trial.number}",
            "--set gives arguments of the objective, parameters are the trial's; and a space must be the same"
            " in every process",
        )
    told = _Told(folder / STATE / "epochs.json")

    def send(epoch: int, loss: float | None, metrics: Mapping[str, float], when: float) -> Answer:
        _check_heeded(final, identity.entry_point)
        told.keep(Report(trial.number, epoch, loss, dict(metrics), when, attempt, 0))
        shown = {"loss": loss} | {key: metrics.get(key) for key in ("train_loss", "accuracy")}
        figures = (f"  {key} {value:.5g}" for key, value in shown.items() if value is not None)
        say(f"epoch {epoch}" + "".join(figures))
        return Answer.CONTINUE

    run = Run(
        number=trial.number,
        seed=trial_seed(identity.seed, trial.number),
        directory=folder,
        checkpoint_directory=folder / STATE / "checkpoint",
        gpus=gpus,
        attempt=attempt,
        send=send,
        final=final,
    )
    started = time.time()
    random.seed(run.seed)
    np.random.seed(run.seed)
    try:
        with contextlib.redirect_stdout(sys.stderr), logging_to(logged):
            outcome = judge(task(task.space.params(trial.point), run))
        _check_heeded(final, identity.entry_point)
    except Unheeded:
        shutil.rmtree(folder)
        raise
    except HpoError:
        raise
    except SystemExit as error:
        raise TrainingFailed(f"the objective called sys.exit({error.code!r})") from error
    except Exception as error:
        raise TrainingFailed(describe_exception(error, code), "see where with --debug") from error
    if not isinstance(outcome, Completed):
        raise TrainingFailed(getattr(outcome, "reason", "it was pruned"))
    winner = Winner(
        study=store.study,
        trial=trial,
        final=final,
        folder=folder,
        loss=outcome.loss,
        result=outcome.result,
        epochs=told.reports,
        started=started,
        ended=time.time(),
    )
    _write_json(folder / SUMMARY, plain(winner.document()))
    return winner


class Unheeded(UsageError):
    """The objective trained as in its trial, not as it was asked to."""


def _check_heeded(final: Final, objective: str) -> None:
    """As early as possible: no training that nobody asked for goes to its end."""
    if (final.test or final.on != "train") and not final.was_seen:
        raise Unheeded(f"{objective} trains as in its trial: it does not look at run.final", UNHEEDED)


class _Told:
    """The epochs told so far, those of an earlier start, too; one that is told again ends what came after."""

    def __init__(self, path: Path) -> None:
        self._path = path
        rows = json.loads(path.read_text()) if path.exists() else []
        self.reports = tuple(Report(**row) for row in rows)

    def keep(self, report: Report) -> None:
        self.reports = (*(one for one in self.reports if one.epoch < report.epoch), report)
        _write_json(self._path, [asdict(one) for one in self.reports])


def epochs_of(store: Store, trial: Trial) -> int | None:
    """How many epochs its best took; None where it reported none."""
    losses = [(r.loss, r.epoch) for r in store.reports(trial.number) if r.loss is not None]
    return min(losses)[1] + 1 if losses else None


def _opened(folder: Path, plan: Mapping[str, Any]) -> int:
    """Make the folder, or go on in an unfinished one with the same plan; returns which attempt this is."""
    note, attempt = folder / STATE / "plan.json", 1
    if note.exists() and not (folder / SUMMARY).exists():
        before = json.loads(note.read_text())
        attempt = before.pop("attempt") + 1
        if differing := [
            f"{key}: {before.get(key)} -> {plan[key]}" for key in plan if before.get(key) != plan[key]
        ]:
            raise UsageError(
                f"{folder} holds another unfinished training: {'; '.join(differing)}",
                "name another folder with --to, or remove this one",
            )
    elif folder.exists() and not (
        folder.is_dir() and {path.name for path in folder.iterdir()} <= {STATE, snapshots.IGNORED}
    ):
        raise UsageError(f"{folder} exists already", "name another with --to, or remove it")
    (folder / STATE / "checkpoint").mkdir(parents=True, exist_ok=True)
    # It is no code of the project: neither git nor a snapshot of the project's code takes it in.
    (folder / snapshots.IGNORED).write_text("*\n")
    _write_json(note, {**plan, "attempt": attempt})
    return attempt


def _write_json(path: Path, document: Any) -> None:
    """Whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def _code_of(store: Store, sha256: str | None, folder: Path) -> Path:
    """The code that the trial ran, unpacked."""
    archive = folder.with_suffix(".zip")
    if sha256 is None or not store.get_file(snapshot_name(sha256), archive):
        raise UsageError("the code that the trial ran is no longer in the store")
    shutil.rmtree(folder, ignore_errors=True)
    snapshots.unpack(archive, folder)
    return folder
