"""The Gaussian process: its model against oracles, and what its proposals promise."""

import math

import numpy as np
import pytest
from hyperopt import hp
from scipy.integrate import quad
from scipy.optimize import approx_fprime
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from hpo.core.history import History
from hpo.search.gp import GP
from hpo.search.gp.acquisition import log_expected_improvement
from hpo.search.gp.features import ABSENT, Features
from hpo.search.gp.losses import rarity, standardised
from hpo.search.gp.model import Hyperparameters, Priors, condition, fit, log_posterior
from hpo.search.random import Random
from hpo.space import compile_space

NESTED = {
    "lr": hp.loguniform("lr", math.log(1e-4), math.log(1e-1)),
    "depth": hp.uniformint("depth", 1, 6),
    "optimizer": hp.choice(
        "optimizer",
        [
            {"name": "sgd", "momentum": hp.uniform("momentum", 0, 1)},
            {
                "name": "adam",
                "beta": hp.uniform("beta", 0.8, 1.0),
                "amsgrad": hp.choice("amsgrad", [False, True]),
            },
        ],
    ),
}
FLAT = {"x": hp.uniform("x", -5, 5), "y": hp.uniform("y", -5, 5), "z": hp.uniform("z", -5, 5)}


def history_of(space, rows, losses):
    history = History(len(space.columns))
    for i, (row, loss) in enumerate(zip(rows, losses, strict=True)):
        history.append(i, row, loss)
    return history


def no_pending(space):
    return np.empty((0, len(space.columns)))


def bowl(space, rows):
    """Lowest, 0, where every active column is at 0.3 of its range."""
    return np.nansum((space.to_unit(rows) - 0.3) ** 2, axis=1)


def embedded(space, rows):
    features = Features.of(space)
    return features, features.embed(rows, space.to_unit(rows))


def search(algorithm, space, loss, evaluations, seed):
    history = History(len(space.columns))
    for number in range(evaluations):
        rng = np.random.default_rng([seed, number])
        [row] = algorithm.propose(space, history, no_pending(space), rng, 1)
        history.append(number, row, loss(row))
    return history


def test_the_gradient_of_the_likelihood_is_the_finite_difference():
    space = compile_space(NESTED)
    rows = space.sample(np.random.default_rng(0), 25)
    features, vectors = embedded(space, rows)
    losses = np.random.default_rng(1).standard_normal(25)
    theta = np.random.default_rng(2).normal(-0.5, 0.5, len(space.columns) + 1)

    def value(at):
        return log_posterior(at, vectors, features.owner, losses, 3.0, Priors())[0]

    _, gradient = log_posterior(theta, vectors, features.owner, losses, 3.0, Priors())

    np.testing.assert_allclose(gradient, approx_fprime(theta, value, 1e-6), rtol=1e-3, atol=1e-3)


def test_the_posterior_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    vectors, losses, points = rng.random((20, 3)), rng.standard_normal(20), rng.random((7, 3))
    hyperparameters = Hyperparameters(np.array([0.3, 0.7, 2.0]), 0.05)

    posterior = condition(vectors, np.arange(3), losses, hyperparameters)

    kernel = ConstantKernel(posterior.variance) * Matern(hyperparameters.lengths, nu=2.5)
    oracle = GaussianProcessRegressor(kernel, alpha=0.05 * posterior.variance, optimizer=None)
    oracle.fit(vectors, losses - posterior.mean)
    mean, deviation = oracle.predict(points, return_std=True)
    found_mean, found_deviation = posterior.predict(points)
    np.testing.assert_allclose(found_mean, mean + posterior.mean, rtol=1e-6)
    np.testing.assert_allclose(found_deviation, deviation, rtol=1e-6)


def test_a_column_that_matters_gets_a_shorter_length_scale():
    rng = np.random.default_rng(0)
    vectors = rng.random((60, 3))
    losses = np.sin(6 * vectors[:, 1])
    losses = (losses - losses.mean()) / losses.std()

    found = fit(vectors, np.arange(3), losses, 3.0, Priors())

    assert found.lengths[1] < 0.5 * min(found.lengths[0], found.lengths[2])
    assert found.noise < 0.01


