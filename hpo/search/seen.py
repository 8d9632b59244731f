"""Which points a study has had already, and which are left."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpo.core.history import Array, History

if TYPE_CHECKING:
    from hpo.space import Distribution, Space

DRAWS = 256
"""How many draws from the prior are looked through before the space is enumerated."""

LISTED = 100_000
"""Up to how many values of a column are listed."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MURMUR = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)


class Seen:
    """The points of ended, waiting and running trials, as a set.

    Args: rows: ``(points, columns)`` raw values, NaN where inactive. duplicates: a point may be tried again:
    every one is new.
    """

    def __init__(self, rows: Array, *, duplicates: bool = False) -> None:
        self._keys: set[int] = set(_keys(rows).tolist())
        self._duplicates = duplicates

    @classmethod
    def of(cls, history: History, pending: Array, *, duplicates: bool = False) -> Seen:
        """``cls(history.rows and pending)``, but what is known of the history from the last time stays."""
        seen = cls(pending, duplicates=duplicates)
        seen._keys.update(history.derived(_keys).tolist())
        return seen

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, row: Array) -> None:
        self._keys.update(_keys(row[np.newaxis]).tolist())

    def is_new(self, rows: Array) -> NDArray[np.bool_]:
        """``(rows,)``: whether no trial has this point, or that is no hindrance."""
        if self._duplicates:
            return np.ones(len(rows), dtype=bool)
        return np.array([key not in self._keys for key in _keys(rows).tolist()], dtype=bool)


def unseen(space: Space, seen: Seen, rng: np.random.Generator) -> Array:
    """Points of the space that no trial has: ``(points, columns)``, empty where none is left.

    They are drawn from the prior, which finds some unless nearly all are seen. A discrete space is then
    enumerated, but never more of it than it takes to be sure: among one more point than are seen, one is
    unseen. (A space with a continuous column may give none though there are: all its draws were seen.)
    """
    drawn = space.sample(rng, DRAWS)
    new = drawn[seen.is_new(drawn)]
    if len(new) or any(column.distribution.cardinality is None for column in space.columns):
        return new
    listed = rng.permutation(_some_points(space, len(seen) + 1, rng))
    return listed[seen.is_new(listed)]


def _some_points(space: Space, n: int, rng: np.random.Generator) -> Array:
    """At least min(n, cardinality) distinct points, and not many more: ``(points, columns)``.

    Column by column, parents before children, every row continues with each value of the column, or with
    as many as make n rows: each row leads to one point at least, and no two to the same.
    """
    rows = np.full((1, len(space.columns)), np.nan)
    for j, column in enumerate(space.columns):
        active = space.active(rows)[:, j]
        shorter = rows[active]
        values = _some_values(column.distribution, math.ceil(n / max(len(shorter), 1)), rng)
        longer = np.repeat(shorter, len(values), axis=0)
        longer[:, j] = np.tile(values, len(shorter))
        rows = np.concatenate([rows[~active], longer])
    return rows


def _some_values(distribution: Distribution, n: int, rng: np.random.Generator) -> Array:
    """The values of a discrete column, or n of them if there are more."""
    assert distribution.cardinality is not None
    if distribution.cardinality <= max(n, LISTED):
        values = distribution.values()
        return values if len(values) <= n else rng.choice(values, n, replace=False)
    # Spread over the whole range: of so many values, hardly two draws share one.
    return np.unique(distribution.from_unit((np.arange(n) + rng.random(n)) / n))


def _keys(rows: Array) -> NDArray[np.uint64]:
    """A hash of each row. NaN is one value here, and so are 0.0 and -0.0.

    Of 64 bits: a new point is taken for one of 10 000 others once in 10^15 times, and another is proposed.
    """
    canonical = np.where(np.isnan(rows), np.nan, rows) + 0.0
    # The finalizer of MurmurHash3 (Appleby 2011), begun elsewhere in each column; their sum is the row's.
    begin = _GOLDEN * np.arange(1, rows.shape[1] + 1, dtype=np.uint64)
    bits: NDArray[np.uint64] = canonical.view(np.uint64) + begin
    for factor in _MURMUR:
        bits ^= bits >> np.uint64(33)
        bits *= factor
    bits ^= bits >> np.uint64(33)
    keys: NDArray[np.uint64] = bits.sum(axis=1, dtype=np.uint64)
    return keys
