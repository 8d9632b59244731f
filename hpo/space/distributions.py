"""The distributions of hyperopt's parameters as maps between values and the unit cube.

A unit is the value's place in its prior: the CDF of the draw before it is rounded to a step of ``q``. So a
uniform sample of the unit cube is a sample of the space, and the search sees every parameter on one scale.
All functions take arrays of any shape; NaN (an inactive parameter) passes through.

Distributions of one form are also stacked into one, whose parameters are arrays: NumPy then maps many
columns in the time of one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from hpo.space.wording import text

Array = NDArray[np.float64]

# Bounds and steps are rarely exact binary fractions: 0.15 / 0.1 is 1.4999999999999998.
_TOLERANCE = 1e-9
# Φ⁻¹ is infinite at 0 and 1; these are the units next to them that a float holds symmetrically: ±8.2 σ.
_SMALLEST_UNIT = 2.0**-53
# Beyond this many integers a frequency per value says nothing that a few hundred trials could fill.
_MOST_CATEGORIES = 1000


class Distribution(ABC):
    """How one parameter is drawn."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """hyperopt's name: uniform, quniform, loguniform, ..., randint, categorical."""

    @abstractmethod
    def to_unit(self, values: Array) -> Array:
        """The values' places in 0..1; for an unordered kind the centre of the value's bin."""

    @abstractmethod
    def from_unit(self, units: Array) -> Array:
        """The values at these places, rounded as hyperopt rounds; units are clipped to 0..1."""

    @abstractmethod
    def bins(self, values: Array) -> tuple[Array, Array]:
        """The edges ``(low, high)`` in the unit cube between which draws give these values.

        Their difference is the value's probability; for a continuous kind both are ``to_unit(values)``.
        """

    @abstractmethod
    def complaint(self, value: float) -> str | None:
        """Why the value can't have been drawn, or None if it can (float rounding is forgiven)."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Kind and arguments as JSON, for the fingerprint; `text` says it for people."""

    @property
    @abstractmethod
    def form(self) -> Hashable:
        """What is the same in all distributions that can be stacked."""

    @abstractmethod
    def stacked(self, others: Sequence[Self]) -> Self:
        """``others``, all of this form, as one: it maps arrays ``(..., others)``, each its own part.

        Only its `to_unit`, `from_unit` and `bins` are of use.
        """

    @property
    def is_discrete(self) -> bool:
        """Whether single values have a probability."""
        return True

    @property
    def is_unordered(self) -> bool:
        """Whether neighbouring values say nothing about each other."""
        return False

    @property
    def cardinality(self) -> int | None:
        """How many values can be drawn; None if infinitely many."""
        return None

    @property
    def probabilities(self) -> Array | None:
        """For an unordered kind, the probability of each index (randint: of low + index); else None."""
        return None

    def values(self) -> Array:
        """Every value that can be drawn, ascending; raises ValueError where they are infinitely many."""
        raise ValueError(f"{self} has infinitely many values")

    def __str__(self) -> str:
        return text(self.describe())


@dataclass(frozen=True)
class _Number(Distribution):
    """A number drawn from a latent distribution: x, or exp(x), or either rounded to steps of ``q``."""

    is_log: bool = False
    q: float | None = None

    _family = ""
    _parameters: ClassVar[tuple[str, ...]] = ()

    @property
    def form(self) -> Hashable:
        return self.kind

    def stacked(self, others: Sequence[Self]) -> Self:
        names = self._parameters if self.q is None else (*self._parameters, "q")
        # Any: only here is a parameter an array.
        arrays: dict[str, Any] = {name: np.array([getattr(o, name) for o in others]) for name in names}
        return replace(self, **arrays)

    @property
    def kind(self) -> str:
        return f"{'' if self.q is None else 'q'}{'log' if self.is_log else ''}{self._family}"

    @abstractmethod
    def _cdf(self, latent: Array) -> Array: ...

    @abstractmethod
    def _ppf(self, units: Array) -> Array: ...

    @property
    @abstractmethod
    def _steps(self) -> tuple[float, float]:
        """The first and the last multiple of q with any probability."""

    def to_unit(self, values: Array) -> Array:
        return self._unit(np.asarray(values, dtype=float))

    def from_unit(self, units: Array) -> Array:
        latent = self._ppf(_clipped(units))
        values = np.exp(latent) if self.is_log else latent
        if self.q is None:
            return values
        first, last = self._steps
        step = np.minimum(np.maximum(np.rint(values / self.q), first), last)
        return step * self.q + 0.0  # + 0.0: no negative zero

    def bins(self, values: Array) -> tuple[Array, Array]:
        values = np.asarray(values, dtype=float)
        if self.q is None:
            units = self._unit(values)
            return units, units.copy()
        first, last = self._steps
        step = np.rint(values / self.q)
        low, high = self._unit(np.stack([step - 0.5, step + 0.5]) * self.q)
        return np.where(step <= first, 0.0, low), np.where(step >= last, 1.0, high)

    def complaint(self, value: float) -> str | None:
        if not math.isfinite(value):
            return "not a finite number"
        if self.q is None:
            return self._outside(value)
        step = value / self.q
        if abs(step - round(step)) > _TOLERANCE * max(1.0, abs(step)):
            return f"no multiple of {self.q:g}"
        first, last = self._steps
        return None if first <= round(step) <= last else f"outside {first * self.q:g} to {last * self.q:g}"

    @abstractmethod
    def _outside(self, value: float) -> str | None: ...

    @property
    def is_discrete(self) -> bool:
        return self.q is not None

    def _unit(self, values: Array) -> Array:
        if not self.is_log:
            return self._cdf(values)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._cdf(np.where(values <= 0.0, -np.inf, np.log(values)))


