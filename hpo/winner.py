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
from dataclasses import dataclass
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
from hpo.stores import Store
from hpo.training import Final
from hpo.worker import judge

SUMMARY = "summary.json"  # written last: a folder that has it is finished
STATE = "unfinished"  # the folder with what a second start goes on from


@dataclass(frozen=True, slots=True)
class Winner:
    """A finished training. ``test``: figures on the test data. ``report``: the table of the test, as printed.
    ``load_line``: the Python line that loads the model. ``epochs``: what was reported, by epoch."""

    study: str
    trial: Trial
    final: Final
    folder: Path
    loss: float
    result: Mapping[str, Any]
    epochs: tuple[Report, ...]
    started: float
    ended: float

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
    """The trial of that number, or the best one. Raises NoSuchTrial, NoTrialSucceeded."""
    trial = store.best() if number is None else store.trial(number)
    if trial is None:
        raise NoTrialSucceeded(
            f"study {store.study!r} has no completed trial", f"see why: hpo show {store.study}"
        )
    return trial


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
    attempt = _opened(folder, {"trial": trial.number, "on": final.on, "epochs": final.epochs})
    os.environ |= environment_of_workers(1) | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})
    # What the objective logs to MLflow itself must not make databases in the working directory.
    os.environ |= {
        "MLFLOW_TRACKING_URI": str(folder.absolute() / STATE / "mlflow"),
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }
    fixed = {key: value for key, value in identity.arguments.items() if key not in settings}
    code = _code_of(store, trial, folder / STATE / "code")
    file, _, name = identity.entry_point.rpartition(":")
    task = load(EntryPoint(code, Path(file), name), fixed | dict(settings))
    if task.space.fingerprint != identity.fingerprint:
        raise StudyChanged(
            f"the search space is not the one of trial {trial.number}",
            "--set gives arguments of the objective, parameters are the trial's; and a space must be the same"
            " in every process",
        )
    epochs: dict[int, Report] = {}

    def send(epoch: int, loss: float | None, metrics: Mapping[str, float], when: float) -> Answer:
        epochs[epoch] = Report(trial.number, epoch, loss, dict(metrics), when, attempt, 0)
        shown = "" if loss is None else f"  loss {loss:.6g}"
        accuracy = f"  accuracy {metrics['accuracy']:.4g}" if "accuracy" in metrics else ""
        say(f"epoch {epoch + 1}{shown}{accuracy}")
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
        with contextlib.redirect_stdout(sys.stderr):
            outcome = judge(task(task.space.params(trial.point), run))
    except HpoError:
        raise
    except Exception as error:
        raise TrainingFailed(describe_exception(error, code), "see where with --debug") from error
    if not isinstance(outcome, Completed):
        raise TrainingFailed(getattr(outcome, "reason", "it was pruned"))
    if (final.test or final.on != "train") and not final.was_seen:
        raise UsageError(
            f"{identity.entry_point} trained as in its trial: it does not look at run.final",
            "train with fit of hpo.training.torch or hpo.training.keras, or heed run.final.on and .test",
        )
    winner = Winner(
        study=store.study,
        trial=trial,
        final=final,
        folder=folder,
        loss=outcome.loss,
        result=outcome.result,
        epochs=tuple(epochs[epoch] for epoch in sorted(epochs)),
        started=started,
        ended=time.time(),
    )
    text = json.dumps(plain(winner.document()), indent=2, ensure_ascii=False)
    (folder / SUMMARY).write_text(text + "\n", encoding="utf-8")
    shutil.rmtree(folder / STATE)
    return winner


def epochs_of(store: Store, trial: Trial) -> int | None:
    """How many epochs its best took; None where it reported none."""
    losses = [(r.loss, r.epoch) for r in store.reports(trial.number) if r.loss is not None]
    return min(losses)[1] + 1 if losses else None


def _opened(folder: Path, plan: Mapping[str, Any]) -> int:
    """Make the folder, or go on in an unfinished one with the same plan; returns which attempt this is."""
    note = folder / STATE / "plan.json"
    if note.exists():
        before = json.loads(note.read_text())
        attempt = before.pop("attempt") + 1
        if before != dict(plan):
            raise UsageError(
                f"{folder} holds an unfinished training of another kind",
                "name another with --to, or remove it",
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists already", "name another with --to, or remove it")
    else:
        attempt = 1
    (folder / STATE / "checkpoint").mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({**plan, "attempt": attempt}))
    return attempt


def _code_of(store: Store, trial: Trial, folder: Path) -> Path:
    """The code that the trial ran, unpacked."""
    sha256 = trial.snapshot or store.record().snapshot
    archive = folder.with_suffix(".zip")
    if sha256 is None or not store.get_file(snapshot_name(sha256), archive):
        raise UsageError(f"the code that trial {trial.number} ran is no longer in the store")
    shutil.rmtree(folder, ignore_errors=True)
    snapshots.unpack(archive, folder)
    return folder
