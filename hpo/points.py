"""Points that a person brings to a study: a file of them, tried before the search proposes any."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpo.core.errors import UsageError
from hpo.core.history import Array
from hpo.loading import parse_value
from hpo.space import Space, read_point

SHOWN_FAULTS = 20
SHOWN_LINES = 5
SHOWN_PLACES = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """One point of a file. ``place``: where it is, for people (``entry 3``); ``given``: numbers by label, of
    some of the parameters or of all."""

    place: str
    given: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Points:
    """The points of a file, all of which fit the space."""

    path: Path
    entries: tuple[Entry, ...]

    def rows(self, space: Space, seed: int) -> Array:
        """``(entries, columns)``: valid rows; what an entry leaves out is drawn from the prior.

        The draw depends on the study's seed and on what is given, not on the entry's place or the time: the
        same file gives the same points to the same study, so that none is tried twice.
        """
        rows = np.empty((len(self.entries), len(space.columns)))
        again: Counter[str] = Counter()
        for i, entry in enumerate(self.entries):
            said = json.dumps(dict(entry.given), sort_keys=True)
            rows[i] = completed(space, entry.given, seed, _number(said), again[said])
            again[said] += 1
        return rows

    def drawn(self, space: Space, rows: Array, chosen: Sequence[int]) -> Iterator[str]:
        """What the chosen entries leave out, for people: a line for all that leave out the same."""
        places: dict[str, list[str]] = {}
        for i in chosen:
            entry = self.entries[i]
            if left_out := [label for label in space.point(rows[i]) if label not in entry.given]:
                places.setdefault(", ".join(left_out), []).append(entry.place)
        for labels, some in list(places.items())[:SHOWN_LINES]:
            more = f" and {len(some) - SHOWN_PLACES} more" if len(some) > SHOWN_PLACES else ""
            where = f"{', '.join(some[:SHOWN_PLACES])}{more}"
            yield f"{self.path}, {where}: left out, and drawn from the space: {labels}"
        if rest := list(places.values())[SHOWN_LINES:]:
            yield f"{self.path}: {sum(map(len, rest))} more points leave out others"


def completed(space: Space, given: Mapping[str, float], *seed: int) -> Array:
    """``(columns,)``: the point as a valid row; what is not given is drawn from the prior with this seed."""
    row = space.row(given)
    drawn = space.from_unit(np.random.default_rng(seed).random(len(row)))
    complete: Array = space.mask(np.where(np.isnan(row), drawn, row))
    return complete


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def read_points(path: Path, space: Space) -> Points:
    """The points of a JSON, JSON lines or CSV file.

    An entry has parameters by label, or as `hpo show` and `hpo best` print them, with or without --json.
    Raises UsageError with all that does not fit the space in one report.
    """
    entries, faults = [], []
    for place, params in _entries(path):
        given, wrong = read_point(space, params)
        if not wrong:
            given, wrong = _with_choices(space, given)
        faults += [f"{place}: {fault}" for fault in wrong]
        entries.append(Entry(place, given))
    if faults:
        more = [f"and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
        raise UsageError(
            f"{path} has points that don't fit the space:\n  " + "\n  ".join(faults[:SHOWN_FAULTS] + more),
            f"the space's parameters are {', '.join(space.labels) or 'all fixed'}; `hpo space` draws it",
        )
    return Points(path, tuple(entries))


def _with_choices(space: Space, given: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
    """With the choices that what is given needs to be used; and what can't be used with the others."""
    result = dict(given)
    # Children before parents: a choice that is needed may need another one.
    for column in reversed(space.columns):
        if column.label not in result or not column.conditions:
            continue
        ways = (way for way in column.conditions if all(result.get(name, v) == v for name, v in way))
        result |= dict(next(ways, ()))
    is_used = space.active(space.row(result))
    faults = []
    for column, is_active in zip(space.columns, is_used.tolist(), strict=True):
        if column.label in result and not is_active:
            ways_said = " or ".join(
                " and ".join(_chosen(space, label, value) for label, value in way)
                for way in column.conditions
            )
            faults.append(f"{column.label} is not used with these choices: leave it out, or give {ways_said}")
    return result, faults


def _chosen(space: Space, label: str, value: float) -> str:
    options = space.columns[space.labels.index(label)].options
    return f"{label} = {options[int(value)] if options else value}"


# --- files


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(
            f"there is no file {path}", "--points takes a JSON, JSON lines or CSV file"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} can't be read: {error}", "--points takes a text file in UTF-8") from None
    entries = list(_rows(path, text) if path.suffix.lower() == ".csv" else _documents(path, text))
    if not entries:
        raise UsageError(f"{path} has no points", 'write some: [{"learning_rate": 0.01}], or a CSV')
    return iter(entries)


def _rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """A CSV's lines; an empty cell gives nothing."""
    lines = csv.reader(text.splitlines())
    try:
        yield from _table(path, lines)
    except csv.Error as error:
        raise UsageError(
            f"{path}, line {lines.line_num} is no CSV: {error}", "quote values that hold a comma or a quote"
        ) from None


def _table(path: Path, lines: Any) -> Iterator[tuple[str, Any]]:
    header = [name.strip() for name in next(lines, [])]
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise UsageError(f"{path} has the column {twice!r} twice", "keep one of them")
    for row in lines:
        if len(row) > len(header):
            raise UsageError(
                f"{path}, line {lines.line_num} has {len(row)} values for {len(header)} columns",
                "the first line names the columns; quote values that hold a comma",
            )
        cells = {name: cell.strip() for name, cell in zip(header, row, strict=False)}
        if any(cells.values()):
            values = {name: parse_value(cell) for name, cell in cells.items() if cell}
            yield f"line {lines.line_num}", values


def _documents(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        document = _loads(path, text)
        found = document if isinstance(document, list) else [document]
        documents = [(f"entry {number}", one) for number, one in enumerate(found, 1)]
    except (ValueError, RecursionError) as error:
        documents = []
        for number, line in enumerate(text.splitlines(), 1):
            try:
                documents += [(f"line {number}", _loads(path, line))] if line.strip() else []
            except (ValueError, RecursionError) as fault:
                # A file of several lines that begins with one document is JSON lines, else it is JSON.
                where, why = (f", line {number}", fault) if documents else ("", error)
                raise UsageError(
                    f"{path}{where} is no JSON: {why}",
                    'write a list, [{"learning_rate": 0.01}], one object a line, or a file.csv',
                ) from None
    for place, one in documents:
        if isinstance(one, Mapping) and {"study", "best"} <= one.keys():  # of optimize --json, or show --json
            if not isinstance(one["best"], Mapping):
                raise UsageError(
                    f"{path} tells of study {one['study']!r} as a whole, not of its points",
                    f"hpo best {one['study']} --json has the best one, hpo show {one['study']} --json all",
                )
            one = one["best"]
        # What `hpo show STUDY --json` and `hpo best STUDY --json` print has the parameters in a trial.
        is_trial = isinstance(one, Mapping) and "params" in one and ("number" in one or "trial" in one)
        params = one["params"] if is_trial else one
        if not is_trial and not isinstance(one, Mapping):
            raise UsageError(f"{path}, {place} is {one!r}, no object", 'a point is {"label": value, ...}')
        yield place, params


def _loads(path: Path, text: str) -> Any:
    """JSON -> its document. Raises ValueError, and UsageError for a key that an object has twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            said = " and ".join(repr(value) for key, value in pairs if key == twice)
            raise UsageError(f"{path} has {twice!r} twice in one object: {said}", "keep one of them")
        return result

    return json.loads(text, object_pairs_hook=once)
