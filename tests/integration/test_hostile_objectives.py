"""Objectives that do what objectives do to their worker: fork, print elsewhere, kill children, log."""

import json
import os
import signal

import pytest

QUICK = ("--tracking-uri", "none", "--seed", 1)


def losses(project):
    return [trial["loss"] for _, trial in sorted(project.trials().items())]


@pytest.mark.parametrize("last", ["return 99.0", "sys.exit(0)", "raise ValueError", "return None"])
def test_a_forked_child_that_comes_back_does_not_speak_for_its_parent(project, hpo, last):
    project.write(
        f"""
        import os, sys

        def objective(params):
            if os.fork() == 0:
                {last}
            os.wait()
            return 0.5
        """
    )

    result = hpo("optimize", "study.py", "--max-evals", 3, *QUICK)

    assert result.code == 0, str(result)
    assert losses(project) == [0.5] * 3


def test_an_objective_may_replace_the_standard_streams(project, hpo):
    project.write(
        """
        import sys

        class Deaf:
            def write(self, text): raise OSError("deaf")

        def objective(params):
            sys.stdout = sys.stderr = Deaf()
            return 0.5
        """
    )

    result = hpo("optimize", "study.py", "--max-evals", 3, *QUICK)

    assert result.code == 0, str(result)
    assert losses(project) == [0.5] * 3


def test_a_space_that_differs_from_process_to_process_is_refused(project, hpo):
    project.write(
        "def objective(params): return 0.5",
        space="{'o': hp.choice('o', sorted(map(str, range(9)), key=lambda s: hash('salt' + s)))}",
    )

    result = hpo("optimize", "study.py", "--max-evals", 3, *QUICK, env={"PYTHONHASHSEED": None})

    assert result.code == 2, str(result)
    assert "not the one that the driver has" in result.stderr
    assert project.trials()[0]["state"] == "waiting"


def test_a_time_out_is_for_the_objective_and_not_for_what_it_left(project, hpo):
    project.write(
        """
        import time

        def objective(params, run):
            for number in range(3000):
                (run.directory / str(number)).write_text(str(number))
            return 0.5
        """
    )

    result = hpo("optimize", "study.py", "--max-evals", 1, "--trial-timeout", "2s", *QUICK)

    assert result.code == 0, str(result)
    assert losses(project) == [0.5]


def test_a_killed_keeper_is_replaced_and_goes_on_with_the_trial(project, hpo):
    # The objective kills its worker's children: trial 0 goes on, trial 1 still has its time-out.
    project.write(
        """
        import os, psutil, time

        def objective(params, run):
            for child in psutil.Process().children():
                child.kill()
            time.sleep(4 if run.number == 0 else 600)
            return 0.5
        """
    )

    result = hpo(
        *("optimize", "study.py", "--max-evals", 2, "--lease", "2s", "--trial-timeout", "8s", *QUICK),
    )

    trials = project.trials()
    assert result.code == 0, str(result)
    assert (trials[0]["state"], trials[0]["attempts"]) == ("completed", 1)
    assert trials[1]["error"]["kind"] == "timeout"


def test_what_an_objective_logs_to_mlflow_itself_does_not_disturb_the_study(project, hpo):
    project.write(
        """
        import mlflow

        def objective(params):
            mlflow.log_metric("mine", 1.0)
            return 0.5
        """
    )

    result = hpo("optimize", "study.py", "--max-evals", 3, *QUICK)

    assert result.code == 0, str(result)
    assert losses(project) == [0.5] * 3
    assert not (project.folder / "mlflow.db").exists()


def test_a_space_file_that_changes_the_directory_moves_nothing(project, hpo):
    (project.folder / "sub").mkdir()
    project.write("import os\nos.chdir('/')\ndef objective(params): return 0.5")

    result = hpo("optimize", "study.py", "--max-evals", 1, *QUICK)

    assert result.code == 0, str(result)
    assert (project.folder / "hpo.db").exists()


def test_a_space_file_that_git_ignores_is_run(project, hpo):
    project.write("def objective(params): return 0.5")
    (project.folder / ".gitignore").write_text("*")
    os.system(f"git init -q {project.folder}")

    result = hpo("optimize", "study.py", "--max-evals", 1, *QUICK)

    assert result.code == 0, str(result)


def test_every_parameter_may_be_fixed(project, hpo):
    project.write("def objective(params): return params['x']")

    result = hpo("optimize", "study.py", "--max-evals", 2, "--set", "x=0.25", *QUICK, "--json")

    assert result.json["best"]["params"] == {"x": 0.25}


def test_a_mended_objective_goes_on_after_too_many_failures(project, hpo):
    project.write("def objective(params): return undefined")
    command = ("optimize", "study.py", "--max-evals", 12, *QUICK)
    broken = hpo(*command)
    project.write("def objective(params): return 0.5")

    mended = hpo(*command)

    assert broken.code == 4, str(broken)
    assert mended.code == 0, str(mended)
    assert losses(project).count(0.5) == 2


