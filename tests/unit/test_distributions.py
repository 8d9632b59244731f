"""Values and the unit cube, against SciPy's distributions and plain counting."""

import math

import numpy as np
import pytest
from scipy import stats

from hpo.space.distributions import Categorical, Normal, Randint, Uniform

CONTINUOUS = {
    "uniform": (Uniform(low=-2.0, high=3.0), stats.uniform(-2, 5)),
    "loguniform": (
        Uniform(low=math.log(1e-5), high=math.log(10), is_log=True),
        stats.loguniform(1e-5, 10),
    ),
    "normal": (Normal(mu=3.0, sigma=2.0), stats.norm(3, 2)),
    "lognormal": (Normal(mu=-1.0, sigma=0.5, is_log=True), stats.lognorm(0.5, scale=math.exp(-1))),
}
QUANTISED = {
    "quniform": (Uniform(low=-2.0, high=3.0, q=0.5), stats.uniform(-2, 5)),
    "quniform, bounds off the grid": (Uniform(low=1.0, high=10.0, q=3.0), stats.uniform(1, 9)),
    "quniform, bounds between two values": (Uniform(low=0.15, high=0.95, q=0.1), stats.uniform(0.15, 0.8)),
    "qloguniform": (
        Uniform(low=math.log(0.7), high=math.log(30), is_log=True, q=2.0),
        stats.loguniform(0.7, 30),
    ),
    "qnormal": (Normal(mu=3.0, sigma=2.0, q=1.0), stats.norm(3, 2)),
    "qlognormal": (Normal(mu=1.0, sigma=0.8, is_log=True, q=1.0), stats.lognorm(0.8, scale=math.e)),
}
FINITE = {
    **{name: QUANTISED[name][0] for name in QUANTISED if "normal" not in name},
    "randint": Randint(-2, 7),
    "categorical": Categorical((0.1, 0.0, 0.6, 0.3, 0.0)),
}
EVERY = {
    **{name: distribution for name, (distribution, _) in {**CONTINUOUS, **QUANTISED}.items()},
    **FINITE,
}


def draws(distribution, n=2000, seed=0):
    return distribution.from_unit(np.random.default_rng(seed).random(n))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_unit_of_a_value_is_its_cdf(name):
    distribution, oracle = CONTINUOUS[name]
    values = oracle.ppf(np.linspace(0.001, 0.999, 101))

    units = distribution.to_unit(values)

    np.testing.assert_allclose(units, oracle.cdf(values), rtol=1e-12)
    np.testing.assert_allclose(distribution.from_unit(units), values, rtol=1e-10)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_continuous_value_has_no_width(name):
    distribution, _ = CONTINUOUS[name]

    low, high = distribution.bins(draws(distribution))

    np.testing.assert_array_equal(low, high)
    assert not distribution.is_discrete
    assert distribution.cardinality is None
    with pytest.raises(ValueError, match="infinitely many"):
        distribution.values()