@dataclass(frozen=True)
class Uniform(_Number):
    """uniform, quniform, loguniform, qloguniform; ``low`` and ``high`` bound the logarithm if ``is_log``."""

    low: float = 0.0
    high: float = 1.0

    _family = "uniform"
    _parameters = ("low", "high")

    @property
    def bounds(self) -> tuple[float, float]:
        """The bounds of the value itself."""
        return (np.exp(self.low), np.exp(self.high)) if self.is_log else (self.low, self.high)

    @property
    def cardinality(self) -> int | None:
        if self.q is None:
            return None
        first, last = self._steps
        return int(last) - int(first) + 1

    def values(self) -> Array:
        if self.q is None:
            return super().values()
        first, last = self._steps
        return np.arange(first, last + 1) * self.q

    def describe(self) -> dict[str, Any]:
        step = {} if self.q is None else {"q": _rounded(self.q)}
        return {"kind": self.kind, "low": _rounded(self.low), "high": _rounded(self.high), **step}

    def _cdf(self, latent: Array) -> Array:
        return _clipped((latent - self.low) / (self.high - self.low))

    def _ppf(self, units: Array) -> Array:
        return self.low + units * (self.high - self.low)

    @cached_property
    def _steps(self) -> tuple[float, float]:
        # A multiple k has probability if (k - 1/2, k + 1/2) q overlaps the bounds.
        assert self.q is not None
        low, high = self.bounds
        first = np.floor(low / self.q + 0.5 + _TOLERANCE)
        return first, np.maximum(first, np.ceil(high / self.q - 0.5 - _TOLERANCE))

    def _outside(self, value: float) -> str | None:
        low, high = self.bounds
        slack = _TOLERANCE * (self.high - self.low)
        if self.is_log and value > 0:
            is_inside = self.low - slack <= math.log(value) <= self.high + slack
        else:
            is_inside = low - slack <= value <= high + slack and not self.is_log
        return None if is_inside else f"outside {low:g} to {high:g}"


@dataclass(frozen=True)
class Normal(_Number):
    """normal, qnormal, lognormal, qlognormal; ``mu`` and ``sigma`` are the logarithm's if ``is_log``."""

    mu: float = 0.0
    sigma: float = 1.0

    _family = "normal"
    _parameters = ("mu", "sigma")

    def describe(self) -> dict[str, Any]:
        step = {} if self.q is None else {"q": _rounded(self.q)}
        return {"kind": self.kind, "mu": _rounded(self.mu), "sigma": _rounded(self.sigma), **step}

    def _cdf(self, latent: Array) -> Array:
        return np.asarray(ndtr((latent - self.mu) / self.sigma))

    def _ppf(self, units: Array) -> Array:
        return self.mu + self.sigma * ndtri(np.clip(units, _SMALLEST_UNIT, 1.0 - _SMALLEST_UNIT))

    @property
    def _steps(self) -> tuple[float, float]:
        return (0.0 if self.is_log else -math.inf), math.inf

    def _outside(self, value: float) -> str | None:
        return "not positive" if self.is_log and value <= 0 else None


