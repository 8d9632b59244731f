"""A warm start: what is taken from an earlier study, and what the search makes of it."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from hyperopt import hp

from hpo.core.errors import NoSuchStudy, UsageError
from hpo.core.history import History
from hpo.core.trial import Completed, Failed, Kind, Pruned
from hpo.search import TPE, WarmStart
from hpo.search.seen import Seen
from hpo.search.warm import normal_scores
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


def history_of(rows, losses):
    history = History(len(rows[0]))
    for number, (row, loss) in enumerate(zip(rows, losses, strict=True)):
        history.append(number, row, loss)
    return history


def test_normal_scores_are_the_expected_values_of_a_normal_sample():
    rng = np.random.default_rng(0)
    expected = np.sort(rng.standard_normal((200_000, 5)), axis=1).mean(axis=0)

    scores = normal_scores(np.array([30.0, -2.0, 7.0, 8.0, 1e9]))

    np.testing.assert_allclose(scores, expected[[3, 0, 1, 2, 4]], atol=0.02)


def test_equal_losses_share_a_score_and_failures_stay_infinite():
    scores = normal_scores(np.array([1.0, 2.0, 1.0, np.inf, 2.0]))

    assert scores[0] == scores[2]
    assert scores[1] == scores[4] == pytest.approx(-scores[0])
    assert scores[3] == np.inf


def warm(rows, losses, **more):
    return WarmStart(TPE(), np.array(rows, dtype=float), np.array(losses, dtype=float), **more)


def test_losses_rank_only_within_their_study():
    """Whatever the earlier study measured: its scale and its offset change nothing."""
    rows, losses = np.linspace(0, 1, 20)[:, None], np.random.default_rng(0).random(20)
    own = history_of([[0.3], [0.6]], [5.0, 4.0])

    one, other = (warm(rows, changed).joined(own) for changed in (losses, 1e6 * losses - 7))

    np.testing.assert_array_equal(one.losses, other.losses)
    np.testing.assert_array_equal(one.rows, other.rows)
    assert one.losses[one.numbers >= 0].tolist() == normal_scores(np.array([5.0, 4.0])).tolist()


def test_earlier_trials_fade_evenly_over_their_ranks():
    rows = np.arange(100.0)[:, None]
    start = warm(rows, rows[:, 0], most=50, fades=10)

    taken = [start.joined(history_of([[0.0]] * n, range(n)) if n else History(1)) for n in (0, 5, 9, 10)]

    earlier_rows = [history.rows[history.numbers < 0, 0].tolist() for history in taken]
    assert [len(one) for one in earlier_rows] == [50, 25, 5, 0]
    assert earlier_rows[2] == [10, 30, 50, 70, 90]
    assert taken[3].losses.tolist() == list(range(10))  # and the study's own losses are what they are


def test_a_point_that_only_the_earlier_study_tried_is_new():
    joined = warm([[1.0]], [0.0]).joined(history_of([[2.0]], [0.0]))

    seen = Seen.of(joined, np.empty((0, 1)))

    assert seen.is_new(np.array([[1.0], [2.0]])).tolist() == [True, False]


def test_a_warm_start_finds_the_optimum_of_the_same_problem_sooner():
    space = compile_space({label: hp.uniform(label, 0, 1) for label in "abcd"})

    def best_of_ten(algorithm, seed):
        history = History(4)
        for number in range(10):
            rng = np.random.default_rng([seed, number])
            [row] = algorithm.propose(space, history, np.empty((0, 4)), rng, 1)
            history.append(number, row, float(((row - 0.3) ** 2).sum()))
        return history.losses.min()

    rows = space.sample(np.random.default_rng(9), 100)
    start = warm(rows, 40 * ((rows - 0.3) ** 2).sum(axis=1) + 3)

    assert np.mean([best_of_ten(start, seed) for seed in range(4)]) < 0.5 * np.mean(
        [best_of_ten(TPE(), seed) for seed in range(4)]
    )