def test_noise_is_found_where_there_is_noise():
    rng = np.random.default_rng(0)
    vectors = rng.random((100, 2))
    losses = 2 * vectors[:, 0] + rng.standard_normal(100)
    losses = (losses - losses.mean()) / losses.std()

    found = fit(vectors, np.arange(2), losses, 2.0, Priors())

    assert found.noise > 0.3


@pytest.mark.parametrize("z", [-3.0, -1.0, -0.5, 0.0, 2.0])
def test_log_expected_improvement_is_the_integral(z):
    mean, deviation, best = 0.4, 0.7, 0.4 + 0.7 * z

    [found] = log_expected_improvement(np.array([mean]), np.array([deviation]), best)

    expected, _ = quad(lambda y: (best - y) * norm.pdf(y, mean, deviation), -np.inf, best)
    assert found == pytest.approx(math.log(expected), rel=1e-6)


def test_log_expected_improvement_still_ranks_where_the_improvement_itself_underflows():
    means = np.array([50.0, 60.0, 1e4])

    found = log_expected_improvement(means, np.ones(3), 0.0)

    assert np.isfinite(found).all()
    assert (np.diff(found) < 0).all()


def test_rows_are_as_far_apart_as_their_columns_are():
    space = compile_space(NESTED)
    sgd, other_sgd, adam = (
        {"lr": 1e-2, "depth": 3, "optimizer": 0, "momentum": 0.5},
        {"lr": 1e-2, "depth": 3, "optimizer": 0, "momentum": 0.9},
        {"lr": 1e-2, "depth": 3, "optimizer": 1, "beta": 0.9, "amsgrad": 1},
    )

    features, vectors = embedded(space, np.array([space.row(point) for point in (sgd, other_sgd, adam)]))

    def squared(a, b):
        difference = (vectors[a] - vectors[b]) ** 2
        return {label: difference[features.owner == j].sum() for j, label in enumerate(space.labels)}

    assert squared(0, 1) == pytest.approx(
        {"lr": 0, "depth": 0, "optimizer": 0, "momentum": 0.4**2, "beta": 0, "amsgrad": 0}
    )
    assert squared(0, 2) == pytest.approx(
        {"lr": 0, "depth": 0, "optimizer": 1, "momentum": ABSENT**2, "beta": ABSENT**2, "amsgrad": 1}
    )


def test_a_proposal_depends_on_its_arguments_alone():
    space = compile_space(NESTED)
    rows = space.sample(np.random.default_rng(0), 40)
    used, fresh = GP(), GP()
    for n in range(20, 40):
        history = history_of(space, rows[:n], bowl(space, rows[:n]))
        used.propose(space, history, no_pending(space), np.random.default_rng(n), 1)
    history = history_of(space, rows, bowl(space, rows))

    one = used.propose(space, history, no_pending(space), np.random.default_rng(7), 2)
    other = fresh.propose(space, history, no_pending(space), np.random.default_rng(7), 2)

    np.testing.assert_array_equal(one, other)


def test_every_proposal_is_a_new_valid_point():
    space = compile_space(NESTED)
    rows = space.sample(np.random.default_rng(0), 30)
    history = history_of(space, rows, bowl(space, rows))

    proposals = GP().propose(space, history, rows[:0], np.random.default_rng(0), 8)

    for row in proposals:
        space.check(space.point(row))
    assert len({row.tobytes() for row in np.vstack([rows, proposals])}) == 38


def test_what_is_running_keeps_a_proposal_away():
    space = compile_space(FLAT)
    rows = space.sample(np.random.default_rng(0), 12)
    history = history_of(space, rows, bowl(space, rows))
    [alone] = GP().propose(space, history, no_pending(space), np.random.default_rng(0), 1)

    [beside] = GP().propose(space, history, alone[np.newaxis], np.random.default_rng(0), 1)

    assert np.abs(space.to_unit(beside) - space.to_unit(alone)).max() > 0.02


