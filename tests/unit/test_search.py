"""What every algorithm promises, whatever it does: valid points, no point twice, the same points again."""

import subprocess
import sys

import numpy as np
import pytest
from hyperopt import hp
from hyperopt.pyll import scope

from hpo.core.errors import SearchExhausted, UsageError
from hpo.core.history import History
from hpo.search import GP, TPE, Auto, Grid, Quasirandom, Random, algorithm
from hpo.search.seen import Seen, unseen
from hpo.space import compile_space

NAMES = [
    "random",
    "tpe",
    "gp",
    "auto",
    "grid",
    "quasirandom",
    "hyperopt.anneal:suggest",
    "hyperopt.tpe:suggest",
]


def no_pending(space):
    return np.empty((0, len(space.columns)))


def history_of(space, rows, losses):
    history = History(len(space.columns))
    for number, (row, loss) in enumerate(zip(rows, losses, strict=True)):
        history.append(number, row, loss)
    return history


def random_expression(rng, prefix="r", depth=0):
    """A nested space of random shape; every kind of parameter occurs."""
    make = [
        lambda name: hp.uniform(name, -1, 1),
        lambda name: hp.quniform(name, 0.05, 0.5, 0.05),
        lambda name: hp.loguniform(name, -9, 0),
        lambda name: hp.qloguniform(name, 0, 5, 2),
        lambda name: hp.normal(name, 3, 2),
        lambda name: hp.qnormal(name, 0, 10, 1),
        lambda name: hp.lognormal(name, 0, 1),
        lambda name: hp.qlognormal(name, 0, 1, 0.5),
        lambda name: hp.uniformint(name, 1, 7),
        lambda name: scope.int(hp.quniform(name, 16, 512, 16)),
        lambda name: hp.randint(name, 3, 9),
        lambda name: hp.pchoice(name, [(0.7, "a"), (0.2, "b"), (0.1, "c")]),
    ]
    expression = {}
    for i in range(rng.integers(1, 4)):
        name = f"{prefix}{i}"
        if depth < 3 and rng.random() < 0.5:
            options = [random_expression(rng, f"{name}{o}_", depth + 1) for o in range(rng.integers(1, 4))]
            expression[name] = hp.choice(name, options)
        else:
            expression[name] = make[rng.integers(len(make))](name)
    return expression


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(4))
def test_every_proposal_is_a_point_of_the_space(name, seed):
    rng = np.random.default_rng(seed)
    space = compile_space(random_expression(rng))
    rows = space.sample(rng, 30)
    losses = [None if rng.random() < 0.2 else rng.normal() for _ in rows]

    proposals = algorithm(name).propose(space, history_of(space, rows, losses), space.sample(rng, 3), rng, 4)

    assert proposals.shape == (4, len(space.columns))
    for row in proposals:
        space.check(space.point(row))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("trials", [0, 30])
def test_the_same_inputs_give_the_same_points(name, trials):
    space = compile_space(random_expression(np.random.default_rng(8)))
    rows = space.sample(np.random.default_rng(0), trials)
    history = history_of(space, rows, np.arange(trials) % 5)
    pending = space.sample(np.random.default_rng(1), 2)

    first, again, other = (
        algorithm(name).propose(space, history, pending, np.random.default_rng([seed, 7]), 3)
        for seed in (1, 1, 2)
    )

    np.testing.assert_array_equal(first, again)
    # A sequence is the study's: no trial's seed changes it.
    assert np.array_equal(first, other, equal_nan=True) == (name == "quasirandom")


def twenty_seven():
    return compile_space({label: hp.choice(label, ["x", "y", "z"]) for label in "abc"})


@pytest.mark.parametrize("name", ["random", "tpe", "grid", "quasirandom"])
def test_no_point_is_proposed_twice_while_others_are_left(name):
    space = twenty_seven()
    history = History(3)

    for number in range(0, 24, 2):
        pending = no_pending(space)
        rows = algorithm(name).propose(space, history, pending, np.random.default_rng(number), 2)
        for i, row in enumerate(rows):
            history.append(number + i, row, float(row.sum()))
    pending = algorithm(name).propose(space, history, no_pending(space), np.random.default_rng(0), 2)
    last = algorithm(name).propose(space, history, pending, np.random.default_rng(0), 1)

    every = np.concatenate([history.rows, pending, last])
    assert len(np.unique(every, axis=0)) == 27


