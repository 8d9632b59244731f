"""Kernel density estimates on the unit cube of a search tree.

Every density here is *relative to the prior*: the space's own distribution has density 1 everywhere, in
every column, whether the column is continuous, quantised or a choice. So columns multiply without units,
and a kernel that says nothing about a column (its trial lacks it) says 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from hpo.core.history import Array
from hpo.space import Axes

if TYPE_CHECKING:
    from hpo.space import Space

BLOCK = 2**15
"""Log densities evaluated at once, points times kernels: they stay in the processor's cache."""

TINY = float(np.finfo(float).tiny)

NARROW = 0.25
"""Half the width of a bin, in bandwidths, up to which a series gives its mass: such bins may be many."""

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)

EDGE = 2.0**-53
"""Draws keep this far from 0 and 1, where a normal column is infinite."""


@dataclass(frozen=True)
class Cells:
    """Points as parts of the unit cube.

    ``low``, ``high``: ``(points, columns)``: the edges of the bin that gives the point's value, equal in
    continuous columns; NaN where a column is inactive.
    """

    axes: Axes
    low: Array
    high: Array

    @classmethod
    def of(cls, space: Space, rows: Array) -> Cells:
        return cls(space.axes, *space.bins(rows))

    @cached_property
    def used(self) -> Axes:
        """The columns that any of the points has: in the others every density is 1."""
        is_used = np.asarray((~np.isnan(self.low)).any(axis=0))
        axes = self.axes.continuous, self.axes.quantised, self.axes.unordered
        return Axes(*(columns[is_used[columns]] for columns in axes))

    @cached_property
    def distinct(self) -> dict[int, tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """By discrete column: points with a different bin each, and which of them has each point's bin."""
        found = {}
        for column in (*self.used.quantised, *self.used.unordered):
            _, first, point = np.unique(self.low[:, column], return_index=True, return_inverse=True)
            found[int(column)] = first, point
        return found

    @cached_property
    def options(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Every option that is among the points: a point that has it, and its column."""
        columns = self.used.unordered
        firsts = [self.distinct[column][0] for column in columns]
        first = np.concatenate(firsts) if firsts else columns
        return first, np.repeat(columns, [len(each) for each in firsts])

    @cached_property
    def features(self) -> Array:
        """``(points, features)``: what log densities are linear in, but those of quantised columns.

        x^2, x and 1 of continuous columns, 1 of unordered ones, and of `options` 1 for the point's own;
        0 where the point lacks the column.
        """
        x = self.low[:, self.used.continuous]
        has = ~np.isnan(x)
        x = np.where(has, x, 0.0)
        first, columns = self.options
        is_own = self.low[:, columns] == self.low[first, columns]
        return np.hstack([x**2, x, has, ~np.isnan(self.low[:, self.used.unordered]), is_own])


@dataclass(frozen=True)
class Kernels:
    """One kernel around each trial, and the prior as one kernel more, all of equal weight.

    In ordered columns a kernel is a Gaussian truncated to [0, 1], and a bin has its mass there, to eight
    digits; in unordered ones it is the trial's own option, but the prior with probability ``prior_share``.

    ``centres``: ``(trials, columns)`` in the unit cube, NaN where a trial lacks the column;
    ``bandwidth``: the Gaussians' standard deviation before truncation.
    """

    axes: Axes
    centres: Array
    bandwidth: float
    prior_share: float

    def log_density(self, cells: Cells) -> Array:
        """``(points,)``: log of the mean of the kernels' densities, relative to the prior; never -inf."""
        tables = [self._table(cells, j) for j in cells.used.quantised]
        # The prior's kernel: density 1 everywhere.
        log_sum = np.zeros(len(cells.low))
        size = max(BLOCK // len(cells.low), 1)
        for start in range(0, len(self.centres), size):
            block = slice(start, start + size)
            log_kernels = cells.features @ self._coefficients(cells, self.centres[block]).T
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
        below = ndtr(-centres / self.bandwidth)
        inside = ndtr((1 - centres) / self.bandwidth) - below
        at = choice, np.arange(choice.shape[1])
        centre = centres[at]
        drawn = centre + self.bandwidth * ndtri(below[at] + uniform * inside[at])
        # Choices: a part of the same uniform number decides, the rest of it is the draw from the prior.
        own = uniform[:, self.axes.unordered] >= self.prior_share
        rest = uniform[:, self.axes.unordered] / self.prior_share
        drawn[:, self.axes.unordered] = np.where(own, centre[:, self.axes.unordered], rest)
        return np.clip(np.where(choice < 0, uniform, drawn), EDGE, 1 - EDGE)

    def _coefficients(self, cells: Cells, centres: Array) -> Array:
        """``(kernels, features)``: the log densities of these kernels in `Cells.features`.

        In a continuous column, with x a point and m a centre, -(x - m)^2 / 2 h^2 - log(h sqrt(2 pi) Z).
        In an unordered one log w for any option, and the rest for the trial's own, which has 1 - w besides.
        0 where the trial lacks the column: the prior's density is 1.
        """
        h, w = self.bandwidth, self.prior_share
        m = centres[:, cells.used.continuous]
        has = ~np.isnan(m)
        m = np.where(has, m, 0.0)
        log_norm = np.log(h * self._inside(m)) + LOG_SQRT_2PI
        gaussians = has / (-2 * h**2), m / h**2, has * (m**2 / (-2 * h**2) - log_norm)

        any_option = np.where(np.isnan(centres[:, cells.used.unordered]), 0.0, math.log(w))
        low, high = cells.low[cells.options], cells.high[cells.options]
        m = centres[:, cells.options[1]]
        own = np.log1p((1 - w) / (w * np.maximum(high - low, TINY)))
        return np.hstack([*gaussians, any_option, np.where((low < m) & (m < high), own, 0.0)])

    def _inside(self, centre: Array) -> Array:
        """The part of a Gaussian that truncation leaves."""
        return ndtr((1 - centre) / self.bandwidth) - ndtr(-centre / self.bandwidth)

    def _table(self, cells: Cells, j: int) -> _Table:
        """The log densities of one quantised column: a bin's mass relative to what the prior gives it."""
        h = self.bandwidth
        first, point = cells.distinct[j]
        low, high = cells.low[first, j, np.newaxis], cells.high[first, j, np.newaxis]
        centre, kernel = np.unique(self.centres[:, j], return_inverse=True)
        log = np.empty((len(first), len(centre)))
        z, w = ((high + low) / 2 - centre) / h, (high - low) / (2 * h)
        is_narrow = w[:, 0] < NARROW
        for bins, log_mean in ((is_narrow, _log_mean_of_narrow), (~is_narrow, _log_mean_of_wide)):
            if bins.any():
                log[bins] = log_mean(z[bins], w[bins])
        log -= np.log(h * self._inside(centre))
        # Where point or kernel lack the column the density is the prior's, 1.
        return _Table(np.where(np.isnan(log), 0.0, log), point, kernel)


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


def _log_mean_of_wide(z: Array, w: Array) -> Array:
    """Log of the standard Gaussian's mean density over z - w .. z + w, precise in both tails."""
    # Left of 0: in the other tail the difference of two numbers near 1 has no digits left.
    z = -np.abs(z)
    log_mean: Array = np.log(np.maximum(ndtr(z + w) - ndtr(z - w), TINY) / (2 * w))
    return log_mean


def _log_mean_of_narrow(z: Array, w: Array) -> Array:
    """The same by Taylor's series, in a tenth of the time.

    The mean is phi(z) times the sum of w^2k He_2k(z) / (2k + 1)!, where He are the Hermite polynomials 1,
    z^2 - 1, z^4 - 6 z^2 + 3 and z^6 - 15 z^4 + 45 z^2 - 15. Four terms leave out less than 1e-8 of phi(0).
    """
    s, a, b, c = z**2, w**2 / 6, w**4 / 120, w**6 / 5040
    series = np.broadcast_to(c, s.shape).copy()
    for coefficient in (b - 15 * c, a - 6 * b + 45 * c, 1 - a + 3 * b - 15 * c):
        series *= s
        series += coefficient
    log_mean: Array = np.log(series, out=series)
    s /= 2
    log_mean -= s
    log_mean -= LOG_SQRT_2PI
    return log_mean


def _log_sum_exp(terms: Array) -> Array:
    """``(points,)`` from ``(points, kernels)``, which is overwritten."""
    top = terms.max(axis=1)
    terms -= top[:, np.newaxis]
    np.exp(terms, out=terms)
    log_sum: Array = top + np.log(terms.sum(axis=1))
    return log_sum
