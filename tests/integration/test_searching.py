"""Ways to search, as a user asks for them: grids and sequences."""

import os
import signal

import pytest

QUICK = ("--tracking-uri", "none")
GOOD = "def objective(params): return params['x']"
TREE = """{
    'x': hp.uniform('x', 0, 1),
    'kind': hp.choice('kind', ['a', {'name': 'b', 'n': hp.uniformint('n', 1, 2)}]),
}"""


def params(project, study="study"):
    return [trial["params"] for _, trial in sorted(project.trials(study).items())]


# --- grids and sequences


def test_a_grid_is_tried_whole_and_then_the_study_is_done(project, hpo):
    project.write(GOOD, space=TREE)

    result = hpo("optimize", "study.py", "--algo", "grid:3", *QUICK)
    again = hpo("optimize", "study.py", *QUICK)

    assert result.code == 0, str(result)
    assert "the grid has 9 points\n" in result.stderr
    assert "done: the grid has 9 points, all of which are tried" in result.stderr
    assert again.code == 0, str(again)
    points = params(project)
    assert len({str(point) for point in points}) == len(points) == 9


def test_a_grid_that_was_interrupted_goes_on_with_what_is_left(project, hpo, until):
    project.write(
        """
        import time
        from pathlib import Path

        def objective(params, run):
            Path(f"began-{run.number}").touch()
            while run.number == 3 and not Path("gate").exists():
                time.sleep(0.01)
            return params["x"]
        """,
        space=TREE,
    )
    command = ("optimize", "study.py", "--seed", 1, "--algo", "grid:3", *QUICK)
    driver = project.start(*command)
    until((project.folder / "began-3").exists, "the fourth trial to run")

    os.kill(driver.pid, signal.SIGKILL)
    driver.process.wait()
    (project.folder / "gate").touch()
    hpo(*command)
    hpo(*command, "--study", "whole")

    assert len(params(project)) == 9
    assert params(project) == params(project, "whole")


def test_a_quasirandom_study_that_is_continued_goes_on_with_its_sequence(project, hpo):
    project.write(GOOD, space=TREE)
    common = ("optimize", "study.py", "--algo", "quasirandom", "--seed", 4, *QUICK)

    for total in (3, 8):
        hpo(*common, "--max-evals", total)
    hpo(*common, "--study", "whole", "--max-evals", 8)

    assert params(project) == params(project, "whole")
    assert len({int(point["x"] * 8) for point in params(project)}) == 8  # one in each eighth


def test_a_grid_that_is_cut_short_is_not_done(project, hpo):
    project.write("def objective(params): raise ValueError", space="{'x': hp.choice('x', range(10))}")

    result = hpo("optimize", "study.py", "--algo", "grid", "--max-failures", 0.5, *QUICK)

    assert result.code == 4, str(result)
    assert "done:" not in result.stderr


def test_a_study_without_an_end_is_refused(project, hpo):
    project.write(GOOD)

    result = hpo("optimize", "study.py", *QUICK)

    assert result.code == 2, str(result)
    assert "say when to stop: --max-evals 100, or --timeout 2h" in result.stderr
    assert not (project.folder / "hpo.db").exists()


def test_a_grid_of_no_levels_is_refused(project, hpo):
    project.write(GOOD)

    result = hpo("optimize", "study.py", "--algo", "grid:0", "--max-evals", 3, *QUICK)

    assert result.code == 2
    assert "'grid:0'" in result.stderr


# --- noise and repeats

NOISY = """
import random

def objective(params, run):
    return params["x"] + random.gauss(0, 0.1)
"""