def test_sigterm_while_the_file_is_loaded_is_a_pre_emption(project, until):
    project.write(
        "from pathlib import Path\nimport time\nPath('loading').touch()\ntime.sleep(600)\n"
        "def objective(params): return 0.5"
    )
    command = project.start("optimize", "study.py", "--max-evals", 1, *QUICK)
    until(lambda: (project.folder / "loading").exists(), "the file to be loaded")

    command.signal(signal.SIGTERM)

    assert command.result().code == 75


def test_looking_at_a_live_study_loses_nothing(project, hpo, until):
    project.write(
        """
        import time
        from pathlib import Path

        def objective(params, run):
            while run.number == 5 and not Path("gate").exists():
                time.sleep(0.01)
            return params["x"]
        """
    )
    command = project.start("optimize", "study.py", "--max-evals", 6, "--inline", "--seed", 1)
    until(lambda: sum(t["state"] == "completed" for t in project.trials().values()) == 5, "five trials")
    before = json.dumps(losses(project))

    os.kill(command.pid, signal.SIGKILL)
    command.process.wait()

    assert json.dumps(losses(project)) == before


def test_a_file_name_that_is_no_text_costs_no_training(project, hpo):
    project.write(
        r"""
        import os

        def objective(params, run):
            for folder in (run.directory, run.checkpoint_directory):
                open(os.fsencode(folder) + b"/caf\xe9.txt", "w").close()
            run.report(0, 0.5)
            return 0.5
        """
    )

    result = hpo("optimize", "study.py", "--max-evals", 1, *QUICK)

    assert result.code == 0, str(result)
    assert r"artifacts/caf\xe9.txt" in project.files("study", 0)


def test_a_store_that_was_removed_is_noticed(project, until):
    project.write(
        """
        import time
        from pathlib import Path

        def objective(params, run):
            Path("started").touch()
            while not Path("gate").exists():
                time.sleep(0.01)
            return 0.5
        """
    )
    command = project.start("optimize", "study.py", "--max-evals", 3, *QUICK)
    until(lambda: (project.folder / "started").exists(), "a trial")

    (project.folder / "hpo.db").unlink()
    (project.folder / "gate").touch()

    result = command.result()
    assert result.code == 5, str(result)
    assert "was removed or replaced" in result.stderr


def test_the_code_that_was_unpacked_is_not_trusted_by_the_next_driver(project, hpo):
    project.write("def objective(params): return 0.5")
    hpo("optimize", "study.py", "--max-evals", 1, *QUICK)
    [unpacked] = (project.folder / "hpo.db.files").rglob("study.py")
    unpacked.write_text(unpacked.read_text().replace("0.5", "-1000.0"))

    result = hpo("optimize", "study.py", "--max-evals", 2, *QUICK)

    assert result.code == 0, str(result)
    assert losses(project) == [0.5, 0.5]


def test_a_module_that_git_ignores_travels_with_the_code_that_needs_it(project, hpo):
    project.write("from helpers.numbers import half\ndef objective(params): return half")
    (project.folder / "helpers").mkdir()
    (project.folder / "helpers" / "numbers.py").write_text("half = 0.5\n")
    (project.folder / ".gitignore").write_text("helpers/\n")
    os.system(f"git init -q {project.folder}")

    result = hpo("optimize", "study.py", "--max-evals", 1, *QUICK)

    assert result.code == 0, str(result)


def test_a_point_at_which_the_expression_fails_costs_its_trial_alone(project, hpo):
    project.write("def objective(params): return params['a']", space="{'a': 1 / hp.quniform('a', 0, 1, 1)}")

    result = hpo("optimize", "study.py", "--max-evals", 2, *QUICK)

    assert result.code == 0, str(result)
    assert sorted(trial["state"] for trial in project.trials().values()) == ["completed", "failed"]


def test_a_setting_may_be_written_as_python_writes_it(project, hpo):
    project.write("def objective(params, *, flag=True): return 1.0 if flag else 2.0")

    hpo("optimize", "study.py", "--max-evals", 1, "--set", "flag=False", *QUICK)

    assert losses(project) == [2.0]


def test_what_a_space_file_prints_is_not_on_standard_output(project, hpo):
    project.write("print('hello')\ndef objective(params): return 0.5")

    result = hpo("optimize", "study.py", "--max-evals", 1, *QUICK, "--json")

    assert result.json["trials"]["completed"] == 1


def test_an_algorithm_that_is_none_leaves_no_study(project, hpo):
    project.write("def objective(params): return 0.5")

    refused = hpo("optimize", "study.py", "--max-evals", 1, "--algo", "math:sqrt", *QUICK)

    assert refused.code == 2, str(refused)
    assert "the algorithm sqrt failed" in refused.stderr
    assert project.trials() == {}
