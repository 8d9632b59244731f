"""What a space says that its author hardly meant: found, with a mend that mends it, and nothing else."""

import numpy as np
import pytest
from hyperopt import hp
from hyperopt.pyll import scope

from hpo.space import compile_space, lint

EVALUATION = {"hp": hp, "np": np, "scope": scope}


LOG = np.log

# expression, what is said, what to write instead
MENDABLE = [
    (
        hp.loguniform("lr", 1e-4, 1),
        "from 1.0001 to 2.71828",
        'hp.loguniform("lr", np.log(0.0001), np.log(1))',
    ),
    (hp.loguniform("C", 1, 100), "natural logarithms", 'hp.loguniform("C", np.log(1), np.log(100))'),
    (hp.loguniform("C", 0, 50), "natural logarithms", 'hp.loguniform("C", np.log(1), np.log(50))'),
    (hp.loguniform("lr", -4, -1), "from 0.0183", 'hp.loguniform("lr", np.log(0.0001), np.log(0.1))'),
    (
        scope.int(hp.qloguniform("units", 2, 32, 2)),
        "natural logarithms",
        'scope.int(hp.qloguniform("units", np.log(2), np.log(32), 2))',
    ),
    (hp.choice("layers", [1, 2, 3, 4]), "numbers in order", 'hp.uniformint("layers", 1, 4)'),
    (hp.choice("units", [64, 32, 96]), None, None),  # in no order
    (hp.choice("units", [96, 64, 32]), "numbers in order", 'scope.int(hp.quniform("units", 32, 96, 32))'),
    (hp.choice("kernel", [3, 5, 7]), "numbers in order", '3 + 2 * hp.uniformint("kernel", 0, 2)'),
    (hp.choice("batch", [16, 32, 64]), "numbers in order", 'scope.pow(2, hp.uniformint("batch", 4, 6))'),
    (
        hp.choice("n", [10, 30, 200]),
        "numbers in order",
        'scope.int(hp.qloguniform("n", np.log(10), np.log(200), 1))',
    ),
    (hp.choice("n", [10, 30, 40]), "numbers in order", 'hp.uniformint("n", 10, 40)'),
    (hp.choice("share", [0.1, 0.2, 0.3]), "numbers in order", 'hp.quniform("share", 0.1, 0.3, 0.1)'),
    (hp.choice("share", [0.1, 0.25, 0.3]), "numbers in order", 'hp.uniform("share", 0.1, 0.3)'),
    (
        hp.choice("lr", [1e-4, 1e-3, 1e-2]),
        "numbers in order",
        'hp.loguniform("lr", np.log(0.0001), np.log(0.01))',
    ),
    (hp.quniform("num_layers", 1, 5, 1), "floats such as 3.0", 'hp.uniformint("num_layers", 1, 5)'),
    (hp.quniform("units", 32, 512, 32), "floats such as", 'scope.int(hp.quniform("units", 32, 512, 32))'),
    (
        hp.qloguniform("batch_size", LOG(16), LOG(256), 16),
        "floats such as",
        'scope.int(hp.qloguniform("batch_size", np.log(16), np.log(256), 16))',
    ),
    (hp.uniform("numLayers", 1, 4), "floats such as 2.2", 'hp.uniformint("numLayers", 1, 4)'),
    (
        hp.loguniform("model.n_estimators", LOG(10), LOG(500)),
        "floats such as",
        'scope.int(hp.qloguniform("model.n_estimators", np.log(10), np.log(500), 1))',
    ),
    (hp.qlognormal("trees", 3, 1, 1), "floats such as", 'scope.int(hp.qlognormal("trees", 3, 1, 1))'),
    (hp.randint("window", 200), "200 values for unrelated", 'hp.uniformint("window", 0, 199)'),
    (hp.randint("depth", 2, 9), "7 values for unrelated", 'hp.uniformint("depth", 2, 8)'),
    (
        hp.quniform("share", 0.1, 0.9, 0.25),
        "it can be 0, outside 0.1 to 0.9",
        'hp.quniform("share", 0.25, 0.75, 0.25)',
    ),
    (hp.quniform("steps", 1, 10, 3), "it can be 0, outside 1", 'scope.int(hp.quniform("steps", 3, 9, 3))'),
    (
        hp.quniform("share", 0.04, 1, 0.1),
        "it can be 0, outside 0.04 to 1",
        'hp.quniform("share", 0.1, 1, 0.1)',
    ),
    (hp.quniform("x", 0, 0.64, 0.1), "from 0 to 0.6, not from 0 to 0.64", 'hp.quniform("x", 0, 0.6, 0.1)'),
    (
        scope.int(hp.qloguniform("units", LOG(1), LOG(100), 8)),
        "it can be 0, outside 1 to 100",
        'scope.int(hp.qloguniform("units", np.log(8), np.log(96), 8))',
    ),
    (hp.uniform("lr", 1e-5, 1), "lower decades", 'hp.loguniform("lr", np.log(1e-05), np.log(1))'),
    (
        hp.uniform("anything", 0.001, 10),
        "lower decades",
        'hp.loguniform("anything", np.log(0.001), np.log(10))',
    ),
    (
        hp.uniform("weight_decay", 0, 0.1),
        "lower decades",
        'hp.loguniform("weight_decay", np.log(1e-05), np.log(0.1))',
    ),
]

