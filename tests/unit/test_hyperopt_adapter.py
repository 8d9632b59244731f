"""`fmin(algo=suggest)`: our search behind hyperopt's own loop."""

import hyperopt
import numpy as np
import pytest
from hyperopt import hp

from hpo.core.errors import UsageError
from hpo.core.history import History
from hpo.search.hyperopt import HyperoptAlgorithm, suggest
from hpo.space import compile_space

SPACE = {
    "x": hp.uniform("x", -2, 2),
    "kind": hp.choice("kind", [{"n": hp.uniformint("n", 1, 9)}, {"y": hp.lognormal("y", 0, 1)}]),
}


def loss(params):
    kind = params["kind"]
    return (params["x"] - 1) ** 2 + (0.1 * abs(kind["n"] - 4) if "n" in kind else 0.5)


def minimize(objective=loss, seed=0, trials=None, evaluations=60, **options):
    trials = hyperopt.Trials() if trials is None else trials
    hyperopt.fmin(
        objective,
        SPACE,
        algo=suggest,
        max_evals=evaluations,
        trials=trials,
        rstate=np.random.default_rng(seed),
        show_progressbar=False,
        **options,
    )
    return trials


@pytest.mark.parametrize("seed", range(3))
def test_fmin_finds_good_points(seed):
    trials = minimize(seed=seed)

    assert len(trials.trials) == 60
    assert trials.best_trial["result"]["loss"] < 0.15


def test_the_same_seed_gives_the_same_trials():
    a, b = minimize(seed=3, evaluations=20), minimize(seed=3, evaluations=20)

    assert [doc["misc"]["vals"] for doc in a.trials] == [doc["misc"]["vals"] for doc in b.trials]


def test_a_queue_of_several_ids_is_answered_whole():
    trials = minimize(evaluations=30, max_queue_len=4)

    assert sorted(trials.tids) == list(range(30))
    assert len({str(doc["misc"]["vals"]) for doc in trials.trials}) == 30


def test_a_document_is_what_hyperopts_own_algorithms_write():
    domain, trials = hyperopt.Domain(loss, SPACE), hyperopt.Trials()

    ours = suggest([5], domain, trials, 1)[0]
    theirs = hyperopt.rand.suggest([5], domain, trials, 1)[0]

    assert {key: ours[key] for key in ours if key != "misc"} == {
        key: theirs[key] for key in theirs if key != "misc"
    }
    assert ours["misc"].keys() == theirs["misc"].keys()
    assert ours["misc"]["vals"].keys() == theirs["misc"]["vals"].keys()
    for label, values in ours["misc"]["vals"].items():
        assert ours["misc"]["idxs"][label] == [5] * len(values)
        assert all(type(value) in (int, float) for value in values)


def test_failed_trials_count_as_bad_however_low_their_loss():
    def objective(params):
        if params["x"] > 0:
            raise RuntimeError("diverged")
        if params["x"] > -0.5:
            return {"status": hyperopt.STATUS_FAIL, "loss": -100.0}
        return abs(params["x"] + 1) if params["x"] > -1.5 else float("nan")

    trials = minimize(objective, evaluations=120, catch_eval_exceptions=True)

    late = [doc["misc"]["vals"]["x"][0] for doc in trials._dynamic_trials if doc["tid"] >= 60]
    assert np.mean([-1.5 < x < -0.5 for x in late]) > 0.8  # a quarter of the space


def test_running_trials_are_pending():
    domain, trials = hyperopt.Domain(loss, hp.choice("one", list("abcdef"))), hyperopt.Trials()

    for i in range(6):
        trials.insert_trial_docs(suggest(trials.new_trial_ids(1), domain, trials, i))
        trials.refresh()

    assert sorted(doc["misc"]["vals"]["one"][0] for doc in trials.trials) == [0, 1, 2, 3, 4, 5]


def test_another_experiments_trials_in_the_same_place_are_not_seen():
    everything = hyperopt.Trials()
    domain = hyperopt.Domain(loss, hp.choice("one", ["a", "b"]))
    (doc,) = suggest([0], domain, everything, 0)
    doc["exp_key"] = "theirs"
    everything._insert_trial_docs([doc])

    def suggested(exp_key):
        view = everything.view(exp_key=exp_key)
        return {suggest([1], domain, view, seed)[0]["misc"]["vals"]["one"][0] for seed in range(20)}

    assert suggested("ours") == {0, 1}
    assert suggested("theirs") == {0, 1} - set(doc["misc"]["vals"]["one"])


def test_hyperopts_algorithms_never_see_the_loss_of_a_failed_trial_and_see_pending_ones_running():
    space = compile_space(SPACE)
    rows = space.sample(np.random.default_rng(0), 5)
    history = History(len(space.columns))
    for number, row in zip([4, 2, 0], rows, strict=False):
        history.append(number, row, None if number == 2 else float(number))
    seen = []

    def spy(new_ids, domain, trials, seed):
        seen.append([(doc["state"], doc["result"]) for doc in trials.trials])
        return hyperopt.rand.suggest(new_ids, domain, trials, seed)

    HyperoptAlgorithm(spy).propose(space, history, rows[3:], np.random.default_rng(0), 2)

    done, running = hyperopt.JOB_STATE_DONE, hyperopt.JOB_STATE_RUNNING
    first = [
        (done, {"status": "ok", "loss": 0.0}),
        (done, {"status": "fail"}),
        (done, {"status": "ok", "loss": 4.0}),
        (running, {"status": "new"}),
        (running, {"status": "new"}),
    ]
    assert seen == [first, [*first, (running, {"status": "new"})]]


@pytest.mark.parametrize("function", [hyperopt.tpe.suggest, hyperopt.anneal.suggest, hyperopt.rand.suggest])
def test_hyperopts_algorithms_work_on_a_space_with_fixed_columns(function):
    expression = {
        **SPACE,
        "kind": hp.choice("kind", [hp.uniformint("n", 1, 9), hp.choice("side", ["a", "b"])]),
    }
    for fixed in ({"x": 0.5}, {"side": "a"}, {"n": 3, "x": 1.5}):
        space = compile_space(expression, fixed=fixed)
        history = History(len(space.columns))
        for number, row in enumerate(space.sample(np.random.default_rng(0), 30)):
            history.append(number, row, float(number))

        rows = HyperoptAlgorithm(function).propose(
            space, history, space.sample(np.random.default_rng(1), 1), np.random.default_rng(0), 2
        )

        for row in rows:
            space.check(space.point(row))


def test_an_algorithm_that_has_nothing_left_is_an_error_that_names_it():
    def exhausted(new_ids, domain, trials, seed):
        return []

    space = compile_space(SPACE)

    with pytest.raises(UsageError, match="exhausted proposes no further trial"):
        HyperoptAlgorithm(exhausted).propose(
            space,
            History(len(space.columns)),
            space.sample(np.random.default_rng(0), 0),
            np.random.default_rng(0),
            1,
        )
