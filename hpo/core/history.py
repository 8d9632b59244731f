"""The ended trials of a study as arrays that grow."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class History:
    """What the search learns from: one row per ended trial, in the order they ended.

    ``rows``: ``(trials, columns)``, the raw values of a point in the order of the space's columns, NaN
    where the column is inactive (see `Space.row`). ``losses``: ``(trials,)``, +inf for a failed trial.
    ``numbers``: ``(trials,)``, the trials' numbers; negative where an earlier study made them.
    Appending costs amortised constant time: the arrays double. What is returned are views.
    """

    def __init__(self, columns: int) -> None:
        self._rows = np.empty((16, columns))
        self._losses = np.empty(16)
        self._numbers = np.empty(16, dtype=np.int64)
        self._length = 0

    def append(self, number: int, row: Array, loss: float | None) -> None:
        """Add an ended trial; ``loss`` None or not finite counts as +inf: it is bad, however it failed."""
        if self._length == len(self._losses):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
            self._losses = np.concatenate([self._losses, np.empty_like(self._losses)])
            self._numbers = np.concatenate([self._numbers, np.empty_like(self._numbers)])
        self._rows[self._length] = row
        self._losses[self._length] = loss if loss is not None and math.isfinite(loss) else math.inf
        self._numbers[self._length] = number
        self._length += 1

    def __len__(self) -> int:
        return self._length

    @property
    def rows(self) -> Array:
        return self._rows[: self._length]

    @property
    def losses(self) -> Array:
        return self._losses[: self._length]

    @property
    def numbers(self) -> NDArray[np.int64]:
        return self._numbers[: self._length]
