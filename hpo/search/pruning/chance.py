"""How likely a trial would still become the study's best."""

from __future__ import annotations

import numpy as np

from hpo.search.pruning.curves import Curves


def chance_to_win(curves: Curves, number: int, epoch: int) -> float:
    """The chance that a trial, as it stands after this epoch, ends below every completed trial.

    Each completed trial is asked: would the gain it made from this epoch to its end be enough? Of m, k say
    yes: (k + 1/2) / (m + 1), the posterior mean under Jeffreys' prior, which is 1/2 where nothing is known.
    Completed trials are mostly good ones, which gain less than bad ones do: the chance is on the low side,
    and the spared trials make up for some of it.
    """
    best = curves.best(number, epoch)
    then, final = curves.completed_at(epoch)
    if best is None or not len(then):
        return 0.5
    with np.errstate(invalid="ignore"):  # a loss that is infinite wins by no gain
        enough = best - (then - final) < curves.finals().min()
    return (int(enough.sum()) + 0.5) / (len(then) + 1)
