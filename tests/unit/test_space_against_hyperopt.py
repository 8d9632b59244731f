"""Random nested spaces, and hyperopt as the oracle of who is active, what a point means, how it is drawn."""

import numpy as np
import pytest
from hyperopt import Trials, hp, rand, space_eval
from hyperopt.base import Domain
from hyperopt.pyll import scope
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from hpo.space import compile_space

NUMBERS = {
    "uniform": lambda label: hp.uniform(label, -1, 2),
    "quniform": lambda label: hp.quniform(label, 0.05, 0.5, 0.05),
    "quniform off the grid": lambda label: hp.quniform(label, 1, 10, 3),
    "loguniform": lambda label: hp.loguniform(label, np.log(1e-5), 0),
    "qloguniform": lambda label: hp.qloguniform(label, 0, np.log(50), 4),
    "normal": lambda label: hp.normal(label, 2, 3),
    "qnormal": lambda label: hp.qnormal(label, 0, 2, 0.5),
    "lognormal": lambda label: hp.lognormal(label, 0, 1),
    "qlognormal": lambda label: hp.qlognormal(label, 1, 1, 1),
    "randint": lambda label: hp.randint(label, 4),
    "randint from low": lambda label: hp.randint(label, -2, 3),
    "uniformint": lambda label: hp.uniformint(label, 1, 5),
}
CONSTANTS = [None, True, 3, 2.5, "adam", (1, "two"), len]


class Builder:
    """Builds an expression from drawn decisions; some numbers and choices are used in several places."""

    def __init__(self, draw):
        self._draw = draw
        self._labels = 0
        self._numbers = []
        self._choices = []

    def label(self):
        self._labels += 1
        return f"p{self._labels}"

    def number(self):
        if self._numbers and self._draw(st.integers(0, 3)) == 0:
            return self._draw(st.sampled_from(self._numbers))
        node = NUMBERS[self._draw(st.sampled_from(sorted(NUMBERS)))](self.label())
        self._numbers.append(node)
        return node

    def computed(self):
        operation = self._draw(st.sampled_from(["int", "add", "mul", "sub", "max"]))
        if operation == "int":
            return scope.int(self.number())
        if operation == "max":
            return scope.max(self.number(), 0.5)
        return {"add": 1 + self.number(), "mul": self.number() * 2, "sub": self.number() - self.number()}[
            operation
        ]

    def options(self, depth):
        return [self.expression(depth - 1) for _ in range(self._draw(st.integers(1, 3)))]

    def choice(self, depth):
        if self._choices and self._draw(st.integers(0, 4)) == 0:
            return self._draw(st.sampled_from(self._choices))
        node = hp.choice(self.label(), self.options(depth))
        self._choices.append(node)
        return node

    def pchoice(self, depth):
        options = self.options(depth)
        weights = self._draw(st.lists(st.integers(1, 4), min_size=len(options), max_size=len(options)))
        return hp.pchoice(
            self.label(), [(w / sum(weights), o) for w, o in zip(weights, options, strict=True)]
        )

    def dictionary(self, depth):
        return {f"k{i}": self.expression(depth - 1) for i in range(self._draw(st.integers(0, 3)))}

    def sequence(self, depth):
        kind = self._draw(st.sampled_from([list, tuple]))
        return kind(self.expression(depth - 1) for _ in range(self._draw(st.integers(0, 2))))

    def expression(self, depth):
        leaves = [self.number, self.computed, lambda: self._draw(st.sampled_from(CONSTANTS))]
        if depth <= 0:
            return self._draw(st.sampled_from(leaves))()
        inner = [self.choice, self.pchoice, self.dictionary, self.sequence]
        build = self._draw(st.sampled_from([*leaves, *inner, *inner]))
        return build(depth) if build in inner else build()


@st.composite
def expressions(draw):
    builder = Builder(draw)
    return {"always": builder.number(), "tree": builder.choice(3), "more": builder.expression(2)}


def drawn_by_hyperopt(expression, n, seed):
    """Points of hyperopt's own random search."""
    domain = Domain(lambda params: 0.0, expression)
    documents = rand.suggest(list(range(n)), domain, Trials(), seed)
    return [{k: v[0] for k, v in document["misc"]["vals"].items() if v} for document in documents]


exhaustive = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@exhaustive
@given(expressions(), st.integers(0, 2**31))
def test_points_drawn_by_hyperopt_are_in_the_space_and_mean_the_same(expression, seed):
    space = compile_space(expression)
    for point in drawn_by_hyperopt(expression, 4, seed):
        row = space.row(point)

        space.check(point)
        active = [
            label for label, is_active in zip(space.labels, space.active(row), strict=True) if is_active
        ]
        assert sorted(active) == sorted(point)
        assert space.params(point) == space_eval(expression, point)
        assert space.point(row) == point


@exhaustive
@given(expressions(), st.integers(0, 2**31))
def test_points_drawn_here_mean_the_same_to_hyperopt_and_hold_just_what_it_needs(expression, seed):
    space = compile_space(expression)
    for row in space.sample(np.random.default_rng(seed), 6):
        point = space.point(row)

        space.check(point)
        assert space.params(point) == space_eval(expression, point)
        for label in point:  # hyperopt needs it: it would have to draw, and has no generator
            without = {other: value for other, value in point.items() if other != label}
            with pytest.raises(AttributeError):
                space_eval(expression, without)


@exhaustive
@given(expressions(), st.integers(0, 2**31))
def test_narrowing_to_a_point_leaves_a_space_of_that_point(expression, seed):
    space = compile_space(expression)
    point = space.point(space.sample(np.random.default_rng(seed), 1)[0])
    named = {
        column.label: column.options[point[column.label]] if column.options else point[column.label]
        for column in space.columns
        if column.label in point
    }

    fixed = compile_space(expression, named)

    assert fixed.labels == ()
    assert fixed.params({}) == space.params(point)


@exhaustive
@given(expressions())
def test_parents_come_first_and_a_rebuilt_space_is_the_same(expression):
    space = compile_space(expression)

    for place, column in enumerate(space.columns):
        parents = {label for path in column.conditions for label, _ in path}
        assert parents <= set(space.labels[:place])
    assert compile_space(expression).fingerprint == space.fingerprint


def test_samples_are_distributed_as_hyperopts():
    expression = {
        "plain": {name: build(name) for name, build in NUMBERS.items()},
        "choice": hp.choice("choice", [{name: build(f"in {name}") for name, build in NUMBERS.items()}, 1, 2]),
        "pchoice": hp.pchoice("pchoice", [(0.1, 1), (0.7, hp.normal("deep", 0, 1)), (0.2, 3)]),
    }
    n = 4000
    space = compile_space(expression)
    domain = Domain(lambda params: 0.0, expression)
    _, theirs = rand.suggest_batch(list(range(n)), domain, Trials(), 1)

    rows = space.sample(np.random.default_rng(2), n)

    for label, column in zip(space.labels, rows.T, strict=True):
        ours = column[~np.isnan(column)]
        their = np.asarray(theirs[label], dtype=float)
        assert abs(len(ours) - len(their)) < 5 * np.sqrt(n / 2), label
        # 0.1 % two-sample Kolmogorov-Smirnov, 27 times: one seed in forty would fail, not these
        assert stats.ks_2samp(ours, their).pvalue > 1e-3, label
