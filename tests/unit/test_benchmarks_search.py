"""The search benchmarks: their problems are what they say, their scores mean what they say."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hyperopt import hp

from hpo.core.errors import UsageError
from hpo.search import GP, TPE, Random
from hpo.space import compile_space

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def benchmark(name):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


problems, suggestion, search = map(benchmark, ("problems", "suggestion", "search"))


def problem(name):
    """The digits need minutes for their table: here it holds random numbers."""
    if name != "digits":
        return problems.problem(name)
    rng = np.random.default_rng(3)
    table = {
        learner: rng.random([nodes for _, nodes in axes.values()])
        for learner, axes in problems.DIGITS.items()
    }
    return problems.digits(table)


def near(space, row, rng, n):
    """Points in the same branch, close by in every direction."""
    units = space.to_unit(np.tile(row, (n, 1)))
    numeric = [not column.distribution.is_unordered for column in space.columns]
    moved = space.from_unit(np.clip(units + rng.normal(scale=0.03, size=units.shape) * numeric, 0, 1))
    return np.where(np.isnan(row), np.nan, np.where(numeric, moved, row))


@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_no_point_of_a_problem_is_better_than_its_optimum(name):
    one = problem(name)
    rng = np.random.default_rng(0)
    anywhere = one.space.sample(rng, 300)
    close = near(one.space, one.space.row(one.optimum), rng, 300)

    losses = [one.at(one.space.point(row)) for row in [*anywhere, *close]]

    one.space.check(one.optimum)
    assert min(losses) >= one.best - 1e-9
    assert one.best < np.median(losses)


def test_the_best_error_of_the_digits_is_that_of_a_node_of_the_grid():
    table = {
        learner: np.ones([nodes for _, nodes in axes.values()]) for learner, axes in problems.DIGITS.items()
    }
    table["forest"][2, 1, 3, 0] = 0.25

    digits = problems.digits(table)

    assert digits.best == pytest.approx(0.25)
    depths = problems.nodes(*problems.DIGITS["forest"]["depth"])
    assert digits.optimum["forest_depth"] == depths[3]


def test_on_the_misleading_tree_the_best_branch_is_the_worst_on_average():
    one = problem("tree-misleading")
    rows = one.space.sample(np.random.default_rng(0), 3000)
    losses = np.array([one.at(one.space.point(row)) for row in rows])
    branch = rows[:, one.space.labels.index("kind")]

    means = [losses[branch == i].mean() for i in range(3)]
    beats_others = losses[branch == one.optimum["kind"]] < 0.2

    assert np.argmax(means) == one.optimum["kind"]
    assert 0 < beats_others.mean() < 0.05


def test_the_large_tree_has_fifty_columns_with_about_a_dozen_active():
    space = problem("tree-50").space

    active = np.isfinite(space.sample(np.random.default_rng(0), 1000)).sum(axis=1)

    assert len(space.columns) == 50
    assert 11 <= active.min() <= active.max() <= 13


def test_regret_is_0_at_the_best_and_1_where_random_search_is():
    found = np.array([[[1.0, 1.0], [5.0, 3.0], [3.0, 2.0]]])  # one problem, three seeds, two budgets

    regrets = search.normalised(found, best=np.array([1.0]), by_random=np.array([[5.0, 3.0]]))

    assert regrets.tolist() == [[[0, 0], [1, 1], [0.5, 0.5]]]


def test_a_score_is_the_median_over_seeds_and_the_mean_over_problems():
    regrets = np.array([[[0.1], [0.2], [9.0]], [[0.6], [0.4], [0.5]]])

    assert search.score(regrets) == pytest.approx([0.35])


def test_random_search_scores_1_against_its_own_median():
    losses = np.random.default_rng(0).random(20_000)

    medians = search.medians_of_best(losses, 0.0, (10, 100), np.random.default_rng(1))

    # The best of n has the distribution function 1 - (1 - F)^n, whose median is at 1 - 2^(-1/n).
    assert medians == pytest.approx([1 - 2 ** (-1 / 10), 1 - 2 ** (-1 / 100)], rel=0.1)


def test_noise_picks_a_worse_trial_and_its_loss_without_noise_counts():
    losses = np.random.default_rng(0).random(20_000)

    quiet, noisy = (
        search.medians_of_best(losses, noise, (50,), np.random.default_rng(1))[0] for noise in (0.0, 1.0)
    )

    assert 0 < quiet < noisy < 1


def test_resampling_two_algorithms_pairs_their_seeds():
    regrets = np.random.default_rng(0).random((4, 9, 2))

    one, other = (search.resampled(each, np.random.default_rng(5)) for each in (regrets, regrets + 0.25))

    low, high = search.interval(other - one)
    assert low == pytest.approx([0.25, 0.25])
    assert high == pytest.approx([0.25, 0.25])
    assert np.ptp(one, axis=0).min() > 0.01


def test_the_difference_table_compares_with_the_best_peer_of_each_budget():
    results = {"a": np.full((2, 3, 2), 0.5), "b": np.full((2, 3, 2), 0.25)}
    results["b"][..., 1] = 1.0

    best = search.best_at(results, ["a", "b"])
    table = search.difference_table(results, best, (10, 20), "less the best")

    assert best == ["b", "a"]
    assert table.splitlines() == [
        "| less the best | 10: b | 20: a |",
        "| --- | --- | --- |",
        "| a | +0.250 [+0.250, +0.250] × 2.00 [2.00, 2.00] | – |",
        "| b | – | +0.500 [+0.500, +0.500] × 2.00 [2.00, 2.00] |",
    ]


class Recorded:
    """A search at random that remembers how many trials were running when it was asked."""

    def __init__(self, space):
        self.own = suggestion.Own(Random(), space, seed=0)
        self.running, self.ended = [], []

    def ask(self):
        self.running.append(len(self.own.running))
        return self.own.ask()

    def tell(self, number, loss):
        self.ended.append(number)
        self.own.tell(number, loss)


def test_four_workers_keep_four_trials_running_until_the_budget_is_spent():
    one = problem("network")
    searcher = Recorded(one.space)

    values = search.trace(one, searcher, evaluations=20, workers=4, seed=0)

    assert searcher.running == [0, 1, 2] + [3] * 17
    assert sorted(searcher.ended) == list(range(20))
    assert searcher.ended != list(range(20))
    assert len(values) == 20
    assert values == sorted(values, reverse=True)


def test_where_losses_are_noisy_the_noise_free_loss_of_the_incumbent_counts():
    one = problem("network-noisy")
    searcher = Recorded(one.space)

    values = search.trace(one, searcher, evaluations=30, workers=1, seed=0)

    history = searcher.own.history
    looked_best = history.rows[history.losses.argmin()]
    assert values[-1] == pytest.approx(one.at(one.space.point(looked_best)))
    assert values[-1] != history.losses.min()


class Trial:
    """What Optuna's trial offers, drawn at random."""

    def __init__(self, rng):
        self.rng, self.asked = rng, []

    def suggest_float(self, name, low, high, *, log=False):
        self.asked.append(name)
        return float(
            np.exp(self.rng.uniform(np.log(low), np.log(high))) if log else self.rng.uniform(low, high)
        )

    def suggest_int(self, name, low, high, *, log=False):
        self.asked.append(name)
        assert low >= 1 or not log
        return int(self.rng.integers(low, high + 1))

    def suggest_categorical(self, name, choices):
        self.asked.append(name)
        return choices[self.rng.integers(len(choices))]


