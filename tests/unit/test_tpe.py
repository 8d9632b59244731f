"""The tree-structured Parzen estimator: its densities against slow oracles, and its promises."""

import warnings

import numpy as np
import pytest
from hyperopt import hp
from scipy.integrate import quad
from scipy.stats import kstest, truncnorm

from hpo.core.history import History
from hpo.search import TPE
from hpo.search.random import Random
from hpo.search.tpe.candidates import draw
from hpo.search.tpe.density import Cells, Kernels
from hpo.search.tpe.split import split
from hpo.space import Axes, compile_space

NONE = np.empty(0, dtype=int)


def history_of(space, rows, losses, numbers=None):
    history = History(len(space.columns))
    for i, (row, loss) in enumerate(zip(rows, losses, strict=True)):
        history.append(i if numbers is None else numbers[i], row, loss)
    return history


def no_pending(space):
    return np.empty((0, len(space.columns)))


def slow_log_density(kernels, cells):
    """One kernel, one point, one column at a time."""
    h, w = kernels.bandwidth, kernels.prior_share
    result = []
    for low, high in zip(cells.low, cells.high, strict=True):
        densities = [1.0]  # the prior
        for centre in kernels.centres:
            density = 1.0
            for j, m in enumerate(centre):
                if np.isnan(m) or np.isnan(low[j]):
                    continue
                gaussian = truncnorm(-m / h, (1 - m) / h, loc=m, scale=h)
                if j in kernels.axes.continuous:
                    density *= gaussian.pdf(low[j])
                elif j in kernels.axes.quantised:
                    density *= (gaussian.cdf(high[j]) - gaussian.cdf(low[j])) / (high[j] - low[j])
                else:
                    density *= w + (1 - w) * (low[j] < m < high[j]) / (high[j] - low[j])
            densities.append(density)
        result.append(np.log(np.mean(densities)))
    return np.array(result)


AXES = Axes(np.array([0, 1]), np.array([2]), np.array([3]))


def random_cells(rng, n):
    """Columns: continuous, continuous, five bins, three options; a third of the entries missing."""
    unit = rng.random((n, 4))
    unit[:, 2] = (np.floor(unit[:, 2] * 5) + 0.5) / 5
    unit[:, 3] = (np.floor(unit[:, 3] * 3) + 0.5) / 3
    unit[rng.random((n, 4)) < 1 / 3] = np.nan
    half = np.array([0, 0, 1 / 10, 1 / 6])
    return unit, Cells(AXES, unit - half, unit + half)


@pytest.mark.parametrize("trials", [0, 1, 7, 520])
def test_the_density_is_the_mean_of_truncated_gaussians_options_and_the_prior(trials):
    rng = np.random.default_rng(trials)
    _, cells = random_cells(rng, 3)
    kernels = Kernels(AXES, random_cells(rng, trials)[0], bandwidth=0.07, prior_share=0.3)

    found = kernels.log_density(cells)

    np.testing.assert_allclose(found, slow_log_density(kernels, cells), rtol=1e-8)


def test_the_density_of_a_continuous_column_integrates_to_one():
    axes = Axes(np.array([0]), NONE, NONE)
    kernels = Kernels(axes, np.array([[0.0], [0.3], [0.31], [1.0]]), bandwidth=0.1, prior_share=0.3)

    def density(x):
        return float(np.exp(kernels.log_density(Cells(axes, np.array([[x]]), np.array([[x]])))[0]))

    mass, _ = quad(density, 0, 1, limit=200)

    assert mass == pytest.approx(1, abs=1e-6)


def test_the_masses_of_uneven_bins_sum_to_one():
    edges = np.array([0, 0.02, 0.3, 0.35, 0.9, 1.0])
    low, high = edges[:-1, np.newaxis], edges[1:, np.newaxis]
    for axes in (Axes(NONE, np.array([0]), NONE), Axes(NONE, NONE, np.array([0]))):
        cells = Cells(axes, low, high)
        kernels = Kernels(axes, (low + high)[[1, 1, 4]] / 2, bandwidth=0.01, prior_share=0.3)

        masses = np.exp(kernels.log_density(cells)) * (high - low)[:, 0]

        assert masses.sum() == pytest.approx(1)


