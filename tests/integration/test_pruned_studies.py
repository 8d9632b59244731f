"""Hopeless trials end early: through the command line, with real workers."""

import numpy as np
import pytest

from hpo.search.pruning.judge import SPARED_SHARE, SPARING

QUICK = ("--tracking-uri", "none")

# Six good trials of six epochs; then those of even number are hopeless, and train until somebody stops them.
HOPELESS = """
    import time

    def objective(params, run, *, kind="pruned"):
        is_bad = run.number > 5 and run.number % 2 == 0
        for epoch in range(6 if kind == "ends" or not is_bad else 3000):
            time.sleep(0.01 * is_bad)  # or it would keep the driver from the store
            loss = (9.0 if is_bad else params["x"]) + 1 / (epoch + 1)
            run.report(epoch, loss)
        return loss
"""


def spared(seed, number):
    return np.random.default_rng([seed, number, SPARING]).random() < SPARED_SHARE


def seed_that(condition):
    return next(seed for seed in range(10_000) if condition(seed))


NOBODY_SPARED = seed_that(lambda seed: not any(spared(seed, number) for number in range(20)))


@pytest.mark.parametrize("pruner", ["auto", "median"])
def test_hopeless_trials_are_pruned_and_the_others_are_not(project, hpo, pruner):
    project.write(HOPELESS)

    result = hpo(
        "optimize", "study.py", "--max-evals", 13, "--pruner", pruner, "--algo", "random",
        "--seed", NOBODY_SPARED, "--json", *QUICK,
    )  # fmt: skip

    assert result.code == 0, str(result)
    trials = project.trials()
    pruned = {number for number, trial in trials.items() if trial["state"] == "pruned"}
    assert {6, 8, 10, 12} <= pruned
    assert not pruned & set(range(6))
    assert result.json["trials"]["pruned"] == len(pruned)
    assert trials[6]["epochs"] < 3000
    assert 9 < trials[6]["loss"] < 11
    assert result.json["best"]["trial"] not in pruned


def test_what_pruning_saved_is_shown(project, hpo):
    project.write(HOPELESS)
    result = hpo(
        "optimize", "study.py", "--pruner", "auto", "--max-evals", 9, "--seed", NOBODY_SPARED, *QUICK
    )

    study, trial = hpo("show", "study").stdout, hpo("show", "study", 6).stdout
    document = project.trials()[6]["pruning"]

    assert "pruned 2 of 9 trials" in study
    assert "pruned 2 of 9 trials" in result.stderr
    assert "after epoch 2, with a chance of " in trial
    assert document["epoch"] == 2
    assert 0 < document["chance"] < 0.2
    assert document["saved_epochs"] >= 0


def test_a_spared_trial_runs_to_its_end_and_is_counted(project, hpo, until):
    project.write(
        """
        from pathlib import Path

        def objective(params, run):
            for epoch in range(6):
                run.report(epoch, 9.0 if run.number == 6 else params["x"])
            while run.number == 6 and not Path("ruled").exists():
                epoch += 1
                run.report(epoch, 9.0)
            return 9.0 if run.number == 6 else params["x"]
        """
    )
    seed = seed_that(lambda seed: [n for n in range(9) if spared(seed, n)] == [6])

    command = project.start(
        "optimize", "study.py", "--pruner", "auto", "--max-evals", 7, "--seed", seed, *QUICK
    )
    until(lambda: project.trials().get(6, {}).get("pruning"), "the verdict")
    (project.folder / "ruled").touch()
    command.result()

    assert project.trials()[6]["state"] == "completed"
    assert "1 ran on to check: none would have won" in hpo("show", "study").stdout
    assert "it ran on to check and did not win" in hpo("show", "study", 6).stdout


def test_without_a_pruner_every_trial_is_trained_to_its_end(project, hpo):
    project.write(HOPELESS)

    result = hpo("optimize", "study.py", "--max-evals", 9, "--set", "kind=ends", "--json", *QUICK)

    assert result.json["trials"] == {"completed": 9, "pruned": 0, "failed": 0}
    assert not any("pruning" in trial for trial in project.trials().values())