EVERY_KIND = {
    "normal": hp.normal("normal", 0, 1),
    "lognormal": hp.qlognormal("lognormal", 0, 1, 0.5),
    "randint": hp.randint("randint", 3, 9),
    "pchoice": hp.pchoice("pchoice", [(0.9, {"q": hp.quniform("q", 0.05, 0.5, 0.05)}), (0.1, "none")]),
}


@pytest.mark.parametrize("name", [*problems.PROBLEMS, "every kind"])
def test_optuna_is_asked_for_valid_points_of_the_same_space(name):
    space = compile_space(EVERY_KIND) if name == "every kind" else problem(name).space
    rng = np.random.default_rng(0)

    for _ in range(50):
        trial = Trial(rng)
        point = suggestion.suggested(space, trial)

        space.check(point)
        assert trial.asked == list(point)


@pytest.mark.parametrize("name", ["hpo-random", "hpo-tpe", *suggestion.PEERS])
@pytest.mark.parametrize("filled", [0, 30])
def test_every_algorithm_proposes_points_of_the_space_with_trials_running(name, filled):
    if name.startswith("optuna"):
        pytest.importorskip("optuna")
        pytest.importorskip("cmaes")
    one = problem("tree")
    study = suggestion.searcher(name, one.space, seed=0)
    study.fill(filled, one.at)

    points = [study.ask() for _ in range(3)]
    study.tell(filled + 1, 0.5)
    points.append(study.ask())

    for point in points:
        one.space.check(point)
    assert len({tuple(sorted(point.items())) for point in points}) == 4


def test_a_field_of_an_algorithm_is_changed_by_its_name():
    study = suggestion.searcher("hpo-tpe:starts=3:candidates=7", problem("network").space, seed=0)

    assert study.algorithm == TPE(starts=3, candidates=7)


@pytest.mark.parametrize(
    "name", ["hpo-tpe:no_such_field=1", "hpo-random:starts=1", "optuna-best", "optuna-tpe:starts=1"]
)
def test_a_field_or_an_algorithm_that_is_not_there_is_an_error(name):
    with pytest.raises(UsageError, match=r"no field|no algorithm"):
        suggestion.searcher(name, problem("network").space, seed=0)


@pytest.mark.parametrize(("name", "default"), [("tpe", TPE()), ("gp", GP())])
def test_every_variant_of_the_ablation_is_a_field_of_its_algorithm(name, default):
    for field, values in search.VARIANTS[name].items():
        for value in values:
            study = suggestion.searcher(f"hpo-{name}:{field}={value!r}", problem("network").space, seed=0)

            assert getattr(study.algorithm, field) == value
            assert study.algorithm != default


def test_peers_searches_are_kept_for_the_next_time(tmp_path):
    options = ["--algorithms", "hpo-random,hyperopt-anneal", "--problems", "network", "--seeds", "2"]
    command = [sys.executable, BENCHMARKS / "search.py", *options, "--budgets", "5", "3", "--jobs", "1"]
    command += ["--keep", tmp_path / "peers.json"]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)}

    first, again = (
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment) for _ in range(2)
    )

    assert "| regret after | 3 | 5 |" in first.stdout
    assert "| less the best of hyperopt-anneal, × of it | 3 | 5 |" in first.stdout
    assert "| regret after 5 | network |" in first.stdout
    assert again.stdout == first.stdout
    assert "4 of 4 searches" in first.stderr
    assert "2 searches were kept\n2 of 2 searches" in again.stderr


@pytest.mark.parametrize("algorithm", ["hpo-tpe:no_such_field=1", "optuna-best"])
def test_the_command_names_what_is_wrong_with_an_algorithm(algorithm):
    command = [sys.executable, BENCHMARKS / "search.py", "--algorithms", algorithm]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)}

    ended = subprocess.run(command, capture_output=True, text=True, env=environment)

    assert ended.returncode == 1
    assert ended.stderr.startswith(f"{algorithm}: ")
    assert "hint: " in ended.stderr
    assert "Traceback" not in ended.stderr
