"""A warm start: what is taken from an earlier study, and what the search makes of it."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from hyperopt import hp

from hpo.core.errors import NoSuchStudy, UsageError
from hpo.core.history import History
from hpo.core.trial import Completed, Failed, Kind, Pruned
from hpo.search import Auto, Random, WarmStart
from hpo.space import compile_space
from hpo.stores import connect
from hpo.testing import IDENTITY
from hpo.warm import keep, kept, take

OLD = {
    "lr": hp.loguniform("lr", np.log(1e-4), np.log(1)),
    "kind": hp.choice("kind", ["a", "b", {"name": "c", "depth": hp.uniformint("depth", 1, 9)}]),
    "gone": hp.uniform("gone", 0, 1),
}
NEW = {
    "lr": hp.loguniform("lr", np.log(1e-3), np.log(1)),
    "kind": hp.choice("kind", [{"name": "c", "depth": hp.uniformint("depth", 1, 5)}, "a"]),
    "added": hp.uniform("added", 0, 1),
}
POINTS = [
    {"lr": 0.01, "kind": 0, "gone": 0.5},
    {"lr": 0.0005, "kind": 0, "gone": 0.5},  # below the new bound
    {"lr": 0.1, "kind": 1, "gone": 0.5},  # an option that is no more
    {"lr": 0.1, "kind": 2, "depth": 3.0, "gone": 0.5},
    {"lr": 0.2, "kind": 2, "depth": 8.0, "gone": 0.5},  # above the new bound
]


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/hpo.db"


def earlier(url, expression=OLD, points=POINTS, outcomes=None, fixed=None, repeats=1):
    space = compile_space(expression, fixed)
    outcomes = outcomes or [Completed(float(number)) for number in range(len(points))]
    with closing(connect(url, create=True)) as catalog:
        store = catalog.create(replace(IDENTITY, study="old", space=space.describe(), repeats=repeats))
        for number, (point, outcome) in enumerate(zip(points, outcomes, strict=True)):
            store.add(number, point, {})
            store.finish(store.claim("w", number), outcome)


def test_trials_are_taken_by_label_and_by_what_a_choice_means(url):
    earlier(url)
    space = compile_space(NEW)

    taken = take("old", url, space, seed=1)

    assert [(trial["trial"], trial["loss"]) for trial in taken.trials] == [(0, 0.0), (3, 3.0)]
    first, second = (dict(trial["point"]) for trial in taken.trials)
    for point in (first, second):
        space.check(point)
        del point["added"]
    assert first == {"lr": 0.01, "kind": 1}
    assert second == {"lr": 0.1, "kind": 0, "depth": 3.0}


def test_what_does_not_fit_is_listed(url):
    earlier(url)

    said = take("old", url, compile_space(NEW), seed=1).said()

    assert said[0] == "warm start from old: 2 trials"
    assert sorted(said[1:4]) == [
        "  not taken, 1: depth: outside 1 to 5",
        "  not taken, 1: kind: it is one of {'depth': depth, 'name': 'c'}, a",
        "  not taken, 1: lr: outside 0.001 to 1",
    ]
    assert said[4:] == [
        "  left out, as this space lacks it: gone",
        "  drawn from its distribution, as old lacks it: added",
    ]


def test_the_same_trials_are_the_same_points_each_time(url):
    earlier(url)
    space = compile_space(NEW)

    assert take("old", url, space, seed=1) == take("old", url, space, seed=1)
    assert take("old", url, space, seed=1) != take("old", url, space, seed=2)


def test_only_completed_trials_are_taken(url):
    points = [{"lr": 0.01, "kind": 0, "gone": 0.5}] * 3
    earlier(url, points=points, outcomes=[Pruned(0.1), Failed(Kind.NAN, "nan"), Completed(0.5)])

    taken = take("old", url, compile_space(OLD), seed=1)

    assert [trial["trial"] for trial in taken.trials] == [2]


def test_of_repeated_trials_the_mean_is_taken(url):
    points = [{"lr": 0.01, "kind": 0, "gone": 0.5}] * 2 + [{"lr": 0.02, "kind": 0, "gone": 0.5}] * 2
    earlier(url, points=points, repeats=2)

    taken = take("old", url, compile_space(OLD), seed=1)

    assert [(trial["trial"], trial["loss"]) for trial in taken.trials] == [(0, 0.5), (2, 2.5)]


def test_what_was_fixed_in_the_earlier_study_is_known_of_its_trials(url):
    earlier(url, fixed={"kind": "b", "gone": 0.25}, points=[{"lr": 0.1}])

    [trial] = take("old", url, compile_space(OLD), seed=1).trials

    assert trial["point"] == {"lr": 0.1, "kind": 1, "gone": 0.25}


def test_what_is_fixed_now_must_have_been_so_then(url):
    earlier(url)

    taken = take("old", url, compile_space(OLD, fixed={"kind": "a"}), seed=1)

    assert [trial["trial"] for trial in taken.trials] == [0, 1]


def test_an_option_is_the_same_when_its_words_are_though_its_parameters_changed(url):
    earlier(url)
    option = {"name": "c", "depth": hp.uniformint("depth", 1, 9), "width": hp.uniform("width", 0, 1)}
    space = compile_space({"kind": hp.choice("kind", ["a", option])})

    taken = take("old", url, space, seed=1)

    assert [trial["point"]["kind"] for trial in taken.trials] == [0, 0, 1, 1]
    assert [trial["point"].get("depth") for trial in taken.trials] == [None, None, 3.0, 8.0]


def test_a_study_of_which_nothing_fits_is_an_error_that_says_why(url):
    earlier(url, points=POINTS[1:2])

    with pytest.raises(UsageError, match=r"lr: outside 0\.001 to 1"):
        take("old", url, compile_space(NEW), seed=1)


def test_trials_that_do_not_fit_for_the_same_reason_are_counted_together(url):
    earlier(url, points=[{"lr": 0.01 / 2**n, "kind": 0, "gone": 0.5} for n in range(9)])

    said = take("old", url, compile_space(NEW), seed=1).said()

    assert said[:2] == ["warm start from old: 4 trials", "  not taken, 5: lr: outside 0.001 to 1"]


def test_a_study_of_another_space_altogether_is_an_error(url):
    earlier(url)

    with pytest.raises(UsageError, match="study old shares no parameter with this space"):
        take("old", url, compile_space({"other": hp.uniform("other", 0, 1)}), seed=1)


def test_a_trial_without_a_parameter_of_this_space_is_not_taken(url):
    earlier(url)
    space = compile_space({"depth": hp.uniformint("depth", 1, 9), "other": hp.uniform("other", 0, 1)})

    taken = take("old", url, space, seed=1)

    assert [trial["trial"] for trial in taken.trials] == [3, 4]
    assert "  not taken, 3: it has none of this space's parameters" in taken.said()


def test_a_study_whose_points_are_all_unfinished_is_an_error(url):
    earlier(url, points=POINTS[:2], repeats=3)

    with pytest.raises(UsageError, match="it has no point whose trials have all completed"):
        take("old", url, compile_space(NEW), seed=1)


def test_a_study_without_completed_trials_is_an_error(url):
    earlier(url, points=[])

    with pytest.raises(UsageError, match="no completed trial"):
        take("old", url, compile_space(NEW), seed=1)


def test_a_study_that_is_not_there_is_an_error(url):
    earlier(url)

    with pytest.raises(NoSuchStudy, match="'odl'"):
        take("odl", url, compile_space(NEW), seed=1)


def test_what_was_kept_is_read_again_as_it_was(url):
    earlier(url)
    taken = take("old", url, compile_space(NEW), seed=1)

    with closing(connect(url)) as catalog:
        store = catalog.create(replace(IDENTITY, study="new"))
        before = kept(store)
        keep(store, taken)
        after = kept(store)

    assert before is None
    assert after.trials == taken.trials


# --- what the search makes of it


SPACE = {"x": hp.uniform("x", 0, 1), "kind": hp.choice("kind", ["a", "b"])}


def proposals(start, space, count, history=None, pending=None):
    history = History(len(space.columns)) if history is None else history
    pending = np.empty((0, len(space.columns))) if pending is None else pending
    return start.propose(space, history, pending, np.random.default_rng(0), count)


def rows_of(space, *points):
    return np.array([space.row({"x": x, "kind": kind}) for x, kind in points])


def test_the_earlier_best_points_of_each_place_are_tried_first_then_the_algorithm_proposes():
    space = compile_space(SPACE)
    rows = rows_of(space, (0.5, 0), (0.55, 0), (0.55, 1), (0.9, 0), (0.1, 0))
    start = WarmStart.of(Random(), space, rows, first=3)

    found = proposals(start, space, 4)

    np.testing.assert_array_equal(found[:3], rows[[0, 2, 3]])
    assert not (found[3] == rows).all(axis=1).any()


def test_one_by_one_they_are_those_of_one_call():
    space = compile_space(SPACE)
    rows = rows_of(space, (0.5, 0), (0.9, 0), (0.1, 0))
    start, history = WarmStart.of(Random(), space, rows), History(2)

    for number in range(3):
        [row] = proposals(start, space, 1, history)
        history.append(number, row, 1.0)

    np.testing.assert_array_equal(history.rows, rows)


def test_a_point_that_is_being_tried_is_not_tried_again():
    space = compile_space(SPACE)
    rows = rows_of(space, (0.5, 0), (0.9, 0))

    [found] = proposals(WarmStart.of(Random(), space, rows), space, 1, pending=rows[:1])

    np.testing.assert_array_equal(found, rows[1])


def bowl(space, row, optimum):
    return float(np.nansum((space.to_unit(row) - optimum) ** 2))


def best_of(algorithm, space, optimum, evaluations, seed):
    history = History(len(space.columns))
    for number in range(evaluations):
        rng = np.random.default_rng([seed, number])
        [row] = algorithm.propose(space, history, np.empty((0, len(space.columns))), rng, 1)
        history.append(number, row, bowl(space, row, optimum))
    return history.losses.min()


def started(space, optimum):
    rows = space.sample(np.random.default_rng(9), 200)
    ranked = sorted(rows, key=lambda row: bowl(space, row, optimum))
    return WarmStart.of(Auto(), space, np.array(ranked))


BOWL = {label: hp.uniform(label, 0, 1) for label in "abcd"}


def test_a_warm_start_finds_the_optimum_of_a_like_problem_sooner():
    space = compile_space(BOWL)
    start = started(space, 0.4)

    warm = np.mean([best_of(start, space, 0.3, 8, seed) for seed in range(4)])

    assert warm < 0.5 * np.mean([best_of(Auto(), space, 0.3, 8, seed) for seed in range(4)])


def test_a_warm_start_from_an_unlike_problem_does_no_lasting_harm():
    space = compile_space(BOWL)
    start = started(space, 0.9)

    assert max(best_of(start, space, 0.1, 30, seed) for seed in range(4)) < 0.02