@dataclass(frozen=True)
class Randint(Distribution):
    """An integer from ``low`` up to but without ``high``, each as likely.

    hyperopt's documentation: neighbours are unrelated (seeds). Beyond 1000 values no search can count each
    of them, and they are treated as ordered.
    """

    low: int
    high: int

    @property
    def kind(self) -> str:
        return "randint"

    @property
    def form(self) -> Hashable:
        return self.kind

    def stacked(self, others: Sequence[Self]) -> Self:
        low: Any = np.array([other.low for other in others])
        high: Any = np.array([other.high for other in others])
        return replace(self, low=low, high=high)

    @property
    def is_unordered(self) -> bool:
        return self.cardinality <= _MOST_CATEGORIES

    @property
    def cardinality(self) -> int:
        return self.high - self.low

    @cached_property
    def probabilities(self) -> Array | None:
        return np.full(self.cardinality, 1.0 / self.cardinality) if self.is_unordered else None

    def to_unit(self, values: Array) -> Array:
        return _clipped((np.asarray(values, dtype=float) - self.low + 0.5) / self.cardinality)

    def from_unit(self, units: Array) -> Array:
        index = np.floor(_clipped(units) * self.cardinality)
        return self.low + np.minimum(index, self.cardinality - 1)

    def bins(self, values: Array) -> tuple[Array, Array]:
        index = np.asarray(values, dtype=float) - self.low
        return _clipped(index / self.cardinality), _clipped((index + 1) / self.cardinality)

    def complaint(self, value: float) -> str | None:
        if value != math.floor(value):
            return "no integer"
        return None if self.low <= value < self.high else f"outside {self.low} to {self.high - 1}"

    def values(self) -> Array:
        return np.arange(self.low, self.high, dtype=float)

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Categorical(Distribution):
    """The index of a choice's option, drawn with the probability ``weights[index]``; they sum to 1."""

    weights: tuple[float, ...]

    @property
    def kind(self) -> str:
        return "categorical"

    @property
    def form(self) -> Hashable:
        return self.kind

    def stacked(self, others: Sequence[Self]) -> Self:
        # Options first, as in the tuple; who has fewer than the others has some without probability.
        options = zip_longest(*(other.weights for other in others), fillvalue=0.0)
        weights: Any = tuple(np.array(each) for each in options)
        return replace(self, weights=weights)

    @property
    def is_unordered(self) -> bool:
        return True

    @property
    def cardinality(self) -> int:
        return sum(weight > 0 for weight in self.weights)

    @cached_property
    def probabilities(self) -> Array:
        return np.array(self.weights) / np.sum(self.weights, axis=0)

    @cached_property
    def _edges(self) -> Array:
        """``(options + 1, ...)``: where in the unit cube each option's bin begins; the last ends at 1."""
        ends = np.cumsum(self.probabilities, axis=0)
        edges = np.concatenate([np.zeros_like(ends[:1]), ends])
        return np.where(edges >= edges[-1], 1.0, edges)  # of equal ends only those of impossible last options

    @cached_property
    def _bins(self) -> tuple[Array, Array]:
        """``(options + 1, ...)`` each: where each option's bin begins and ends; the last is no option's."""
        none = np.full_like(self._edges[:1], np.nan)
        return np.concatenate([self._edges[:-1], none]), np.concatenate([self._edges[1:], none])

    @cached_property
    def _last(self) -> Array:
        """The last option that has a probability."""
        return np.max(np.where(self.probabilities.T > 0, np.arange(len(self.weights)), 0), axis=-1)

    def to_unit(self, values: Array) -> Array:
        low, high = self.bins(values)
        return 0.5 * (low + high)

    def from_unit(self, units: Array) -> Array:
        # Bins are half open: an option without probability holds no unit, and 1 belongs to the last one.
        index = np.zeros(np.shape(units))
        for edge in self._edges[1:]:
            index += units >= edge
        return np.where(np.isnan(units), np.nan, np.minimum(index, self._last))

    def bins(self, values: Array) -> tuple[Array, Array]:
        none = len(self.weights)
        index = np.where(np.isnan(values), none, np.minimum(np.maximum(values, 0), none - 1)).astype(np.intp)
        low, high = self._bins
        if low.ndim == 1:
            return low[index], high[index]
        columns = np.arange(low.shape[1])
        return low[index, columns], high[index, columns]

    def complaint(self, value: float) -> str | None:
        if value != math.floor(value) or not 0 <= value < len(self.weights):
            return f"no index of its {len(self.weights)} options"
        return None if self.weights[int(value)] > 0 else "an option of probability 0"

    def values(self) -> Array:
        return np.flatnonzero(self.probabilities > 0).astype(float)

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "probabilities": [_rounded(weight) for weight in self.weights]}


def _clipped(units: Array) -> Array:
    """The units in 0..1: as np.clip, which takes longer for a few."""
    return np.minimum(np.maximum(units, 0.0), 1.0)


def _rounded(value: float) -> float:
    """The value to 13 digits: machines differ in the last bit of a logarithm, fingerprints must not."""
    return float(f"{value:.13g}") + 0.0
