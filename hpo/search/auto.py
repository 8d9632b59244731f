"""The default: the algorithm that suits the study as it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hpo.core.history import Array, History
from hpo.search.gp import GP
from hpo.search.gp.features import Features
from hpo.search.tpe import TPE

if TYPE_CHECKING:
    from hpo.space import Space


@dataclass(frozen=True)
class Auto:
    """A Gaussian process while there are few trials, the tree-structured Parzen estimator from then on.

    Whatever was measured (flat and nested spaces, 2 to 20 columns, with noise, one to sixteen trials at a
    time), the Gaussian process needs fewer trials. But its time grows with the cube of their number (of
    points, where each is evaluated under several seeds) and with the columns, of which a choice counts once
    for each option: at ``most_trials`` and ``most_columns`` a suggestion takes about 0.1 s on one core.
    """

    gp: GP = field(default_factory=GP)
    tpe: TPE = field(default_factory=TPE)
    most_trials: int = 300
    most_columns: int = 200

    def propose(
        self, space: Space, history: History, pending: Array, rng: np.random.Generator, k: int
    ) -> Array:
        """See `hpo.search.Algorithm.propose`."""
        is_small = _size(space) <= self.most_columns and len(history) + len(pending) < self.most_trials
        return (self.gp if is_small else self.tpe).propose(space, history, pending, rng, k)

    def explain(self, space: Space) -> str:
        """Which algorithm it is, and why."""
        if (size := _size(space)) > self.most_columns:
            return f"tpe, as {size} parameters and options are many for a Gaussian process"
        return f"gp up to trial {self.most_trials}, as it needs the fewest trials; then tpe, as gp gets slow"


def _size(space: Space) -> int:
    return len(Features.of(space).owner)
