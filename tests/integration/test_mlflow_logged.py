"""What objectives log to MLflow themselves ends in their trials' runs."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow.tracking import MlflowClient

from hpo.core.trial import Completed
from hpo.stores import connect
from hpo.testing import IDENTITY
from hpo.tracking.mlflow import sync
from hpo.worker import pack

OBJECTIVE = """
import mlflow

def objective(params, run):
    {body}
    return 0.5
"""


def optimize(project, body, trials=1, *more, head="", env=None):
    source = OBJECTIVE.format(body=body.strip().replace("\n", "\n    "))
    project.write(head + source)
    result = project.hpo("optimize", "study.py", "--max-evals", trials, "--seed", 1, *more, env=env)
    assert result.code == 0, str(result)
    assert set(project.trials()) == set(range(trials))
    assert {trial["error"] and trial["error"]["reason"] for trial in project.trials().values()} == {None}
    client = MlflowClient(result_uri(project))
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return client, {int(r.data.tags["hpo.trial"]): r for r in runs if "hpo.trial" in r.data.tags}


def result_uri(project):
    return f"sqlite:///{project.folder}/mlflow.db"


def curve(client, run, key):
    return sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, key))


def paths(client, run, folder=None):
    found = client.list_artifacts(run.info.run_id, folder)
    return sorted(
        p for info in found for p in (paths(client, run, info.path) if info.is_dir else [info.path])
    )


def test_params_metrics_tags_and_artifacts_come_into_the_trials_run(project):
    client, runs = optimize(
        project,
        """
mlflow.log_param("width", 8)
mlflow.log_metrics({"gap": 0.5 + run.number}, step=3)
mlflow.log_metric("gap", 0.25, step=7)
mlflow.set_tag("note", "mine")
mlflow.log_text("hello", "notes/a.txt")
        """,
        2,
    )

    for number, run in runs.items():
        assert run.data.params["width"] == "8"
        assert curve(client, run, "gap") == [(3, 0.5 + number), (7, 0.25)]
        assert run.data.tags["note"] == "mine"
        assert run.info.status == "FINISHED"
        assert paths(client, run) == ["notes/a.txt"]
    assert len(runs) == 2
    assert not (project.folder / "mlruns").exists()


def test_what_one_trial_leaves_of_mlflow_is_not_the_next_ones(project):
    client, runs = optimize(
        project,
        """
mlflow.set_experiment("mine")
mlflow.start_run(run_name="outer")
mlflow.start_run(nested=True)
mlflow.log_metric("number", run.number)
        """,
        3,
    )

    assert {number: curve(client, run, "number") for number, run in runs.items()} == {
        number: [(0, float(number))] for number in range(3)
    }


def test_an_experiment_chosen_when_the_file_is_loaded_is_no_obstacle(project):
    client, runs = optimize(
        project, 'mlflow.log_metric("m", 1.0)', 2, head='import mlflow\nmlflow.set_experiment("mine")\n'
    )

    assert [curve(client, runs[n], "m") for n in (0, 1)] == [[(0, 1.0)]] * 2


def test_a_run_this_process_was_started_in_is_left_alone(project):
    client, runs = optimize(
        project, 'mlflow.log_metric("m", 1.0)', env={"MLFLOW_RUN_ID": "f" * 32, "MLFLOW_EXPERIMENT_ID": "77"}
    )

    assert curve(client, runs[0], "m") == [(0, 1.0)]


def test_names_that_the_study_has_too_are_told_apart(project):
    client, runs = optimize(
        project,
        """
run.report(0, 0.7, accuracy=0.25)
mlflow.log_params({"x": "other"})
mlflow.log_metric("loss", 9.0, step=99)
mlflow.log_metric("accuracy", 8.0)
mlflow.set_tag("hpo.state", "odd")
        """,
    )

    [run] = runs.values()
    assert run.data.metrics["loss"] == 0.5
    assert curve(client, run, "logged/loss") == [(99, 9.0)]
    assert curve(client, run, "accuracy") == [(0, 0.25)]
    assert run.data.metrics["logged/accuracy"] == 8.0
    assert run.data.params["logged/x"] == "other"
    assert run.data.tags["hpo.state"] == "completed"


def test_several_runs_of_one_trial_are_told_apart(project):
    _, runs = optimize(
        project,
        """
