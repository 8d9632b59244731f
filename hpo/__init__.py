"""Bayesian hyperparameter optimization for people who train neural networks.

Everything public is named here and imported when first used: ``import hpo`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hpo.version import __version__

if TYPE_CHECKING:
    from hpo.core.errors import HpoError, TrialPruned, UsageError
    from hpo.notebook import optimize
    from hpo.run import Run
    from hpo.search.hyperopt import suggest

__all__ = ["HpoError", "Run", "TrialPruned", "UsageError", "__version__", "optimize", "suggest"]

_HOMES = {
    "HpoError": "hpo.core.errors",
    "TrialPruned": "hpo.core.errors",
    "UsageError": "hpo.core.errors",
    "Run": "hpo.run",
    "optimize": "hpo.notebook",
    "suggest": "hpo.search.hyperopt",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hpo' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