@pytest.mark.parametrize("name", [name for name in NAMES if name != "grid"])
def test_points_are_proposed_again_when_all_are_used(name):
    space = compile_space({"a": hp.choice("a", ["x", "y"]), "b": hp.uniformint("b", 0, 1)})
    history = history_of(space, np.array([[a, b] for a in (0, 1) for b in (0, 1)] * 5), range(20))

    rows = algorithm(name).propose(space, history, no_pending(space), np.random.default_rng(0), 3)

    for row in rows:
        space.check(space.point(row))


def test_the_last_unseen_point_is_found_however_improbable():
    space = compile_space(
        {
            "rare": hp.pchoice("rare", [(1 - 1e-9, {"n": hp.uniformint("n", 1, 40)}), (1e-9, "never drawn")]),
            "wide": hp.quniform("wide", 1, 50, 1),
        }
    )
    rare, n, wide = (space.labels.index(label) for label in ("rare", "n", "wide"))
    rows = np.full((2049, 3), np.nan)
    rows[:2000, [rare, n, wide]] = [[0, i, j] for i in range(1, 41) for j in range(1, 51)]
    rows[2000:, [rare, wide]] = [[1, j] for j in range(1, 51) if j != 17]

    found = unseen(space, Seen(rows), np.random.default_rng(0))

    assert [space.point(row) for row in found] == [{"rare": 1, "wide": 17}]


def test_a_huge_discrete_space_is_not_listed_to_find_an_unseen_point():
    """Only two points are ever drawn, yet there are 10^18 others."""
    space = compile_space(
        hp.pchoice(
            "way",
            [
                (0.5, "a"),
                (0.5 - 1e-12, "b"),
                (1e-12, [hp.uniformint(label, 1, 10**6) for label in "xyz"]),
            ],
        )
    )
    rows = np.full((2, 4), np.nan)
    rows[:, space.labels.index("way")] = [0, 1]

    found = unseen(space, Seen(rows), np.random.default_rng(0))

    assert 1 <= len(found) <= 3
    for row in found:
        space.check(space.point(row))


def test_negative_zero_is_zero_to_what_was_seen():
    seen = Seen(np.array([[-0.0, np.nan]]))

    assert seen.is_new(np.array([[0.0, np.nan], [0.0, 0.0]])).tolist() == [False, True]


def test_what_was_seen_is_the_history_as_it_grows_and_what_is_pending():
    history = History(2)
    points = np.array([[i, j] for i in range(30) for j in (0.1, 0.2, np.nan)])

    for number, row in enumerate(points[:60]):
        history.append(number, row, 0.0)
        seen = Seen.of(history, points[80:])

        assert seen.is_new(points[:80]).tolist() == [i > number for i in range(80)]
        assert not seen.is_new(points[80:]).any()
        assert len(seen) == number + 11


def test_a_space_that_is_fixed_whole_gives_empty_points():
    space = compile_space({"a": hp.uniform("a", 0, 1)}, fixed={"a": 0.5})
    history = history_of(space, np.empty((12, 0)), range(12))

    for each in (TPE(), Random(), Quasirandom(0)):
        assert each.propose(space, history, no_pending(space), np.random.default_rng(0), 2).shape == (2, 0)


def test_random_search_draws_from_the_spaces_own_distributions():
    space = compile_space({"p": hp.pchoice("p", [(0.8, "a"), (0.2, "b")]), "x": hp.uniform("x", 0, 1)})

    rows = Random().propose(space, History(2), no_pending(space), np.random.default_rng(0), 500)

    assert (rows[:, space.labels.index("p")] == 0).mean() == pytest.approx(0.8, abs=0.06)


