"""What makes a study the same study, and who drives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Identity:
    """The things that may not change between two runs of one study.

    ``space``: the description `Space.describe` gives (its hash is ``fingerprint``). ``arguments``: what
    ``--set`` fixed, labels of the space and arguments of the objective alike. ``repeats``: trials of each
    point. ``is_noisy``: whether a point that was tried may be tried again.
    ``warm_start``: the earlier study from which it took trials.
    """

    study: str
    entry_point: str
    fingerprint: str
    space: Any
    arguments: Mapping[str, Any]
    seed: int
    algorithm: str
    repeats: int = 1
    is_noisy: bool = False
    warm_start: str | None = None


@dataclass(frozen=True, slots=True)
class Driver:
    """The process that drives a study. ``started``: the process's start time, which a reused pid lacks."""

    host: str
    pid: int
    started: float
    token: str


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker as it announced itself. ``offers``: its host, pid and GPUs; ``beats`` moves with each
    announcement; ``trial``: the number of the one that it runs now."""

    name: str
    offers: Mapping[str, Any]
    beats: int
    trial: int | None = None


# Names of notes that more than one part of hpo knows.
PRUNER_NOTE = "pruner"
AUTO_NOTE = "auto"  # what --algo auto picks, and why


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """One study as the store keeps it. ``counts``: trials by state. ``notes``: small JSON values by name."""

    identity: Identity
    snapshot: str | None
    created: float
    revision: int
    counts: Mapping[str, int] = field(default_factory=dict)
    driver: Driver | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