SOUND = [
    hp.loguniform("lr", LOG(1e-5), LOG(1)),
    hp.loguniform("lr", -7.3, -1.2),
    hp.loguniform("C", LOG(2), LOG(5)),
    hp.loguniform("C", 0, 5),
    hp.lognormal("lr", LOG(1e-3), 1),
    hp.uniform("dropout", 0, 0.5),
    hp.uniform("momentum", 0.8, 0.99),
    hp.uniform("layer_decay", 0.5, 1.0),
    hp.uniform("n_share", 0, 1),
    hp.uniformint("layers", 1, 4),
    scope.int(hp.quniform("units", 32, 512, 32)),
    scope.pow(2, hp.uniformint("log2_units", 4, 9)),
    scope.pow(2, hp.quniform("units", 4, 9, 1)),
    hp.quniform("share", 0.05, 0.5, 0.05),
    hp.qnormal("x", 0, 1, 0.5),
    hp.choice("optimizer", ["adam", "sgd"]),
    hp.choice("two", [1, 2]),
    hp.choice("flags", [False, True, None]),
    hp.choice("texts", ["1", "2", "3"]),
    hp.choice("mixed", [1, 2, 3, "auto"]),
    hp.choice("choice", [{"choice": [1, 2, 3]}, {"choice": None}]),
    hp.choice("sizes", [(32,), (64,), (128,)]),
    hp.pchoice("p", [(0.1, "a"), (0.9, "b")]),
    hp.randint("seed", 10_000),
    hp.randint("random_state", 10_000),
    hp.randint("fold", 5),
]


def warnings(expression):
    return lint(compile_space(expression))


@pytest.mark.parametrize(("expression", "says", "mend"), MENDABLE)
def test_a_slip_is_found_and_its_mend_mends_it(expression, says, mend):
    found = warnings({"parameter": expression})

    if mend is None:
        assert found == []
        return
    assert len(found) == 1
    assert says in found[0].message
    assert found[0].mend == mend
    assert warnings({"parameter": eval(found[0].mend, EVALUATION)}) == []


@pytest.mark.parametrize("expression", SOUND)
def test_a_sound_parameter_is_left_alone(expression):
    assert warnings({"parameter": expression}) == []


@pytest.mark.parametrize(
    ("expression", "label", "says"),
    [
        (hp.choice("c", ["only"]), "c", "it has one option"),
        (hp.pchoice("c", [(0.0, 1), (0.5, "a"), (0.5, "b")]), "c", "option 0 has probability 0"),
        (hp.choice("c", ["a", {"k": 1}, "a"]), "c", 'the option "a" stands there more than once'),
        (scope.int(hp.normal("units", 30, 20)), "units", "0.067 of its draws are negative"),
    ],
)
def test_other_slips_are_found(expression, label, says):
    found = warnings([expression, hp.uniform("x", 0, 1)])

    assert [warning.label for warning in found] == [label]
    assert says in found[0].message


def test_an_expression_that_fails_somewhere_is_found_before_the_first_trial():
    inverse = 1 // scope.int(hp.randint("n", 2))

    found = warnings({"x": hp.choice("c", [inverse, "fine"])})

    assert [warning.label for warning in found] == [""]
    assert "ZeroDivisionError" in found[0].message


def test_warnings_come_in_the_order_of_the_columns_and_read_as_a_line():
    found = warnings(hp.choice("c", [hp.randint("b", 99), hp.randint("a", 50)]))

    assert [warning.label for warning in found] == ["b", "a"]
    assert str(found[1]).startswith("a: the search takes its 50 values for unrelated")
    assert str(found[1]).endswith('; better: hp.uniformint("a", 0, 49)')


def test_what_is_fixed_is_not_warned_of():
    space = compile_space({"n": hp.randint("n", 99), "x": hp.uniform("x", 0, 1)}, {"n": 3})

    assert lint(space) == []