def test_the_names_of_algorithms():
    assert isinstance(algorithm("auto"), Auto)
    assert isinstance(algorithm("gp"), GP)
    assert isinstance(algorithm("tpe"), TPE)
    assert isinstance(algorithm("random"), Random)
    assert algorithm("quasirandom", seed=3) == Quasirandom(3)
    assert algorithm("grid") == Grid()
    assert algorithm("grid:7") == Grid(levels=7)


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("tpr", "'tpr'"),
        ("no_such_module:suggest", "no_such_module"),
        ("hyperopt.tpe:no_such_function", "no_such_function"),
        ("hyperopt.tpe:", "hyperopt.tpe"),
        (":suggest", ":suggest"),
        ("grids", "'grids'"),
    ],
)
def test_an_unknown_algorithm_is_an_error_that_says_what_there_is(name, fact):
    with pytest.raises(UsageError) as caught:
        algorithm(name)

    assert fact in caught.value.message
    assert "hyperopt.anneal:suggest" in caught.value.hint


def test_importing_the_search_does_not_import_hyperopt():
    code = "import sys, hpo.search; sys.exit('hyperopt' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_hyperopts_tpe_learns_from_the_history_it_is_shown():
    space = compile_space({"x": hp.uniform("x", 0, 1)})
    rows = np.linspace(0, 1, 41)[:, np.newaxis]
    history = history_of(space, rows, np.abs(rows[:, 0] - 0.7))
    foreign = algorithm("hyperopt.tpe:suggest")

    found = [
        foreign.propose(space, history, no_pending(space), np.random.default_rng(i), 1)[0, 0]
        for i in range(15)
    ]

    assert np.median(np.abs(np.array(found) - 0.7)) < 0.15


class Named:
    """An algorithm that proposes the first column's value alone."""

    def __init__(self, value):
        self.value = value

    def propose(self, space, history, pending, rng, k):
        return np.full((k, len(space.columns)), self.value)


@pytest.mark.parametrize(
    ("columns", "ended", "pending", "chosen"),
    [(3, 0, 0, 1.0), (3, 9, 0, 1.0), (3, 10, 0, 2.0), (3, 5, 5, 2.0), (6, 0, 0, 2.0)],
)
def test_auto_leaves_the_gaussian_process_where_there_are_many_trials_or_columns(
    columns, ended, pending, chosen
):
    space = compile_space({f"x{i}": hp.uniform(f"x{i}", 0, 1) for i in range(columns)})
    auto = Auto(gp=Named(1.0), tpe=Named(2.0), most_trials=10, most_columns=5)
    history = History(columns)
    for number in range(ended):
        history.append(number, np.zeros(columns), 0.0)

    proposals = auto.propose(space, history, np.zeros((pending, columns)), np.random.default_rng(0), 2)

    assert (proposals == chosen).all()


def test_auto_says_what_it_picks_and_why():
    small = compile_space({"x": hp.uniform("x", 0, 1)})
    large = compile_space({"x": hp.uniform("x", 0, 1), "kind": hp.randint("kind", 500)})

    assert Auto().explain(small).startswith("gp up to trial 300, as ")
    assert Auto().explain(large).startswith("tpe, as 501 parameters and options ")


@pytest.mark.parametrize("name", ["grid:", "grid:0", "grid:x", "grid:-1", "grid:1001"])
def test_a_grid_has_one_level_or_more(name):
    with pytest.raises(UsageError, match=name):
        algorithm(name)


def tree():
    return compile_space(
        {
            "model": hp.choice(
                "model",
                [
                    {"C": hp.loguniform("C", -3, 3), "kernel": hp.choice("kernel", ["rbf", "linear"])},
                    {"k": hp.uniformint("k", 1, 3)},
                    "dummy",
                ],
            ),
            "scale": hp.choice("scale", [True, False]),
        }
    )


def all_of(grid, space, seed=0):
    history = History(len(space.columns))
    number = 0
    while True:
        try:
            [row] = grid.propose(space, history, no_pending(space), np.random.default_rng([seed, number]), 1)
        except SearchExhausted as exhausted:
            return history.rows, exhausted
        history.append(number, row, 0.0)
        number += 1


