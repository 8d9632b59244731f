"""The learning curves of a study, as the pruning rules compare them: at equal epochs, best so far."""

from __future__ import annotations

import bisect
import math
from array import array
from dataclasses import dataclass, field

import numpy as np

from hpo.core.history import Array


@dataclass(slots=True)
class _Curve:
    """One trial: the epochs it reported, ascending, and the best loss up to each."""

    epochs: array[int] = field(default_factory=lambda: array("q"))
    best: array[float] = field(default_factory=lambda: array("d"))


@dataclass(slots=True)
class _Column:
    """One epoch: the trials that reported it, in that order, and their best losses up to it."""

    numbers: array[int] = field(default_factory=lambda: array("q"))
    best: array[float] = field(default_factory=lambda: array("d"))


class Curves:
    """What the trials of a study reported, ended or not.

    A loss that is NaN or infinite leaves the best so far as it was, +inf where there is none yet; an epoch
    without a loss (None) says nothing. Epochs are compared only with themselves: whoever skips one is not
    counted there. An epoch that is told again begins the curve anew from there, as in the store.
    Takes 32 bytes an epoch.
    """

    def __init__(self) -> None:
        self._curves: dict[int, _Curve] = {}
        self._columns: dict[int, _Column] = {}
        self._completed: set[int] = set()
        self._lengths: array[int] = array("q")  # of the completed

    def report(self, number: int, epoch: int, loss: float | None) -> None:
        """The trial has reached this epoch."""
        curve = self._curves.setdefault(number, _Curve())
        while curve.epochs and curve.epochs[-1] >= epoch:
            self._take_back(number, curve)
        if loss is None:
            return
        best = min(loss if math.isfinite(loss) else math.inf, curve.best[-1] if curve.best else math.inf)
        curve.epochs.append(epoch)
        curve.best.append(best)
        column = self._columns.setdefault(epoch, _Column())
        column.numbers.append(number)
        column.best.append(best)

    def complete(self, number: int) -> None:
        """The trial was trained to its end."""
        curve = self._curves.get(number)
        if curve is not None and curve.epochs and number not in self._completed:
            self._completed.add(number)
            self._lengths.append(curve.epochs[-1] + 1)

    def at(self, epoch: int) -> Array:
        """The best losses up to this epoch, of every trial that reported it: ``(trials,)``."""
        column = self._columns.get(epoch)
        return np.empty(0) if column is None else np.array(column.best)

    def best(self, number: int, epoch: int) -> float | None:
        """The trial's best loss up to this epoch, None where it did not report it."""
        curve = self._curves.get(number)
        if curve is None:
            return None
        place = bisect.bisect_left(curve.epochs, epoch)
        return curve.best[place] if place < len(curve.epochs) and curve.epochs[place] == epoch else None

    def previous(self, number: int, epoch: int) -> int | None:
        """The last epoch before this one that the trial reported."""
        curve = self._curves.get(number)
        place = bisect.bisect_left(curve.epochs, epoch) if curve is not None else 0
        return curve.epochs[place - 1] if curve is not None and place else None

    @property
    def completed(self) -> int:
        """How many trials that reported epochs were trained to their end."""
        return len(self._completed)

    def full_epochs(self) -> float:
        """How many epochs the completed trials have: their median; 0 where there are none."""
        return float(np.median(np.array(self._lengths))) if self._lengths else 0.0

    def finals(self) -> Array:
        """The best losses of all epochs, of the completed trials that reported any: ``(trials,)``."""
        return np.array([self._curves[number].best[-1] for number in self._completed])

    def completed_at(self, epoch: int) -> tuple[Array, Array]:
        """Of the completed trials that reported this epoch, the best losses up to it and of all epochs:
        twice ``(trials,)``."""
        column = self._columns.get(epoch, _Column())
        pairs = [
            (best, self._curves[number].best[-1])
            for number, best in zip(column.numbers, column.best, strict=True)
            if number in self._completed
        ]
        then, final = np.array(pairs).reshape(len(pairs), 2).T
        return then, final

    def _take_back(self, number: int, curve: _Curve) -> None:
        column = self._columns[curve.epochs.pop()]
        place = column.numbers.index(number)
        del column.numbers[place], column.best[place]
        curve.best.pop()
