"""Points worth ranking: drawn from the good trials' kernels along the tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpo.core.history import Array
from hpo.search.tpe.density import Kernels

if TYPE_CHECKING:
    from hpo.space import Space


def draw(space: Space, good: Kernels, n: int, rng: np.random.Generator) -> Array:
    """``(n, columns)`` valid raw rows."""
    units = good.draw(_donors(~np.isnan(good.centres), n, rng), rng)
    rows: Array = space.mask(space.from_unit(units))
    return rows


def _donors(has: NDArray[np.bool_], n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Which good trial gives each candidate each column: ``(n, columns)``, -1 where the prior does.

    Args: has: ``(good trials, columns)``.

    Every candidate ranks the good trials, and the prior as one more, at random; the first of the ranking
    that has a column gives it. So most columns come from one trial, and where a choice is drawn otherwise
    than in that trial, all columns of the new branch come from one good trial that took it.
    """
    trials, columns = has.shape
    donors = np.full((n, columns), -1)
    if not trials:
        return donors
    ranking = rng.random((n, trials))
    from_prior = rng.random(n) * (trials + 1) < 1
    for j in range(columns):
        have = np.flatnonzero(has[:, j])
        if len(have):
            donors[:, j] = have[ranking[:, have].argmax(axis=1)]
    donors[from_prior] = -1
    return donors