@pytest.mark.parametrize(("levels", "said"), [(1, "the grid has 1 point"), (2, "the grid has 2 points")])
def test_a_grid_says_how_many_points_it_has(levels, said):
    assert Grid(levels).size(compile_space({"x": hp.uniform("x", 0, 1)})) == said


def test_a_grid_has_every_combination_of_active_values_once_and_then_no_more():
    space = tree()

    rows, exhausted = all_of(Grid(levels=4), space)

    assert len(rows) == (4 * 2 + 3 + 1) * 2
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert exhausted.message == "the grid has 24 points, all of which are tried"
    for row in rows:
        space.check(space.point(row))


def test_the_levels_of_a_continuous_parameter_are_the_centres_of_equal_parts_of_its_prior():
    space = compile_space({"x": hp.loguniform("x", np.log(1e-4), np.log(1)), "n": hp.normal("n", 1, 2)})

    rows, _ = all_of(Grid(levels=4), space)

    x, n = (np.unique(rows[:, space.labels.index(label)]) for label in "xn")
    np.testing.assert_allclose(np.log10(x), [-3.5, -2.5, -1.5, -0.5])
    np.testing.assert_allclose(n, 1 + 2 * np.array([-1.150349, -0.318639, 0.318639, 1.150349]), atol=1e-5)


def test_levels_that_round_to_one_value_are_one():
    space = compile_space({"q": hp.qnormal("q", 0, 1, 1)})

    rows, exhausted = all_of(Grid(levels=9), space)

    assert sorted(rows[:, 0]) == [-2, -1, 0, 1, 2]
    assert "5 points" in exhausted.message


def test_the_order_of_a_grid_is_the_seeds():
    first, second = (all_of(Grid(), tree(), seed)[0] for seed in (1, 2))

    assert not np.array_equal(first, second, equal_nan=True)


def test_a_point_off_the_grid_takes_none_of_its_points():
    space = compile_space({"x": hp.uniform("x", 0, 1)})
    history = history_of(space, [[0.111]], [0.0])

    rows = Grid(levels=2).propose(space, history, no_pending(space), np.random.default_rng(0), 2)

    assert sorted(rows[:, 0]) == [0.25, 0.75]


def test_a_huge_grid_is_never_listed():
    space = compile_space({f"x{i}": hp.uniform(f"x{i}", 0, 1) for i in range(40)})
    grid = Grid(levels=10)

    rows = grid.propose(space, History(40), no_pending(space), np.random.default_rng(0), 3)

    assert len(np.unique(rows, axis=0)) == 3
    assert grid.size(space) == f"the grid has {10**40} points"


def test_quasirandom_points_fill_a_space_more_evenly_than_independent_ones():
    space = compile_space({label: hp.uniform(label, 0, 1) for label in "ab"})

    def filled(each):
        history = History(2)
        for number in range(64):
            rng = np.random.default_rng([5, number])
            [row] = each.propose(space, history, no_pending(space), rng, 1)
            history.append(number, row, 0.0)
        return len(np.unique(np.floor(history.rows * 8), axis=0))

    assert filled(Quasirandom(5)) == 64  # one in each cell of 8 by 8, as a (0, 6, 2)-net has it
    assert filled(Random()) < 50


def test_a_sequence_goes_on_where_it_was_however_many_trials_run():
    space = tree()
    sequence = Quasirandom(3)
    whole = sequence.propose(
        space, History(len(space.columns)), no_pending(space), np.random.default_rng(0), 12
    )

    history = history_of(space, whole[[2, 0, 5, 1]], range(4))
    rest = sequence.propose(space, history, whole[[3, 4]], np.random.default_rng(9), 6)

    np.testing.assert_array_equal(rest, whole[6:])


def test_another_study_has_another_sequence():
    space = compile_space({"x": hp.uniform("x", 0, 1)})

    one, other = (
        Quasirandom(seed).propose(space, History(1), no_pending(space), np.random.default_rng(0), 4)
        for seed in (1, 2)
    )

    assert not np.isin(one, other).any()
