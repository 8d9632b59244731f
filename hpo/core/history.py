"""The ended trials of a study as arrays that grow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class History:
    """What the search learns from: one row per ended trial, in the order they were heard of.

    ``rows``: ``(trials, columns)``, the raw values of a point in the order of the space's columns, NaN
    where the column is inactive (see `Space.row`). ``losses``: ``(trials,)``, +inf for a failed trial.
    ``numbers``: ``(trials,)``, the trials' numbers.
    Appending costs amortised constant time: the arrays double. What is returned are views.
    """

    def __init__(self, columns: int) -> None:
        self._rows = _Growing(np.empty((0, columns)))
        self._losses = _Growing(np.empty(0))
        self._numbers = _Growing(np.empty(0, dtype=np.int64))
        self._derived: dict[Callable[[Array], NDArray[Any]], _Growing] = {}

    def append(self, number: int, row: Array, loss: float | None) -> None:
        """Add an ended trial; ``loss`` None or not finite counts as +inf: it is bad, however it failed."""
        self._rows.extend(np.asarray(row)[np.newaxis])
        self._losses.extend([loss if loss is not None and math.isfinite(loss) else math.inf])
        self._numbers.extend([number])

    def __len__(self) -> int:
        return self._losses.length

    @property
    def rows(self) -> Array:
        return self._rows.view

    @property
    def losses(self) -> Array:
        return self._losses.view

    @property
    def numbers(self) -> NDArray[np.int64]:
        return self._numbers.view

    def derived(self, function: Callable[[Array], NDArray[Any]]) -> NDArray[Any]:
        """``function(rows)``, calculated once for each row, however often it is asked for.

        Args: function: ``(n, columns)`` to ``(n, ...)``, each row by itself, such as `Space.to_unit`.
        """
        if function not in self._derived:
            self._derived[function] = _Growing(function(self.rows[:0]))
        known = self._derived[function]
        known.reserve(self._losses.capacity)
        while known.length < len(self):  # in parts: a resumed study of thousands needs no arrays of thousands
            known.extend(function(self.rows[known.length : known.length + 1000]))
        return known.view


class _Growing:
    """An array that takes more at its end in amortised constant time."""

    def __init__(self, empty: NDArray[Any]) -> None:
        self._array = empty
        self.length = 0

    def extend(self, more: NDArray[Any] | list[Any]) -> None:
        end = self.length + len(more)
        if end > self.capacity:
            self.reserve(max(end, 2 * self.length, 16))
        self._array[self.length : end] = more
        self.length = end

    def reserve(self, capacity: int) -> None:
        """Room for as many; it takes no memory before something is written there."""
        if capacity > self.capacity:
            larger = np.empty((capacity, *self._array.shape[1:]), self._array.dtype)
            larger[: self.length] = self.view
            self._array = larger

    @property
    def capacity(self) -> int:
        return len(self._array)

    @property
    def view(self) -> NDArray[Any]:
        return self._array[: self.length]