def test_each_point_is_evaluated_under_several_seeds_and_the_best_is_by_the_mean(project, hpo):
    project.write(NOISY)

    result = hpo("optimize", "study.py", "--max-evals", 12, "--repeats", 3, "--workers", 2, *QUICK, "--json")
    best, shown = hpo("best", "study", "--json"), hpo("show", "study")

    assert result.code == 0, str(result)
    trials = project.trials()
    points = [[trials[number] for number in range(first, first + 3)] for first in (0, 3, 6, 9)]
    means = {point[0]["number"]: sum(trial["loss"] for trial in point) / 3 for point in points}
    for point in points:
        assert len({trial["params"]["x"] for trial in point}) == 1
        assert len({trial["loss"] for trial in point}) == 3
    winner = min(means, key=means.get)
    assert result.json["best"] == best.json
    assert best.json["trial"] == winner
    assert abs(best.json["loss"] - means[winner]) < 1e-12
    assert trials[winner]["mean_loss"] == best.json["loss"]
    assert trials[winner]["standard_error"] == best.json["standard_error"]
    assert "mean loss" in shown.stdout
    assert ", 3 repeats\n" in shown.stdout
    assert f"best: trial {winner}, loss {best.json['loss']:.6g} ± " in result.stderr


def test_repeats_killed_in_between_are_completed_first(project, hpo, until):
    project.write(
        """
        import random, time
        from pathlib import Path

        def objective(params, run):
            Path(f"began-{run.number}").touch()
            while run.number == 4 and not Path("gate").exists():
                time.sleep(0.01)
            return params["x"] + random.random()
        """
    )
    command = ("optimize", "study.py", "--seed", 2, "--max-evals", 9, *QUICK)
    driver = project.start(*command, "--repeats", 3)
    until((project.folder / "began-4").exists, "the second trial of the second point")

    os.kill(driver.pid, signal.SIGKILL)
    driver.process.wait()
    (project.folder / "gate").touch()
    result = hpo(*command)
    hpo(*command, "--repeats", 3, "--study", "whole")

    assert result.code == 0, str(result)
    assert params(project) == params(project, "whole")
    assert [trial["loss"] for trial in project.trials().values()] == [
        trial["loss"] for trial in project.trials("whole").values()
    ]


def test_other_repeats_are_another_study(project, hpo):
    project.write(NOISY)
    hpo("optimize", "study.py", "--max-evals", 2, "--repeats", 2, *QUICK)

    result = hpo("optimize", "study.py", "--max-evals", 4, "--repeats", 3, "--noisy", *QUICK)

    assert result.code == 2
    assert "  repeats: 2 -> 3\n" in result.stderr
    assert "  noisy: False -> True\n" in result.stderr


def test_repeats_are_not_pruned(project, hpo):
    project.write(NOISY)
    common = ("optimize", "study.py", "--max-evals", 4, *QUICK)
    said = "a point's mean needs all its trials"

    new = hpo(*common, "--repeats", 2, "--pruner", "auto")
    is_free = project.trials() == {}
    hpo(*common, "--repeats", 2, "--pruner", "none")
    later = hpo(*common, "--pruner", "median")

    assert is_free
    for refused in (new, later):
        assert refused.code == 2, str(refused)
        assert said in refused.stderr
    assert hpo(*common).code == 0


def test_a_budget_below_the_first_point_is_refused(project, hpo):
    project.write(NOISY)

    result = hpo("optimize", "study.py", "--max-evals", 2, "--repeats", 5, *QUICK)

    assert result.code == 2, str(result)
    assert "--max-evals 2 is less than --repeats 5: no point would be complete" in result.stderr
    assert project.trials() == {}


@pytest.mark.parametrize("algorithm", ["grid", "hyperopt.anneal:suggest"])
def test_noise_that_an_algorithm_would_not_heed_is_refused(project, hpo, algorithm):
    project.write(NOISY)

    result = hpo("optimize", "study.py", "--max-evals", 2, "--noisy", "--algo", algorithm, *QUICK)

    assert result.code == 2, str(result)
    assert f"--noisy: the algorithm {algorithm}" in result.stderr
    assert "--algo auto" in result.stderr
    assert project.trials() == {}


def test_a_study_without_success_says_where_to_look(project, hpo):
    project.write("def objective(params): raise ValueError")

    result = hpo("optimize", "study.py", "--max-evals", 1, "--store", "sqlite:///other.db", *QUICK)

    assert result.code == 3, str(result)
    assert "see why with: hpo show study --store sqlite:///other.db" in result.stderr.replace("'", "")


