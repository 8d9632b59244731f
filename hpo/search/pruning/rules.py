"""The rules. All compare best losses so far at equal epochs; epochs count from 0."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hpo.search.pruning.chance import chance_to_win
from hpo.search.pruning.curves import Curves


@dataclass(frozen=True)
class Median:
    """Stop a trial whose best loss is above the median of the others' at the same epoch.

    The median stopping rule (Golovin et al. 2017, Google Vizier, section 3.2.2), with best losses in place of
    running averages. Nothing is stopped in the first ``warm_up`` epochs, or before ``starts`` others have got
    as far.
    """

    starts: int = 5
    warm_up: int = 4

    def stops(self, curves: Curves, number: int, epoch: int) -> bool:
        best = curves.best(number, epoch)
        if best is None or epoch < self.warm_up:
            return False
        reached = curves.at(epoch)
        return len(reached) > self.starts and best > float(np.median(reached))


@dataclass(frozen=True)
class Asha:
    """Asynchronous successive halving, which stops (Li et al. 2020, arXiv:1810.05934, section 3.3).

    A trial is judged when it has trained for r, r eta, r eta^2, ... epochs, and goes on while it is among the
    best 1/eta of those that got so far; ``starts`` of them are waited for.
    """

    first: int = 2  # r
    factor: int = 3  # eta
    starts: int = 4

    def stops(self, curves: Curves, number: int, epoch: int) -> bool:
        if not is_rung(curves, number, epoch, self.first, self.factor):
            return False
        best, reached = curves.best(number, epoch), curves.at(epoch)
        if best is None or len(reached) < self.starts:
            return False
        return best > share_of_best(reached, 1 / self.factor)


@dataclass(frozen=True)
class Hyperband:
    """Several brackets of `Asha`, each with its first rung ``factor`` times later (Li et al. 2018,
    arXiv:1603.06560): what begins slowly has a chance in the later ones. Trials take turns by number, as
    often as in Hyperband: of three brackets, 9 : 3 : 1."""

    first: int = 2
    factor: int = 3
    brackets: int = 3

    def stops(self, curves: Curves, number: int, epoch: int) -> bool:
        shares = [self.factor ** (self.brackets - 1 - bracket) for bracket in range(self.brackets)]
        turn = number % sum(shares)
        bracket = int(np.searchsorted(np.cumsum(shares), turn, side="right"))
        return Asha(self.first * self.factor**bracket, self.factor).stops(curves, number, epoch)


@dataclass(frozen=True)
class Auto:
    """Stop a trial that is in the worse half at its epoch (`Median`), or unlikely to become the best.

    The second is for later, when the search proposes nothing but good trials, half of which the median lets
    run. It is asked at epochs that lie ever further apart: each time is another chance to err. Who leads at
    its epoch is never stopped. Nobody is before ``starts`` trials are completed, or in the first ``warm_up``
    (a share) of their epochs: so 10 epochs are judged as 1000 are.
    """

    starts: int = 5
    warm_up: float = 0.25
    least_chance: float = 0.05
    factor: float = 1.3

    def stops(self, curves: Curves, number: int, epoch: int) -> bool:
        best, warm_up = curves.best(number, epoch), self.warm_up * curves.full_epochs()
        if best is None or curves.completed < self.starts or epoch < warm_up:
            return False
        if Median(self.starts, 0).stops(curves, number, epoch):
            return True
        if best <= curves.at(epoch).min() or not is_rung(curves, number, epoch, 1 + warm_up, self.factor):
            return False
        return chance_to_win(curves, number, epoch) < self.least_chance


def is_rung(curves: Curves, number: int, epoch: int, first: float, factor: float) -> bool:
    """Whether the trial has with this epoch trained for ``first factor^k`` epochs, for a new whole k >= 0."""
    previous = curves.previous(number, epoch)
    return rungs_reached(epoch, first, factor) > (
        0 if previous is None else rungs_reached(previous, first, factor)
    )


def rungs_reached(epoch: int, first: float, factor: float) -> int:
    trained = epoch + 1
    return 0 if trained < first else 1 + math.floor(math.log(trained / first, factor) + 1e-9)


def share_of_best(losses: np.ndarray, share: float) -> float:
    """The highest loss that is among the best ``share`` of them; the lowest always is."""
    return float(np.sort(losses)[max(1, int(len(losses) * share)) - 1])