@pytest.mark.parametrize("width", [1e-12, 1e-3, 0.04, 0.0499, 0.0501, 0.3])
def test_the_mass_of_a_bin_is_the_truncated_gaussians_however_narrow_it_is(width):
    axes, h = Axes(NONE, np.array([0]), NONE), 0.1
    low = np.linspace(0, 1 - width, 23)[:, np.newaxis]
    centres = np.array([[0.0], [0.37], [0.9]])

    found = Kernels(axes, centres, bandwidth=h, prior_share=0.3).log_density(Cells(axes, low, low + width))

    means = [np.ones(23)]
    for (m,) in centres:
        # With 50 nodes the quadrature is exact, where a difference of distribution functions has no digits.
        nodes, weights = np.polynomial.legendre.leggauss(50)
        densities = truncnorm((0 - m) / h, (1 - m) / h, loc=m, scale=h).pdf(low + width * (nodes + 1) / 2)
        means.append(densities @ weights / 2)
    np.testing.assert_allclose(np.exp(found), np.mean(means, axis=0), rtol=1e-7)


def test_a_point_far_from_every_kernel_has_the_priors_share_and_no_warning():
    columns = 60
    axes = Axes(np.arange(columns), NONE, NONE)
    kernels = Kernels(axes, np.zeros((9, columns)), bandwidth=0.01, prior_share=0.3)
    far, near = np.ones((1, columns)), np.zeros((1, columns))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        at_far = kernels.log_density(Cells(axes, far, far))[0]
        at_near = kernels.log_density(Cells(axes, near, near))[0]

    assert at_far == pytest.approx(np.log(1 / 10))
    # A half Gaussian's height at its centre, in each of the columns.
    assert at_near == pytest.approx(np.log(0.9) + columns * np.log(2 / (0.01 * np.sqrt(2 * np.pi))))


def test_draws_follow_the_kernel_they_are_drawn_from():
    axes = Axes(np.array([0]), NONE, np.array([1]))
    kernels = Kernels(axes, np.array([[0.02, 0.25], [0.9, 0.75]]), bandwidth=0.1, prior_share=0.3)

    drawn = kernels.draw(np.zeros((4000, 2), dtype=int), np.random.default_rng(1))

    assert kstest(drawn[:, 0], truncnorm(-0.2, 9.8, loc=0.02, scale=0.1).cdf).pvalue > 1e-3
    own = drawn[:, 1] == 0.25
    assert own.mean() == pytest.approx(0.7, abs=0.03)
    assert kstest(drawn[~own, 1], "uniform").pvalue > 1e-3


def test_draws_without_a_kernel_are_the_priors():
    kernels = Kernels(AXES, np.empty((0, 4)), bandwidth=0.1, prior_share=0.3)

    drawn = kernels.draw(np.full((1000, 4), -1), np.random.default_rng(1))

    assert kstest(drawn.ravel(), "uniform").pvalue > 1e-3


def test_good_are_the_best_tenth_of_the_trials_that_did_not_fail_and_ties_go_to_the_earlier():
    losses = np.array([3, 1, np.inf, 1, 2, 5, 6, 7, 8, 9, 10, 11, np.inf])
    numbers = np.array([0, 9, 2, 3, 4, 5, 6, 7, 8, 1, 10, 11, 12])

    good, bad = split(losses, numbers, share=0.1, limit=25)

    assert good.tolist() == [3, 1]  # a tenth of eleven, rounded up
    assert bad.tolist() == [0, 9, 2, 4, 5, 6, 7, 8, 10, 11, 12]