def test_an_objective_that_reports_nothing_is_never_pruned(project, hpo):
    project.write("def objective(params): return params['x']")

    result = hpo("optimize", "study.py", "--pruner", "auto", "--max-evals", 20, "--json", *QUICK)

    assert result.json["trials"] == {"completed": 20, "pruned": 0, "failed": 0}


def test_an_unknown_pruner_is_refused_before_there_is_a_study(project, hpo):
    project.write(HOPELESS)

    result = hpo("optimize", "study.py", "--max-evals", 1, "--pruner", "mean", *QUICK)

    assert result.code == 2
    assert "there is no pruner 'mean'" in result.stderr
    assert "auto, none, median, asha, hyperband" in result.stderr
    assert not (project.folder / "hpo.db").exists()


def test_a_study_keeps_its_pruner_until_another_is_asked_for(project, hpo):
    project.write("def objective(params): return params['x']")
    optimize = ("optimize", "study.py", *QUICK)

    first = hpo(*optimize, "--max-evals", 1, "--pruner", "asha")
    second = hpo(*optimize, "--max-evals", 2)
    third = hpo(*optimize, "--max-evals", 3, "--pruner", "none")

    assert "pruner asha" in first.stderr
    assert "pruner asha" in second.stderr
    assert "the pruner is none from now on; it was asha" in third.stderr


def test_a_driver_killed_and_started_again_keeps_what_was_pruned_and_prunes_on(project, hpo, until):
    project.write(HOPELESS)
    optimize = (
        "optimize",
        "study.py",
        "--pruner",
        "auto",
        "--max-evals",
        15,
        "--seed",
        NOBODY_SPARED,
        *QUICK,
    )
    command = project.start(*optimize)

    def pruned():
        return {n: trial for n, trial in project.trials().items() if trial["state"] == "pruned"}

    before = until(pruned, "a pruned trial")
    command.signal(9)
    command.process.wait()
    result = hpo(*optimize)

    assert result.code == 0, str(result)
    trials = project.trials()
    assert {number: trials[number]["loss"] for number in before} == {
        number: trial["loss"] for number, trial in before.items()
    }
    assert {number: trial["pruning"]["chance"] for number, trial in before.items()} == {
        number: trials[number]["pruning"]["chance"] for number in before
    }
    assert {6, 8, 10, 12, 14} <= set(pruned())


TORCH = """
    def objective(params, run):
        import torch
        from hpo.training.data import digits
        from hpo.training.torch import fit, seed_everything

        seed_everything(run.seed)
        is_bad = run.number > 5
        model = torch.nn.Linear(64, 10)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-9 if is_bad else 1e-2)
        epochs = 400 if is_bad else 4
        return fit(run, model, digits(), epochs=epochs, batch_size=128, optimizer=optimizer).as_result()
"""

KERAS = """
    def objective(params, run):
        import keras
        from hpo.training.data import digits
        from hpo.training.keras import fit

        keras.utils.set_random_seed(run.seed)
        is_bad = run.number > 5
        model = keras.Sequential([keras.layers.Input((64,)), keras.layers.Dense(10)])
        model.compile(
            optimizer=keras.optimizers.Adam(1e-9 if is_bad else 1e-2),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        return fit(run, model, digits(), epochs=400 if is_bad else 4, batch_size=128).as_result()
"""


@pytest.mark.parametrize(("kit", "objective"), [("torch", TORCH), ("keras", KERAS)])
def test_networks_are_pruned_without_a_line_of_code(project, hpo, kit, objective):
    pytest.importorskip(kit)
    project.write(objective)

    result = hpo(
        "optimize",
        "study.py",
        "--pruner",
        "auto",
        "--max-evals",
        8,
        "--seed",
        NOBODY_SPARED,
        "--json",
        *QUICK,
    )

    assert result.code == 0, str(result)
    trials = project.trials()
    assert [trials[number]["state"] for number in (6, 7)] == ["pruned", "pruned"]
    assert trials[6]["epochs"] < 400
    assert trials[6]["epoch_time"]["epochs"] == trials[6]["epochs"]
