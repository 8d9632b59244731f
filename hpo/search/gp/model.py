"""A Gaussian process with a Matérn 5/2 kernel and a length scale for each column.

Rasmussen & Williams 2006, chapters 2 and 5. The constant mean and the signal's variance have conjugate
priors and are maximised in closed form; the length scales and the share of noise are the most probable ones,
found by analytic gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri, dtrtrs

from hpo.core.history import Array

MEAN_WEIGHT = 1.0
"""The mean's prior counts as so many observations of 0."""

SCALE_WEIGHT = 2.0
"""The signal's variance's prior counts as so many observations of variance 1."""

LARGEST_NOISE = 1e6
"""More than any rounding needs."""

LEAST_VARIANCE = 1e-12
"""Relative to the signal's: what rounding leaves of a variance that is 0."""


@dataclass(frozen=True)
class Priors:
    """Log-normal priors.

    A length scale's median is ``length`` * d**``growth`` with d columns (Hvarfner et al. 2024,
    arXiv:2402.02229: distances grow with the root of the dimension), its log's deviation ``length_spread``;
    the noise's variance as a share of the signal's has the median ``noise`` and ``noise_spread``.
    """

    length: float = 0.5
    growth: float = 0.5
    length_spread: float = 0.7
    noise: float = 1e-3
    noise_spread: float = 2.0
    least_noise: float = 1e-6


@dataclass(frozen=True)
class Hyperparameters:
    """``lengths``: ``(columns,)``; ``noise``: its variance as a share of the signal's."""

    lengths: Array
    noise: float


