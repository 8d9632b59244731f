"""What runs inside a trial. Importing this package is light; its modules bring their frameworks.

`torch` and `keras` train models, `data` has data sets, `evaluation` says how good a model is, class by class,
and `clock` where an epoch's time goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from hpo.training.clock import Clock


@dataclass(slots=True)
class Final:
    """The winner of a study is trained for good, not tried: what to do otherwise than in its trial.

    ``on``: which parts of the data to train on. ``epochs``: how many, where no validation data are left to
    tell. ``test``: evaluate on the test part in the end. A training that heeds this sets ``was_seen`` and
    leaves the printed ``report`` of the test and ``load_line``, the line of Python that loads its model.
    """

    on: Literal["train", "train+validation"] = "train"
    epochs: int | None = None
    test: bool = False
    was_seen: bool = False
    report: str | None = None
    load_line: str | None = None


class Run(Protocol):
    """What training asks of the run a worker hands to the objective; a test can bring its own.

    ``seed``: 31 bits, the same on every attempt. ``attempt``: 1 for the first. ``directory``: files put
    there become the trial's artifacts. ``checkpoint_directory``: what lies there when `report` is called
    is there again on the next attempt, also on another machine. ``gpus``: those the trial may use.
    ``clock``: where the time of an epoch goes. ``final``: None in every trial of a search.
    """

    number: int
    attempt: int
    seed: int
    directory: Path
    checkpoint_directory: Path
    gpus: Sequence[str]
    clock: Clock
    final: Final | None

    def report(self, epoch: int, loss: float | None = None, **metrics: float) -> Any:
        """Tell an epoch (from 0); raises TrialPruned when the trial should end now."""

    def measure(self) -> dict[str, float]:
        """Close the clock's epoch; its metrics."""

    def phase(self, name: str) -> AbstractContextManager[Any]:
        """Count the block's time as one of the clock's phases."""
