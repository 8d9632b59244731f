"""What an objective sees of its trial: ``objective(params, run)``."""

from __future__ import annotations

import contextlib
import math
import numbers
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hpo.core.errors import StoreError, TrialPruned
from hpo.core.trial import Answer
from hpo.training import Final
from hpo.training.clock import Clock

Batch = TypeVar("Batch")

Send = Callable[[int, float | None, Mapping[str, float], float], Answer]
"""``send(epoch, loss, metrics, time)`` keeps one epoch and brings the study's answer."""


MAX_EPOCH = 2**31  # every store and MLflow hold it


@dataclass
class Run:
    """One attempt at one trial.

    ``number``: the trial's number, from 0. ``seed``: 31 bits, the same for every attempt; Python's and
    NumPy's generators are seeded with it already. ``directory``: files put there become the trial's
    artifacts. ``checkpoint_directory``: what is there when an epoch is reported is there again after the
    worker's death, also on another machine. ``gpus``: the devices this trial may use (they are alone
    in CUDA_VISIBLE_DEVICES); empty if none was assigned. ``attempt``: 1, more on a retry. ``clock``: where
    the epochs' seconds go; a loop of your own tells it by `batches` and `phase`.
    """

    number: int
    seed: int
    directory: Path
    checkpoint_directory: Path
    gpus: tuple[str, ...] = ()
    attempt: int = 1
    send: Send = field(default=lambda *_: Answer.CONTINUE, repr=False)
    clock: Clock = field(default_factory=Clock, repr=False)
    system: Callable[[], Mapping[str, float]] = field(default=dict, repr=False)  # metrics since the last call
    final: Final | None = None
    last_loss: float | None = field(default=None, init=False)
    _timed: tuple[int, Mapping[str, float]] | None = field(default=None, init=False, repr=False)
    _unsent: list[tuple[int, float | None, dict[str, float], float]] = field(
        default_factory=list, init=False, repr=False
    )

    def batches(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The loader's batches, timed: ``for batch in run.batches(loader):``.

        Waiting for a batch is ``data``, the loop's body ``step``; within ``run.phase("validation")`` all of
        it is validation.
        """
        return self.clock.batches(loader)

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        """``with run.phase("validation"):`` times what is in it as that. The others are ``callbacks``,
        ``data``, ``step`` and ``other``."""
        return self.clock.phase(name)

    def report(self, epoch: int, loss: float | None = None, **metrics: float) -> None:
        """Keep one epoch: its number from 0, its validation loss and any metrics.

        It closes the epoch of the clock, whose ``time/...`` metrics are added, and those of the machine
        (``system/...``); a metric of your own by such a name stays yours. The same epoch again replaces it.
        Raises TrialPruned when the study wants no more of this trial (let it pass), TypeError for what is no
        number.
        """
        if not isinstance(epoch, numbers.Integral) or not 0 <= epoch < MAX_EPOCH:
            raise TypeError(f"report: the epoch is {epoch!r}, which is no whole number from 0 to 2**31")
        value = None if loss is None else _number("loss", loss)
        values = {name: _number(name, metric) for name, metric in metrics.items()}
        if value is not None and math.isfinite(value):
            self.last_loss = value
        values = {**self._measured(int(epoch), values), **values}
        self._unsent.append((int(epoch), value, values, time.time()))
        with self.clock.phase("callbacks"):
            answer = self._sent()
        if answer is Answer.STOP:
            raise TrialPruned(f"the study stopped trial {self.number} after epoch {epoch}")

    def measure(self) -> dict[str, float]:
        """Close the clock's epoch: its ``time/...`` metrics, and what the machine did (``system/...``).

        `report` does it, unless it is given ``time/epoch_seconds``. A clock that fails costs no trial.
        """
        try:
            return {**self.clock.end_epoch().metrics(), **self.system()}
        except Exception as error:
            complain(f"an epoch was not timed: {type(error).__name__}: {error}")
            return {}

    def _measured(self, epoch: int, told: Mapping[str, float]) -> Mapping[str, float]:
        """The measures of the epoch that ends here; of one that is told twice, those of the first time."""
        if "time/epoch_seconds" in told:
            return {}
        if self._timed is None or self._timed[0] != epoch:
            self._timed = epoch, self.measure()
        return self._timed[1]

    def _sent(self) -> Answer:
        """A store that fails now costs no trial: the epochs are kept and sent with the next one."""
        try:
            return self.flush()
        except StoreError as error:
            complain(f"{len(self._unsent)} epochs wait for the store: {error}")
            return Answer.CONTINUE

    def flush(self) -> Answer:
        """Send what has not reached the store yet. Raises StoreError; what was not sent is kept."""
        answer = Answer.CONTINUE
        while self._unsent:
            answer = self.send(*self._unsent[0])
            self._unsent.pop(0)
        return answer


def complain(text: str) -> None:
    """Say something in the trial's log, if it can still be written: a full disk must not end the trial."""
    with contextlib.suppress(OSError):
        print(f"hpo: {text}", file=sys.stderr, flush=True)


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, str):
            raise TypeError
        return float(value)  # NumPy's scalars and tensors of one element, too
    except (TypeError, ValueError):
        raise TypeError(f"report: {name} is {value!r}, which is no number") from None
