"""Search problems of the kinds people tune, each with the best loss that there is and where it is.

Response surfaces like a neural network's; mixed-integer functions; trees of choices, one made to mislead;
noisy ones; and the cross-validated error of real learners on scikit-learn's digits, which is computed once on
a grid (some minutes), kept in ``build/``, and interpolated: its minimum is at a node of the grid.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from hyperopt import hp
from hyperopt.pyll import scope

from hpo.space import Space, compile_space

DIGITS_CACHE = Path(__file__).resolve().parents[1] / "build" / "benchmarks" / "digits.json"


class Unavailable(Exception):
    """Something isn't installed here that a problem or an algorithm needs."""


@dataclass(frozen=True)
class Problem:
    """``loss`` of the parameters, without noise, is least at the point ``optimum``; ``noise`` is the standard
    deviation of what a search sees beside it."""

    expression: Any
    loss: Callable[[Any], float]
    optimum: Mapping[str, float]
    noise: float = 0.0

    @cached_property
    def space(self) -> Space:
        return compile_space(self.expression)

    @cached_property
    def best(self) -> float:
        return self.at(self.optimum)

    def at(self, point: Mapping[str, float]) -> float:
        return float(self.loss(self.space.params(point)))


@dataclass(frozen=True)
class Number:
    """A parameter between two bounds, and where it is best; of ``step`` other than 0 it is an integer."""

    low: float
    high: float
    best: float = math.nan
    is_log: bool = False
    step: int = 0

    def expression(self, label: str) -> Any:
        low, high = (math.log(self.low), math.log(self.high)) if self.is_log else (self.low, self.high)
        if self.step:
            kind = hp.qloguniform if self.is_log else hp.quniform
            return scope.int(kind(label, low, high, self.step))
        return (hp.loguniform if self.is_log else hp.uniform)(label, low, high)

    def place(self, value: float) -> float:
        """Where the value is between the bounds: 0 to 1."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def off(self, value: float) -> float:
        """How far the value is from the best one, in widths of the range; with a sign."""
        return self.place(value) - self.place(self.best)


Numbers = Mapping[str, Number]


def expressions(numbers: Numbers, prefix: str = "") -> dict[str, Any]:
    return {name: number.expression(prefix + name) for name, number in numbers.items()}


def optimum_of(numbers: Numbers, prefix: str = "") -> dict[str, float]:
    return {prefix + name: float(number.best) for name, number in numbers.items()}


def offs(numbers: Numbers, params: Mapping[str, Any]) -> dict[str, float]:
    return {name: number.off(params[name]) for name, number in numbers.items()}


def saturating(total: float, floor: float = 0.02, ceiling: float = 0.9) -> float:
    """An error rate: the floor at 0, and guessing where a network doesn't train at all."""
    return ceiling - (ceiling - floor) * math.exp(-total)


# --- surfaces like a neural network's

NETWORK: Numbers = {
    "learning_rate": Number(1e-5, 1, 3e-3, is_log=True),
    "batch_size": Number(16, 512, 64, is_log=True, step=16),
    "width": Number(16, 1024, 256, is_log=True, step=16),
    "dropout": Number(0, 0.7, 0.2),
    "weight_decay": Number(1e-8, 0.1, 1e-4, is_log=True),
}
TRAINING: Numbers = {
    "layers": Number(1, 6, 3, step=1),
    "one_minus_momentum": Number(1e-3, 0.5, 0.05, is_log=True),
    "warm_up": Number(0, 0.3, 0.06),
    "smoothing": Number(0, 0.3, 0.1),
    "clip": Number(0.1, 100, 5, is_log=True),
}


def network_terms(off: Mapping[str, float], step_size: float) -> float:
    # The best learning rate grows with the batch and shrinks with the width; beyond it training diverges.
    size = step_size - 0.15 * off["batch_size"] + 0.2 * off["width"]
    # A wider network wants more regularisation, of which dropout and weight decay can do each other's part.
    return (
        (20 if size < 0 else 60) * size**2
        + 0.3 * off["batch_size"] ** 2
        + 0.8 * off["width"] ** 2
        + 1.5 * (off["dropout"] - 0.3 * off["width"]) ** 2
        + 3 * (off["weight_decay"] + 0.4 * off["dropout"]) ** 2
    )