def test_it_finds_a_bowl_in_three_dimensions_far_better_than_chance():
    space = compile_space(FLAT)

    def best(algorithm, seed):
        return search(algorithm, space, lambda row: bowl(space, row[np.newaxis])[0], 30, seed).losses.min()

    found = np.median([best(GP(), seed) for seed in range(3)])
    by_chance = np.median([best(Random(), seed) for seed in range(3)])

    assert found < 0.1 * by_chance


def test_failed_trials_are_places_to_keep_away_from():
    space = compile_space({"x": hp.uniform("x", 0, 1), "y": hp.uniform("y", 0, 1)})

    def loss(row):
        return None if row[0] < 0.5 else (row[0] - 0.6) ** 2 + (row[1] - 0.5) ** 2

    history = search(GP(), space, loss, 40, seed=0)

    assert np.isfinite(history.losses[15:]).mean() > 0.6


@pytest.mark.parametrize("losses", [np.full(15, math.inf), np.zeros(15), np.r_[np.full(14, math.inf), 1.0]])
def test_a_history_that_says_nothing_is_no_error(losses):
    space = compile_space(NESTED)
    rows = space.sample(np.random.default_rng(0), 15)

    [row] = GP().propose(space, history_of(space, rows, losses), rows[:0], np.random.default_rng(0), 1)

    space.check(space.point(row))


def test_a_space_that_is_used_up_is_proposed_again():
    space = compile_space({"a": hp.choice("a", [1, 2]), "b": hp.choice("b", [1, 2, 3])})
    rows = np.array([[a, b] for a in range(2) for b in range(3)] * 2, dtype=float)

    [row] = GP().propose(
        space, history_of(space, rows, np.arange(12.0)), rows[:0], np.random.default_rng(0), 1
    )

    space.check(space.point(row))


def test_a_space_whose_parameters_are_all_fixed_has_its_one_point():
    space = compile_space({"a": hp.choice("a", [1, 2])}, {"a": 1})

    found = GP().propose(
        space,
        history_of(space, np.empty((12, 0)), np.zeros(12)),
        np.empty((0, 0)),
        np.random.default_rng(0),
        1,
    )

    assert found.shape == (1, 0)


def test_losses_too_large_to_square_are_still_ranked():
    losses = np.array([-1.7e308, 1e200, 3e149, 2e149, 1e149, 1.7e308, math.inf])

    found = standardised(losses, np.ones(7), clip=2.0)

    assert np.isfinite(found).all()
    assert found.argmin() == 0


def test_a_crowd_about_the_optimum_does_not_set_the_scale():
    crowd = np.linspace(0.0, 0.01, 90)
    losses = np.concatenate([crowd, np.linspace(1.0, 10.0, 10)])
    weights = np.concatenate([np.full(90, 1 / 90), np.ones(10)])

    found, unweighted = standardised(losses, weights, 2.0), standardised(losses, np.ones(100), 2.0)

    assert np.ptp(found[:90]) < 0.01 * np.ptp(found)
    assert np.ptp(unweighted[:90]) > 0.3 * np.ptp(unweighted)


def test_rarity_counts_neighbours():
    vectors = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])

    np.testing.assert_allclose(rarity(vectors, 0.1), [0.5, 0.5, 1.0])


def test_of_too_many_trials_the_best_and_the_latest_are_kept():
    space = compile_space(FLAT)
    rows = space.sample(np.random.default_rng(0), 60)
    losses = np.r_[np.arange(10.0), 100 + np.arange(50.0)]

    kept = GP(most=20)._kept(losses)
    [row] = GP(most=20).propose(space, history_of(space, rows, losses), rows[:0], np.random.default_rng(0), 1)

    assert kept.tolist() == [*range(10), *range(50, 60)]
    space.check(space.point(row))
