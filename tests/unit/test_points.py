"""Points that a person brings: read as people write them, completed, and refused with every fault."""

import json

import numpy as np
import pytest
from hyperopt import hp
from hyperopt.pyll import scope

from hpo.core.errors import UsageError
from hpo.core.plain import flat
from hpo.points import read_points
from hpo.space import compile_space, read_point


def network():
    return {
        "lr": hp.loguniform("learning_rate", np.log(1e-4), np.log(1e-1)),
        "layers": hp.uniformint("layers", 1, 4),
        "batch": hp.choice("batch_size", [32, 64]),
        "dropout": hp.choice("dropout", [None, hp.uniform("dropout_rate", 0, 0.5)]),
        "sizes": [16, hp.quniform("second", 0.1, 0.9, 0.1)],
        "optimizer": hp.choice(
            "optimizer", ["adam", {"name": "sgd", "momentum": hp.uniform("momentum", 0, 0.95)}]
        ),
        "units": 2 ** hp.uniformint("log_units", 3, 8),
    }


@pytest.fixture
def space():
    return compile_space(network())


@pytest.fixture
def write(tmp_path):
    def write(content, name="points.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def without_units(params):
    """`units` is computed from its parameter, which alone can be given."""
    return {key: value for key, value in params.items() if key != "units"}


@pytest.mark.parametrize("as_shown", [lambda params: params, flat], ids=["nested", "dotted"])
def test_parameters_as_they_are_shown_are_the_point_they_came_from(space, as_shown):
    for row in space.sample(np.random.default_rng(0), 50):
        point = space.point(row)
        shown = json.loads(json.dumps(without_units(space.readable(point))))

        found, faults = read_point(space, as_shown(shown) | {"log_units": point["log_units"]})

        assert faults == []
        assert found == point


@pytest.mark.parametrize(
    ("given", "point"),
    [
        ({"learning_rate": 0.01}, {"learning_rate": 0.01}),
        ({"learning_rate": "0.01"}, {"learning_rate": 0.01}),
        ({"optimizer": "adam"}, {"optimizer": 0}),
        ({"optimizer": "Adam"}, {"optimizer": 0}),
        ({"optimizer": "sgd", "momentum": 0.5}, {"optimizer": 1, "momentum": 0.5}),
        ({"optimizer": {"name": "sgd", "momentum": 0.5}}, {"optimizer": 1, "momentum": 0.5}),
        ({"optimizer.momentum": 0.5}, {"optimizer": 1, "momentum": 0.5}),
        ({"batch_size": 64}, {"batch_size": 1}),
        ({"batch_size": "64"}, {"batch_size": 1}),
        ({"dropout": None}, {"dropout": 0}),
        ({"dropout": 0.25}, {"dropout": 1, "dropout_rate": 0.25}),
        ({"sizes.1": 0.3}, {"second": 3 * 0.1}),
        ({"sizes": [16, 0.5]}, {"second": 0.5}),
        ({"layers": 3}, {"layers": 3}),
    ],
)
def test_a_value_is_given_by_label_or_by_where_the_objective_gets_it(space, given, point):
    assert read_point(space, given) == (point, [])


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"learning_rat": 0.01}, "learning_rat is no parameter: did you mean 'learning_rate'?"),
        ({"learning_rate": 7}, "learning_rate can't be 7: outside 0.0001 to 0.1"),
        ({"learning_rate": "fast"}, "learning_rate can't be 'fast': it is loguniform(0.0001, 0.1)"),
        ({"layers": 2.5}, "layers can't be 2.5: no multiple of 1"),
        ({"batch_size": 128}, "batch_size can't be 128: it is one of 32, 64"),
        ({"optimizer": {"name": "sgd", "momentum": 7}}, "momentum can't be 7: outside 0 to 0.95"),
        ({"sizes": [8, 0.5]}, "sizes.0 is 8, but 16 in this space: leave it out"),
        ({"units": 64}, "units is computed from log_units: give log_units instead"),
        ({"layers": True}, "layers can't be True: it is quniform(1, 4, 1)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_with_the_mend(space, given, fault):
    _, faults = read_point(space, given)

    assert faults == [fault]


def test_a_bare_parameter_is_given_as_its_value():
    space = compile_space(hp.uniform("x", 0, 1))

    assert read_point(space, 0.25) == ({"x": 0.25}, [])
    assert read_point(space, {"value": 0.25}) == ({"x": 0.25}, [])
    assert read_point(space, {"x": 0.25}) == ({"x": 0.25}, [])


def test_a_fixed_parameter_may_be_given_as_it_is_fixed():
    space = compile_space(network(), fixed={"batch_size": 64, "layers": 2})

    assert read_point(space, {"batch_size": 64, "batch": 64, "layers": "2"}) == ({}, [])
    assert read_point(space, {"layers": 3})[1] == [
        "layers is 3, but fixed at 2.0: leave it out, or --set it otherwise"
    ]


def test_a_choice_that_a_parameter_needs_is_made(space, write):
    [entry] = read_points(write([{"momentum": 0.5}]), space).entries

    assert entry.given == {"momentum": 0.5, "optimizer": 1}


def test_every_fault_of_a_file_is_in_one_report(space, write):
    path = write([{"layers": 2}, {"layers": 9, "lr": 5}, {"optimizer": "adam", "momentum": 0.5}])

    with pytest.raises(UsageError) as caught:
        read_points(path, space)

    assert caught.value.message.splitlines() == [
        f"{path} has points that don't fit the space:",
        "  entry 2: layers can't be 9: outside 1 to 4",
        "  entry 2: learning_rate can't be 5: outside 0.0001 to 0.1",
        "  entry 3: momentum is not used with these choices: leave it out, or give"
        " optimizer = {'momentum': momentum, 'name': 'sgd'}",
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("points.json", '[{"layers": 2, "batch": 64}, {"optimizer": "adam"}]'),
        ("points.jsonl", '{"layers": 2, "batch": 64}\n\n{"optimizer": "adam"}\n'),
        ("points.csv", "layers,batch_size,optimizer\n2,64,\n\n,,adam\n"),
        ("trials.json", '[{"number": 4, "params": {"layers": 2, "batch": 64}},'
                        ' {"number": 5, "params": {"optimizer": "adam"}}]'),
        ("optimize.jsonl", '{"study": "s", "best": {"trial": 4, "params": {"layers": 2, "batch": 64}}}\n'
                           '{"study": "t", "best": {"trial": 0, "params": {"optimizer": "adam"}}}'),
    ],
)  # fmt: skip
def test_json_json_lines_csv_and_shown_trials_are_read(space, write, name, content):
    points = read_points(write(content, name), space)

    assert [entry.given for entry in points.entries] == [{"layers": 2, "batch_size": 1}, {"optimizer": 0}]


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("a.json", "[{]", "is no JSON"),
        ("a.json", "[]", "has no points"),
        ("a.json", "[3]", "entry 1 is 3, no object"),
        ("a.jsonl", '{"layers": 2}\n{"layers"\n', "line 2 is no JSON"),
        ("a.csv", "layers,layers\n1,2\n", "the column 'layers' twice"),
        ("a.csv", "layers\n1,2\n", "line 2 has 2 values for 1 columns"),
        ("a.csv", "", "has no points"),
        ("a.csv", "layers\n2\n" + "x" * 200_000 + "\n", "line 3 is no CSV"),
        ("a.json", '[{"layers": 2, "layers": 3}]', "has 'layers' twice in one object: 2 and 3"),
        ("a.jsonl", '{"layers": 1}\n{"layers": 2, "layers": 3}\n', "has 'layers' twice"),
        ("a.json", '{"study": "s", "best": null}', "tells of study 's' as a whole"),
        ("a.json", '[{"study": "s", "completed": 4, "best": 0.5}]', "tells of study 's' as a whole"),
    ],
)
def test_a_file_that_is_no_list_of_points_is_an_error(space, write, name, content, fact):
    path = write(content, name)

    with pytest.raises(UsageError) as caught:
        read_points(path, space)

    assert fact in caught.value.message
    assert str(path) in caught.value.message