def network(noise: float = 0.0) -> Problem:
    def loss(params: Mapping[str, Any]) -> float:
        off = offs(NETWORK, params)
        return saturating(network_terms(off, off["learning_rate"]))

    return Problem(expressions(NETWORK), loss, optimum_of(NETWORK), noise)


def network_with_training() -> Problem:
    """Twelve parameters, most of which matter little, as usual."""
    numbers = {**NETWORK, **TRAINING}
    activations, schedules = ["tanh", "relu", "gelu"], ["constant", "cosine", "step"]
    activation_cost, schedule_cost = {"tanh": 0.06, "relu": 0.01, "gelu": 0}, [0.08, 0, 0.03]

    def loss(params: Mapping[str, Any]) -> float:
        off = offs(numbers, params)
        # What counts is the learning rate over one minus the momentum, and a deep tanh needs it lower.
        step_size = off["learning_rate"] - 0.4 * off["one_minus_momentum"] + 0.1 * off["layers"]
        total = network_terms(off, step_size) + activation_cost[params["activation"]]
        total += schedule_cost[schedules.index(params["schedule"])]
        total += (1.5 if params["activation"] == "tanh" else 0.6) * off["layers"] ** 2
        total += 0.5 * off["one_minus_momentum"] ** 2 + 0.1 * (off["warm_up"] - off["learning_rate"]) ** 2
        return saturating(total + 0.1 * off["smoothing"] ** 2 + 0.02 * off["clip"] ** 2)

    choices = {
        "activation": hp.choice("activation", activations),
        "schedule": hp.choice("schedule", schedules),
    }
    best = {**optimum_of(numbers), "activation": activations.index("gelu"), "schedule": 1}
    return Problem({**expressions(numbers), **choices}, loss, best)


# --- mixed-integer functions


def rotated(columns: int, integers: int, *, rugged: float = 0.0, condition: float = 1.0) -> Problem:
    """An ellipsoid in directions of its own, with Rastrigin's ripples where it is ``rugged``."""
    rng = np.random.default_rng([columns, integers])
    rotation = np.linalg.qr(rng.normal(size=(columns, columns)))[0]
    scales = condition ** np.linspace(0, 1, columns)
    numbers = {
        f"x{j:02}": Number(0, 19, int(rng.integers(4, 16)), step=1)
        if j < integers
        else Number(-5, 5, float(rng.uniform(-3, 3)))
        for j in range(columns)
    }

    def loss(params: Mapping[str, Any]) -> float:
        turned = rotation @ list(offs(numbers, params).values())
        return float(scales @ turned**2 + rugged * (1 - np.cos(8 * np.pi * turned)).sum())

    return Problem(expressions(numbers), loss, optimum_of(numbers))


# --- trees


@dataclass(frozen=True)
class Branch:
    """An option with parameters of its own: ``floor`` at their best, ``ceiling`` far from it, in between as
    ``steepness`` has it. ``nested``: options of one more choice in it."""

    floor: float
    ceiling: float
    steepness: float
    numbers: Numbers
    nested: tuple[Branch, ...] = ()

    def expression(self, prefix: str, index: int) -> dict[str, Any]:
        inner = {}
        if self.nested:
            label = f"{prefix}kind"
            options = [b.expression(f"{prefix}{i}_", i) for i, b in enumerate(self.nested)]
            inner = {"kind": hp.choice(label, options)}
        return {"index": index, **expressions(self.numbers, prefix), **inner}

    def loss(self, params: Mapping[str, Any]) -> float:
        total = self.steepness * sum(off**2 for off in offs(self.numbers, params).values())
        own = saturating(total, self.floor, self.ceiling)
        return own + (self.nested[params["kind"]["index"]].loss(params["kind"]) if self.nested else 0)

    def optimum(self, prefix: str) -> dict[str, float]:
        best = optimum_of(self.numbers, prefix)
        if self.nested:
            i = least_floor(self.nested)
            best |= {f"{prefix}kind": i, **self.nested[i].optimum(f"{prefix}{i}_")}
        return best

    @property
    def least(self) -> float:
        return self.floor + (min(branch.least for branch in self.nested) if self.nested else 0)


