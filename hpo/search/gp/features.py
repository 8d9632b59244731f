"""Rows of a space as vectors whose Euclidean distances a stationary kernel takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpo.core.history import Array

if TYPE_CHECKING:
    from hpo.space import Column, Space

ABSENT = 0.5
"""How far a row that lacks an ordered column is from the middle of those that have it."""


@dataclass(frozen=True)
class Features:
    """An embedding of a space's rows, some coordinates for each column.

    An ordered column that is always active is its place in the unit cube. A conditional one has a second
    coordinate, `ABSENT` where a row lacks the column (and its first is then the middle): rows that lack it
    are equal in it, and about equally far from all that have it. A choice is a corner of a simplex: any two
    options are at distance 1, and being absent is one option more.

    ``owner``: ``(coordinates,)``, the column that each coordinate belongs to.
    """

    space: Space
    owner: NDArray[np.intp]

    @classmethod
    def of(cls, space: Space) -> Features:
        widths = [_width(column) for column in space.columns]
        return cls(space, np.repeat(np.arange(len(widths)), widths))

    def embed(self, rows: Array, units: Array) -> Array:
        """``(rows, coordinates)``. Args: rows: raw values; units: the same in the unit cube."""
        vectors = np.zeros((len(rows), len(self.owner)))
        start = 0
        for j, column in enumerate(self.space.columns):
            width = _width(column)
            absent = np.isnan(units[:, j])
            if column.distribution.is_unordered:
                option = np.searchsorted(column.distribution.values(), rows[:, j])
                vectors[np.arange(len(rows)), start + np.where(absent, width - 1, option)] = np.sqrt(0.5)
            else:
                vectors[:, start] = np.where(absent, 0.5, units[:, j])
                if column.conditions:
                    vectors[:, start + 1] = ABSENT * absent
            start += width
        return vectors


def _width(column: Column) -> int:
    """How many coordinates the column takes."""
    if column.distribution.is_unordered:
        return len(column.distribution.values()) + bool(column.conditions)
    return 1 + bool(column.conditions)
