"""Learning from an earlier study's trials, too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri

from hpo.core.history import Array, History

if TYPE_CHECKING:
    from hpo.search import Algorithm
    from hpo.space import Space


@dataclass(frozen=True)
class WarmStart:
    """An algorithm that is shown an earlier study's trials beside the study's own.

    ``rows``: ``(trials, columns)``, valid rows of the space; ``losses``: ``(trials,)``, finite.

    Losses of two studies can't be compared: other data, other epochs, perhaps another measure. So each loss
    is replaced by its normal score within its study: the best of one are as good as the best of the other.
    The earlier trials fade: with n trials of its own the study takes ``most * (1 - n / fades)`` of them,
    evenly over their ranks. So what they suggest is tried first, and counts less the more is known here.

    Best losses of TPE on a quadratic of six numbers and a choice, after 100 trials of another (means of 24
    studies, with standard errors of 6 to 40 %):

        optimum of the other   5 trials        80 trials
        the same               0.04, not 0.60  0.014, not 0.052
        0.1 away               0.08, not 0.62  0.018, not 0.060
        on the other side      0.85, not 0.56  0.044, not 0.022
        anywhere               0.56, not 0.52  0.075, not 0.032

    So it gains where studies are alike and costs where they are not. Of five pairs of ``most`` and ``fades``
    this one did best in 8 other studies; fading over 100 trials makes no difference beyond the noise.
    """

    algorithm: Algorithm
    rows: Array
    losses: Array
    most: int = 100
    fades: int = 200

    def propose(
        self, space: Space, history: History, pending: Array, rng: np.random.Generator, k: int
    ) -> Array:
        """See `hpo.search.Algorithm.propose`."""
        return self.algorithm.propose(space, self.joined(history), pending, rng, k)

    def joined(self, history: History) -> History:
        """The earlier trials that still count, under negative numbers, and the study's own."""
        order = np.argsort(self.losses, kind="stable")
        scores = normal_scores(self.losses)
        share = max(0.0, 1 - len(history) / self.fades)
        count = math.ceil(min(self.most, len(order)) * share)
        # The middle of each of as many equal parts of the ranking.
        taken = order[((np.arange(count) + 0.5) * len(order) / max(count, 1)).astype(np.intp)]
        joined = History(self.rows.shape[1])
        for i in taken:
            joined.append(-1 - int(i), self.rows[i], float(scores[i]))
        own = normal_scores(history.losses) if count else history.losses
        for number, row, loss in zip(history.numbers, history.rows, own, strict=True):
            joined.append(int(number), row, float(loss))
        return joined


def normal_scores(losses: Array) -> Array:
    """``(trials,)``: what a standard normal sample of this size has on average at each rank (Blom 1958,
    approximately); equal losses share theirs, and infinite ones stay."""
    scores = np.full(len(losses), np.inf)
    finite = np.isfinite(losses)
    _, place, counts = np.unique(losses[finite], return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    scores[finite] = ndtri((ranks[place] - 0.375) / (finite.sum() + 0.25))
    return scores
