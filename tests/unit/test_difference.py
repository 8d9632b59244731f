"""What changed between two spaces, as a person reads it."""

import json
from functools import partial

import numpy as np
import pytest
from hyperopt import hp
from hyperopt.pyll import scope
from test_space import VARIANTS

from hpo.space import compile_space, difference


def number(label="x", high=1):
    return hp.uniform(label, 0, high)


def lines(old, new, old_fixed=None, new_fixed=None):
    before, after = compile_space(old, old_fixed), compile_space(new, new_fixed)
    # descriptions come from a store, as JSON
    return difference(json.loads(json.dumps(before.describe())), after.describe())


def c(*options):
    return hp.choice("c", list(options))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            lambda: {"lr": hp.loguniform("lr", np.log(1e-5), np.log(1))},
            lambda: {"lr": hp.loguniform("lr", np.log(1e-4), np.log(1))},
            ["lr: loguniform(1e-05, 1) -> loguniform(0.0001, 1)"],
        ),
        (
            lambda: {"x": number()},
            lambda: {"x": number(), "dropout": number("dropout", 0.5)},
            ["added: dropout uniform(0, 0.5)"],
        ),
        (
            lambda: {"x": number(), "dropout": number("dropout", 0.5)},
            lambda: {"x": number()},
            ["removed: dropout uniform(0, 0.5)"],
        ),
        (
            lambda: {"x": number("old")},
            lambda: {"x": number("new")},
            ["removed: old uniform(0, 1)", "added: new uniform(0, 1)", "x: old -> new"],
        ),
        (lambda: c("adam", "sgd"), lambda: c("sgd", "adam"), ["c: choice(adam, sgd) -> choice(sgd, adam)"]),
        (
            lambda: c("adam", "sgd"),
            lambda: c("adam", "sgd", "rmsprop"),
            ["c: choice(adam, sgd) -> choice(adam, sgd, rmsprop)"],
        ),
        (
            lambda: hp.pchoice("c", [(0.5, 1), (0.5, 2)]),
            lambda: hp.pchoice("c", [(0.1, 1), (0.9, 2)]),
            ["c: choice(1, 2) -> pchoice(1: 0.1, 2: 0.9)"],
        ),
        (
            lambda: {"k": number()},
            lambda: {"k": c(1, 2)},
            ["removed: x uniform(0, 1)", "added: c choice(1, 2)", "k: x -> c"],
        ),
        (lambda: {"k": number("c")}, lambda: {"k": c(1, 2)}, ["c: uniform(0, 1) -> choice(1, 2)"]),
        (
            lambda: {"x": number(), "epochs": 5},
            lambda: {"x": number(), "epochs": 10},
            ["epochs: 5 -> 10"],
        ),
        (lambda: {"x": number(), "k": 1}, lambda: {"x": number(), "k": True}, ["k: 1 -> True"]),
        (lambda: {"x": number(), "k": "1"}, lambda: {"x": number(), "k": 1.0}, ["k: '1' -> 1.0"]),
        (
            lambda: {"x": number()},
            lambda: {"x": number(), "conv": {"bias": None}},
            ["added: conv = {bias: None}"],
        ),
        (lambda: {"x": number(), "k": [1]}, lambda: {"x": number()}, ["removed: k = [1]"]),
        (
            lambda: {"conv": [{"x": number(), "stride": 1}]},
            lambda: {"conv": [{"x": number(), "stride": 2}]},
            ["conv.0.stride: 1 -> 2"],
        ),
        (lambda: {"x": number()}, lambda: {"x": scope.int(number())}, ["x: x -> int(x)"]),
        (lambda: {"x": number() * 2}, lambda: {"x": number() * 3}, ["x: x * 2 -> x * 3"]),
        (lambda: {"x": number() * 2}, lambda: {"x": number() + 2}, ["x: x * 2 -> x + 2"]),
        (
            lambda: {"x": scope.max(number(), scope.sqrt(4.0))},
            lambda: {"x": scope.max(number(), scope.sqrt(9.0))},
            ["x: sqrt(4.0) -> sqrt(9.0)"],
        ),
        (
            lambda: {"model": c({"type": "svm", "tol": 1}, {"type": "tree", "tol": 1})},
            lambda: {"model": c({"type": "svm", "tol": 2}, {"type": "tree", "tol": 1})},
            ["model[svm].tol: 1 -> 2"],
        ),
        (lambda: number(), lambda: [number()], ["the space: x -> [x]"]),
        (
            lambda: {"x": number(), "act": abs},
            lambda: {"x": number(), "act": len},
            ["act: builtins.abs -> builtins.len"],
        ),
        (
            lambda: {"x": number(), "act": lambda x: x},
            lambda: {"x": number(), "act": lambda x: 2 * x},
            ["act: lambda x: x -> lambda x: 2 * x"],
        ),
        (
            lambda: {"x": number(), "act": partial(int, base=2)},
            lambda: {"x": number(), "act": partial(int, base=8)},
            ["act: builtins.int [] [['base', 2]] -> builtins.int [] [['base', 8]]"],
        ),
        (
            lambda: hp.quniform("q", 0, 1, 0.1),
            lambda: hp.quniform("q", 0, 1, 0.1 + 1e-12),
            [
                "q: quniform(low=0.0, high=1.0, q=0.1) -> quniform(low=0.0, high=1.0, q=0.100000000001)",
            ],
        ),
    ],
)
def test_a_change_is_a_line(old, new, expected):
    assert lines(old(), new()) == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({}, {"lr": 0.1}, ["lr: searched -> fixed at 0.1"]),
        ({"lr": 0.1}, {}, ["lr: fixed at 0.1 -> searched"]),
        ({"lr": 0.1}, {"lr": 0.2}, ["lr: fixed at 0.1 -> 0.2"]),
        ({"c": 1}, {"c": True}, ["c: fixed at 1 -> True"]),
    ],
)
def test_what_is_fixed_is_compared_too(old, new, expected):
    def space():
        return {"lr": number("lr"), "c": c(1, True)}

    assert lines(space(), space(), old, new) == expected


def test_the_same_space_has_no_difference():
    def space():
        return {"a": c("x", {"y": number("y"), "z": float("nan")}), "b": [1, (2, None)], "f": lambda x: x}

    assert lines(space(), space()) == []


def test_a_change_of_the_format_is_all_that_is_said():
    description = compile_space(number()).describe()

    assert difference({**description, "format": 0}, description) == ["described in format 0, now in format 1"]


def test_whatever_changes_the_fingerprint_has_a_line():
    descriptions = {name: compile_space(build()).describe() for name, build in VARIANTS.items()}

    for name, old in descriptions.items():
        for other, new in descriptions.items():
            assert bool(difference(old, new)) == (name != other), (name, other)
