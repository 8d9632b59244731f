"""A compiled search space: columns with conditions, points as rows, and what they mean as parameters.

A *point* is hyperopt's ``{label: number}`` (a choice is its index; inactive labels are absent). A *row* holds
the same as floats in the order of the columns, NaN where inactive: what the search computes with.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce
from itertools import chain
from operator import and_, or_
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.core import plain
from hpo.core.errors import OutsideSpace, SpaceError
from hpo.space.conditions import Conditions, count_points
from hpo.space.distributions import Array, Categorical, Distribution, Randint


@dataclass(frozen=True)
class Column:
    """One parameter of the space.

    ``options``: readable names of a choice's options, None for numbers.
    ``conditions``: active if in any of the inner tuples every ``(label, value)`` holds (outer choices first,
    a choice's value being its index); () = always active.
    ``is_integer``: its value reaches the parameters through ``int`` alone.
    """

    label: str
    distribution: Distribution
    options: tuple[str, ...] | None = None
    conditions: Conditions = ()
    is_integer: bool = False


@dataclass(frozen=True)
class Axes:
    """What the columns of a space are: continuous, ordered but quantised, or unordered (choices).

    Each is the indices of those columns.
    """

    continuous: NDArray[np.intp]
    quantised: NDArray[np.intp]
    unordered: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Space:
    """What `compile_space` makes of a hyperopt expression.

    ``columns``: parents before children. ``fixed``: what was narrowed away, as people write it.
    ``expression``: the narrowed hyperopt expression. ``uses``: by label, the operations that take its value.
    """

    columns: tuple[Column, ...]
    expression: Any
    fixed: Mapping[str, Any]
    uses: Mapping[str, frozenset[str]]
    _description: Mapping[str, Any] = field(repr=False)
    _evaluate: Callable[[Mapping[str, Any]], Any] = field(repr=False)

    # --- what it is

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return tuple(column.label for column in self.columns)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the description: the same in every process, another after every change of the space."""
        canonical = json.dumps(self._description, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """The canonical description as JSON: what the fingerprint is of, and what `difference` compares."""
        return json.loads(json.dumps(self._description))

    @cached_property
    def cardinality(self) -> int | None:
        """How many distinct points there are; None if infinitely many, or too entangled to count."""
        sizes = [column.distribution.cardinality for column in self.columns]
        if any(size is None for size in sizes):
            return None
        return count_points(
            {c.label: c.conditions for c in self.columns}, dict(zip(self.labels, sizes, strict=True))
        )

    @cached_property
    def axes(self) -> Axes:
        kinds = [
            2 if column.distribution.is_unordered else int(column.distribution.is_discrete)
            for column in self.columns
        ]
        continuous, quantised, unordered = (np.flatnonzero(np.equal(kinds, kind)) for kind in range(3))
        return Axes(continuous, quantised, unordered)

    # --- arrays

    def sample(self, rng: np.random.Generator, n: int) -> Array:
        """``(n, columns)`` rows drawn as hyperopt draws them."""
        return self.mask(self.from_unit(rng.random((n, len(self.columns)))))

    def active(self, rows: Array) -> NDArray[np.bool_]:
        """``(..., columns)``: which columns the rows' choices make active, whatever inactive ones hold."""
        rows = np.asarray(rows, dtype=float)
        result = np.ones(rows.shape, dtype=bool)
        holds: dict[tuple[int, int], NDArray[np.bool_]] = {}
        for places, paths in self._conditional:
            for place, value in chain.from_iterable(paths):
                if (place, value) not in holds:
                    holds[place, value] = rows[..., place] == value
            any_path = reduce(or_, (reduce(and_, (holds[test] for test in path)) for path in paths))
            result[..., places] = any_path[..., np.newaxis]
        return result

    def mask(self, rows: Array) -> Array:
        """The rows with NaN where a column is inactive."""
        return np.where(self.active(rows), rows, np.nan)

    def to_unit(self, rows: Array) -> Array:
        """Each column's `Distribution.to_unit`; shape ``(..., columns)``."""
        rows = np.asarray(rows, dtype=float)
        units = np.empty(rows.shape)
        for places, stack in self._stacks:
            units[..., places] = stack.to_unit(rows[..., places])
        return units

    def from_unit(self, units: Array) -> Array:
        """Each column's `Distribution.from_unit`; shape ``(..., columns)``. Nothing is masked."""
        units = np.asarray(units, dtype=float)
        rows = np.empty(units.shape)
        for places, stack in self._stacks:
            rows[..., places] = stack.from_unit(units[..., places])
        return rows

    def bins(self, rows: Array) -> tuple[Array, Array]:
        """Each column's `Distribution.bins`; two of shape ``(..., columns)``."""
        rows = np.asarray(rows, dtype=float)
        low, high = np.empty(rows.shape), np.empty(rows.shape)
        for places, stack in self._stacks:
            low[..., places], high[..., places] = stack.bins(rows[..., places])
        return low, high

    # --- points

    def row(self, point: Mapping[str, float]) -> Array:
        """``(columns,)``: the point's values, NaN where it has none. Unknown labels raise OutsideSpace."""
        row = np.array([point.get(label, math.nan) for label in self.labels], dtype=float)
        if not self._places.keys() >= point.keys():
            self.check(point)
        return row

    def point(self, row: Array) -> dict[str, int | float]:
        """The row as ``{label: number}``: Python's own numbers, which JSON holds exactly."""
        values = np.asarray(row, dtype=float).tolist()
        return {
            label: int(value) if is_index else value
            for label, is_index, value in zip(self.labels, self._is_index, values, strict=True)
            if not math.isnan(value)
        }

    def params(self, point: Mapping[str, float]) -> Any:
        """What the objective gets, as hyperopt's ``space_eval`` gives it, with fixed values put in.

        Raises OutsideSpace where the point doesn't fit, SpaceError where the expression itself fails.
        """
        try:
            return self._evaluate(
                {
                    label: int(value) if self._is_index[self._places[label]] else value
                    for label, value in point.items()
                }
            )
        except Exception as error:
            self.check(point)
            raise SpaceError(
                f"the space can't be evaluated at {dict(point)}: {type(error).__name__}: {error}",
                hint="mend the expression around these parameters (scope.…), or the option they choose",
            ) from error

    def readable(self, point: Mapping[str, float]) -> Any:
        """The parameters for people, JSON only: choices as values, functions and classes by name."""
        return plain.readable(self.params(point))

    def check(self, point: Mapping[str, float]) -> None:
        """Raises OutsideSpace with everything about the point that this space could not have drawn."""
        faults = [self._unknown(label) for label in point if label not in self._places]
        numbers: dict[str, float] = {}
        for label, value in point.items():
            if label not in self._places:
                continue
            if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
                faults.append(f"{label} is {value!r}, no number")
                continue
            numbers[label] = float(value)
            if complaint := self.columns[self._places[label]].distribution.complaint(numbers[label]):
                faults.append(f"{label} is {value!r}: {complaint}")
        row = np.array([numbers.get(label, math.nan) for label in self.labels])
        for label, is_active in zip(self.labels, self.active(row), strict=True):
            if is_active and label not in point:
                faults.append(f"{label} is missing")
            elif not is_active and label in point:
                faults.append(f"{label} is given, but the choices made don't use it")
        if faults:
            raise OutsideSpace(
                "the point is not in the space:\n  " + "\n  ".join(faults),
                hint=f"the space's parameters are {', '.join(self.labels) or 'all fixed'}",
            )

    def _unknown(self, label: str) -> str:
        if label in self.fixed:
            return f"{label} is fixed at {self.fixed[label]!r} and no parameter any more"
        return f"{label!r} is no parameter"

    @cached_property
    def _places(self) -> dict[str, int]:
        return {label: place for place, label in enumerate(self.labels)}

    @cached_property
    def _is_index(self) -> tuple[bool, ...]:
        return tuple(isinstance(column.distribution, Categorical | Randint) for column in self.columns)

    @cached_property
    def _stacks(self) -> list[tuple[list[int], Distribution]]:
        """Columns of one form are calculated together."""
        forms: dict[Hashable, list[int]] = {}
        for place, column in enumerate(self.columns):
            forms.setdefault(column.distribution.form, []).append(place)
        every = [column.distribution for column in self.columns]
        return [(places, every[places[0]].stacked([every[p] for p in places])) for places in forms.values()]

    @cached_property
    def _conditional(self) -> list[tuple[list[int], list[list[tuple[int, int]]]]]:
        """Columns of the same conditions are active together."""
        together: dict[Conditions, list[int]] = {}
        for place, column in enumerate(self.columns):
            if column.conditions:
                together.setdefault(column.conditions, []).append(place)
        return [
            (places, [[(self._places[label], value) for label, value in path] for path in conditions])
            for conditions, places in together.items()
        ]
