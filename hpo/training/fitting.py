"""What the PyTorch and the Keras loop share: which data they see, what they report, when they stop, what they
leave behind. It knows no framework: weights, optimizers and checkpoints are the loops' own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from hpo.core.errors import UsageError
from hpo.core.plain import plain
from hpo.training import Run
from hpo.training.data import Dataset, is_arrays
from hpo.training.evaluation import Task


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One pass over a part of the data. ``loss``: mean of an example. ``targets``: ``(examples, …)``.
    ``outputs``: ``(examples, …)``, what the model gave."""

    loss: float
    targets: np.ndarray
    outputs: np.ndarray


@dataclass(frozen=True, slots=True)
class Fit:
    """What a training came to, at its best epoch.

    ``loss``: the minimized quantity. ``validation_loss``, ``train_loss``: means of an example; None where
    there was no validation. ``metrics``: the task's headline figures on the validation data. ``best_epoch``:
    from 0; the earlier of equals. ``epochs``: how many were trained, in all attempts together. ``test``: the
    same figures on the test data, where they were asked for. ``dataset``: what was trained on.
    """

    loss: float
    train_loss: float
    validation_loss: float | None
    best_epoch: int
    epochs: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    dataset: Mapping[str, Any] = field(default_factory=dict)

    def as_result(self) -> dict[str, Any]:
        """The dict an objective returns."""
        document = asdict(self)
        figures = document.pop("metrics")
        if not document["test"]:
            del document["test"]
        return {name: value for name, value in (document | figures).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training has come: finished epochs, the last one's metrics and the best one's. JSON, too."""

    epochs: int = 0
    last: Mapping[str, float] | None = None
    best: Mapping[str, float] | None = None
    best_epoch: int = -1

    def after(self, metrics: Mapping[str, float], *, is_best: bool) -> Progress:
        best = (metrics, self.epochs) if is_best else (self.best, self.best_epoch)
        return Progress(self.epochs + 1, metrics, *best)


class Training:
    """One training of one trial, epoch by epoch; a loop calls, in this order::

        training = Training(run, data, epochs=…, minimize=…, patience=…)
        if there is a checkpoint: training.restore(its state)
        while training.goes_on:
            …train an epoch on training.train…
            evaluated = …on training.validation…    # None where there is no validation
            is_best = training.record(train_loss, learning_rate, evaluated)
            …keep the weights if is_best; write a checkpoint with training.state()…
            training.report()
        …put the best weights back…
        fit = training.finish(evaluate)

    Where the winner of a study is trained for good (``run.final``), it changes the data and the number of
    epochs, and nothing else.

    ``train``, ``validation``: the parts to use; ``validation`` is None when it was added to ``train``.
    ``epoch``: the one to train next, from 0. ``are_logits``: whether a classifier's outputs are logits or
    probabilities. ``concatenate``: joins arrays of the loop's own kind. Raises UsageError for arguments that
    can't be trained with.
    """

    def __init__(
        self,
        run: Run,
        data: Dataset,
        *,
        epochs: int,
        minimize: str = "loss",
        patience: int | None = None,
        are_logits: bool = True,
        concatenate: Callable[[Sequence[Any]], Any] = np.concatenate,
    ) -> None:
        counts = {"epochs": epochs} | ({} if patience is None else {"patience": patience})
        check_counts(counts)
        self._run, self._data, self._are_logits = run, data, are_logits
        self._minimize, self._patience = minimize, patience
        self.task: Task = data.task
        if minimize not in self.task.MINIMIZED:
            raise UsageError(f"minimize is {minimize!r}", f"it is one of {', '.join(self.task.MINIMIZED)}")
        self.epochs = epochs
        self.train, self.validation = data.train, data.validation
        self.progress = Progress()
        if data.validation is None:
            raise UsageError(
                f"the data set {data.name!r} has no validation part",
                "a study minimizes what a model does on examples that it was not trained on",
            )
        if run.final is not None:
            run.final.was_seen = True
            if run.final.test and data.test is None:
                raise UsageError(
                    f"the data set {data.name!r} has no test part", "leave --test out, or give it one"
                )
            if run.final.on == "train+validation":
                self.train, self.validation = _joined(data, concatenate), None
                # Nothing is left to say when to stop: the trial's best epoch does.
                self.epochs, self._patience = run.final.epochs or epochs, None

    @property
    def epoch(self) -> int:
        return self.progress.epochs

    @property
    def goes_on(self) -> bool:
        waited = self.progress.epochs - 1 - self.progress.best_epoch
        is_stale = self._patience is not None and self.progress.epochs > 0 and waited >= self._patience
        return self.epoch < self.epochs and not is_stale

    def record(
        self,
        train_loss: float,
        learning_rate: float,
        evaluated: Evaluated | None,
        more: Mapping[str, float] | None = None,
    ) -> bool:
        """Close an epoch; is it the best so far? ``more``: other metrics to report with it.

        Raises FloatingPointError for a loss that is none.
        """
        metrics = {"train_loss": train_loss}
        if evaluated is not None:
            with self._run.phase("validation"):
                figures = self._figures(evaluated)
                minimized = self.task.minimized(self._minimize, evaluated.loss, figures)
            metrics = {"loss": minimized, "validation_loss": evaluated.loss} | metrics | figures
        metrics = {**(more or {}), **metrics, "learning_rate": learning_rate}
        for name in ("train_loss", "validation_loss", "loss"):
            if not math.isfinite(metrics.get(name, 0.0)):
                raise FloatingPointError(
                    f"the {name.replace('_', ' ')} is {metrics[name]} after epoch {self.epoch} "
                    f"(learning rate {learning_rate:g})"
                )
        best = self.progress.best
        # Without validation nothing tells a better epoch: it is the last one.
        is_best = best is None or evaluated is None or metrics["loss"] < best["loss"]
        metrics |= self._run.measure()
        self.progress = self.progress.after(metrics, is_best=is_best)
        return is_best

    def report(self) -> None:
        """Tell the study of the last epoch; raises TrialPruned when it wants no more."""
        metrics = dict(self.progress.last or {})
        self._run.report(self.progress.epochs - 1, metrics.pop("loss", None), **metrics)

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep beside the weights; JSON holds it."""
        return {"attempt": self._run.attempt, "progress": plain(asdict(self.progress))}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint left off. Its last epoch is told again: the worker may have died between
        writing the one and reporting the other, and twice is harmless."""
        if state["attempt"] == self._run.attempt:
            raise UsageError(
                "fit was called twice in one trial: the second call would continue the first one's training",
                hint="train once per trial; call evaluate for more numbers",
            )
        self.progress = Progress(**state["progress"])
        if self.progress.last is not None:
            self.report()

    def finish(self, evaluate: Callable[[Any], Evaluated]) -> Fit:
        """Write what the best epoch's model does on the validation data, and on the test data where that was
        asked for, into ``run.directory``. ``evaluate``: a part of the data -> Evaluated."""
        best = dict(self.progress.best or {})
        fit = Fit(
            loss=best.get("loss", best["train_loss"]),
            train_loss=best["train_loss"],
            validation_loss=best.get("validation_loss"),
            best_epoch=self.progress.best_epoch,
            epochs=self.progress.epochs,
            metrics=self.task.headline(best) if self.validation is not None else {},
            dataset=self._data.describe(),
        )
        if self.validation is not None:
            self._write("", "validation", evaluate(self.validation))
        if self._run.final is not None and self._run.final.test:
            evaluated = evaluate(self._data.test)
            self._run.final.report = self._write("test", "test", evaluated)
            fit = replace(fit, test={"loss": evaluated.loss} | self._figures(evaluated))
        return fit

    def _figures(self, evaluated: Evaluated) -> dict[str, float]:
        predicted = self.task.predict(evaluated.outputs, are_logits=self._are_logits)
        return self.task.metrics(evaluated.targets, predicted)

    def _write(self, folder: str, part: str, evaluated: Evaluated) -> str:
        directory = self._run.directory / folder
        directory.mkdir(exist_ok=True)
        return self.task.write(
            directory,
            evaluated.targets,
            evaluated.outputs,
            are_logits=self._are_logits,
            index=self._data.rows.get(part),
            title=f"{self._data.name}, {part}",
        )


def _joined(data: Dataset, concatenate: Callable[[Sequence[Any]], Any]) -> Any:
    """The training and the validation examples as one part."""
    parts = (data.train, data.validation)
    if not all(is_arrays(part) for part in parts):
        raise UsageError(
            f"the parts of the data set {data.name!r} come in batches, and can't be joined",
            "leave --on out, or give arrays",
        )

    def join(leaves: Sequence[Any]) -> Any:
        first = leaves[0]
        if isinstance(first, Mapping):
            return {key: join([leaf[key] for leaf in leaves]) for key in first}
        if isinstance(first, tuple | list):
            return tuple(join(group) for group in zip(*leaves, strict=True))
        return concatenate(leaves)

    return join(parts)


def check_counts(counts: Mapping[str, Any]) -> None:
    """Raises UsageError, naming all of them, for counts that are no integers from 1."""
    faults = [
        f"{name} is {number!r}"
        for name, number in counts.items()
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1
    ]
    if faults:
        raise UsageError(
            "; ".join(faults), "counts are integers from 1 (in a space: scope.int(hp.quniform(...)))"
        )
