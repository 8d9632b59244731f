"""What a new study takes from an earlier one: trials that fit its space, chosen once and kept with it."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpo.core.errors import UsageError
from hpo.core.files import WARM_START
from hpo.points import completed
from hpo.search import Algorithm, WarmStart
from hpo.space import Space, read_point
from hpo.stores import Store, connect, means_of

SHOWN_REASONS = 5


@dataclass(frozen=True, slots=True)
class Taken:
    """Trials of an earlier study as points of this one. ``trials``: each with its ``trial`` there, ``point``
    and ``loss``; ``remarks``: what did not fit, for people."""

    source: str
    trials: Sequence[Mapping[str, Any]]
    remarks: Sequence[str]

    def said(self) -> list[str]:
        """What it is, for people."""
        return [f"warm start from {self.source}: {len(self.trials)} trials", *self.remarks]

    def warmed(self, algorithm: Algorithm, space: Space) -> WarmStart:
        """The algorithm that begins at the best of them."""
        ranked = sorted(self.trials, key=lambda trial: (trial["loss"], trial["trial"]))
        return WarmStart.of(algorithm, space, np.array([space.row(trial["point"]) for trial in ranked]))


def kept(store: Store) -> Taken | None:
    """What the study has taken; None where it has not yet."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "kept.json"
        if not store.get_file(WARM_START, path):
            return None
        document = json.loads(path.read_text())
    return Taken(document["source"], document["trials"], ())


def keep(store: Store, taken: Taken) -> None:
    """From now on these are the study's, whatever becomes of the earlier one."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "taken.json"
        path.write_text(json.dumps({"source": taken.source, "trials": list(taken.trials)}))
        store.put_files({WARM_START: path})


def take(source: str, store_url: str, space: Space, seed: int) -> Taken:
    """The completed trials of an earlier study whose parameters, by label, this space admits.

    A choice is its option's value, not its index; a parameter that the earlier study lacks is drawn from its
    prior, the same each time; one that this space lacks is left out. Of repeated trials the mean counts.

    Args: source: ``STUDY``, in the store of ``store_url``, or ``STORE_URL#STUDY``.
    Raises UsageError where nothing fits, NoSuchStudy and StoreError.
    """
    url, _, study = source.rpartition("#")
    with contextlib.closing(connect(url or store_url)) as catalog:
        return _taken(source, catalog.open(study), space, seed)


def _taken(source: str, store: Store, space: Space, seed: int) -> Taken:
    identity = store.record().identity
    losses = {m.number: m.loss for m in means_of(store, identity.repeats) if m.loss is not None}
    trials, reasons, ignored, new = [], Counter[str](), set[str](), set[str]()
    is_shared = False
    for trial in store.trials():
        if trial.number not in losses:
            continue
        meant = dict(_meant(identity.space, trial.point, space))
        is_shared |= not meant.keys().isdisjoint(space.labels)
        ignored |= {label for label in meant if label not in {*space.labels, *space.fixed}}
        given, faults = read_point(space, {k: v for k, v in meant.items() if k not in ignored})
        if faults:
            reasons[_without_value(faults[0], meant)] += 1
            continue
        if not given:
            reasons["it has none of this space's parameters"] += 1
            continue
        point = space.point(completed(space, given, seed, trial.number))
        new |= point.keys() - given.keys()
        trials.append({"trial": trial.number, "point": point, "loss": losses[trial.number]})
    remarks = [
        *(f"  not taken, {count}: {reason}" for reason, count in reasons.most_common(SHOWN_REASONS)),
        *([f"  and {more} for other reasons"] if (more := _rest(reasons)) else []),
        *([f"  left out, as this space lacks it: {', '.join(sorted(ignored))}"] if ignored else []),
        *([f"  drawn from its distribution, as {source} lacks it: {', '.join(sorted(new))}"] if new else []),
    ]
    if losses and not is_shared:
        raise UsageError(
            f"study {source} shares no parameter with this space",
            "leave --warm-start out, or name another study",
        )
    if not trials:
        is_single = identity.repeats == 1
        none = f"  it has no {'completed trial' if is_single else 'point whose trials have all completed'}"
        why = "\n".join(remarks) if losses else none
        raise UsageError(
            f"nothing of study {source} can be taken for a warm start:\n{why}",
            "leave --warm-start out, or name another study",
        )
    return Taken(source, trials, remarks)


def _without_value(fault: str, meant: Mapping[str, Any]) -> str:
    """A fault of `read_point` as it is for every value of the parameter: to be counted."""
    for value in meant.values():
        fault = fault.replace(f" can't be {value!r}: ", ": ", 1).replace(f" is {value!r}, but ", ": ", 1)
    return fault


def _rest(reasons: Counter[str]) -> int:
    return sum(count for _, count in reasons.most_common()[SHOWN_REASONS:])


def _meant(
    description: Mapping[str, Any], point: Mapping[str, float], space: Space
) -> Iterator[tuple[str, Any]]:
    """What a point of an earlier study says, as a person would: a choice by its option's name, or by the
    constants in it where an option of that name is no more (its own parameters are part of the name)."""
    yield from description["fixed"].items()
    columns = {column.label: column for column in space.columns}
    for label, value in point.items():
        names = description["parameters"][label].get("options")
        if names is None:
            yield label, value
            continue
        name = names[int(value)]
        is_known = label not in columns or name in (columns[label].options or ())
        constants = {} if is_known else _constants(description["expression"], label, int(value))
        yield label, constants or name


def _constants(expression: Any, label: str, option: int) -> dict[str, Any]:
    """The constants in an option that is a dict, from a space's description; empty where it has none."""
    if isinstance(expression, Mapping) and expression.get("choice") == label and "options" in expression:
        items = expression["options"][option]
        inside = items.get("dict", {}) if isinstance(items, Mapping) else {}
        return {key: item for key, item in inside.items() if not isinstance(item, Mapping | list)}
    parts: Any = expression if isinstance(expression, list) else ()
    parts = expression.values() if isinstance(expression, Mapping) else parts
    return next((found for part in parts if (found := _constants(part, label, option))), {})
