"""Log expected improvement (Ament et al. 2023, arXiv:2310.20708)."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import erfcx, ndtr

from hpo.core.history import Array


def log_expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """``(points,)``: the log of how much below ``best`` a loss is expected to be.

    Precise also where the improvement itself underflows, so that there is always a best candidate (eq. 9).
    """
    z = (best - mean) / deviation
    near = np.maximum(z, -1.0)
    far = np.minimum(z, -1.0)
    log_near = np.log(np.exp(-0.5 * near**2) / ROOT_TAU + near * ndtr(near))
    log_far = (
        -0.5 * far**2
        - math.log(ROOT_TAU)
        + np.log1p(far * math.sqrt(math.pi / 2) * erfcx(-far / math.sqrt(2)))
    )
    log_h: Array = np.where(z > -1.0, log_near, log_far)
    return log_h + np.log(deviation)


ROOT_TAU = math.sqrt(2.0 * math.pi)