@pytest.mark.parametrize("name", QUANTISED)
def test_the_bin_of_a_step_holds_the_draws_that_round_to_it(name):
    distribution, oracle = QUANTISED[name]
    values = np.unique(draws(distribution))

    low, high = distribution.bins(values)

    np.testing.assert_allclose(low, oracle.cdf(values - distribution.q / 2), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(high, oracle.cdf(values + distribution.q / 2), rtol=1e-9, atol=1e-12)
    centres = 0.5 * (low + high)
    np.testing.assert_array_equal(distribution.from_unit(centres), values)


@pytest.mark.parametrize("name", FINITE)
def test_the_bins_of_all_values_tile_the_unit_cube(name):
    distribution = FINITE[name]
    values = distribution.values()

    low, high = distribution.bins(values)

    assert len(values) == distribution.cardinality
    assert low[0] == 0.0
    assert high[-1] == 1.0
    np.testing.assert_allclose(low[1:], high[:-1], rtol=1e-12)
    assert (high > low).all()


@pytest.mark.parametrize("name", FINITE)
def test_the_width_of_a_bin_is_how_often_its_value_is_drawn(name):
    distribution = FINITE[name]
    units = (np.arange(200_000) + 0.5) / 200_000

    drawn, counts = np.unique(distribution.from_unit(units), return_counts=True)
    low, high = distribution.bins(distribution.values())

    np.testing.assert_array_equal(drawn, distribution.values())
    np.testing.assert_allclose(counts / 200_000, high - low, atol=2e-5)


@pytest.mark.parametrize("name", EVERY)
def test_a_drawn_value_comes_back_from_its_unit(name):
    distribution = EVERY[name]
    values = draws(distribution)

    back = distribution.from_unit(distribution.to_unit(values))

    np.testing.assert_allclose(back, values, rtol=1e-9, atol=1e-12)


def test_distributions_that_are_stacked_map_as_each_does_alone():
    every = [
        *EVERY.values(),
        Uniform(low=0.0, high=9.0, q=0.25),
        Normal(mu=1.0, sigma=0.1),
        Randint(0, 3),
        Categorical((0.0, 0.5, 0.5)),
    ]
    for form in {distribution.form for distribution in every}:
        alike = [distribution for distribution in every if distribution.form == form]
        stack = alike[0].stacked(alike)
        units = np.random.default_rng(0).random((100, len(alike)))
        units[:3] = np.array([[0.0], [1.0], [np.nan]])

        values = stack.from_unit(units)
        back, (low, high) = stack.to_unit(values), stack.bins(values)

        for j, alone in enumerate(alike):
            np.testing.assert_array_equal(values[:, j], alone.from_unit(units[:, j]))
            np.testing.assert_array_equal(back[:, j], alone.to_unit(values[:, j]))
            np.testing.assert_array_equal([low[:, j], high[:, j]], alone.bins(values[:, j]))


@pytest.mark.parametrize("name", EVERY)
def test_nan_is_inactive_and_passes_through(name):
    distribution = EVERY[name]
    values = np.array([[np.nan, float(draws(distribution, 1)[0])]])

    units = distribution.to_unit(values)
    low, high = distribution.bins(values)

    for result in (units, low, high, distribution.from_unit(units)):
        np.testing.assert_array_equal(np.isnan(result), [[True, False]])


@pytest.mark.parametrize("name", EVERY)
def test_the_ends_of_the_unit_cube_are_values_that_can_be_drawn(name):
    distribution = EVERY[name]

    ends = distribution.from_unit(np.array([0.0, 1.0, -0.1, 1.1]))

    assert [distribution.complaint(float(value)) for value in ends] == [None] * 4
    np.testing.assert_array_equal(ends[:2], ends[2:])


@pytest.mark.parametrize("name", EVERY)
def test_what_is_drawn_is_admitted(name):
    distribution = EVERY[name]

    complaints = {distribution.complaint(float(value)) for value in draws(distribution, 300)}

    assert complaints == {None}


@pytest.mark.parametrize(
    ("distribution", "value", "reason"),
    [
        (Uniform(low=0.0, high=1.0), 1.0001, "outside 0 to 1"),
        (Uniform(low=0.0, high=1.0), math.inf, "not a finite number"),
        (Uniform(low=0.0, high=1.0, is_log=True), 0.0, "outside 1 to 2.71828"),
        (Uniform(low=0.0, high=1.0, q=0.1), 0.25, "no multiple of 0.1"),
        (Uniform(low=0.0, high=1.0, q=0.1), 1.1, "outside 0 to 1"),
        (Normal(is_log=True), -1.0, "not positive"),
        (Normal(q=2.0), 3.0, "no multiple of 2"),
        (Randint(0, 3), 3.0, "outside 0 to 2"),
        (Randint(0, 3), 0.5, "no integer"),
        (Categorical((0.5, 0.5)), 2.0, "no index of its 2 options"),
        (Categorical((0.5, 0.5)), -1.0, "no index of its 2 options"),
        (Categorical((0.0, 1.0)), 0.0, "an option of probability 0"),
    ],
)
def test_a_value_that_can_not_be_drawn_is_told_why(distribution, value, reason):
    assert distribution.complaint(value) == reason


def test_rounding_of_floats_is_forgiven():
    shares = Uniform(low=0.05, high=0.5, q=0.05)

    assert [shares.complaint(k * 0.05) for k in range(1, 11)] == [None] * 10
    assert shares.complaint(0.15) is None  # 3 * 0.05 is 0.15000000000000002


def test_the_ends_of_a_quantised_range_are_half_as_likely():
    shares = Uniform(low=0.05, high=0.5, q=0.05)

    low, high = shares.bins(shares.values())

    np.testing.assert_allclose(shares.values(), np.linspace(0.05, 0.5, 10))
    np.testing.assert_allclose(high - low, np.array([0.5, *[1] * 8, 0.5]) / 9)


def test_probabilities_are_those_of_the_indices():
    assert Categorical((0.25, 0.0, 0.75)).probabilities.tolist() == [0.25, 0.0, 0.75]
    assert Randint(3, 7).probabilities.tolist() == [0.25] * 4
    assert Uniform(q=0.5).probabilities is None


def test_a_randint_too_wide_to_count_is_ordered():
    seeds = Randint(0, 2**40)

    assert Randint(0, 1000).is_unordered
    assert not seeds.is_unordered
    assert seeds.probabilities is None
    assert seeds.from_unit(np.array([1.0]))[0] == 2**40 - 1


def test_a_negative_zero_is_zero():
    values = Uniform(low=-1.0, high=1.0, q=1.0).from_unit(np.array([0.45]))

    assert math.copysign(1.0, values[0]) == 1.0


@pytest.mark.parametrize(
    ("distribution", "words"),
    [
        (Uniform(low=0.0, high=0.5), "uniform(0, 0.5)"),
        (Uniform(low=math.log(1e-5), high=math.log(1), is_log=True), "loguniform(1e-05, 1)"),
        (Uniform(low=math.log(2), high=math.log(8), is_log=True, q=2.0), "qloguniform(2, 8, 2)"),
        (Normal(mu=1.0, sigma=0.5, is_log=True), "lognormal(1, 0.5)"),
        (Randint(0, 5), "randint(0, 5)"),
        (Categorical((0.5, 0.5)), "choice(0, 1)"),
        (Categorical((0.2, 0.8)), "pchoice(0: 0.2, 1: 0.8)"),
    ],
)
def test_a_distribution_is_said_with_the_bounds_of_its_values(distribution, words):
    assert str(distribution) == words