def least_floor(branches: tuple[Branch, ...]) -> int:
    return min(range(len(branches)), key=lambda i: branches[i].least)


def tree(branches: tuple[Branch, ...], shared: Numbers | None = None, noise: float = 0.0) -> Problem:
    """A choice of branches, beside numbers that they share."""
    root = Branch(0, 1, 1, shared or {}, branches)
    return Problem(root.expression("", 0), root.loss, root.optimum(""), noise)


RATE, SHARE = Number(1e-4, 1, 0.05, is_log=True), Number(0.1, 1, 0.7)
MODELS = (
    Branch(0.16, 0.5, 3, {"C": Number(1e-4, 1e4, 0.3, is_log=True)}, (
        Branch(0.01, 0.3, 1, {}),
        Branch(0, 0.3, 2, {"ratio": Number(0, 1, 0.25)}),
    )),
    Branch(0.12, 0.3, 1.5, {"neighbours": Number(1, 50, 7, step=1), "power": Number(1, 4, 2.2)}),
    Branch(0.07, 0.4, 2, {"depth": Number(2, 20, 14, step=1), "features": SHARE}),
    Branch(0.02, 0.3, 1.5, {"rate": RATE, "depth": Number(2, 12, 5, step=1), "subsample": SHARE}, (
        Branch(0, 0.08, 2, {"rounds": Number(10, 1000, 300, is_log=True, step=10)}),
        Branch(0.01, 0.08, 1, {"patience": Number(1, 50, 20, step=1), "drop": Number(0, 0.5, 0.1)}),
    )),
)  # fmt: skip
UNIT = {name: Number(0, 1, best) for name, best in zip("abcd", (0.3, 0.62, 0.55, 0.42), strict=True)}
MISLEADING = (
    Branch(0.25, 0.4, 1, {name: UNIT[name] for name in "ab"}),  # the best on average
    Branch(0.2, 0.7, 2, {name: UNIT[name] for name in "cd"}),
    Branch(0, 1, 3, UNIT),  # the worst on average; better than the others in 3 % of it
)


def many_branches() -> Problem:
    """Fifty columns, twelve or thirteen of them active: four at the root, nine or ten in each of five
    branches, a nested choice among them."""
    rng = np.random.default_rng(50)

    def numbers(names: str) -> dict[str, Number]:
        kinds = [
            Number(0, 1, float(rng.uniform(0.2, 0.8))),
            Number(1e-6, 1, float(10 ** rng.uniform(-5, -1)), is_log=True),
            Number(1, 32, int(rng.integers(5, 28)), step=1),
        ]
        return {name: kinds[j % 3] for j, name in enumerate(names)}

    branches = tuple(
        Branch(
            0.03 * i,
            1,
            0.5 + 0.2 * i,
            numbers("abcdefg" if i == 2 else "abcdef"),
            (Branch(0.05, 0.3, 2, numbers("y")), Branch(0, 0.5, 3, numbers("z"))),
        )
        for i in (3, 1, 0, 2, 4)
    )
    return tree(branches, numbers("uvw"))


# --- learners on the digits

SVM_C = Number(0.01, 1000, is_log=True)
COMPONENTS = {"components": (Number(3, 48, is_log=True, step=1), 5)}  # of a PCA before each of them
DIGITS: dict[str, dict[str, tuple[Number, int]]] = {  # with how many nodes each has on the grid
    "rbf": {**COMPONENTS, "C": (SVM_C, 8), "gamma": (Number(1e-3, 10, is_log=True), 13)},
    "polynomial": {
        **COMPONENTS,
        "C": (SVM_C, 6),
        "gamma": (Number(1e-3, 1, is_log=True), 5),
        "degree": (Number(2, 5, step=1), 4),
    },
    "forest": {
        **COMPONENTS,
        "features": (Number(0.02, 1), 4),
        "depth": (Number(2, 14, step=1), 4),
        "leaf": (Number(1, 10, step=1), 4),
    },
    "neighbours": {**COMPONENTS, "k": (Number(1, 15, step=1), 8), "power": (Number(1, 5), 3)},
}


def nodes(number: Number, n: int) -> list[float]:
    values = (np.geomspace if number.is_log else np.linspace)(number.low, number.high, n)
    return [round(value) if number.step else float(value) for value in values]


