"""Quasi-random search: points that fill the space more evenly than independent draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hpo.core.history import Array, History
from hpo.search.random import draw
from hpo.search.seen import DRAWS, Seen

if TYPE_CHECKING:
    from hpo.space import Space


@dataclass(frozen=True)
class Quasirandom:
    """A scrambled Sobol' sequence through the priors, a coordinate a column, whether active or not (Owen
    1998; in searches, Bousquet et al. 2017, arXiv:1706.03200).

    ``seed``: the study's, of which the scramble is made. A sequence is even only as a whole, so the scramble
    can't be a trial's, and a trial's place in it is how many there were before: studies that go on, or run in
    parallel, go on with the sequence.
    """

    seed: int
    duplicates: bool = False

    def propose(
        self, space: Space, history: History, pending: Array, rng: np.random.Generator, k: int
    ) -> Array:
        """See `hpo.search.Algorithm.propose`. A point that was tried is passed over, unless ``duplicates``
        are allowed; ``rng`` draws one only where a discrete space gives nothing new for long."""
        seen = Seen.of(history, pending, duplicates=self.duplicates)
        rest = self._sequence(len(space.columns), len(history) + len(pending), k + DRAWS)
        following = iter(space.mask(space.from_unit(rest)))
        proposals = np.empty((k, len(space.columns)))
        for i in range(k):
            row = next((row for row in following if seen.is_new(row[np.newaxis]).all()), None)
            proposals[i] = draw(space, seen, rng) if row is None else row
            seen.add(proposals[i])
        return proposals

    def _sequence(self, columns: int, start: int, n: int) -> Array:
        """``(n or more, columns)``: the points of the unit cube from that place on."""
        if not columns:
            return np.empty((n, 0))
        # Imported only here: it takes half a second, and whoever uses another algorithm needn't wait.
        from scipy.stats import qmc

        sequence = qmc.Sobol(columns, scramble=True, seed=np.random.default_rng(self.seed))
        if start:
            sequence.fast_forward(start)
        points: Array = sequence.random(1 << (n - 1).bit_length())  # it warns of other numbers
        return points
