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


def of_one_branch(rows: Array) -> Array:
    """Those rows that have the same columns active as the first one.

    Ranking compares places within a branch well and branches badly: around the best point of a mediocre
    branch the ratio of densities is always higher than in a branch that was hardly tried. So the branch is
    the first row's, which is drawn as the good trials took it, and only the place in it is ranked.
    """
    inactive = np.isnan(rows)
    chosen: Array = rows[(inactive == inactive[0]).all(axis=1)]
    return chosen


def _donors(has: NDArray[np.bool_], n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Which good trial gives each candidate each column: ``(n, columns)``, -1 where the prior does.

    Args: has: ``(good trials, columns)``.

    One candidate in trials + 1 is the prior's altogether. Every other ranks the good trials at random, and
    the first of its ranking that has a column gives it. So most columns come from one trial, and where a
    choice is drawn otherwise than in that trial, the columns of the new branch come from one that took it.
    """
    trials, columns = has.shape
    donors = np.full((n, columns), -1)
    if not trials:
        return donors
    ranking = rng.random((n, trials))
    from_prior = rng.random(n) * (trials + 1) < 1
    # Columns that the same trials have are given by the same one.
    together: dict[bytes, list[int]] = {}
    for j in range(columns):
        together.setdefault(has[:, j].tobytes(), []).append(j)
    for places in together.values():
        have = np.flatnonzero(has[:, places[0]])
        if len(have):
            donors[:, places] = have[ranking[:, have].argmax(axis=1), np.newaxis]
    donors[from_prior] = -1
    return donors
