"""What runs inside a trial. Importing this package is light; its modules bring their frameworks.

`hpo.training.torch` trains PyTorch classifiers, `hpo.training.data` has the data sets of the examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class Run(Protocol):
    """What training asks of the run a worker hands to the objective; a test can bring its own.

    ``seed``: 31 bits, the same on every attempt. ``attempt``: 1 for the first. ``directory``: files put
    there become the trial's artifacts. ``checkpoint_directory``: what lies there when `report` is called
    is there again on the next attempt, also on another machine. ``gpus``: those the trial may use.
    """

    number: int
    attempt: int
    seed: int
    directory: Path
    checkpoint_directory: Path
    gpus: Sequence[str]

    def report(self, epoch: int, loss: float | None = None, **metrics: float) -> Any:
        """Tell an epoch (from 0); raises TrialPruned when the trial should end now."""
