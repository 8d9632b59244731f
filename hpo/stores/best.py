"""The best point of a study."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hpo.core.repeats import Mean, Repeats, final_loss
from hpo.core.trial import ENDED, Trial
from hpo.stores.protocol import Store


@dataclass(frozen=True, slots=True)
class Best:
    """The point of lowest mean loss. ``trial``: its first one, for its parameters."""

    trial: Trial
    mean: Mean

    @property
    def loss(self) -> float:
        assert self.mean.loss is not None  # or it would not be the best
        return self.mean.loss

    def document(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        error = self.mean.standard_error
        more = {} if error is None else {"standard_error": error}
        return {"trial": self.trial.number, "loss": self.mean.loss, "params": self.trial.params} | more


def best_of(store: Store) -> Best | None:
    """The best point of the study whose repeats have all completed; the earlier of equals."""
    repeats = store.record().identity.repeats
    if repeats == 1:
        trial = store.best()
        return None if trial is None else Best(trial, Mean(trial.number, trial.loss))
    means = [mean for mean in means_of(store, repeats) if mean.loss is not None]
    if not means:
        return None
    best = min(means, key=lambda mean: (mean.loss, mean.number))
    return Best(store.trial(best.number), best)


def unfinished_points(store: Store) -> Repeats:
    """The study's points some of whose trials have ended: a place to add the others to."""
    points = Repeats(store.record().identity.repeats)
    if points.repeats > 1:
        for trial in store.trials(*ENDED):
            points.add(trial.number, final_loss(trial))
    return points


def means_of(store: Store, repeats: int) -> Iterator[Mean]:
    """The study's points whose trials have all ended; one has a loss where all of them have completed."""
    points = Repeats(repeats)
    for trial in store.trials(*ENDED):
        if mean := points.add(trial.number, final_loss(trial)):
            yield mean
