"""`hpo best --train`: the winner of a study, trained for good."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

HEEDLESS = """
def objective(params, run):
    run.report(0, params["x"])
    return params["x"]
"""
KILLED = """
def objective(params, run):
    import os, signal
    from pathlib import Path
    done = run.checkpoint_directory / "done"
    first = int(done.read_text()) if done.exists() else 0
    print("attempt", run.attempt, "from", first)
    for epoch in range(first, 4):
        if epoch == 2 and Path("armed").exists():
            Path("armed").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        done.write_text(str(epoch + 1))
        run.report(epoch, params["x"] / (epoch + 1))
    (run.directory / "model.txt").write_text("a model")
    import mlflow
    mlflow.log_metric("mine", 7)
    return params["x"]
"""


@pytest.fixture(scope="module")
def trained(make_project):
    """A study of two trials on the digits, and its best one trained on train and validation, and tested."""
    project = make_project()
    for folder in ("spaces", "objectives"):
        shutil.copytree(ROOT / folder, project.folder / folder, ignore=shutil.ignore_patterns("__pycache__"))
    ran = project.hpo("optimize", "spaces/digits_mlp.py", "--max-evals", 2, "--set", "epochs=3", "--seed", 1)
    assert ran.code == 0, ran
    best = project.hpo(
        "best", "digits_mlp", "--train", "--on", "train+validation", "--test", "--to", "won", "--json"
    )
    assert best.code == 0, best
    return project, best.json


def test_the_report_on_the_test_data_is_the_one_of_scikit_learn(trained):
    import pandas
    from sklearn.metrics import classification_report

    project, document = trained

    predictions = pandas.read_parquet(project.folder / "won/test/predictions.parquet")
    written = (project.folder / "won/test/classification_report.txt").read_text()

    assert len(predictions) == document["result"]["dataset"]["examples"]["test"]
    expected = classification_report(
        predictions.truth,
        predictions.prediction,
        labels=range(10),
        target_names=list("0123456789"),
        digits=3,
        zero_division=0,
    )
    assert written == expected
    accuracy = (predictions.truth == predictions.prediction).mean()
    assert document["result"]["test"]["accuracy"] == pytest.approx(accuracy)


def test_the_model_loads_in_one_line_where_its_code_is_not(trained, tmp_path):
    import numpy as np
    import pandas

    from hpo.training.data import digits

    project, document = trained
    np.save(tmp_path / "inputs.npy", digits().test[0])
    program = (
        "import numpy, torch\n"
        f"model = {document['load']}\n"
        f"inputs = torch.tensor(numpy.load({str(tmp_path / 'inputs.npy')!r}))\n"
        "print(model(inputs).argmax(1).tolist())\n"
    )

    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=project.folder / "won", capture_output=True, text=True
    )

    assert loaded.returncode == 0, loaded.stderr
    predictions = pandas.read_parquet(project.folder / "won/test/predictions.parquet")
    assert json.loads(loaded.stdout) == predictions.prediction.tolist()


def test_it_is_a_run_of_its_own_in_mlflow_and_no_trial(trained):
    from mlflow.tracking import MlflowClient

    project, document = trained
    client = MlflowClient(document["mlflow"]["tracking_uri"])

    run = client.get_run(document["mlflow"]["run_id"])

    assert run.info.status == "FINISHED"
    assert "mlflow.parentRunId" not in run.data.tags
    assert run.data.tags["hpo.final"] == "digits_mlp"
    assert run.data.metrics["test/accuracy"] == pytest.approx(document["result"]["test"]["accuracy"])
    assert run.data.params["optimizer"] == document["params"]["optimizer"]
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"summary.json", "test"} <= names
    assert len(project.trials("digits_mlp")) == 2


def test_it_trains_as_many_epochs_as_the_trial_s_best_one_took(trained):
    project, document = trained
    losses = [report["loss"] for report in _reports(project, document["trial"]) if report["loss"] is not None]

    assert document["result"]["epochs"] == losses.index(min(losses)) + 1


def _reports(project, number):
    from contextlib import closing

    from hpo.stores import connect

    with closing(connect(f"sqlite:///{project.folder}/hpo.db")) as catalog:
        return [{"loss": report.loss} for report in catalog.open("digits_mlp").reports(number)]


def test_a_folder_that_is_finished_is_left_alone(trained):
    project, _ = trained

    again = project.hpo("best", "digits_mlp", "--train", "--to", "won")

    assert again.code == 2
    assert "won exists already" in again.stderr
    assert "--to" in again.stderr


@pytest.fixture(scope="module")
def killed(make_project):
    """A winner whose training was killed in its third epoch: the project and how the command ended."""
    project = make_project()
    project.write(KILLED)
    project.write(KILLED, name="other.py")
    for name in ("study", "other"):
        assert project.hpo("optimize", f"{name}.py", "--max-evals", 1).code == 0
    (project.folder / "armed").touch()
    first = project.hpo("best", "study", "--train", "--to", "won")
    shutil.copytree(project.folder / "won", project.folder / "unfinished-copy")
    return project, first


def test_a_training_that_was_killed_goes_on_with_the_next_command(killed):
    from mlflow.tracking import MlflowClient

    project, first = killed

    finished = project.hpo("best", "study", "--train", "--to", "won", "--json")

    assert first.code == -9
    assert finished.code == 0, finished
    assert "attempt 2 from 2" in finished.stderr
    left = {path.name for path in (project.folder / "won").iterdir()}
    assert left == {".gitignore", "model.txt", "summary.json"}
    client = MlflowClient(finished.json["mlflow"]["tracking_uri"])
    run_id = finished.json["mlflow"]["run_id"]
    curve = client.get_metric_history(run_id, "loss")
    assert [point.step for point in curve] == [0, 1, 2, 3, 4]  # the last one is what was returned
    assert client.get_run(run_id).data.metrics["mine"] == 7
    assert {file.path for file in client.list_artifacts(run_id)} == {"model.txt", "summary.json"}


@pytest.mark.parametrize(
    ("command", "difference"),
    [(["other"], "study: study -> other"), (["study", "--on", "train+validation"], "on: train -> ")],
)
def test_an_unfinished_training_is_not_taken_for_another(killed, command, difference):
    project, _ = killed

    refused = project.hpo("best", command[0], "--train", *command[1:], "--to", "unfinished-copy")

    assert refused.code == 2
    assert difference in refused.stderr


def test_an_objective_that_does_not_look_at_the_final_training_is_told_so(project):
    project.write(HEEDLESS)
    assert project.hpo("optimize", "study.py", "--max-evals", 1, "--tracking-uri", "none").code == 0

    tested = project.hpo("best", "study", "--train", "--test", "--to", "tested")
    plain = project.hpo("best", "study", "--train")

    assert tested.code == 2
    assert "run.final" in tested.stderr
    assert not (project.folder / "tested").exists()
    assert plain.code == 0, plain


def test_what_was_trained_is_no_code_of_the_project(killed):
    project, _ = killed

    again = project.hpo("optimize", "study.py", "--max-evals", 2)

    assert again.code == 0
    assert "the code has changed" not in again.stderr


@pytest.mark.parametrize(
    ("setting", "reason"), [("divisor=0", "ZeroDivisionError"), ("leaves=true", "called sys.exit(0)")]
)
def test_a_training_that_fails_says_why(project, setting, reason):
    project.write("""
        def objective(params, *, divisor=1, leaves=False):
            if leaves:
                raise SystemExit(0)
            return params["x"] / divisor
    """)
    assert project.hpo("optimize", "study.py", "--max-evals", 1, "--tracking-uri", "none").code == 0

    failed = project.hpo("best", "study", "--train", "--set", setting)

    assert failed.code == 3
    assert "TrainingFailed" in failed.stderr
    assert reason in failed.stderr


@pytest.mark.parametrize("options", [["--test"], ["--on", "train"], ["--to", "x"], ["--set", "a=1"]])
def test_options_of_the_training_need_it(hpo, project, options):
    project.write(HEEDLESS)
    assert hpo("optimize", "study.py", "--max-evals", 1, "--tracking-uri", "none").code == 0

    refused = hpo("best", "study", *options)

    assert refused.code == 2
    assert f"{options[0]}: only with --train" in refused.stderr
