"""What a compiled space is, and what it says of spaces and points that can't be."""

import json
import os
import subprocess
import sys
from collections import OrderedDict
from functools import partial
from itertools import product

import cloudpickle
import numpy as np
import pytest
from hyperopt import hp, space_eval
from hyperopt.pyll import scope

from hpo.core.errors import OutsideSpace, SpaceError
from hpo.space import compile_space


def network():
    """A space as people write it: nested choices, numbers of every sort."""
    return {
        "optimizer": hp.choice(
            "optimizer",
            [
                {"name": "sgd", "momentum": hp.uniform("momentum", 0, 0.99)},
                {"name": "adam", "beta": hp.pchoice("beta", [(0.7, 0.9), (0.3, 0.99)])},
            ],
        ),
        "lr": hp.loguniform("lr", np.log(1e-5), np.log(1)),
        "layers": hp.uniformint("layers", 1, 4),
        "units": 2 * scope.int(hp.quniform("units", 16, 64, 16)),
        "seed": hp.randint("seed", 100),
        "noise": hp.qnormal("noise", 0, 1, 0.5),
    }


def columns_of(expression, **fixed):
    return {column.label: column for column in compile_space(expression, fixed).columns}


def number(label="x"):
    return hp.uniform(label, 0, 1)


# --- columns


def test_a_column_knows_its_distribution_and_whether_it_ends_as_an_integer():
    columns = columns_of(network())

    assert {label: column.distribution.kind for label, column in columns.items()} == {
        "optimizer": "categorical",
        "momentum": "uniform",
        "beta": "categorical",
        "lr": "loguniform",
        "layers": "quniform",
        "units": "quniform",
        "seed": "randint",
        "noise": "qnormal",
    }
    assert [label for label, column in columns.items() if column.is_integer] == ["layers", "seed", "units"]


def test_a_number_used_as_float_and_as_int_is_no_integer():
    size = hp.quniform("size", 1, 9, 1)

    columns = columns_of({"whole": scope.int(size), "as drawn": size})

    assert not columns["size"].is_integer


def test_a_column_is_active_under_the_choices_that_lead_to_it():
    columns = columns_of(network())

    assert columns["lr"].conditions == ()
    assert columns["momentum"].conditions == ((("optimizer", 0),),)
    assert columns["beta"].conditions == ((("optimizer", 1),),)


def test_a_parameter_of_two_branches_is_active_under_either():
    shared = number()

    columns = columns_of(hp.choice("c", [shared, {"a": shared}, 3]))

    assert columns["x"].conditions == ((("c", 0),), (("c", 1),))


def test_a_parameter_of_every_branch_is_always_active():
    shared = number()
    inner = hp.choice("inner", [shared, [shared, number("y")]])

    columns = columns_of(hp.choice("c", [inner, {"a": shared}]))

    assert columns["x"].conditions == ()


def test_a_parameter_outside_and_inside_a_choice_is_always_active():
    shared = number()

    columns = columns_of({"inside": hp.choice("c", [shared, 0]), "outside": shared})

    assert columns["x"].conditions == ()


def test_a_branch_that_can_not_be_reached_has_no_columns():
    c = scope.hyperopt_param("c", scope.randint(2))
    contradiction = scope.switch(c, scope.switch(c, 1, number("never")), 2)
    impossible = hp.pchoice("p", [(0.0, number("never drawn")), (1.0, 2)])

    assert list(columns_of([contradiction, impossible])) == ["c", "p"]


def test_an_integer_may_choose_as_well_as_a_choice():
    columns = columns_of(scope.switch(hp.randint("r", 1, 3), 0, number(), number("y")))

    assert columns["x"].conditions == ((("r", 1),),)
    assert columns["y"].conditions == ((("r", 2),),)
    assert columns["r"].options is None


def test_options_of_a_computed_switch_are_always_active():
    columns = columns_of(scope.switch(hp.randint("r", 2) * 1, number(), number("y")))

    assert columns["x"].conditions == columns["y"].conditions == ()


def test_options_picked_by_name_are_always_active():
    columns = columns_of(scope.kwswitch(hp.choice("by", ["a", "b"]), a=number(), b=number("y")))

    assert list(columns) == ["by", "x", "y"]
    assert columns["y"].conditions == ()


def test_paths_name_outer_choices_first():
    inner = hp.choice("a inner", [number(), 0])

    columns = columns_of(hp.choice("z outer", [inner, 1]))

    assert columns["x"].conditions == ((("z outer", 0), ("a inner", 0)),)