def test_a_file_that_is_not_there_is_an_error(space, tmp_path):
    with pytest.raises(UsageError, match=r"there is no file .*none.json"):
        read_points(tmp_path / "none.json", space)


def test_what_an_entry_leaves_out_is_drawn_the_same_way_each_time(space, write):
    partial, other = {"layers": 3}, {"optimizer": "sgd"}

    alone = read_points(write([partial]), space).rows(space, seed=1)
    later = read_points(write([other, partial, partial]), space).rows(space, seed=1)
    elsewhere = read_points(write([partial]), space).rows(space, seed=2)

    np.testing.assert_array_equal(later[1], alone[0])
    assert not np.array_equal(later[2], later[1], equal_nan=True)
    assert not np.array_equal(elsewhere, alone, equal_nan=True)
    for row in (*alone, *later, *elsewhere):
        space.check(space.point(row))
    assert [space.point(row)["layers"] for row in (alone[0], later[1], later[2])] == [3, 3, 3]


def test_entries_that_leave_out_the_same_are_told_together(write):
    space = compile_space({"a": hp.uniform("a", 0, 1), "b": hp.uniform("b", 0, 1)})
    points = read_points(write([{"a": n / 10} for n in range(6)] + [{"b": 0.5}, {"a": 0, "b": 0}]), space)

    said = list(points.drawn(space, points.rows(space, seed=1), [0, 2, 3, 4, 5, 6, 7]))

    assert said == [
        f"{points.path}, entry 1, entry 3, entry 4 and 2 more: left out, and drawn from the space: b",
        f"{points.path}, entry 7: left out, and drawn from the space: a",
    ]


def test_a_draw_that_is_computed_says_so(write):
    space = compile_space({"n": scope.int(hp.uniform("n", 1, 10)), "m": hp.uniform("m", 0, 1) + 1})

    assert read_point(space, {"n": 3}) == ({"n": 3}, [])
    assert read_point(space, {"m": 1.5})[1] == ["m can't be 1.5: outside 0 to 1"]
