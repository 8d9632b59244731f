"""What a space says that its author hardly meant: warnings with the mend.

Faults that no search could live with are `compile_space`'s; what is here would run, and waste trials.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import ndtr

from hpo.core.errors import SpaceError
from hpo.space.distributions import Categorical, Distribution, Normal, Randint, Uniform
from hpo.space.space import Column, Space

_MOST_UNORDERED = 20
_WIDE = 1000.0  # from here on a linear range hides its lower decades
_POINTS_TRIED = 16

# Words that make a label a whole number, unless one of the others stands beside them (layer_decay).
_COUNT_WORDS = frozenset(
    [
        *("batch", "blocks", "channels", "components", "degree", "depth", "epochs", "estimators", "filters"),
        *("heads", "hidden", "layer", "layers", "leaves", "n", "neighbors", "neurons", "num", "patience"),
        *("steps", "trees", "units"),
    ]
)
_SHARE_WORDS = frozenset(
    [
        "decay",
        "dropout",
        "factor",
        "frac",
        "fraction",
        "multiplier",
        "rate",
        "ratio",
        "scale",
        "share",
        "weight",
    ]
)
# Sets of words that make a label a small positive number, searched by decades.
_RATE_WORDS = [
    {"lr"},
    {"learning", "rate"},
    {"weight", "decay"},
    {"wd"},
    {"l1"},
    {"l2"},
    {"eps"},
    {"epsilon"},
]
_SEED_WORDS = frozenset(["seed", "state"])


@dataclass(frozen=True)
class Warning:
    """Something of the space that is hardly meant; ``label`` is empty where it is of the whole space.

    ``mend`` is what to write instead, or to do.
    """

    label: str
    message: str
    mend: str

    def __str__(self) -> str:
        return (
            f"{self.label}: {self.message}; better: {self.mend}"
            if self.label
            else f"{self.message}; {self.mend}"
        )


def lint(space: Space) -> list[Warning]:
    """Warnings in the order of the columns, then those of the whole space."""
    options = dict(_choices(space.describe()["expression"]))
    found: list[Warning] = []
    for column in space.columns:
        for message, mend in _complaints(column, space.uses[column.label], options.get(column.label, [])):
            found.append(Warning(column.label, message, mend))
    return found + list(_evaluation(space))


def _complaints(column: Column, uses: frozenset[str], options: list[Any]) -> Iterator[tuple[str, str]]:
    label, distribution = column.label, column.distribution
    if isinstance(distribution, Categorical):
        yield from _choice(label, distribution, options)
    if isinstance(distribution, Randint):
        yield from _randint(label, distribution)
    if isinstance(distribution, Normal):
        yield from _normal(label, distribution)
    reaches_params = bool(uses & {"", "dict", "pos_args", "switch"})
    integer = _integer(label, distribution) if reaches_params and not column.is_integer else None
    is_whole = column.is_integer or integer is not None
    if isinstance(distribution, Uniform):
        low, high = distribution.bounds
        if mend := _unlogged(label, distribution):
            yield (
                f"its values go from {low:.6g} to {high:.6g}: bounds are natural logarithms",
                _as_int(mend, is_whole),
            )
            return  # what else is said of the range would be said of the wrong one
        yield from _linear_decades(label, distribution)
        if off_grid := list(_grid(label, distribution, is_whole)):
            yield from off_grid
            return  # its mend is an integer already
    if integer:
        example = float(distribution.from_unit(np.array(0.4)))
        yield f"its values are floats such as {example:.6}, and it reads like a whole number", integer


# --- rules, each of one kind of parameter


def _choice(label: str, distribution: Categorical, options: list[Any]) -> Iterator[tuple[str, str]]:
    if distribution.cardinality == 1:
        yield "it has one option, so it never varies", "write the option itself instead of the choice"
        return
    if impossible := [i for i, weight in enumerate(distribution.weights) if weight == 0]:
        yield f"option {impossible[0]} has probability 0 and is never drawn", "remove it"
    texts = [json.dumps(option, sort_keys=True) for option in options]
    if repeated := [text for i, text in enumerate(texts) if text in texts[:i]]:
        yield (
            f"the option {repeated[0]} stands there more than once, and counts as different ones",
            "name it once; hp.pchoice makes an option more likely",
        )
    numbers = [option for option in options if type(option) in (int, float)]
    steps = [b - a for a, b in pairwise(numbers)]
    is_ordered = len(steps) >= 2 and (min(steps) > 0 or max(steps) < 0)
    if is_ordered and len(numbers) == len(options):
        shown = ", ".join(_number(number) for number in numbers[:4]) + (", ..." if len(numbers) > 4 else "")
        yield (
            f"its options {shown} are numbers in order, which the search takes for unrelated",
            _instead_of_choice(label, sorted(numbers)),
        )


def _instead_of_choice(label: str, numbers: list[Any]) -> str:
    low, high = numbers[0], numbers[-1]
    steps = [b - a for a, b in pairwise(numbers)]
    is_even = all(math.isclose(step, steps[0], rel_tol=1e-9) for step in steps)
    is_geometric = low > 0 and all(
        math.isclose(b / a, numbers[1] / low, rel_tol=1e-9) for a, b in pairwise(numbers)
    )
    name = _quoted(label)
    if all(isinstance(number, int) for number in numbers):
        if is_even and steps[0] == 1:
            return f"hp.uniformint({name}, {low}, {high})"
        if is_even:
            if low % steps[0] == 0:
                return f"scope.int(hp.quniform({name}, {low}, {high}, {steps[0]}))"
            return f"{low} + {steps[0]} * hp.uniformint({name}, 0, {len(numbers) - 1})"
        if is_geometric and numbers[1] == 2 * low and math.log2(low).is_integer():
            return f"scope.pow(2, hp.uniformint({name}, {int(math.log2(low))}, {int(math.log2(high))}))"
        if low > 0 and high >= 10 * low:
            return f"scope.int(hp.qloguniform({name}, {_log(low)}, {_log(high)}, 1))"
        return f"hp.uniformint({name}, {low}, {high})"
    if low > 0 and (is_geometric or high >= 100 * low):
        return f"hp.loguniform({name}, {_log(low)}, {_log(high)})"
    if is_even and math.isclose(low / steps[0], round(low / steps[0]), abs_tol=1e-9):
        return f"hp.quniform({name}, {_number(low)}, {_number(high)}, {_number(steps[0])})"
    return f"hp.uniform({name}, {_number(low)}, {_number(high)})"


def _randint(label: str, distribution: Randint) -> Iterator[tuple[str, str]]:
    is_count = _is_count(label) and distribution.cardinality > 2
    if (is_count or distribution.cardinality > _MOST_UNORDERED) and not _SEED_WORDS & _words(label):
        yield (
            f"the search takes its {distribution.cardinality} values for unrelated, as for a random seed",
            f"hp.uniformint({_quoted(label)}, {distribution.low}, {distribution.high - 1})",
        )


def _normal(label: str, distribution: Normal) -> Iterator[tuple[str, str]]:
    below_zero = 0.0 if distribution.is_log else float(ndtr(-distribution.mu / distribution.sigma))
    if below_zero > 1e-3 and (_is_count(label) or _is_rate(label)):
        yield (
            f"{below_zero:.2g} of its draws are negative",
            f"hp.{'q' if distribution.q else ''}lognormal({_quoted(label)}, np.log(median), ...)",
        )


def _unlogged(label: str, distribution: Uniform) -> str | None:
    """The mend of a log distribution whose bounds were not logged.

    Written bounds are round numbers; so are the values that logged bounds stand for, but never both.
    """
    low, high = distribution.low, distribution.high
    name, step = _quoted(label), f", {_number(distribution.q)}" if distribution.q else ""
    if not distribution.is_log or not (_is_round(low) and _is_round(high)):
        return None
    if (low > 0 and not all(map(_is_round, distribution.bounds))) or (low == 0 and high >= 20):
        return f"hp.{distribution.kind}({name}, {_log(low or 1.0)}, {_log(high)}{step})"
    # -4 and -1 for a learning rate are powers of ten in the author's mind.
    if _is_rate(label) and -6 <= low < 0 and low.is_integer() and high.is_integer() and not distribution.q:
        return f"hp.{distribution.kind}({name}, {_log(10.0**low)}, {_log(10.0**high)})"
    return None


def _linear_decades(label: str, distribution: Uniform) -> Iterator[tuple[str, str]]:
    low, high = distribution.low, distribution.high
    if distribution.is_log or distribution.q or high <= 0 or low < 0 or low * _WIDE > high:
        return
    if low > 0 or _is_rate(label):
        yield (
            f"nine of ten draws from {low:g} to {high:g} lie above {low + (high - low) / 10:g}: "
            "the lower decades are hardly searched",
            f"hp.loguniform({_quoted(label)}, {_log(low or high * 1e-4)}, {_log(high)})",
        )


def _grid(label: str, distribution: Uniform, is_whole: bool) -> Iterator[tuple[str, str]]:
    if not distribution.q:
        return
    q, (low, high) = distribution.q, distribution.bounds
    values = distribution.from_unit(np.array([0.0, 1.0]))
    first, last = float(values[0]), float(values[1])
    slack = 1e-9 * max(abs(low), abs(high), q)
    lowest = max(math.ceil(low / q - 1e-9), 1 if distribution.is_log else -math.inf) * q
    highest = max(math.floor(high / q + 1e-9) * q, lowest + q)
    bound = _log if distribution.is_log else _number
    instead = f"hp.{distribution.kind}({_quoted(label)}, {bound(lowest)}, {bound(highest)}, {_number(q)})"
    instead = _as_int(instead, is_whole)
    if first < low - slack or last > high + slack:
        outside = first if first < low - slack else last
        yield (
            f"it can be {_number(outside)}, outside {low:g} to {high:g}: it is rounded to multiples of {q:g}",
            instead,
        )
    elif not distribution.is_log and (last < high - slack or first > low + slack):
        yield (
            f"its values go from {_number(first)} to {_number(last)}, not from {low:g} to {high:g}: "
            f"they are multiples of {q:g}",
            instead,
        )


def _integer(label: str, distribution: Distribution) -> str | None:
    """The mend of floats that read like whole numbers."""
    name = _quoted(label)
    if isinstance(distribution, Uniform):
        low, high = distribution.bounds
        if distribution.q:
            bounds = () if distribution.is_log else (low, high)
            is_whole = all(number.is_integer() for number in (distribution.q, *bounds))
            if not is_whole:
                return None
            if distribution.is_log:
                return (
                    f"scope.int(hp.qloguniform({name}, {_log(low)}, {_log(high)}, {_number(distribution.q)}))"
                )
            if distribution.q == 1:
                return f"hp.uniformint({name}, {_number(low)}, {_number(high)})"
            return (
                f"scope.int(hp.quniform({name}, {_number(low)}, {_number(high)}, {_number(distribution.q)}))"
            )
        if _is_count(label) and high > 2:
            if distribution.is_log:
                return f"scope.int(hp.qloguniform({name}, {_log(max(low, 1.0))}, {_log(high)}, 1))"
            return f"hp.uniformint({name}, {math.ceil(low)}, {math.floor(high)})"
    if isinstance(distribution, Normal) and distribution.q and distribution.q.is_integer():
        arguments = ", ".join(map(_number, (distribution.mu, distribution.sigma, distribution.q)))
        return f"scope.int(hp.{distribution.kind}({name}, {arguments}))"
    return None


def _evaluation(space: Space) -> Iterator[Warning]:
    """An expression that fails for some points fails those trials: try a few."""
    for row in space.sample(np.random.default_rng(0), _POINTS_TRIED):
        try:
            space.params(space.point(row))
        except SpaceError as error:
            yield Warning("", error.message, error.hint)
            return


# --- words and numbers


def _choices(tree: Any) -> Iterator[tuple[str, list[Any]]]:
    """Every choice of a described expression with its options' descriptions."""
    if isinstance(tree, dict):
        if "choice" in tree and "options" in tree:
            yield tree["choice"], tree["options"]
        for item in (tree.get("dict") or tree).values():  # a key of the user's may be "choice" as well
            yield from _choices(item)
    elif isinstance(tree, list):
        for item in tree:
            yield from _choices(item)


def _words(label: str) -> frozenset[str]:
    """``model.numLayers`` as {num, layers}: the last part's words."""
    last = re.split(r"[./:]", label.strip("./:"))[-1]
    return frozenset(word.lower() for word in re.findall(r"[A-Z]?[a-z]+\d*|[A-Z]+\d*(?![a-z])", last))


def _is_count(label: str) -> bool:
    words = _words(label)
    return bool(words & _COUNT_WORDS) and not words & _SHARE_WORDS


def _is_rate(label: str) -> bool:
    words = _words(label)
    return any(words >= needed for needed in _RATE_WORDS)


def _is_round(number: float) -> bool:
    """Whether a person could have written it: at most three digits."""
    return math.isclose(number, float(f"{number:.3g}"), rel_tol=1e-9)


def _as_int(code: str, is_whole: bool) -> str:
    return f"scope.int({code})" if is_whole else code


def _quoted(label: str) -> str:
    return json.dumps(label, ensure_ascii=False)


def _number(number: float) -> str:
    return f"{number:.12g}"


def _log(number: float) -> str:
    return f"np.log({number:.6g})"