@pytest.mark.parametrize(
    ("losses", "count"), [(np.full(20, np.inf), 0), (np.zeros(1000), 25), (np.zeros(1), 1)]
)
def test_good_trials_are_at_most_the_limit_and_none_if_all_failed(losses, count):
    good, bad = split(losses, np.arange(len(losses)), share=0.1, limit=25)

    assert good.tolist() == list(range(count))
    assert len(good) + len(bad) == len(losses)


def nested():
    return compile_space(
        {
            "lr": hp.loguniform("lr", -9, 0),
            "kind": hp.choice(
                "kind",
                [
                    {"depth": hp.uniformint("depth", 1, 9), "p": hp.uniform("p", 0, 1)},
                    {"kernel": hp.choice("kernel", [{"g": hp.normal("g", 0, 1)}, "linear"])},
                ],
            ),
        }
    )


def test_a_candidate_takes_all_columns_of_a_new_branch_from_one_good_trial_that_has_them():
    space = compile_space(
        hp.choice(
            "side", [{"a": hp.uniform("a", 0, 1), "b": hp.uniform("b", 0, 1)}, {"c": hp.uniform("c", 0, 1)}]
        )
    )
    side, a, b, c = (space.labels.index(label) for label in ("side", "a", "b", "c"))
    rows = np.full((3, 4), np.nan)
    rows[0, [side, a, b]] = 0, 0.1, 0.2
    rows[1, [side, a, b]] = 0, 0.8, 0.9
    rows[2, [side, c]] = 1, 0.5
    good = Kernels(space.axes, space.to_unit(rows), bandwidth=1e-4, prior_share=0.3)

    drawn = draw(space, good, 2000, np.random.default_rng(0))

    left = drawn[drawn[:, side] == 0]
    is_first, is_second = (np.abs(left[:, [a, b]] - rows[i, [a, b]]) < 0.01 for i in (0, 1))
    # A quarter of the draws are the prior's altogether, and few of those happen to be near a trial.
    assert (is_first | is_second).all(axis=1).mean() > 0.7
    for is_near in (is_first, is_second):
        assert is_near.all(axis=1).sum() > 0.9 * is_near.any(axis=1).sum()


def test_candidates_are_valid_points_of_the_tree():
    space = nested()
    rng = np.random.default_rng(0)
    good = Kernels(space.axes, space.to_unit(space.sample(rng, 5)), bandwidth=0.1, prior_share=0.3)

    drawn = draw(space, good, 200, rng)

    for row in drawn:
        space.check(space.point(row))
    np.testing.assert_array_equal(~np.isnan(drawn), space.active(drawn))


def optimize(algorithm, space, loss, evaluations, seed):
    history = History(len(space.columns))
    for number in range(evaluations):
        rng = np.random.default_rng([seed, number])
        (row,) = algorithm.propose(space, history, no_pending(space), rng, 1)
        history.append(number, row, loss(space.point(row)))
    return history


def bowl(point):
    return sum((value - 0.3) ** 2 for value in point.values())


def test_it_beats_random_search_by_far_on_a_bowl():
    space = compile_space({name: hp.uniform(name, -1, 1) for name in "abcd"})

    ours = [optimize(TPE(), space, bowl, 80, seed).losses.min() for seed in range(5)]
    theirs = [optimize(Random(), space, bowl, 80, seed).losses.min() for seed in range(5)]

    assert np.median(ours) < np.median(theirs) / 5
    assert max(ours) < min(theirs)


def test_it_leaves_a_mediocre_branch_that_looked_best_at_first():
    def loss(point):
        if point["kind"] == 0:
            return 1 + point["p"]
        return abs(np.log(point["lr"]) + 4) + (abs(point["g"] - 0.5) if point["kernel"] == 0 else 0.4)

    best = [optimize(TPE(), nested(), loss, 100, seed).losses.min() for seed in range(8)]

    assert np.sum(np.array(best) < 0.9) >= 6


