"""Trials that are one point, their mean, and the best of a study by it."""

import statistics
from contextlib import closing
from dataclasses import replace

import pytest

from hpo.core.repeats import Mean, Repeats
from hpo.core.trial import Completed, Failed, Kind, Pruned
from hpo.search import algorithm
from hpo.search.seen import Seen
from hpo.stores import best_of, connect
from hpo.testing import IDENTITY


def test_a_point_is_whole_with_its_last_trial_whatever_their_order():
    points = Repeats(3)

    assert [points.add(number, 1.0) for number in (4, 0, 5, 2)] == [None] * 4
    assert points.add(1, 4.0) == Mean(0, 2.0, 1.0)
    assert points.add(3, 1.0) == Mean(3, 1.0, 0.0)


def test_mean_and_standard_error_are_those_of_the_losses():
    losses, points = [0.3, 0.7, 0.2, 0.65], Repeats(4)

    *_, mean = [points.add(number, loss) for number, loss in enumerate(losses)]

    assert mean.loss == pytest.approx(statistics.mean(losses))
    assert mean.standard_error == pytest.approx(statistics.stdev(losses) / 2)


def test_without_repeats_each_trial_is_a_point():
    assert Repeats().add(7, 0.5) == Mean(7, 0.5)
    assert Repeats().add(8, None) == Mean(8, None)


def study_of(tmp_path, repeats, outcomes):
    with closing(connect(f"sqlite:///{tmp_path}/hpo.db", create=True)) as catalog:
        store = catalog.create(replace(IDENTITY, repeats=repeats))
        for number, outcome in enumerate(outcomes):
            store.add(number, {"x": number // repeats}, {})
            store.finish(store.claim("w", number), outcome)
        return best_of(store)


def test_the_best_point_has_the_lowest_mean_not_the_luckiest_trial(tmp_path):
    best = study_of(
        tmp_path, 2, [Completed(0.0), Completed(9.0), Completed(2.0), Completed(3.0), Completed(-1.0)]
    )

    assert best.trial.number == 2
    assert best.loss == 2.5
    assert best.document()["standard_error"] == pytest.approx(0.5)


@pytest.mark.parametrize("outcome", [Failed(Kind.NAN, "nan"), Pruned(0.0)])
def test_a_point_with_a_trial_that_did_not_complete_is_not_the_best(tmp_path, outcome):
    best = study_of(tmp_path, 2, [Completed(0.0), outcome, Completed(2.0), Completed(3.0)])

    assert best.trial.number == 2


def test_a_study_without_a_whole_point_has_no_best(tmp_path):
    assert study_of(tmp_path, 3, [Completed(0.0), Completed(1.0)]) is None


def test_duplicates_are_new_where_they_are_allowed():
    rows = [[1.0], [2.0]]

    import numpy as np

    assert Seen(np.array(rows)).is_new(np.array(rows)).tolist() == [False, False]
    assert Seen(np.array(rows), duplicates=True).is_new(np.array(rows)).tolist() == [True, True]


@pytest.mark.parametrize("name", ["gp", "tpe", "random", "quasirandom"])
def test_noise_allows_duplicates(name):
    assert algorithm(name, is_noisy=True).duplicates
    assert not algorithm(name).duplicates


def test_noise_allows_duplicates_to_whatever_auto_chooses():
    noisy, auto = algorithm("auto", is_noisy=True), algorithm("auto")

    assert noisy.gp.duplicates
    assert noisy.tpe.duplicates
    assert not auto.gp.duplicates
    assert not auto.tpe.duplicates
