"""A trial, the claim on it, its epoch reports and the ways it can end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Point = Mapping[str, float]
"""``{label: number}`` as in hyperopt; a choice is its index; inactive labels are absent."""


class State(StrEnum):
    """Where a trial stands. The last three are final: the trial has *ended*."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETED = "completed"
    PRUNED = "pruned"
    FAILED = "failed"

    @property
    def has_ended(self) -> bool:
        return self in ENDED


ENDED = (State.COMPLETED, State.PRUNED, State.FAILED)


class Kind(StrEnum):
    """Why a trial failed."""

    EXCEPTION = "exception"
    NAN = "nan"  # the loss is NaN or infinite
    NO_LOSS = "no_loss"  # None, or a dict without a loss
    WRONG_TYPE = "wrong_type"  # the loss is no number, or the result no float and no dict
    NOT_JSON = "not_json"  # the result holds what JSON can't
    REPORTED = "reported"  # the objective said status = fail
    EXIT = "exit"  # sys.exit in the objective
    EXIT_CODE = "exit_code"  # the worker process ended by itself
    SIGNAL = "signal"  # the worker process was killed
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    LOST = "lost"  # the worker fell silent


@dataclass(frozen=True, slots=True)
class Completed:
    """The objective returned a finite loss. ``result``: what else it returned, JSON only."""

    loss: float
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pruned:
    """The study stopped the trial early. ``loss``: the last one it reported."""

    loss: float | None
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """The trial ended without a loss. A failed trial never carries one: it would attract the search."""

    kind: Kind
    reason: str


Outcome = Completed | Pruned | Failed


@dataclass(frozen=True, slots=True)
class Verdict:
    """The pruner would stop a trial after ``epoch``. ``chance``: how likely it would still have become the
    best; ``best``: the lowest loss of the trials completed by then, None without one; ``is_spared``: it runs
    on all the same, to check the pruner."""

    epoch: int
    chance: float
    best: float | None
    is_spared: bool = False


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial as the store keeps it.

    ``params``: what a person reads (choices as values), JSON only. ``result``: what the objective
    returned besides its loss. ``attempts``: claims so far. ``epochs``: epochs reported.
    ``started``, ``ended``: Unix seconds of the last attempt. ``snapshot``: hash of the code that ran.
    ``revision``: the store's counter at the last change. ``run_id``: the MLflow run made for it beforehand,
    on a server. ``verdict``: the pruner's on the last attempt; a completed trial that has one was spared, or
    ended before it heard of its stop. ``gpus``: the devices that the last attempt had.
    """

    number: int
    state: State
    point: Point
    params: Mapping[str, Any]
    revision: int = 0
    loss: float | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    error: Failed | None = None
    worker: str | None = None
    attempts: int = 0
    epochs: int = 0
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    snapshot: str | None = None
    run_id: str | None = None
    verdict: Verdict | None = None
    gpus: tuple[str, ...] = ()

    @property
    def seconds(self) -> float | None:
        """How long the last attempt took, or None while it has not ended."""
        if self.started is None or self.ended is None:
            return None
        return self.ended - self.started


@dataclass(frozen=True, slots=True)
class Report:
    """One epoch of a trial: its number (from 0), loss and metrics; ``time`` in Unix seconds."""

    number: int
    epoch: int
    loss: float | None
    metrics: Mapping[str, float]
    time: float
    attempt: int
    revision: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's right to run one trial. ``token`` tells this claim from every other, earlier or later.
    ``run_id``: the MLflow run that its objective may log to, on a server."""

    number: int
    token: str
    attempt: int
    worker: str
    point: Point
    run_id: str | None = None


class Answer(StrEnum):
    """What the study says to a worker that renews or reports."""

    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened after a revision: trials as they stand now and the epochs reported since."""

    revision: int
    trials: tuple[Trial, ...]
    reports: tuple[Report, ...]


def trial_seed(study_seed: int, number: int) -> int:
    """The seed of one trial: 31 bits, which every framework takes; the same on every machine."""
    digest = hashlib.blake2b(f"{study_seed}:{number}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