def test_failed_trials_do_not_attract():
    """Half of the space fails: half of the proposals would be there if failing meant nothing."""
    space = compile_space({"x": hp.uniform("x", 0, 1), "y": hp.uniform("y", 0, 1)})

    for seed in range(4):
        history = optimize(TPE(), space, lambda p: None if p["x"] > 0.5 else (p["x"] - 0.2) ** 2, 100, seed)

        assert (history.rows[50:, space.labels.index("x")] > 0.5).mean() < 0.1


def test_where_every_trial_failed_it_looks_elsewhere():
    space = compile_space({"x": hp.uniform("x", 0, 1), "y": hp.uniform("y", 0, 1)})
    rng = np.random.default_rng(0)
    rows = rng.uniform(0, 0.3, (20, 2))

    proposals = [
        TPE().propose(space, history_of(space, rows, [None] * 20), no_pending(space), rng, 1)
        for _ in range(20)
    ]

    assert (np.concatenate(proposals).max(axis=1) > 0.3).all()


def test_proposals_made_together_keep_apart():
    space = compile_space({"x": hp.uniform("x", 0, 1), "y": hp.uniform("y", 0, 1)})
    rng = np.random.default_rng(0)
    rows = rng.random((30, 2))
    history = history_of(space, rows, ((rows - 0.5) ** 2).sum(axis=1))

    together = TPE().propose(space, history, no_pending(space), np.random.default_rng(1), 8)
    alone = np.concatenate(
        [
            TPE().propose(space, history, no_pending(space), np.random.default_rng(seed), 1)
            for seed in range(8)
        ]
    )

    assert nearest(together).mean() > 2 * nearest(alone).mean()


def test_running_trials_repel():
    space = compile_space({"x": hp.uniform("x", 0, 1), "y": hp.uniform("y", 0, 1)})
    rows = np.random.default_rng(0).random((30, 2))
    history = history_of(space, rows, ((rows - 0.5) ** 2).sum(axis=1))

    def proposed(pending):
        every = [TPE().propose(space, history, pending, np.random.default_rng(i), 1)[0] for i in range(20)]
        return np.array(every)

    favourite = proposed(no_pending(space)).mean(axis=0)
    crowded = proposed(np.tile(favourite, (10, 1)))

    def distance(points):
        return np.median(np.linalg.norm(points - favourite, axis=1))

    assert distance(crowded) > 2 * distance(proposed(no_pending(space)))


def nearest(rows):
    """Distance of each point to the nearest other."""
    distances = np.linalg.norm(rows[:, np.newaxis] - rows, axis=2)
    np.fill_diagonal(distances, np.inf)
    return distances.min(axis=1)


def test_the_order_in_which_trials_ended_changes_nothing():
    space = nested()
    rng = np.random.default_rng(3)
    rows, losses = space.sample(rng, 40), rng.integers(0, 4, 40).astype(float)  # many ties
    shuffled = rng.permutation(40)

    in_order = history_of(space, rows, losses)
    otherwise = history_of(space, rows[shuffled], losses[shuffled], numbers=shuffled)

    a, b = (
        TPE().propose(space, h, no_pending(space), np.random.default_rng(5), 3) for h in (in_order, otherwise)
    )
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "losses", [[0.0] * 30, [None] * 30, [1e308, -1e308, 0.0] * 10], ids=["ties", "failures", "huge"]
)
def test_odd_losses_raise_no_warning(losses):
    space = nested()
    history = history_of(space, space.sample(np.random.default_rng(0), 30), losses)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = TPE().propose(
            space, history, space.sample(np.random.default_rng(1), 3), np.random.default_rng(2), 2
        )

    for row in rows:
        space.check(space.point(row))


def test_one_trial_and_one_option_are_enough():
    space = compile_space({"only": hp.choice("only", ["this"]), "x": hp.uniform("x", 0, 1)})
    history = history_of(space, space.sample(np.random.default_rng(0), 1), [1.0])

    (row,) = TPE(starts=0).propose(space, history, no_pending(space), np.random.default_rng(0), 1)

    space.check(space.point(row))