for fold in range(2):
    with mlflow.start_run():
        mlflow.log_metric("score", fold)
        mlflow.log_param("fold", fold)
        """,
    )

    [run] = runs.values()
    assert (run.data.metrics["score"], run.data.metrics["score_2"]) == (0.0, 1.0)
    assert (run.data.params["fold"], run.data.params["fold_2"]) == ("0", "1")


def test_a_trial_that_fails_or_raises_keeps_what_it_logged(project):
    project.write(
        """
        import mlflow

        def objective(params):
            mlflow.log_metric("m", 1.0)
            raise ValueError("no")
        """
    )

    project.hpo("optimize", "study.py", "--max-evals", 1)

    client = MlflowClient(result_uri(project))
    runs = client.search_runs(
        [e.experiment_id for e in client.search_experiments()], "tags.`hpo.trial` = '0'"
    )
    assert [(run.info.status, run.data.metrics["m"]) for run in runs] == [("FAILED", 1.0)]


def test_trials_inside_the_drivers_process_are_kept_apart_as_well(project):
    client, runs = optimize(project, 'mlflow.log_metric("m", run.number)', 2, "--inline")

    assert [curve(client, runs[n], "m") for n in (0, 1)] == [[(0, 0.0)], [(0, 1.0)]]
    assert not (project.folder / "mlruns").exists()


def test_autologged_models_load_from_the_trials_run(project, monkeypatch):
    pytest.importorskip("sklearn")
    client, runs = optimize(
        project,
        """
import numpy as np
from sklearn.linear_model import LogisticRegression
LogisticRegression().fit(np.arange(4.0)[:, None], [0, 0, 1, 1])
        """,
        head="import mlflow\nmlflow.sklearn.autolog(silent=True)\n",
    )

    import mlflow

    [run] = runs.values()
    assert run.data.params["solver"] == "lbfgs"
    assert run.data.metrics["training_accuracy_score"] == 1.0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", result_uri(project))
    path = client.download_artifacts(run.info.run_id, "model", str(project.folder))
    assert (Path(path) / "MLmodel").exists()
    loaded = mlflow.pyfunc.load_model(path)
    assert list(loaded.predict(np.array([[0.0], [3.0]]))) == [0, 1]


# --- an archive that no worker made


@pytest.fixture
def store(tmp_path):
    catalog = connect(f"sqlite:///{tmp_path}/hpo.db", create=True)
    return catalog.create(IDENTITY)


@pytest.fixture
def left(tmp_path, monkeypatch):
    """What a worker leaves of an objective that logged one metric."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(str(tmp_path / "mlflow"))
    run = client.create_run("0")
    client.log_metric(run.info.run_id, "m", 1.0)
    return pack(tmp_path / "mlflow")


def end(store, archive):
    store.put_files({"mlflow.zip": archive}, 0)
    store.add(0, {}, {})
    store.finish(store.claim("w", 0), Completed(0.5))


@pytest.mark.parametrize("what", ["text", "bomb", "escape", "odd yaml", "cut off"])
def test_an_archive_that_was_tampered_with_leaves_the_trial_without_it(store, left, tmp_path, what, caplog):
    end(store, tampered(what, left, tmp_path))
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    location = sync(store, uri)

    client = MlflowClient(uri)
    [run] = client.search_runs([location.experiment_id], "tags.`hpo.trial` = '0'")
    assert (run.info.status, run.data.metrics["loss"]) == ("FINISHED", 0.5)
    assert "m" not in run.data.metrics
    assert "can't be read" in caplog.text
    assert not list(tmp_path.rglob("escaped"))


def test_no_file_outside_the_archive_is_uploaded(store, left, tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key.txt").write_text("secret")
    end(store, tampered("artifact_uri", left, tmp_path))
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    location = sync(store, uri)

    client = MlflowClient(uri)
    [run] = client.search_runs([location.experiment_id], "tags.`hpo.trial` = '0'")
    assert run.data.metrics["m"] == 1.0
    assert paths(client, run) == []


def tampered(what, original, folder):
    path = folder / "tampered.zip"
    if what == "text":
        path.write_text("Dear diary")
        return path
    if what == "cut off":
        path.write_bytes(original.read_bytes()[:-100])
        return path
    with zipfile.ZipFile(original) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if what == "odd yaml" and entry.filename.endswith("meta.yaml"):
                data = b"!!python/object/apply:os.mkdir ['escaped']"
            if what == "artifact_uri" and entry.filename.endswith("meta.yaml"):
                there = f"artifact_uri: {folder / 'private'}\n".encode()
                lines = data.splitlines(keepends=True)
                data = b"".join(there if line.startswith(b"artifact_uri") else line for line in lines)
            new.writestr(entry.filename, data)
        if what == "bomb":
            new.writestr("0/big", b"0" * 10_000_000, compress_type=zipfile.ZIP_DEFLATED)
        if what == "escape":
            new.writestr("../../escaped", b"x")
    return path
