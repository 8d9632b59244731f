"""Grid search: every combination of values once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hpo.core.errors import SearchExhausted
from hpo.core.history import Array, History
from hpo.search.seen import Seen, unseen
from hpo.space.distributions import Distribution

if TYPE_CHECKING:
    from hpo.space import Space


@dataclass(frozen=True)
class Grid:
    """Every value of columns with finitely many, ``levels`` values of the others, at the centres of equal
    parts of their prior; only the columns that a choice makes active multiply.

    The grid is the space with fewer values, and is never listed: its points are drawn at random, so that a
    search that ends early has seen something of everything, and none is drawn twice.
    """

    levels: int = 5

    def propose(
        self, space: Space, history: History, pending: Array, rng: np.random.Generator, k: int
    ) -> Array:
        """See `hpo.search.Algorithm.propose`. Raises SearchExhausted where fewer than k points are left."""
        grid = self.of(space)
        seen = Seen.of(history, pending)
        proposals = np.empty((k, len(space.columns)))
        for i in range(k):
            left = unseen(grid, seen, rng)
            if not len(left):
                raise SearchExhausted(f"{self.size(space)}, all of which are tried")
            proposals[i] = left[0]
            seen.add(left[0])
        return proposals

    def of(self, space: Space) -> Space:
        """The space that has the grid's points and no others."""
        return replace(
            space,
            columns=tuple(
                column
                if column.distribution.cardinality is not None
                else replace(column, distribution=Levels.of(column.distribution, self.levels))
                for column in space.columns
            ),
        )

    def size(self, space: Space) -> str:
        """How many points it has, for people."""
        points = self.of(space).cardinality
        if points is None:
            return "the grid has too many points to count"
        return f"the grid has {points} point{'' if points == 1 else 's'}"


@dataclass(frozen=True)
class Levels(Distribution):
    """Some values of a column, each as likely."""

    numbers: tuple[float, ...]

    @classmethod
    def of(cls, distribution: Distribution, count: int) -> Levels:
        values = distribution.from_unit((np.arange(count) + 0.5) / count)
        return cls(tuple(np.unique(values).tolist()))

    @property
    def kind(self) -> str:
        return "levels"

    @property
    def form(self) -> Hashable:
        return self.numbers

    def stacked(self, others: Sequence[Self]) -> Self:
        return self  # all have these levels

    @property
    def cardinality(self) -> int:
        return len(self.numbers)

    def values(self) -> Array:
        return np.array(self.numbers)

    def to_unit(self, values: Array) -> Array:
        low, high = self.bins(values)
        return (low + high) / 2

    def from_unit(self, units: Array) -> Array:
        index = np.floor(np.clip(units, 0.0, 1.0) * len(self.numbers)).astype(np.intp)
        return self.values()[np.minimum(index, len(self.numbers) - 1)]

    def bins(self, values: Array) -> tuple[Array, Array]:
        values = np.asarray(values, dtype=float)
        index = np.where(np.isnan(values), np.nan, np.searchsorted(self.values(), values))
        return index / len(self.numbers), (index + 1) / len(self.numbers)

    def complaint(self, value: float) -> str | None:
        return None if value in self.numbers else "no level of the grid"

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, **{str(i): number for i, number in enumerate(self.numbers)}}