def test_a_noisy_objective_is_evaluated_twice_at_the_same_point(project, hpo):
    project.write(NOISY, space="{'x': hp.pchoice('x', [(0.99, 1), (0.01, 2)])}")
    common = ("optimize", "study.py", "--seed", 1, "--max-evals", 5, *QUICK)

    hpo(*common)
    hpo(*common, "--study", "noisy", "--noisy")

    assert [point["x"] for point in params(project)[:2]] == [1, 2]
    assert [point["x"] for point in params(project, "noisy")] == [1] * 5


def test_mlflow_has_the_best_mean(project, hpo):
    project.write(NOISY)
    result = hpo("optimize", "study.py", "--max-evals", 4, "--repeats", 2, "--json")

    from mlflow import MlflowClient

    client = MlflowClient(result.json["mlflow"]["tracking_uri"])
    parent = client.get_run(result.json["mlflow"]["run_id"])

    assert parent.data.metrics["best_loss"] == result.json["best"]["loss"]
    assert parent.data.tags["hpo.best_trial"] == str(result.json["best"]["trial"])


# --- warm starts


def test_a_warm_start_says_what_it_takes_and_goes_on_the_same_when_killed(project, hpo, until):
    project.write(GOOD, name="old.py", space="{'x': hp.uniform('x', 0, 2)}")
    project.write(
        """
        import time
        from pathlib import Path

        def objective(params, run):
            Path(f"began-{run.number}").touch()
            while run.number == 3 and not Path("gate").exists():
                time.sleep(0.01)
            return params["x"]
        """
    )
    hpo("optimize", "old.py", "--algo", "grid:40", *QUICK)
    command = ("optimize", "study.py", "--seed", 2, "--max-evals", 6, *QUICK)
    driver = project.start(*command, "--warm-start", "old")
    until((project.folder / "began-3").exists, "the fourth trial to run")

    os.kill(driver.pid, signal.SIGKILL)
    driver.process.wait()
    (project.folder / "gate").touch()
    hpo(*command, "--warm-start", "old", "--study", "whole")
    result = hpo(*command)

    assert result.code == 0, str(result)
    assert "warm start from old: 20 trials" in driver.said()
    assert "  not taken, " in driver.said()
    assert "warm start from old: 20 trials" in result.stderr
    assert ", warm start from old\n" in hpo("show", "study").stdout
    assert params(project) == params(project, "whole")
    assert all(point["x"] < 0.5 for point in params(project)[:2])  # no random start


def test_a_warm_start_is_kept_when_the_earlier_study_grows_or_goes(project, hpo):
    project.write(GOOD, name="old.py")
    project.write(GOOD)
    elsewhere = ("--store", "sqlite:///old.db")
    hpo("optimize", "old.py", "--max-evals", 12, *elsewhere, *QUICK)
    common = ("optimize", "study.py", "--seed", 2, "--warm-start", "sqlite:///old.db#old", *QUICK)
    hpo(*common, "--max-evals", 8, "--study", "whole")
    hpo(*common, "--max-evals", 4)
    (project.folder / "old.db").unlink()

    result = hpo(*common, "--max-evals", 8)

    assert result.code == 0, str(result)
    assert params(project) == params(project, "whole")


def test_another_warm_start_is_another_study(project, hpo):
    project.write(GOOD)
    hpo("optimize", "study.py", "--study", "old", "--max-evals", 2, *QUICK)
    hpo("optimize", "study.py", "--max-evals", 2, *QUICK)

    result = hpo("optimize", "study.py", "--warm-start", "old", "--max-evals", 4, *QUICK)

    assert result.code == 2
    assert "  warm start: None -> old\n" in result.stderr


def test_a_warm_start_that_can_not_be_leaves_no_study_behind(project, hpo):
    project.write(GOOD)
    hpo("optimize", "study.py", "--study", "old", "--max-evals", 2, *QUICK)
    refused = {
        "--warm-start=odl": "did you mean old?",
        "--warm-start=study": "can't start from itself",
        "--warm-start=old --algo=grid": "learns from no trial",
    }

    for options, said in refused.items():
        result = hpo("optimize", "study.py", "--max-evals", 2, *options.split(), *QUICK)

        assert result.code == 2, str(result)
        assert said in result.stderr
        assert project.trials() == {}
    assert [study["study"] for study in hpo("show", "--json").json] == ["old"]
