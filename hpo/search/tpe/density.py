"""Kernel density estimates on the unit cube of a search tree.

Every density here is *relative to the prior*: the space's own distribution has density 1 everywhere, in
every column, whether the column is continuous, quantised or a choice. So columns multiply without units,
and a kernel that says nothing about a column (its trial lacks it) says 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from hpo.core.history import Array

if TYPE_CHECKING:
    from hpo.space import Space

BLOCK = 512
"""Kernels evaluated at once: 128 candidates times this many doubles stay in the processor's cache."""

TINY = float(np.finfo(float).tiny)

EDGE = 2.0**-53
"""Draws keep this far from 0 and 1, where a normal column is infinite."""


@dataclass(frozen=True)
class Axes:
    """What the columns of a space are: continuous, ordered but quantised, or unordered (choices).

    Each is the indices of those columns.
    """

    continuous: NDArray[np.intp]
    quantised: NDArray[np.intp]
    unordered: NDArray[np.intp]

    @classmethod
    def of(cls, space: Space) -> Axes:
        kinds = [
            2 if column.distribution.is_unordered else int(column.distribution.is_discrete)
            for column in space.columns
        ]
        continuous, quantised, unordered = (np.flatnonzero(np.equal(kinds, kind)) for kind in range(3))
        return cls(continuous, quantised, unordered)


@dataclass(frozen=True)
class Cells:
    """Points as parts of the unit cube.

    ``unit``, ``low``, ``high``: ``(points, columns)``: the point itself and the edges of the bin that
    gives the same value, equal in continuous columns; NaN where a column is inactive.
    """

    unit: Array
    low: Array
    high: Array

    @classmethod
    def of(cls, space: Space, rows: Array) -> Cells:
        unit = space.to_unit(rows)
        low, high = unit.copy(), unit.copy()
        for j, column in enumerate(space.columns):
            if column.distribution.is_discrete:
                low[:, j], high[:, j] = column.distribution.bins(rows[:, j])
        return cls(unit, low, high)


