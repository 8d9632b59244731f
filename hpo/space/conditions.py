"""When a parameter is active: a disjunction of paths through choices.

A *path* is a set of ``(label, value)`` that hold together; a parameter is active if any of its paths holds.
The empty path always holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby

Conditions = tuple[tuple[tuple[str, int], ...], ...]
Path = frozenset[tuple[str, int]]
Paths = frozenset[Path]

ALWAYS: Paths = frozenset([frozenset()])
NEVER: Paths = frozenset()

_MOST_STATES = 100_000


def simplified(
    paths: Iterable[Path], values: Mapping[str, frozenset[int]], active: Mapping[str, Paths]
) -> Paths:
    """The same condition in fewer paths.

    A path that contradicts itself goes, and one that another implies; paths that differ only in a choice and
    together take all its values become one without it, if the rest implies that the choice is made at all.

    Args: values: what each label can be; active: paths under which each label is known to be active.
    """
    kept = {path for path in paths if _can_hold(path, values)}
    while merged := _one_merge(kept, values, active):
        whole, parts = merged
        kept = (kept - parts) | {whole}
    return frozenset(path for path in kept if not any(other < path for other in kept))


def _can_hold(path: Path, values: Mapping[str, frozenset[int]]) -> bool:
    labels = [label for label, _ in path]
    return len(set(labels)) == len(labels) and all(value in values[label] for label, value in path)


def _one_merge(
    paths: set[Path], values: Mapping[str, frozenset[int]], active: Mapping[str, Paths]
) -> tuple[Path, set[Path]] | None:
    split: dict[tuple[str, Path], set[int]] = {}
    for path in paths:
        for label, value in path:
            split.setdefault((label, path - {(label, value)}), set()).add(value)
    for (label, rest), taken in split.items():
        if taken == values[label] and any(condition <= rest for condition in active[label]):
            return rest, {rest | {(label, value)} for value in taken}
    return None


def count_points(conditions: Mapping[str, Conditions], sizes: Mapping[str, int | None]) -> int | None:
    """How many distinct points a space has whose columns have these conditions and numbers of values.

    Columns that share no choice are independent and multiply; a choice's values add up. None if more
    than 100 000 cases would have to be told apart.
    """
    seen: dict[frozenset[tuple[str, Paths]], int] = {}

    def count(columns: dict[str, Paths]) -> int:
        total = 1
        for group in _independent(columns):
            key = frozenset(group.items())
            if key not in seen:
                if len(seen) > _MOST_STATES:
                    raise OverflowError
                seen[key] = count_group(group)
            total *= seen[key]
        return total

    def count_group(columns: dict[str, Paths]) -> int:
        label = next(label for label, paths in columns.items() if paths == ALWAYS)
        size = sizes[label]
        assert size is not None
        rest = {other: paths for other, paths in columns.items() if other != label}
        told_apart = {
            value for paths in rest.values() for path in paths for name, value in path if name == label
        }
        unnamed = (size - len(told_apart)) * count(_given(rest, label, None)) if size > len(told_apart) else 0
        return unnamed + sum(count(_given(rest, label, value)) for value in sorted(told_apart))

    try:
        return count(
            {label: frozenset(map(frozenset, paths)) or ALWAYS for label, paths in conditions.items()}
        )
    except OverflowError:
        return None


def _given(columns: dict[str, Paths], label: str, value: int | None) -> dict[str, Paths]:
    """The columns that can still be active once the label has this value (None: one that no path names)."""
    result = {}
    for name, paths in columns.items():
        left = [
            frozenset(test for test in path if test[0] != label)
            for path in paths
            if all(taken == value for other, taken in path if other == label)
        ]
        if left:
            result[name] = ALWAYS if frozenset() in left else frozenset(left)
    # A choice that is gone takes along what only it could have made active.
    while gone := {other for paths in result.values() for path in paths for other, _ in path} - result.keys():
        alive = {
            n: frozenset(p for p in paths if not any(o in gone for o, _ in p)) for n, paths in result.items()
        }
        result = {name: paths for name, paths in alive.items() if paths}
    return result


def _independent(columns: dict[str, Paths]) -> list[dict[str, Paths]]:
    """The columns in groups that no condition ties together."""
    root = {label: label for label in columns}

    def find(label: str) -> str:
        while root[label] != label:
            root[label] = root[root[label]]
            label = root[label]
        return label

    for label, paths in columns.items():
        for path in paths:
            for other, _ in path:
                root[find(label)] = find(other)
    ordered = sorted(columns, key=find)
    return [{label: columns[label] for label in group} for _, group in groupby(ordered, key=find)]
