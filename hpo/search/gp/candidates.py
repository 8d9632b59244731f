"""Where an acquisition is highest: a search over the rows of a space, whatever their columns are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpo.core.history import Array
from hpo.search.seen import Seen

if TYPE_CHECKING:
    from hpo.space import Space

ELITES = 20
"""How many of the best candidates a round goes on from."""

CHILDREN = 200
"""How many candidates each round makes of them."""


@dataclass(frozen=True)
class Mutation:
    """Steps in the unit cube that change what a row says.

    ``unordered``: ``(columns,)``, choices, of which another option is drawn; ``least``: ``(columns,)``, the
    deviation below which a step would seldom leave a quantised column's bin; 0 where its values are
    infinitely many.
    """

    unordered: NDArray[np.bool_]
    least: Array

    @classmethod
    def of(cls, space: Space) -> Mutation:
        distributions = [column.distribution for column in space.columns]
        return cls(
            np.array([distribution.is_unordered for distribution in distributions], dtype=bool),
            np.array([0.7 / (distribution.cardinality or np.inf) for distribution in distributions]),
        )

    def step(self, units: Array, deviations: Array, rng: np.random.Generator) -> Array:
        """``(points, columns)``: some columns of each point moved, by a Gaussian reflected at 0 and 1.

        Args: units: complete points, no NaN; deviations: ``(points,)``.
        """
        points, columns = units.shape
        share = np.maximum(rng.random((points, 1)), 1.5 / max(columns, 1))
        moved = units + np.maximum(deviations[:, np.newaxis], self.least) * rng.standard_normal(units.shape)
        moved = 1.0 - np.abs(1.0 - np.abs(moved))
        moved = np.where(self.unordered, rng.random(units.shape), np.clip(moved, 0.0, 1.0))
        return np.where(rng.random(units.shape) < share, moved, units)


def maximise(
    space: Space,
    score: Callable[[Array], Array],
    good: Array,
    wide: int,
    rounds: int,
    seen: Seen,
    rng: np.random.Generator,
) -> Array | None:
    """The unseen row, ``(columns,)``, of the highest score that was found; None where all were seen.

    ``wide`` candidates from the prior and as many near the good trials are scored; then, round by round, the
    best ones' neighbours, nearer each time.

    Args: score: ``(rows, columns)`` to ``(rows,)``; good: ``(trials, columns)`` in the unit cube.
    """
    mutation = Mutation.of(space)
    parents = completed(good, wide, rng)
    near = mutation.step(parents, 10 ** rng.uniform(-2.0, -0.3, wide), rng)
    units = np.vstack([rng.random((wide, len(space.columns))), near])
    rows, scores = np.empty((0, len(space.columns))), np.empty(0)
    elites = np.empty((0, len(space.columns)))
    for i in range(rounds + 1):
        drawn = space.mask(space.from_unit(units))
        new = seen.is_new(drawn)
        if new.any():
            rows, elites = np.vstack([rows, drawn[new]]), np.vstack([elites, units[new]])
            scores = np.append(scores, score(drawn[new]))
            best = np.argsort(-scores, kind="stable")[:ELITES]
            rows, elites, scores = rows[best], elites[best], scores[best]
        elif not len(rows):
            return None
        parents = elites[rng.integers(len(elites), size=CHILDREN)]
        units = mutation.step(parents, 0.2 * 0.5**i * 10 ** rng.uniform(-1.0, 0.0, CHILDREN), rng)
    return rows[0]


def completed(good: Array, n: int, rng: np.random.Generator) -> Array:
    """``(n, columns)``: points of good trials, whole ones.

    A column that one lacks is another's, if any has it, or drawn from the prior: a step into another branch
    begins where that branch was good.
    """
    points = good[rng.integers(len(good), size=n)]
    for j in range(good.shape[1]):
        missing = np.isnan(points[:, j])
        have = good[~np.isnan(good[:, j]), j]
        others = have[rng.integers(len(have), size=n)] if len(have) else rng.random(n)
        points[missing, j] = others[missing]
    return points