@dataclass(frozen=True)
class Kernels:
    """One kernel around each trial, and the prior as one kernel more, all of equal weight.

    In ordered columns a kernel is a Gaussian truncated to [0, 1], whose mass in a bin is exact; in
    unordered ones it is the trial's own option, but the prior with probability ``prior_share``.

    ``centres``: ``(trials, columns)`` in the unit cube, NaN where a trial lacks the column;
    ``bandwidth``: the Gaussians' standard deviation before truncation.
    """

    axes: Axes
    centres: Array
    bandwidth: float
    prior_share: float

    def log_density(self, cells: Cells) -> Array:
        """``(points,)``: log of the mean of the kernels' densities, relative to the prior; never -inf."""
        left, right = self._gaussians(cells)
        tables = [self._table(cells, j, self._gaussian_mass) for j in self.axes.quantised]
        tables += [self._table(cells, j, self._option_mass) for j in self.axes.unordered]
        # The prior's kernel: density 1 everywhere.
        log_sum = np.zeros(len(cells.unit))
        for start in range(0, len(self.centres), BLOCK):
            block = slice(start, start + BLOCK)
            log_kernels = left @ right[:, block]
            for table in tables:
                log_kernels += table.of(block)
            log_sum = np.logaddexp(log_sum, _log_sum_exp(log_kernels))
        log_mean: Array = log_sum - np.log(len(self.centres) + 1)
        return log_mean

    def draw(self, choice: NDArray[np.intp], rng: np.random.Generator) -> Array:
        """Points drawn from kernels, one each: ``(points, columns)`` in the unit cube.

        Args: choice: ``(points, columns)``, which trial's kernel gives the value; -1 is the prior.
        """
        uniform = rng.random(choice.shape)
        # The last row stands in for the prior, whose index is -1; it keeps the arithmetic free of NaN.
        centres = np.vstack([self.centres, np.full(choice.shape[1], 0.5)])
        centre = centres[choice, np.arange(choice.shape[1])]
        below = ndtr(-centre / self.bandwidth)
        above = ndtr((1 - centre) / self.bandwidth)
        drawn = centre + self.bandwidth * ndtri(below + uniform * (above - below))
        # Choices: a part of the same uniform number decides, the rest of it is the draw from the prior.
        own = uniform[:, self.axes.unordered] >= self.prior_share
        rest = uniform[:, self.axes.unordered] / self.prior_share
        drawn[:, self.axes.unordered] = np.where(own, centre[:, self.axes.unordered], rest)
        return np.clip(np.where(choice < 0, uniform, drawn), EDGE, 1 - EDGE)

    def _gaussians(self, cells: Cells) -> tuple[Array, Array]:
        """Log density of the kernels in all continuous columns, as the factors of a matrix product.

        Returns ``(points, 3 c)`` and ``(3 c, kernels)``: with x a point and m a centre,
        -(x - m)^2 / 2 h^2 - log(h sqrt(2 pi) Z) is linear in (x^2, x, 1), where both have the column.
        """
        h = self.bandwidth
        x, m = cells.unit[:, self.axes.continuous], self.centres[:, self.axes.continuous]
        point_has, kernel_has = ~np.isnan(x), ~np.isnan(m)
        x, m = np.where(point_has, x, 0.0), np.where(kernel_has, m, 0.0)
        log_norm = np.log(h * math.sqrt(2 * math.pi) * (ndtr((1 - m) / h) - ndtr(-m / h)))
        left = np.hstack([x**2, x, point_has])
        right = np.hstack([kernel_has / (-2 * h**2), m / h**2, kernel_has * (m**2 / (-2 * h**2) - log_norm)])
        return left, right.T

    def _gaussian_mass(self, low: Array, high: Array, centre: Array) -> Array:
        """What a truncated Gaussian gives a bin."""
        h = self.bandwidth
        return _mass((low - centre) / h, (high - centre) / h) / _mass(-centre / h, (1 - centre) / h)

    def _option_mass(self, low: Array, high: Array, centre: Array) -> Array:
        """What a trial's option gives an option: its own, whose bin its centre is in, or another."""
        is_own = (low < centre) & (centre < high)
        return self.prior_share * (high - low) + (1 - self.prior_share) * is_own

    def _table(self, cells: Cells, j: int, mass: Callable[[Array, Array, Array], Array]) -> _Table:
        """The log densities of one discrete column: a bin's mass relative to what the prior gives it."""
        _, first, point = np.unique(cells.unit[:, j], return_index=True, return_inverse=True)
        centre, kernel = np.unique(self.centres[:, j], return_inverse=True)
        low, high = cells.low[first, j, np.newaxis], cells.high[first, j, np.newaxis]
        log = np.log(np.maximum(mass(low, high, centre), TINY) / np.maximum(high - low, TINY))
        # Where point or kernel lack the column the density is the prior's, 1.
        return _Table(np.where(np.isnan(low) | np.isnan(centre), 0.0, log), point, kernel)


@dataclass(frozen=True)
class _Table:
    """Log densities by distinct value: kernel k at point p has ``log[point[p], kernel[k]]``.

    Columns with few values need few densities, however many trials there are.
    """

    log: Array
    point: NDArray[np.intp]
    kernel: NDArray[np.intp]

    def of(self, block: slice) -> Array:
        """``(points, kernels of the block)``."""
        return self.log.take(self.kernel[block], axis=1).take(self.point, axis=0)


def _mass(low: Array, high: Array) -> Array:
    """The standard Gaussian's mass between two numbers, precise in both tails."""
    # In the upper tail the difference of two numbers near 1 has no digits left: mirror it.
    upper = low > 0
    mass: Array = ndtr(np.where(upper, -low, high)) - ndtr(np.where(upper, -high, low))
    return mass


def _log_sum_exp(terms: Array) -> Array:
    """``(points,)`` from ``(points, kernels)``, which is overwritten."""
    top = terms.max(axis=1)
    terms -= top[:, np.newaxis]
    np.exp(terms, out=terms)
    log_sum: Array = top + np.log(terms.sum(axis=1))
    return log_sum
