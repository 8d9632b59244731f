"""Losses on a scale that a Gaussian process can learn from."""

from __future__ import annotations

import numpy as np

from hpo.core.history import Array
from hpo.search.gp.model import squared_distances

LARGEST = 1e150


def rarity(vectors: Array, width: float) -> Array:
    """``(trials,)``: one over how many trials there are about a trial's place, itself included.

    Args: vectors: ``(trials, coordinates)``; width: how far a neighbour is counted (a Gaussian's deviation).
    """
    neighbours: Array = np.exp(squared_distances(vectors, vectors) / (-2.0 * width**2)).sum(axis=1)
    return 1.0 / neighbours


def standardised(losses: Array, weights: Array, clip: float) -> Array:
    """``(trials,)``: mean 0, deviation 1; how bad the bad ones are is left out.

    In units of the better half's spread about the median, what is more than ``clip`` above the median counts
    as if it were just that. Median and spread are weighted: a search gathers its trials where losses are
    low, and unweighted the smallest differences there would soon look like the largest ones. A failed trial
    (+inf) counts as the worst that succeeded.
    """
    succeeded = np.isfinite(losses)
    if not succeeded.any():
        return np.zeros(len(losses))
    # Beyond LARGEST squares would overflow; it is as good as infinite.
    losses = np.clip(np.where(succeeded, losses, losses[succeeded].max()), -LARGEST, LARGEST)
    order = np.argsort(losses, kind="stable")
    below = np.cumsum(weights[order])
    median = losses[order[np.searchsorted(below, 0.5 * below[-1])]]
    better = losses <= median
    spread = np.sqrt(np.average((losses[better] - median) ** 2, weights=weights[better]))
    scaled = np.minimum((losses - median) / (spread or 1.0), clip)
    centred: Array = scaled - scaled.mean()
    return centred / (centred.std() or 1.0)