def test_parents_come_before_their_children():
    shared = number()
    space = compile_space([hp.choice("first", [shared, 0]), hp.choice("second", [0, shared])])

    assert space.labels == ("first", "second", "x")


def test_options_are_named_by_their_values():
    def relu(x):
        return x

    columns = columns_of(
        [
            hp.choice("plain", [None, True, 16, 0.5, "adam", (1, 2), relu, dict, np.float64(3)]),
            hp.choice("telling", [{"type": "svm", "n": 1}, {"type": "tree", "n": 1}]),
            hp.choice("twice", ["a", "a", "b"]),
            hp.choice("nested", [{"C": number("C")}, [hp.randint("r", 3), 2 * number("y")], {}]),
        ]
    )

    assert {label: column.options for label, column in columns.items() if column.options} == {
        "plain": ("None", "True", "16", "0.5", "adam", "[1, 2]", "relu", "dict", "3.0"),
        "telling": ("svm", "tree"),
        "twice": ("a", "a #2", "b"),
        "nested": ("{'C': C}", "[r, 2 * y]", "{}"),
    }


# --- arrays


def test_inactive_entries_are_nan():
    space = compile_space(network())
    optimizer, momentum, beta = map(space.labels.index, ("optimizer", "momentum", "beta"))

    rows = space.sample(np.random.default_rng(0), 200)

    is_sgd = rows[:, optimizer] == 0
    assert 50 < is_sgd.sum() < 150
    np.testing.assert_array_equal(np.isnan(rows[:, momentum]), ~is_sgd)
    np.testing.assert_array_equal(np.isnan(rows[:, beta]), is_sgd)
    np.testing.assert_array_equal(space.active(rows), ~np.isnan(rows))


def test_what_inactive_entries_hold_does_not_matter():
    inner = hp.choice("inner", [number(), 0])
    space = compile_space(hp.choice("outer", [inner, 1]))

    # outer = 1: inner is inactive, whatever it says
    active = space.active(
        np.array([[1.0, 0.0, 0.5], [1.0, np.nan, np.nan], [0.0, 0.0, 0.5], [0.0, 1.0, 0.5]])
    )

    assert active.tolist() == [
        [True, False, False],
        [True, False, False],
        [True, True, True],
        [True, True, False],
    ]


def test_rows_and_units_are_one_to_one():
    space = compile_space(network())
    rows = space.sample(np.random.default_rng(1), 500)

    units = space.to_unit(rows)

    assert np.nanmin(units) >= 0
    assert np.nanmax(units) <= 1
    np.testing.assert_allclose(space.from_unit(units), rows, rtol=1e-9)
    np.testing.assert_allclose(space.from_unit(space.to_unit(rows[0])), rows[0], rtol=1e-9)


def test_equal_generators_give_equal_samples():
    space = compile_space(network())

    one, other = (space.sample(np.random.default_rng(5), 10) for _ in range(2))

    np.testing.assert_array_equal(one, other)


# --- points


def test_a_point_survives_json_and_is_the_row_again():
    space = compile_space(network())
    for row in space.sample(np.random.default_rng(2), 50):
        point = json.loads(json.dumps(space.point(row)))

        np.testing.assert_array_equal(space.row(point), row)
        assert {label for label, value in point.items() if type(value) is int} <= {
            "optimizer",
            "beta",
            "seed",
        }


def test_a_choice_that_came_back_as_a_float_is_still_an_index():
    space = compile_space(hp.choice("c", ["a", "b"]))

    assert space.params({"c": 1.0}) == "b"


def test_people_read_values_and_never_indices():
    def relu(x):
        return x

    space = compile_space({"activation": hp.choice("activation", [relu, None]), "size": (number(), 2)})

    assert space.readable({"activation": 0, "x": 0.5}) == {"activation": "relu", "size": [0.5, 2]}


def test_a_point_with_all_its_faults_is_told_all_of_them():
    space = compile_space(network())

    with pytest.raises(OutsideSpace) as caught:
        space.check(
            {
                "optimizer": 0,
                "beta": 1,
                "lr": 2.0,
                "layers": 1.5,
                "units": "32",
                "seed": 100,
                "lrr": 1,
                "noise": 0,
            }
        )

    assert caught.value.message.splitlines()[1:] == [
        "  'lrr' is no parameter",
        "  lr is 2.0: outside 1e-05 to 1",
        "  layers is 1.5: no multiple of 1",
        "  units is '32', no number",
        "  seed is 100: outside 0 to 99",
        "  momentum is missing",
        "  beta is given, but the choices made don't use it",
    ]


