"""What pruning has saved and whom it may have stopped in vain: reckoned from trials that have ended."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection
from dataclasses import dataclass

from hpo.core.trial import State, Trial


@dataclass(frozen=True, slots=True)
class Saving:
    """What a pruned trial was spared: its epochs to the full number, at its own pace."""

    epochs: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The pruning of one study.

    ``pruned`` of ``ended`` trials saved ``share`` of their epochs and so many ``seconds``; ``share`` is None
    where it is unknown how many epochs are full. ``checked`` trials ran to their end against the pruner's
    verdict; of them ``won`` ended better than all that were completed at the verdict, and ``good`` in the
    better half of all completed ones.
    """

    ended: int
    pruned: int
    share: float | None
    seconds: float
    checked: int
    won: int
    good: int

    def __str__(self) -> str:
        text = f"pruned {self.pruned} of {self.ended} trials"
        if self.share is not None and self.pruned:
            text += f", saved about {self.share:.0%} of their epochs"
        if self.checked:
            text += f"; {self.checked} ran on to check: {self.won or 'none'} would have won"
            text += f", {self.good or 'none'} ended in the better half"
        return text


def full_epochs(trials: Collection[Trial]) -> float | None:
    """How many epochs a trial has that is not pruned: the median of the completed ones that report any; None
    without one."""
    epochs = [trial.epochs for trial in trials if trial.state is State.COMPLETED and trial.epochs]
    return statistics.median(epochs) if epochs else None


def saving(trial: Trial, full: float | None) -> Saving | None:
    """What was saved by pruning this trial; None where it was not pruned, or nobody knows."""
    if trial.state is not State.PRUNED or full is None or not trial.epochs:
        return None
    left = max(0.0, full - trial.epochs)
    return Saving(left, left * max(0.0, trial.seconds or 0.0) / trial.epochs)


def summary(trials: Collection[Trial]) -> Summary | None:
    """None where the pruner has not spoken."""
    ended = [trial for trial in trials if trial.state.has_ended]
    ruled = [trial for trial in ended if trial.verdict is not None]
    if not ruled:
        return None
    full = full_epochs(ended)
    pruned = [trial for trial in ruled if trial.state is State.PRUNED]
    savings = [one for trial in pruned if (one := saving(trial, full)) is not None]
    saved = sum(one.epochs for one in savings)
    all_epochs = saved + sum(trial.epochs for trial in pruned)
    losses = [t.loss for t in ended if t.state is State.COMPLETED and t.loss is not None]
    middle = statistics.median(losses) if losses else math.nan
    checked = [t for t in ruled if is_spared(t) and t.state is State.COMPLETED and t.loss is not None]
    return Summary(
        ended=len(ended),
        pruned=len(pruned),
        share=saved / all_epochs if savings and all_epochs else None,
        seconds=sum(one.seconds for one in savings),
        checked=len(checked),
        won=sum(has_won(trial) for trial in checked),
        good=sum(trial.loss is not None and trial.loss <= middle for trial in checked),
    )


def is_spared(trial: Trial) -> bool:
    """Whether it runs on to check the pruner; one that ended before it heard of its stop does not count."""
    return trial.verdict is not None and trial.verdict.is_spared


def has_won(trial: Trial) -> bool:
    """Whether a trial that ran on against the verdict ended better than all completed by then."""
    best = None if trial.verdict is None else trial.verdict.best
    return trial.loss is not None and (best is None or trial.loss < best)
