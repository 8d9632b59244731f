"""Which trials are good and which are bad."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hpo.core.history import Array

Indices = NDArray[np.intp]


def split(losses: Array, numbers: NDArray[np.int64], share: float, limit: int) -> tuple[Indices, Indices]:
    """Indices of the good trials, best first, and of the others, by number.

    Good is the best ``share`` of the trials that did not fail, at least one of them, at most ``limit``.
    A failed trial (loss +inf) is never good, even if every trial failed. The earlier number wins a tie,
    so that the order in which workers finish changes nothing.
    """
    count = min(math.ceil(share * np.isfinite(losses).sum()), limit)
    by_number = np.argsort(numbers, kind="stable")
    if count == 0:
        return by_number[:0], by_number
    losses = losses[by_number]
    # Only those that may be good are sorted: of thousands, a few.
    best = np.flatnonzero(losses <= np.partition(losses, count - 1)[count - 1])
    good = best[np.argsort(losses[best], kind="stable")][:count]
    return by_number[good], np.delete(by_number, good)