@pytest.mark.parametrize("value", [True, None, "0.5", float("nan"), float("inf"), [0.5], 1j])
def test_what_is_no_number_is_outside(value):
    with pytest.raises(OutsideSpace):
        compile_space(number()).check({"x": value})


def test_params_and_row_refuse_what_they_do_not_know():
    space = compile_space(hp.choice("c", [number(), 2]))

    with pytest.raises(OutsideSpace, match="x is missing"):
        space.params({"c": 0})
    with pytest.raises(OutsideSpace, match="'d' is no parameter"):
        space.params({"c": 1, "d": 2})
    with pytest.raises(OutsideSpace, match="'d' is no parameter"):
        space.row({"c": 1, "d": 2})
    with pytest.raises(OutsideSpace):
        space.params({"c": 5})


def test_an_expression_that_fails_names_the_point():
    space = compile_space({"ratio": scope.int(1) // scope.int(hp.uniformint("n", 0, 3))})

    with pytest.raises(SpaceError, match=r"can't be evaluated at \{'n': 0\}: ZeroDivisionError"):
        space.params({"n": 0})


def test_a_space_can_be_sent_to_another_process():
    space = compile_space(network(), {"lr": 0.1})
    point = space.point(space.sample(np.random.default_rng(0), 1)[0])

    copy = cloudpickle.loads(cloudpickle.dumps(space))

    assert copy.params(point) == space.params(point)
    assert copy.fingerprint == space.fingerprint


def test_every_evaluation_gives_dicts_of_its_own():
    space = compile_space({"inner": {"x": number(), "constant": {"a": 1}}})

    first = space.params({"x": 0.5})
    first["inner"]["constant"]["a"] = 2

    assert space.params({"x": 0.5})["inner"]["constant"] == {"a": 1}


# --- how many points


def distinct_points(space):
    """Count by trying every combination of every value: the slow way."""
    grids = [column.distribution.values() for column in space.columns]
    rows = space.mask(np.array(list(product(*grids))))
    return len({tuple(np.where(np.isnan(row), -99.0, row)) for row in rows})


def shared_over_choices():
    shared = hp.randint("shared", 5)
    return [hp.choice(f"c{i}", [shared, i, hp.choice(f"d{i}", [1, shared])]) for i in range(3)]


@pytest.mark.parametrize(
    "expression",
    [
        hp.choice("c", ["a", "b", "c"]),
        [hp.choice("c", ["a", hp.randint("r", 4)]), hp.quniform("q", 0.05, 0.2, 0.05)],
        hp.choice("c", [hp.choice("d", [hp.randint("r", 3), 1]), hp.choice("e", [1, 2]), 5]),
        hp.pchoice("p", [(0.0, hp.randint("r", 9)), (0.5, hp.randint("s", 2)), (0.5, 1)]),
        scope.switch(hp.randint("r", 1, 4), 0, hp.choice("a", [1, 2]), 1, hp.randint("s", 3)),
        shared_over_choices(),
        {
            "a": hp.choice("a", [hp.randint("only a", 3), 1]),
            "b": hp.choice("b", [hp.randint("only b", 2), 1]),
        },
    ],
)
def test_the_points_are_counted_by_the_tree(expression):
    space = compile_space(expression)

    assert space.cardinality == distinct_points(space)


def test_a_space_with_a_continuous_parameter_anywhere_is_infinite():
    assert compile_space(hp.choice("c", [1, number()])).cardinality is None
    assert compile_space([hp.choice("c", [1, 2]), hp.qnormal("n", 0, 1, 1)]).cardinality is None


def test_many_choices_are_counted_without_trying_them():
    choices = [hp.choice(f"c{i}", [hp.randint(f"r{i}", 9), 1]) for i in range(60)]

    assert compile_space(choices).cardinality == 10**60


# --- fixed


def test_a_fixed_number_is_no_column_and_reaches_the_parameters():
    space = compile_space(network(), {"lr": 0.01, "layers": "3", "seed": 7.0})

    assert {"lr", "layers", "seed"}.isdisjoint(space.labels)
    params = space.params(space.point(space.sample(np.random.default_rng(0), 1)[0]))
    assert (params["lr"], params["layers"], params["seed"]) == (0.01, 3, 7)
    assert type(params["layers"]) is int
    assert space.fixed == {"lr": 0.01, "layers": 3.0, "seed": 7}


def test_fixing_a_choice_leaves_only_its_branch():
    space = compile_space(network(), {"optimizer": "sgd"})

    assert "beta" not in space.labels
    assert space.columns[space.labels.index("momentum")].conditions == ()
    assert (
        space.params(space.point(space.sample(np.random.default_rng(0), 1)[0]))["optimizer"]["name"] == "sgd"
    )


@pytest.mark.parametrize(
    ("value", "option"),
    [
        (None, None),
        ("None", None),
        ("none", None),
        (True, True),
        ("true", True),
        (1, 1),
        ("1", 1),
        (0.001, 0.001),
        ("1e-3", 0.001),
        ("Adam", "adam"),
        ((32, 64), (32, 64)),
        ("(32, 64)", (32, 64)),
        ([32, 64], (32, 64)),
    ],
)
def test_a_choice_is_fixed_by_its_value_as_people_write_it(value, option):
    options = [None, True, 1, 0.001, "adam", (32, 64)]

    space = compile_space({"c": hp.choice("c", options), "x": number()}, {"c": value})

    params = space.params({"x": 0.5})
    assert params["c"] == option
    assert type(params["c"]) is type(option)


def test_everything_may_be_fixed():
    space = compile_space(
        {"c": hp.choice("c", ["a", {"x": number()}]), "n": hp.uniformint("n", 1, 9)}, {"c": "a", "n": 3}
    )

    rows = space.sample(np.random.default_rng(0), 4)

    assert space.columns == ()
    assert space.cardinality == 1
    assert rows.shape == space.to_unit(rows).shape == (4, 0)
    assert space.params(space.point(rows[0])) == {"c": "a", "n": 3}


def test_a_fixed_integer_decides_the_switch_it_picks_from():
    space = compile_space(scope.switch(hp.randint("r", 2), number(), number("y")), {"r": 1})

    assert space.labels == ("y",)


@pytest.mark.parametrize(
    ("fixed", "message", "hint"),
    [
        ({"lr": 2}, "lr can't be 2: outside 1e-05 to 1", "lr is loguniform(1e-05, 1)"),
        ({"layers": 1.5}, "layers can't be 1.5: no multiple of 1", "lr is|layers is quniform"),
        ({"lr": "fast"}, "lr can't be 'fast'", "lr is loguniform"),
        ({"lr": True}, "lr can't be True", "lr is loguniform"),
        ({"optimizer": "adamw"}, "optimizer can't be 'adamw'", "optimizer is one of sgd, adam"),
        ({"optimizer": 0}, "optimizer can't be 0", "one of sgd, adam"),
        ({"learn": 1}, "no parameter 'learn'", "it has layers, lr"),
        ({"layer": 1}, "no parameter 'layer'", "did you mean 'layers'"),
        (
            {"optimizer": "sgd", "beta": 0.9},
            "beta is fixed, but with optimizer = sgd nothing uses it",
            "one or",
        ),
    ],
)
def test_what_can_not_be_fixed_is_told_with_the_mend(fixed, message, hint):
    with pytest.raises(SpaceError) as caught:
        compile_space(network(), fixed)

    assert message in caught.value.message
    assert any(part in caught.value.hint for part in hint.split("|"))


def test_a_fixed_label_in_a_point_is_refused():
    with pytest.raises(OutsideSpace, match=r"lr is fixed at 0\.1 and no parameter any more"):
        compile_space(network(), {"lr": 0.1}).check({"lr": 0.1})


# --- faults


@pytest.mark.parametrize(
    ("expression", "message", "mend"),
    [
        (dict, "the space has no parameter", "hp.loguniform"),
        (lambda: {"a": 1, "b": [2, None]}, "the space has no parameter", "hp.loguniform"),
        (lambda: hp.choice("c", [number(), number()]), "'x' is used for two parameters", "svm.x"),
        (lambda: hp.uniform("x", 0, -1), "x: its bounds are reversed, 0 to -1", "write -1 before 0"),
        (lambda: hp.uniform("x", 0, 0), "x: its bounds are both 0", "write the value 0 itself"),
        (lambda: hp.quniform("x", 0, 1, 0), "x: its q is 0", "step between values"),
        (lambda: hp.quniform("x", 0, 1, -0.5), "x: its q is -0.5", "step between values"),
        (lambda: hp.quniform("x", 0, 1, 1e-20), "a step of 1e-20 is lost", "hp.uniform"),
        (lambda: hp.quniform("x", 0, 1), "x: quniform lacks q", "hp.quniform(label, low, high, q)"),
        (lambda: hp.normal("x", 0, 0), "x: its sigma is 0", "above 0"),
        (lambda: hp.normal("x", 0, -1), "x: its sigma is -1", "above 0"),
        (lambda: hp.lognormal("x", 1000, 1), "leaves what floats hold", "np.log(median)"),
        (lambda: hp.lognormal("x", 0, 100), "leaves what floats hold", "np.log(median)"),
        (lambda: hp.loguniform("x", -900, 0), "exp(-900) is 0", "np.log"),
        (lambda: hp.uniform("x", 0, number("y")), "its high depends on another parameter", "low + share"),
        (lambda: hp.uniform("x", 0, np.inf), "its high is inf", "hp.uniform(label, low, high)"),
        (lambda: hp.uniform("x", np.nan, 0), "its low is nan", "hp.uniform(label, low, high)"),
        (lambda: hp.uniform("x", 0, "1"), "its high is '1'", "hp.uniform(label, low, high)"),
        (lambda: hp.uniform("x", -1e308, 1e308), "overflows", "narrow"),
        (lambda: hp.loguniform("x", -np.inf, 0), "its low is -inf", "np.log(0) is -inf"),
        (lambda: hp.loguniform("x", 1, 1000), "exp(1000) overflows", "np.log(1), np.log(1000)"),
        (
            lambda: hp.qloguniform("x", 16, 256, 16),
            "qloguniform's bounds are logarithms",
            "np.log(16), np.log(256)",
        ),
        (lambda: hp.randint("x", 0), "no integer is between 0 and 0", "0 to n - 1"),
        (lambda: hp.randint("x", 5, 2), "no integer is between 5 and 2", "low to high - 1"),
        (lambda: hp.randint("x", 2.5), "its high is 2.5", "integers"),
        (lambda: hp.choice("x", []), "x: the choice has no options", "hp.choice('x'"),
        (lambda: hp.pchoice("x", [(0.5, 1), (0.6, 2)]), "probabilities sum to 1.1", "sum to 1"),
        (lambda: hp.pchoice("x", [(1.5, 1), (-0.5, 2)]), "its probabilities are [1.5, -0.5]", "sum to 1"),
        (lambda: {"a": scope.uniform(0, 1), "b": number()}, "draws without a label", "hp.uniform("),
        (lambda: [scope.one_of(1, 2), number()], "scope.randint(...) draws without a label", "hp.randint("),
        (lambda: scope.hyperopt_param("x", scope.add(1, 2)), "add is no distribution", "uniform"),
        (lambda: scope.hyperopt_param(7, scope.uniform(0, 1)), "the label 7 is a int", "strings"),
        (lambda: hp.uniform(b"x", 0, 1), "the label b'x' is a bytes", "strings"),
        (lambda: hp.uniform("", 0, 1), "a label is empty", "name every parameter"),
        (lambda: hp.uniform("x", 0, 1, size=3), "uniform takes no size", "hp.uniform(label, low, high)"),
        (
            lambda: scope.switch(hp.randint("r", 5), 1, 2),
            "r can be 2, and its switch has 2 options",
            "one option",
        ),
        (
            lambda: scope.switch(hp.quniform("r", 0, 1, 1), 1, 2),
            "r picks the option of a switch as a float",
            "int",
        ),
        (lambda: [number("y"), {number()}], "a set holds a parameter", "a list or a tuple"),
        (lambda: [number("y"), np.array([number(), 1])], "a ndarray holds a parameter", "a list or a tuple"),
        (lambda: {"a": number(), 1: 2}, "keys that can't be sorted", "strings as keys"),
    ],
)
def test_a_space_that_can_not_be_searched_is_told_with_the_mend(expression, message, mend):
    with pytest.raises(SpaceError) as caught:
        compile_space(expression())

    assert message in caught.value.message
    assert mend in caught.value.hint


def test_several_faults_are_one_report():
    with pytest.raises(SpaceError) as caught:
        compile_space({"a": hp.uniform("a", 0, -1), "b": hp.normal("b", 0, 0), "c": hp.choice("c", [])})

    assert caught.value.message.splitlines() == [
        "the space has 3 faults:",
        "  1. a: its bounds are reversed, 0 to -1",
        "  2. b: its sigma is 0",
        "  3. c: the choice has no options",
    ]
    assert "2. sigma is the width" in caught.value.hint


def test_choices_that_depend_on_each_other_in_a_circle_are_refused():
    one, other = (scope.hyperopt_param(label, scope.randint(2)) for label in ("one", "other"))
    first = scope.switch(one, 0, scope.switch(other, 1, 2))
    second = scope.switch(other, 0, scope.switch(one, 1, 2))

    with pytest.raises(SpaceError, match="in a circle: one, other"):
        compile_space(hp.choice("c", [first, second]))


def test_a_part_reached_on_countless_ways_is_refused():
    tree = number()
    for i in range(20):
        tree = hp.choice(f"c{i}", [tree, [tree], "none"])

    with pytest.raises(SpaceError, match="more than 1000 combinations of choices"):
        compile_space(tree)


def test_a_part_reached_on_every_way_is_always_active():
    tree = number()
    for i in range(20):
        tree = hp.choice(f"c{i}", [tree, [tree]])

    assert columns_of(tree)["x"].conditions == ()


def test_an_expression_too_deep_to_evaluate_is_refused():
    total = number()
    for _ in range(3000):
        total = total + 1

    with pytest.raises(SpaceError, match="nested too deeply"):
        compile_space(total)


# --- spaces of odd shapes


@pytest.mark.parametrize(
    "expression",
    [
        number(),
        hp.choice("c", [None, True, False, 0, 1, 1.5, "", len, int, lambda x: x, lambda x: x + 1]),
        hp.choice("one", ["only"]),
        [[[number()], (1, (2, hp.randint("r", 3)))], {}],
        {"labels": [number('ä/b.c\n"'), number(" x "), number("x"), number("X")]},
        {1: number(), 2: {3: "a"}},
        OrderedDict(b=number(), a=1),
        hp.uniform("x", np.float32(0), np.int64(2)),
        hp.normal("x", scope.log(1e-3), -scope.int(2) + 5),
        hp.choice("c", [np.float64(2.5), np.int64(7), np.bool_(True), np.str_("a")]),
        hp.randint("big", 2**40),
        hp.quniform("fine", -1e6, 1e6, 1e-3),
        hp.randint("negative", -5, -2),
        hp.pchoice("p", [(1, "sure")]),
        scope.switch(1, number("y"), number()),
        scope.call_method_pure("{}-{}", "format", hp.randint("r", 3), 2),
        {"a": scope.max(number(), hp.uniform("y", 0, 2)), "b": scope.pow(2, hp.randint("r", 4))},
    ],
)
def test_spaces_of_any_shape_evaluate_as_hyperopt_does(expression):
    space = compile_space(expression)
    for row in space.sample(np.random.default_rng(0), 20):
        point = space.point(row)

        space.check(point)
        assert repr(space.params(point)) == repr(space_eval(expression, point))


# --- the fingerprint


def make(factor):
    def scaled(x):
        return factor * x

    return scaled


VARIANTS = {
    "bound": lambda: {"x": hp.uniform("x", 0, 2)},
    "kind": lambda: {"x": hp.loguniform("x", 0, 1)},
    "step": lambda: {"x": hp.quniform("x", 0, 1, 0.5)},
    "other step": lambda: {"x": hp.quniform("x", 0, 1, 0.25)},
    "label": lambda: {"x": number("y")},
    "key": lambda: {"y": number()},
    "bare": number,
    "literal": lambda: {"x": number(), "k": 1},
    "other literal": lambda: {"x": number(), "k": 2},
    "float literal": lambda: {"x": number(), "k": 1.0},
    "bool literal": lambda: {"x": number(), "k": True},
    "text literal": lambda: {"x": number(), "k": "1"},
    "nan": lambda: {"x": number(), "k": float("nan")},
    "inf": lambda: {"x": number(), "k": float("inf")},
    "bytes": lambda: {"x": number(), "k": b"1"},
    "set": lambda: {"x": number(), "k": {"a", "b", "c"}},
    "other set": lambda: {"x": number(), "k": {"a", "b", "d"}},
    "array": lambda: {"x": number(), "k": np.arange(5)},
    "other array": lambda: {"x": number(), "k": np.arange(5.0)},
    "function": lambda: {"x": number(), "k": make},
    "class": lambda: {"x": number(), "k": OrderedDict},
    "builtin": lambda: {"x": number(), "k": len},
    "lambda": lambda: {"x": number(), "k": lambda x: x + 1},
    "other lambda": lambda: {"x": number(), "k": lambda x: x - 1},
    "two lambdas": lambda: {"x": number(), "k": [lambda x: x + 1, lambda x: x - 1]},
    "two lambdas swapped": lambda: {"x": number(), "k": [lambda x: x - 1, lambda x: x + 1]},
    "closure": lambda: {"x": number(), "k": make(2)},
    "other closure": lambda: {"x": number(), "k": make(3)},
    "partial": lambda: {"x": number(), "k": partial(int, base=2)},
    "other partial": lambda: {"x": number(), "k": partial(int, base=8)},
    "object": lambda: {"x": number(), "k": Options(1)},
    "other object": lambda: {"x": number(), "k": Options(2)},
    "operator": lambda: {"x": number() + 2},
    "other operator": lambda: {"x": number() * 2},
    "operands": lambda: {"x": 2 - number()},
    "swapped operands": lambda: {"x": number() - 2},
    "int": lambda: {"x": scope.int(number())},
    "int keys": lambda: {1: number()},
    "list": lambda: [number()],
    "choice": lambda: {"x": hp.choice("x", ["a", "b"])},
    "order of options": lambda: {"x": hp.choice("x", ["b", "a"])},
    "option": lambda: {"x": hp.choice("x", ["a", "c"])},
    "one option more": lambda: {"x": hp.choice("x", ["a", "b", "c"])},
    "nested option": lambda: {"x": hp.choice("x", ["a", {"b": 1}])},
    "other nested option": lambda: {"x": hp.choice("x", ["a", {"b": 2}])},
    "probability": lambda: {"x": hp.pchoice("x", [(0.4, "a"), (0.6, "b")])},
    "other probability": lambda: {"x": hp.pchoice("x", [(0.3, "a"), (0.7, "b")])},
}


class Options:
    """An object without a repr of its own."""

    def __init__(self, size):
        self.size = size


def test_every_change_of_a_space_is_another_fingerprint():
    fingerprints = {name: compile_space(build()).fingerprint for name, build in VARIANTS.items()}
    fixed = {value: compile_space(VARIANTS["choice"](), {"x": value}).fingerprint for value in ("a", "b")}

    assert len({*fingerprints.values(), *fixed.values()}) == len(VARIANTS) + 2


def test_a_space_built_again_has_the_same_fingerprint():
    for build in VARIANTS.values():
        assert compile_space(build()).fingerprint == compile_space(build()).fingerprint


def test_how_a_number_is_written_does_not_matter():
    written = [
        hp.uniform("x", 0, 1),
        hp.uniform("x", 0.0, np.float32(1)),
        hp.uniform("x", low=0, high=scope.int(1)),
    ]
    # the last bit of a logarithm is the machine's
    logs = [hp.loguniform("x", low, 0) for low in (np.log(1e-3), np.nextafter(np.log(1e-3), 0))]

    assert len({compile_space(expression).fingerprint for expression in written}) == 1
    assert len({compile_space(expression).fingerprint for expression in logs}) == 1


def test_the_order_of_keys_does_not_matter():
    one, other = {"a": number(), "b": number("y")}, {"b": number("y"), "a": number()}

    assert compile_space(one).fingerprint == compile_space(other).fingerprint


def test_other_processes_find_the_same_fingerprints():
    script = """if True:
        import json, test_space as t
        print(json.dumps({name: t.compile_space(build()).fingerprint for name, build in t.VARIANTS.items()}))
    """
    here = os.path.dirname(__file__)
    runs = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": here},
            check=True,
            capture_output=True,
        )
        for seed in ("1", "2")
    ]

    one, other = (json.loads(run.stdout) for run in runs)

    assert one == other
    assert len(set(one.values())) == len(VARIANTS)


def test_a_description_is_json_and_belongs_to_nobody_else():
    space = compile_space(network())

    space.describe()["parameters"].clear()

    assert "lr" in json.loads(json.dumps(space.describe(), allow_nan=False))["parameters"]


def test_importing_the_package_does_not_import_hyperopt():
    script = "import sys, hpo.space; sys.exit('hyperopt' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