def digits_error(learner: str, components: int, params: Mapping[str, Any]) -> float:
    """The share of digits that the learner gets wrong when it has seen 270 others; mean of three splits."""
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import ShuffleSplit, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    model = {
        "rbf": lambda C, gamma: SVC(C=C, gamma=gamma),
        "polynomial": lambda **kernel: SVC(kernel="poly", max_iter=5000, **kernel),
        "forest": lambda features, depth, leaf: RandomForestClassifier(
            20, max_features=features, max_depth=depth, min_samples_leaf=leaf, random_state=0
        ),
        "neighbours": lambda k, power: KNeighborsClassifier(k, p=power),
    }[learner](**params)
    inputs, targets = load_digits(return_X_y=True)
    splits = ShuffleSplit(3, train_size=0.15, random_state=0)
    pipeline = make_pipeline(PCA(components, random_state=0), model)
    return 1 - float(cross_val_score(pipeline, inputs / 16, targets, cv=splits).mean())


def digits_table() -> dict[str, Any]:
    """``{learner: errors}``, one axis a parameter. Raises Unavailable."""
    if DIGITS_CACHE.exists():
        return json.loads(DIGITS_CACHE.read_text())
    if not find_spec("sklearn"):
        raise Unavailable(
            f"digits needs scikit-learn for once, or {DIGITS_CACHE} from an environment that has it"
        )
    import warnings

    warnings.filterwarnings("ignore", message="Solver terminated early")
    table = {}
    for learner, axes in DIGITS.items():
        grid = itertools.product(*(nodes(number, n) for number, n in axes.values()))
        errors = [digits_error(learner, n, dict(zip(list(axes)[1:], rest, strict=True))) for n, *rest in grid]
        table[learner] = np.reshape(errors, [n for _, n in axes.values()]).tolist()
    DIGITS_CACHE.parent.mkdir(parents=True, exist_ok=True)
    DIGITS_CACHE.write_text(json.dumps(table))
    return table


def digits(table: Mapping[str, Any] | None = None) -> Problem:
    from scipy.interpolate import RegularGridInterpolator

    table = digits_table() if table is None else table
    surfaces = {}
    options, floors = [], []
    for learner, axes in DIGITS.items():
        errors = np.array(table[learner])
        places = [[number.place(value) for value in nodes(number, n)] for number, n in axes.values()]
        surfaces[learner] = RegularGridInterpolator(places, errors, bounds_error=False, fill_value=None)
        numbers = {name: number for name, (number, _) in axes.items()}
        options.append({"learner": learner, **expressions(numbers, f"{learner}_")})
        floors.append(errors.min())
    best = int(np.argmin(floors))
    learner = list(DIGITS)[best]
    place = np.unravel_index(np.argmin(table[learner]), np.shape(table[learner]))
    optimum = {"model": float(best)}
    for (name, (number, n)), i in zip(DIGITS[learner].items(), place, strict=True):
        optimum[f"{learner}_{name}"] = float(nodes(number, n)[i])

    def loss(params: Mapping[str, Any]) -> float:
        axes = DIGITS[params["learner"]]
        at = [number.place(params[name]) for name, (number, _) in axes.items()]
        return float(surfaces[params["learner"]](np.clip(at, 0, 1))[0])

    return Problem(hp.choice("model", options), loss, optimum)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "network": network,
    "network-noisy": lambda: network(noise=0.03),
    "network-12": network_with_training,
    "digits": digits,
    "ellipsoid-5": lambda: rotated(5, 2, condition=100),
    "ellipsoid-10": lambda: rotated(10, 5, condition=100),
    "ellipsoid-20": lambda: rotated(20, 10, condition=10),
    "rastrigin-5": lambda: rotated(5, 2, rugged=0.03),
    "rastrigin-10": lambda: rotated(10, 5, rugged=0.03),
    "tree": lambda: tree(MODELS),
    "tree-noisy": lambda: tree(MODELS, noise=0.02),
    "tree-misleading": lambda: tree(MISLEADING),
    "tree-50": many_branches,
}


@functools.cache
def problem(name: str) -> Problem:
    """The problem of that name. Raises Unavailable."""
    return PROBLEMS[name]()