@dataclass(frozen=True)
class Posterior:
    """What a Gaussian process knows after its observations; `condition` makes it.

    ``inputs``: ``(trials, coordinates)``, already times ``scales``, one over the length scales; ``weights``:
    ``(trials,)``; ``cholesky``: of the correlations, lower; ``mean``, ``variance``: the signal's.
    """

    inputs: Array
    scales: Array
    weights: Array
    cholesky: Array
    mean: float
    variance: float

    def predict(self, vectors: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the loss without noise, ``(points,)`` each."""
        cross = _matern(*_distances(vectors * self.scales, self.inputs))
        mean = self.mean + cross @ self.weights
        solved, _ = dtrtrs(self.cholesky, cross.T, lower=1)
        left = np.maximum(1.0 - np.einsum("ij,ij->j", solved, solved), LEAST_VARIANCE)
        return mean, np.sqrt(self.variance * left)


def fit(
    vectors: Array, owner: NDArray[np.intp], losses: Array, columns: float, priors: Priors
) -> Hyperparameters:
    """The most probable hyperparameters.

    Args: vectors: ``(trials, coordinates)``; owner: ``(coordinates,)``, see `Features`; losses:
    ``(trials,)``, standardised; columns: how many a trial has on average.
    """
    from scipy.optimize import minimize  # only here: it takes a while to import

    centre, spread = _prior(owner, columns, priors)
    bounds = [(c - 4 * s, c + 4 * s) for c, s in zip(centre[:-1], spread[:-1], strict=True)]
    found = minimize(
        log_posterior,
        centre,
        args=(vectors, owner, losses, columns, priors),
        jac=True,
        method="L-BFGS-B",
        bounds=[*bounds, (math.log(priors.least_noise), 0.0)],
        options={"maxiter": 50, "ftol": 1e-5},
    )
    return Hyperparameters(np.exp(found.x[:-1]), math.exp(found.x[-1]))


def condition(
    vectors: Array, owner: NDArray[np.intp], losses: Array, hyperparameters: Hyperparameters
) -> Posterior:
    """The posterior given these observations; arguments as in `fit`."""
    scales = 1.0 / hyperparameters.lengths[owner]
    inputs = vectors * scales
    cholesky = _cholesky(_matern(*_distances(inputs, inputs)), hyperparameters.noise)
    half, _ = dtrtrs(cholesky, np.column_stack([losses, np.ones_like(losses)]), lower=1)
    solved, _ = dtrtrs(cholesky, half, lower=1, trans=1)
    mean = solved[:, 0].sum() / (solved[:, 1].sum() + MEAN_WEIGHT)
    weights = solved[:, 0] - mean * solved[:, 1]
    misfit = (losses - mean) @ weights + MEAN_WEIGHT * mean**2
    variance = (misfit + SCALE_WEIGHT) / (len(losses) + SCALE_WEIGHT)
    return Posterior(inputs, scales, weights, cholesky, float(mean), float(variance))


def log_posterior(
    theta: Array, vectors: Array, owner: NDArray[np.intp], losses: Array, columns: float, priors: Priors
) -> tuple[float, Array]:
    """Minus the log posterior density, but for a constant, and its gradient, ``(columns + 1,)``.

    Args: theta: ``(columns + 1,)``, the logs of the length scales and of the noise; else as in `fit`.
    """
    n = len(losses)
    scales, noise = np.exp(-theta[:-1])[owner], math.exp(theta[-1])
    inputs = vectors * scales
    squared, root = _distances(inputs, inputs)
    decay = np.exp(-root)
    cholesky = _cholesky((1.0 + root + (5.0 / 3.0) * squared) * decay, noise)
    lower, _ = dpotri(cholesky, lower=1)
    inverse = np.tril(lower) + np.tril(lower, -1).T
    sums = inverse.sum(axis=1)
    mean = (sums @ losses) / (sums.sum() + MEAN_WEIGHT)
    weights = inverse @ (losses - mean)
    misfit = (losses - mean) @ weights + MEAN_WEIGHT * mean**2 + SCALE_WEIGHT
    freedom = n + SCALE_WEIGHT
    value = 0.5 * freedom * math.log(misfit) + np.log(np.diag(cholesky)).sum()

    # Mean and variance are at their best: by them the value does not change.
    by_covariance = 0.5 * (inverse - (freedom / misfit) * np.outer(weights, weights))  # eq. 5.9
    by_squared = by_covariance * ((-5.0 / 6.0) * (1.0 + root) * decay)
    by_coordinate = by_squared.sum(axis=1) @ inputs**2 - np.einsum("ij,ij->j", inputs, by_squared @ inputs)
    gradient = np.append(
        -4.0 * np.bincount(owner, by_coordinate, len(theta) - 1), noise * np.trace(by_covariance)
    )
    centre, spread = _prior(owner, columns, priors)
    off = (theta - centre) / spread
    return float(value + 0.5 * off @ off), gradient + off / spread


def squared_distances(left: Array, right: Array) -> Array:
    """``(rows of left, rows of right)``, by one matrix product."""
    squared = left @ right.T
    squared *= -2.0
    squared += np.einsum("ij,ij->i", left, left)[:, np.newaxis]
    squared += np.einsum("ij,ij->i", right, right)
    return np.maximum(squared, 0.0, out=squared)


def _prior(owner: NDArray[np.intp], columns: float, priors: Priors) -> tuple[Array, Array]:
    """Centres and deviations of the logs, ``(columns + 1,)`` each."""
    d = int(owner.max()) + 1
    length = math.log(priors.length) + priors.growth * math.log(max(columns, 1.0))
    return (
        np.append(np.full(d, length), math.log(priors.noise)),
        np.append(np.full(d, priors.length_spread), priors.noise_spread),
    )


def _distances(left: Array, right: Array) -> tuple[Array, Array]:
    """Squared distances, and distances times the root of 5."""
    squared = squared_distances(left, right)
    return squared, np.sqrt(5.0 * squared)


def _matern(squared: Array, root: Array) -> Array:
    """The Matérn 5/2 correlation (eq. 4.17)."""
    correlation: Array = (1.0 + root + (5.0 / 3.0) * squared) * np.exp(-root)
    return correlation


def _cholesky(correlations: Array, noise: float) -> Array:
    """Lower triangular; with more noise where rounding makes it indefinite. Writes to the diagonal."""
    while noise < LARGEST_NOISE:
        np.fill_diagonal(correlations, 1.0 + noise)
        lower, info = dpotrf(correlations, lower=1)
        if info == 0:
            return np.asarray(lower)
        noise = max(10.0 * noise, 1e-8)
    raise FloatingPointError("the correlations of the trials are no positive definite matrix")
