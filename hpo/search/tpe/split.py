"""Which trials are good and which are bad."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hpo.core.history import Array

Indices = NDArray[np.intp]


def split(losses: Array, numbers: NDArray[np.int64], share: float, limit: int) -> tuple[Indices, Indices]:
    """Indices of the good trials, best first, and of the others, best first.

    Good is the best ``share`` of the trials that did not fail, at least one of them, at most ``limit``.
    A failed trial (loss +inf) is never good, even if every trial failed. The earlier number wins a tie,
    so that the order in which workers finish changes nothing.
    """
    order = np.lexsort((numbers, losses))
    succeeded = int(np.isfinite(losses).sum())
    count = min(math.ceil(share * succeeded), limit)
    return order[:count], order[count:]
