"""Points that are evaluated under several seeds: which trials are one point, and its mean loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpo.core.trial import State, Trial


@dataclass(frozen=True, slots=True)
class Mean:
    """A point whose repeats have all ended.

    ``number``: its first trial. ``loss``: the mean of theirs, None where one has none: what fails under one
    seed is not to be trusted under the others. ``standard_error``: of the mean, None for a single trial.
    """

    number: int
    loss: float | None
    standard_error: float | None = None

    def __str__(self) -> str:
        if self.loss is None:
            return "none"
        return f"{self.loss:.6g}" + ("" if self.standard_error is None else f" ± {self.standard_error:.2g}")


class Repeats:
    """The trials of a study as points: so many in a row, from a multiple of it on, are one point.

    Holds the losses of unfinished points alone. With one repeat a trial is a point.
    """

    def __init__(self, repeats: int = 1) -> None:
        self.repeats = repeats
        self._losses: dict[int, list[float | None]] = {}

    def first(self, number: int) -> int:
        """The first trial of the point that a trial belongs to."""
        return number - number % self.repeats

    def add(self, number: int, loss: float | None) -> Mean | None:
        """Take a trial that has ended, each once; returns its point if it was the last of it."""
        first = self.first(number)
        losses = self._losses.setdefault(first, [])
        losses.append(loss)
        if len(losses) < self.repeats:
            return None
        del self._losses[first]
        return _mean(first, losses)


def final_loss(trial: Trial) -> float | None:
    """The loss by which a trial may be the best: not the one at which it was pruned."""
    return trial.loss if trial.state is State.COMPLETED else None


def _mean(number: int, losses: list[float | None]) -> Mean:
    known = [loss for loss in losses if loss is not None]
    if len(known) < len(losses):
        return Mean(number, None)
    if len(known) == 1:
        return Mean(number, known[0])
    mean = math.fsum(known) / len(known)
    variance = math.fsum((loss - mean) ** 2 for loss in known) / (len(known) - 1)
    return Mean(number, mean, math.sqrt(variance / len(known)))
