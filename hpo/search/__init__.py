"""Where to look next: algorithms that turn a study's history into points. They know no store and no clock."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hpo.core.errors import UsageError
from hpo.core.history import Array, History
from hpo.search.auto import Auto
from hpo.search.gp import GP
from hpo.search.grid import Grid
from hpo.search.quasirandom import Quasirandom
from hpo.search.random import Random
from hpo.search.tpe import TPE
from hpo.search.warm import WarmStart

if TYPE_CHECKING:
    from hpo.space import Space

__all__ = ["GP", "TPE", "Algorithm", "Auto", "Grid", "Quasirandom", "Random", "WarmStart", "algorithm"]

NAMES = ("auto", "gp", "tpe", "random", "quasirandom", "grid")
MOST_LEVELS = 1000
UNTAUGHT = (Grid, Quasirandom, Random)  # these learn from no trial


class Algorithm(Protocol):
    """A rule that proposes points."""

    def propose(
        self, space: Space, history: History, pending: Array, rng: np.random.Generator, k: int
    ) -> Array:
        """The next k points: ``(k, columns)`` raw values, NaN where a column is inactive.

        Pure: the same inputs and the same state of ``rng`` give the same points.

        Raises SearchExhausted where it has nothing left.

        Args: history: the ended trials; a loss of +inf is a failure, which is bad and no more.
            pending: ``(trials, columns)``, the points of waiting and running trials.
            rng: made of the study's seed and the trial's number.
        """


def algorithm(name: str, seed: int = 0, *, is_noisy: bool = False) -> Algorithm:
    """The algorithm of that name: one of `NAMES`, ``grid:LEVELS``, or ``module:function`` for any suggest
    function made for hyperopt. Raises UsageError.

    Args: seed: the study's, for what is the same in all its trials: a trial's own draws are the ``rng``'s of
    `Algorithm.propose`. is_noisy: a point that was tried may be tried again.
    """
    if name == "auto":
        return Auto(GP(duplicates=is_noisy), TPE(duplicates=is_noisy))
    if name == "gp":
        return GP(duplicates=is_noisy)
    if name == "tpe":
        return TPE(duplicates=is_noisy)
    if name == "random":
        return Random(duplicates=is_noisy)
    if name == "quasirandom":
        return Quasirandom(seed, duplicates=is_noisy)
    if name.partition(":")[0] == "grid":
        return _grid(name)
    if ":" in name:
        return _foreign(name)
    raise UsageError(
        f"there is no algorithm {name!r}",
        f"choose one of {', '.join(NAMES)}, or module:function, such as hyperopt.anneal:suggest",
    )


def _grid(name: str) -> Grid:
    _, colon, levels = name.partition(":")
    if not colon:
        return Grid()
    if not levels.isdecimal() or not 1 <= int(levels) <= MOST_LEVELS:
        raise UsageError(
            f"the algorithm {name!r}: a grid has 1 to {MOST_LEVELS} levels of a continuous parameter",
            "write grid, or grid:7",
        )
    return Grid(int(levels))


def _foreign(name: str) -> Algorithm:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever an unknown module does when it is imported
        raise UsageError(
            f"the algorithm {name!r} can't be imported: {error}",
            "module:function is an importable module and a function in it, such as hyperopt.anneal:suggest",
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UsageError(
            f"the module {module_name!r} has no function {attribute!r}",
            "the function takes (new_ids, domain, trials, seed), as hyperopt.anneal:suggest does",
        )
    # Imported only here: hyperopt takes most of a second, and whoever uses another algorithm needn't wait.
    from hpo.search.hyperopt import HyperoptAlgorithm

    return HyperoptAlgorithm(function)
