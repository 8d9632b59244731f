"""Random search: what every other algorithm has to beat, and where each of them starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hpo.core.history import Array, History
from hpo.search.seen import Seen, unseen

if TYPE_CHECKING:
    from hpo.space import Space


@dataclass(frozen=True)
class Random:
    """Independent draws from the space's own distributions, never one point twice while others are left;
    unless ``duplicates`` are allowed."""

    duplicates: bool = False

    def propose(
        self, space: Space, history: History, pending: Array, rng: np.random.Generator, k: int
    ) -> Array:
        seen = Seen.of(history, pending, duplicates=self.duplicates)
        proposals = np.empty((k, len(space.columns)))
        for i in range(k):
            proposals[i] = draw(space, seen, rng)
            seen.add(proposals[i])
        return proposals


def draw(space: Space, seen: Seen, rng: np.random.Generator) -> Array:
    """One point from the prior, ``(columns,)``; an unseen one if there is one."""
    drawn = space.sample(rng, 1)
    if seen.is_new(drawn).all():
        return drawn[0]
    # `unseen` gives its draws in the order of drawing: the first one is distributed as the prior is.
    others = unseen(space, seen, rng)
    return others[0] if len(others) else drawn[0]
