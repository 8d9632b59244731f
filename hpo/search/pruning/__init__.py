"""Which trials to stop early: rules on the losses that trials report. They know no store and no clock."""

from __future__ import annotations

from typing import Protocol

from hpo.core.errors import UsageError
from hpo.search.pruning.curves import Curves
from hpo.search.pruning.judge import Judge
from hpo.search.pruning.rules import Asha, Auto, Hyperband, Median

__all__ = ["Asha", "Auto", "Curves", "Hyperband", "Judge", "Median", "Pruner", "pruner"]


class Pruner(Protocol):
    """A rule that stops trials early."""

    def stops(self, curves: Curves, number: int, epoch: int) -> bool:
        """Whether the trial, which has just reported this epoch, is to end here.

        Pure: it depends on the curves alone, so a study that was interrupted goes on with the same answers.
        """


PRUNERS = {"auto": Auto, "median": Median, "asha": Asha, "hyperband": Hyperband}
NAMES = ("auto", "none", *(name for name in PRUNERS if name != "auto"))


def pruner(name: str) -> Pruner | None:
    """The rule of that name, None for ``none``. Raises UsageError."""
    if name not in NAMES:
        raise UsageError(f"there is no pruner {name!r}", f"choose one of {', '.join(NAMES)}")
    return PRUNERS[name]() if name in PRUNERS else None
