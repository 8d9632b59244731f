"""From what happens in a study to the trials to stop, and the few that run on to check the rule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hpo.core.trial import Changes, Report, State, Trial, Verdict
from hpo.search.pruning.chance import chance_to_win
from hpo.search.pruning.curves import Curves

if TYPE_CHECKING:
    from hpo.search.pruning import Pruner

SPARED_SHARE = 1 / 16  # of the trials to stop, until one is spared; a half of it then, a third, ...
STOPPED_FOR_ONE = 8  # from then on at least one is spared
SPARING = 1  # apart from the random numbers by which the trial's point was drawn


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the pruner says of a running trial."""

    number: int
    verdict: Verdict


class Judge:
    """Hears what happens in a study and rules on its running trials, once on each.

    Pure but for what it has heard: who is spared depends on the study's ``seed`` and the trial's number.
    """

    def __init__(self, pruner: Pruner, seed: int) -> None:
        self.curves = Curves()
        self._pruner = pruner
        self._seed = seed
        self._running: dict[int, int] = {}  # the attempts of trials that are not ruled on yet
        self._best: float | None = None  # of the completed trials
        self._stopped = self._spared = 0

    def restore(self, trials: Iterable[Trial], losses: Iterable[tuple[int, int, float | None]]) -> None:
        """Learn of a study that has begun: ``losses`` are ``(number, epoch, loss)``, by trial and epoch."""
        for number, epoch, loss in losses:
            self.curves.report(number, epoch, loss)
        for trial in trials:
            self._see(trial)
            # One that is offered again begins without a verdict, but it was ruled on.
            if trial.verdict is not None:
                self._stopped += not trial.verdict.is_spared
                self._spared += trial.verdict.is_spared

    def rule(self, changes: Changes) -> list[Ruling]:
        """The trials to stop or to spare, after these changes."""
        rulings = []
        both: list[Trial | Report] = [*changes.trials, *changes.reports]
        for change in sorted(both, key=lambda change: change.revision):
            if isinstance(change, Trial):
                self._see(change)
            elif (ruling := self._hear(change)) is not None:
                rulings.append(ruling)
        return rulings

    def _see(self, trial: Trial) -> None:
        if trial.state is State.RUNNING and trial.verdict is None:
            self._running[trial.number] = trial.attempts
        else:
            self._running.pop(trial.number, None)
        if trial.state is State.COMPLETED:
            self.curves.complete(trial.number)
            if trial.loss is not None:
                self._best = trial.loss if self._best is None else min(self._best, trial.loss)

    def _hear(self, report: Report) -> Ruling | None:
        number, epoch = report.number, report.epoch
        self.curves.report(number, epoch, report.loss)
        if self._running.get(number) != report.attempt or not self._pruner.stops(self.curves, number, epoch):
            return None
        del self._running[number]
        is_spared = self._is_spared(number)
        self._spared += is_spared
        self._stopped += not is_spared
        chance = chance_to_win(self.curves, number, epoch)
        return Ruling(number, Verdict(epoch, chance, self._best, is_spared))

    def _is_spared(self, number: int) -> bool:
        """About sqrt(n / 8) of n: one more teaches ever less and costs the same."""
        if not self._spared and self._stopped >= STOPPED_FOR_ONE:
            return True
        return np.random.default_rng([self._seed, number, SPARING]).random() < SPARED_SHARE / (
            1 + self._spared
        )
