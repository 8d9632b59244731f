"""The study in a real MLflow: a SQLite database, and once a server."""

import contextlib
import itertools
import json
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from mlflow.tracking import MlflowClient

from hpo.core.errors import TrackingUnreachable, UsageError
from hpo.core.study import Identity
from hpo.core.trial import Changes, Completed, Failed, Kind, Pruned, Verdict
from hpo.stores import connect
from hpo.tracking.mlflow import (
    Location,
    MlflowObserver,
    Projection,
    default_tracking_uri,
    location_of,
    sync,
    ui_command,
)

NEWS = Changes(1, (object(),), ())  # what the driver would pass: the observer only looks whether there is any


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An MLflow database with its migrations done, which take a second."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="module")
def uri(database):
    return f"sqlite:///{database}"


@pytest.fixture
def client(uri):
    return MlflowClient(uri)


experiments = map("experiment {}".format, itertools.count())


@pytest.fixture
def experiment():
    """A name no other test uses."""
    return next(experiments)


@pytest.fixture
def make_store(tmp_path):
    numbers = itertools.count()

    def make(**identity):
        catalog = connect(f"sqlite:///{tmp_path / f'hpo{next(numbers)}.db'}", create=True)
        return catalog.create(Identity(**(IDENTITY | identity)))

    return make


@pytest.fixture
def store(make_store):
    return make_store()


IDENTITY = {
    "study": "digits",
    "entry_point": "spaces/digits.py:objective",
    "fingerprint": "f" * 64,
    "space": {},
    "arguments": {"epochs": 5, "data": {"name": "digits"}},
    "seed": 7,
    "algorithm": "tpe",
}


def run(store, number, *losses, outcome=None, params=None, **metrics):
    """One trial from beginning to end, an epoch for each of ``losses``."""
    store.add(number, {}, {"lr": 0.1 * number} if params is None else params)
    claim = store.claim("worker-1", number)
    for epoch, loss in enumerate(losses):
        store.report(claim, epoch, loss, metrics, time=1000.0 + epoch)
    store.finish(claim, outcome or Completed(losses[-1] if losses else 1.0))


def catch_up(store, uri, experiment, **options):
    projection = Projection(store, uri, experiment, **options)
    while not projection.catch_up():
        pass
    while not projection.upload():
        pass
    return projection.location


def children(client, location):
    """The child runs by trial; fails where a trial has two."""
    runs = client.search_runs([location.experiment_id], f"tags.`mlflow.parentRunId` = '{location.run_id}'")
    by_trial = {int(run.data.tags["hpo.trial"]): run for run in runs}
    assert len(by_trial) == len(runs)
    return by_trial


def curve(client, run_id, key):
    return sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))


def everything(client, location):
    """All that MLflow shows of a study but the ids, to compare two projections of one store."""
    runs = {None: client.get_run(location.run_id), **children(client, location)}
    shown = {}
    for number, run in runs.items():
        histories = {
            key: sorted(
                (m.step, m.timestamp, repr(m.value)) for m in client.get_metric_history(run.info.run_id, key)
            )
            for key in run.data.metrics
        }
        tags = {key: value for key, value in run.data.tags.items() if key != "mlflow.parentRunId"}
        is_retried = int(tags.get("hpo.attempts", 1)) > 1
        start = None if is_retried else run.info.start_time  # of the attempt that began the run
        paths = sorted(info.path for info in client.list_artifacts(run.info.run_id))
        data = [one.dataset.digest for one in run.inputs.dataset_inputs]
        times = (start, run.info.end_time)
        shown[number] = (run.info.status, *times, tags, run.data.params, histories, paths, data)
    return shown


# --- what runs show


def test_the_study_is_a_parent_run(store, uri, client, experiment):
    store.use_snapshot("abc123")
    run(store, 0, outcome=Completed(0.5))
    run(store, 1, outcome=Failed(Kind.EXCEPTION, "ValueError: no"))
    run(store, 2, outcome=Completed(0.3))
    run(store, 3, outcome=Completed(0.4))

    location = catch_up(store, uri, experiment)

    parent = client.get_run(location.run_id)
    assert (parent.info.run_name, parent.info.status) == ("digits", "RUNNING")
    assert client.get_experiment(location.experiment_id).name == experiment
    assert parent.data.params == {"epochs": "5", "data.name": "digits"}
    assert {key: parent.data.tags[key] for key in parent.data.tags if key != "hpo.id"} == {
        "hpo.study": "digits",
        "hpo.entry_point": "spaces/digits.py:objective",
        "hpo.fingerprint": "f" * 64,
        "hpo.algorithm": "tpe",
        "hpo.seed": "7",
        "hpo.snapshot": "abc123",
        "hpo.best_trial": "2",
        "mlflow.runName": "digits",
        "mlflow.source.name": "spaces/digits.py:objective",
    }
    assert curve(client, location.run_id, "best_loss") == [(1, 0.5), (3, 0.3), (4, 0.3)]
    assert curve(client, location.run_id, "trials/failed") == [(2, 1.0)]


def test_a_completed_trial_is_a_finished_child_run(store, uri, client, experiment):
    run(
        store,
        0,
        0.9,
        0.5,
        params={"lr": 0.1, "model": {"layers": [8, 4], "name": "mlp"}},
        accuracy=0.75,
        outcome=Completed(0.5, {"f1": {"cats": 0.25}, "best_epoch": 1, "note": "x", "scores": [1, 2]}),
    )
    trial = store.trial(0)

    location = catch_up(store, uri, experiment)

    child = children(client, location)[0]
    assert (child.info.run_name, child.info.status) == ("trial 0", "FINISHED")
    assert (child.info.start_time, child.info.end_time) == (
        int(trial.started * 1000),
        int(trial.ended * 1000),
    )
    assert child.data.params == {
        "lr": "0.1",
        "model.layers.0": "8",
        "model.layers.1": "4",
        "model.name": "mlp",
    }
    assert curve(client, child.info.run_id, "loss") == [(0, 0.9), (1, 0.5)]
    assert curve(client, child.info.run_id, "accuracy") == [(0, 0.75), (1, 0.75)]
    results = {key: value for key, value in child.data.metrics.items() if key.startswith("result/")}
    assert results == {"result/f1.cats": 0.25, "result/best_epoch": 1.0}
    assert child.data.metrics["seconds"] == trial.seconds
    assert {
        key: child.data.tags[key] for key in ("hpo.trial", "hpo.state", "hpo.worker", "hpo.attempts")
    } == {
        "hpo.trial": "0",
        "hpo.state": "completed",
        "hpo.worker": "worker-1",
        "hpo.attempts": "1",
    }


def test_the_last_loss_is_the_one_the_objective_returned(store, uri, client, experiment):
    run(store, 0, 0.9, 0.5, 0.7, outcome=Completed(0.5))  # the best epoch's, not the last one's
    run(store, 1, outcome=Completed(0.25))

    location = catch_up(store, uri, experiment)

    runs = children(client, location)
    assert curve(client, runs[0].info.run_id, "loss") == [(0, 0.9), (1, 0.5), (2, 0.7), (3, 0.5)]
    assert curve(client, runs[1].info.run_id, "loss") == [(0, 0.25)]
    assert [runs[n].data.metrics["loss"] for n in (0, 1)] == [0.5, 0.25]


EPOCH_TIME = {
    "epochs": 5,
    "median_epoch": 0.25,
    "shares": {"data": 0.75},
    "gpu": None,
    "cause": "input_bound",
    "advice": "more loader workers",
}
DATASET = {
    "name": "digits",
    "digest": "0123456789abcdef",
    "examples": {"train": 1257},
    "class_names": ["0", "1"],
    "source": "scikit-learn",
}


def test_cause_and_seconds_an_epoch_can_be_columns(store, uri, client, experiment):
    run(store, 0, outcome=Completed(0.5, {"epoch_time": EPOCH_TIME}))

    location = catch_up(store, uri, experiment)

    child = children(client, location)[0]
    assert (child.data.tags["hpo.cause"], child.data.tags["hpo.advice"]) == (
        "input_bound",
        "more loader workers",
    )
    assert child.data.metrics.keys() - {"loss", "seconds"} == {
        "epoch_seconds",
        "epoch_time/epochs",
        "epoch_time/shares.data",
    }
    assert child.data.metrics["epoch_seconds"] == 0.25


def test_the_data_set_is_an_input_of_the_trials_and_once_of_the_study(store, uri, client, experiment):
    for number in range(3):
        run(store, number, outcome=Completed(0.5, {"dataset": DATASET}))
    catch_up(store, uri, experiment)
    store.note("mlflow", None)

    location = catch_up(store, uri, experiment)

    for shown in (client.get_run(location.run_id), *children(client, location).values()):
        [used] = shown.inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest) == ("digits", "0123456789abcdef")
        assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]
        assert json.loads(used.dataset.profile)["examples"] == {"train": 1257}


@pytest.mark.parametrize(
    "odd", [{"dataset": 3, "epoch_time": 4}, {"dataset": {"name": None}, "epoch_time": {}}]
)
def test_a_result_that_uses_these_names_otherwise_is_taken(store, uri, client, experiment, odd):
    run(store, 0, outcome=Completed(0.5, odd))

    location = catch_up(store, uri, experiment)

    assert children(client, location)[0].info.status == "FINISHED"


def test_log_scaled_parameters_are_shown_by_their_power_of_ten_as_well(make_store, uri, client, experiment):
    store = make_store(space=LOG_SPACE)
    run(store, 0, params={"lr": 0.01})

    location = catch_up(store, uri, experiment)

    assert children(client, location)[0].data.params == {"lr": "0.01", "lr_log10": "-2.0"}


LOG_SPACE = {
    "expression": {"dict": {"lr": {"parameter": "lr"}}},
    "parameters": {"lr": {"kind": "loguniform", "low": -5.0, "high": 0.0}},
}


def test_a_page_is_prepared_that_compares_the_trials(make_store, uri, client, experiment):
    store = make_store(space=LOG_SPACE)

    location = catch_up(store, uri, experiment)

    page = location.page("http://host:5000")
    tag = client.get_experiment(location.experiment_id).tags[f"mlflow.sharedViewState.{location.view}"]
    assert page.startswith(f"http://host:5000/#/experiments/{location.experiment_id}/runs?")
    assert f"viewStateShareKey={location.view}" in page
    assert "orderBy" not in page  # beside an order, MLflow does not look at the view
    assert json.loads(tag)["orderByKey"] == "metrics.`loss`"
    assert location == location_of(store.record())


def test_a_page_that_mlflow_does_not_take_is_its_own(store, uri, client, experiment):
    class Refusing:
        def __getattr__(self, name):
            if name == "set_experiment_tag":
                raise ConnectionError("no")
            return getattr(client, name)

    location = catch_up(store, uri, experiment, make_client=lambda _: Refusing())

    assert location.view is None
    assert "orderByKey=metrics.%60loss%60" in location.page("http://host:5000")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_the_prepared_page(make_store, database, tmp_path):
    path, port = tmp_path / "mlflow.db", free_port()
    shutil.copy(database, path)
    store = make_store(space=LOG_SPACE)
    for number, loss in enumerate([0.5, 0.25, 0.75]):
        run(store, number, loss, params={"lr": 10.0**-number}, accuracy=1 - loss)
    location = sync(store, f"sqlite:///{path}", "looked at")

    with serving(f"sqlite:///{path}", port, tmp_path):
        text = dom(location.page(f"http://127.0.0.1:{port}"), tmp_path)

    assert "Parameters and loss" in text
    assert "Error loading shared view" not in text
    assert text.index("trial 1") < text.index("trial 0") < text.index("trial 2")


def dom(page, folder):
    """The page's HTML after its scripts have run."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={folder}/browser", "--virtual-time-budget=25000", "--dump-dom", page]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout


def test_a_pruned_trial_is_killed_and_a_failed_one_failed(store, uri, client, experiment):
    run(store, 0, 0.9, outcome=Pruned(0.9))
    run(store, 1, 0.9, outcome=Failed(Kind.SIGNAL, "killed by signal 11 (SIGSEGV) " + "x" * 20_000))

    location = catch_up(store, uri, experiment)

    runs = children(client, location)
    assert [runs[n].info.status for n in (0, 1)] == ["KILLED", "FAILED"]
    assert runs[1].data.tags["hpo.error.kind"] == "signal"
    assert runs[1].data.tags["hpo.error.reason"].startswith("killed by signal 11 (SIGSEGV) xxx")


def test_the_pruners_verdict_is_in_the_tags_of_its_trial(store, uri, client, experiment):
    store.add(0, {}, {})
    claim = store.claim("worker-1", 0)
    store.stop(0, Verdict(epoch=4, chance=0.0234567, best=0.1))
    store.finish(claim, Pruned(0.9))

    location = catch_up(store, uri, experiment)

    tags = children(client, location)[0].data.tags
    assert (tags["hpo.verdict.epoch"], tags["hpo.verdict.chance"]) == ("4", "0.0235")


def test_only_claimed_trials_have_runs(store, uri, client, experiment):
    store.add(0, {}, {})
    store.add(1, {}, {})
    store.claim("worker-1", 1)

    location = catch_up(store, uri, experiment)

    runs = children(client, location)
    assert {number: run.info.status for number, run in runs.items()} == {1: "RUNNING"}


def test_what_mlflow_does_not_take_is_made_fit(store, uri, client, experiment, caplog):
    params = {"a+b": 1, "a*b": 2, "../x//y/": "\0", "größe": "λ" * 7000, "": "", "e" * 400: None}
    metrics = {"precision/0 (zero)": math.nan, "up?": math.inf, "n": 10**400}
    run(store, 0, params=params, outcome=Completed(0.5, metrics))
    run(store, 1, params={f"p{i}": i for i in range(250)}, outcome=Completed(0.5))
    claim_all = {f"m{i}": float(i) for i in range(1500)}
    run(store, 2, 0.5, **claim_all)

    location = catch_up(store, uri, experiment)

    runs = children(client, location)
    shown = runs[0].data.params
    assert (shown["a_b"], shown["a_b_2"], shown["x/y"], shown["e" * 250]) == ("1", "2", "�", "None")
    assert len(shown["größe"]) == 6000
    assert math.isnan(runs[0].data.metrics["result/precision/0 _zero_"])
    assert runs[0].data.metrics["result/up_"] == sys.float_info.max
    assert len(runs[1].data.params) == 250
    assert len(runs[2].data.metrics) >= 1500
    assert caplog.records == []


def test_a_trial_whose_run_was_deleted_by_hand_holds_up_no_other(store, uri, client, experiment, caplog):
    projection = Projection(store, uri, experiment)
    store.add(0, {}, {})
    claim = store.claim("worker-1", 0)
    projection.catch_up()
    client.delete_run(children(client, projection.location)[0].info.run_id)

    store.report(claim, 0, 1.0, {}, time=1.0)
    store.finish(claim, Completed(1.0))
    run(store, 1)
    while not projection.catch_up():
        pass

    assert set(children(client, projection.location)) == {1}
    assert [record.message.split(":")[0] for record in caplog.records] == ["MLflow refuses trial 0"]


# --- attempts


def test_a_retry_that_starts_anew_has_each_epoch_once(store, uri, client, experiment):
    projection = Projection(store, uri, experiment)
    store.add(0, {}, {"lr": 0.1})
    first = store.claim("worker-1", 0)
    for epoch in range(4):
        store.report(first, epoch, 9.0, {}, time=1.0 + epoch)
    projection.catch_up()
    store.recall()
    projection.catch_up()
    waiting = children(client, projection.location)[0]

    second = store.claim("worker-2", 0)
    for epoch in range(2):
        store.report(second, epoch, 0.5, {}, time=10.0 + epoch)
        projection.catch_up()
    store.finish(second, Completed(0.5))
    projection.catch_up()

    assert (waiting.info.status, waiting.data.tags["hpo.state"]) == ("RUNNING", "waiting")
    child = children(client, projection.location)[0]
    assert curve(client, child.info.run_id, "loss") == [(0, 0.5), (1, 0.5)]
    assert (child.data.tags["hpo.attempts"], child.data.tags["hpo.worker"]) == ("2", "worker-2")
    assert child.data.params == {"lr": "0.1"}


def test_an_epoch_reported_again_replaces_the_one_before(store, uri, client, experiment):
    projection = Projection(store, uri, experiment)
    store.add(0, {}, {})
    claim = store.claim("worker-1", 0)
    for fold, loss in enumerate([0.9, 0.7, 0.5]):
        store.report(claim, 0, loss, {}, time=1.0 + fold)
        projection.catch_up()

    child = children(client, projection.location)[0]
    assert curve(client, child.info.run_id, "loss") == [(0, 0.5)]


def test_a_retry_that_begins_between_two_epochs_ends_the_older_curve_there(store, uri, client, experiment):
    projection = Projection(store, uri, experiment)
    store.add(0, {}, {})
    first = store.claim("worker-1", 0)
    store.report(first, 0, 9.0, {}, time=1.0)
    store.report(first, 4, 8.0, {}, time=2.0)
    projection.catch_up()
    store.recall()

    second = store.claim("worker-2", 0)
    store.report(second, 2, 0.5, {}, time=10.0)
    projection.catch_up()

    child = children(client, projection.location)[0]
    assert curve(client, child.info.run_id, "loss") == [(0, 9.0), (2, 0.5)]


def test_a_retry_that_goes_on_keeps_its_run(store, uri, client, experiment):
    projection = Projection(store, uri, experiment)
    store.add(0, {}, {})
    first = store.claim("worker-1", 0)
    store.report(first, 0, 0.9, {}, time=1.0)
    projection.catch_up()
    before = children(client, projection.location)[0]
    store.recall()

    second = store.claim("worker-2", 0)
    store.report(second, 1, 0.5, {}, time=10.0)
    store.finish(second, Completed(0.5))
    while not projection.catch_up():
        pass

    child = children(client, projection.location)[0]
    assert child.info.run_id == before.info.run_id
    assert curve(client, child.info.run_id, "loss") == [(0, 0.9), (1, 0.5)]


def test_a_run_left_by_a_killed_driver_is_taken_over(store, uri, client, experiment):
    store.add(0, {}, {})
    claim = store.claim("worker-1", 0)
    store.report(claim, 0, 0.9, {}, time=1.0)
    before = children(client, catch_up(store, uri, experiment))[0]

    store.report(claim, 1, 0.5, {}, time=2.0)
    store.finish(claim, Completed(0.5))
    location = catch_up(store, uri, experiment)

    child = children(client, location)[0]
    assert (child.info.run_id, child.info.status) == (before.info.run_id, "FINISHED")
    assert curve(client, child.info.run_id, "loss") == [(0, 0.9), (1, 0.5)]


# --- crashes


def history(store):
    """A study's life; yields where the driver would look at it."""
    store.add(0, {}, {"lr": 0.1})
    store.add(1, {}, {"lr": 0.2})
    first = store.claim("a", 0)
    store.report(first, 0, 0.9, {"accuracy": 0.5}, time=1.0)
    lost = store.claim("b", 1)
    store.report(lost, 0, 0.8, {}, time=1.0)
    store.report(lost, 1, math.inf, {}, time=2.0)
    yield
    store.report(first, 1, 0.7, {"accuracy": math.nan}, time=2.0)
    store.lose("b", Failed(Kind.LOST, "silent"), retries=1)
    store.finish(first, Completed(0.6, {"best_epoch": 1, "dataset": DATASET}))
    yield
    retried = store.claim("c", 1)
    store.report(retried, 0, 0.4, {}, time=10.0)
    yield
    run(store, 2, outcome=Failed(Kind.NAN, "the loss is nan"))
    store.report(retried, 1, 0.3, {}, time=11.0)
    store.finish(retried, Completed(0.3))
    run(store, 3, 0.5, outcome=Pruned(0.5))
    store.add(4, {}, {"lr": 0.5})
    last = store.claim("a", 4)
    store.report(last, 0, 0.2, {}, time=20.0)
    yield


WRITES = {
    *("create_experiment", "create_run", "log_batch", "set_terminated", "delete_run", "update_run"),
    "log_inputs",
}


class Killed(BaseException):
    """Not caught by anything, as a killed process catches nothing."""


class Failing:
    """A client whose n-th write does not reach MLflow, or reaches it without an answer."""

    def __init__(self, client, n, error, *, is_written):
        self._client, self._left, self._error, self._is_written = client, n, error, is_written

    def __getattr__(self, name):
        method = getattr(self._client, name)
        return self._failing(method) if name in WRITES else method

    def _failing(self, method):
        def call(*args, **options):
            self._left -= 1
            if self._left == 0 and not self._is_written:
                raise self._error
            result = method(*args, **options)
            if self._left == 0:
                raise self._error
            return result

        return call


def follow(store, new_projection):
    """Catch up along the study's history, past errors and, with a new projection, past deaths."""
    faults = 0
    projection = new_projection()
    for _ in history(store):
        while True:
            try:
                while not projection.catch_up(limit=3):
                    pass
                break
            except Killed:
                faults += 1
                projection = new_projection()
            except ConnectionError:
                faults += 1
    return faults


@pytest.mark.parametrize(
    ("error", "is_written"),
    [(Killed(), False), (ConnectionError("the answer was lost"), True)],
    ids=["killed", "answer-lost"],
)
def test_a_fault_at_any_write_leaves_no_trace(make_store, uri, client, error, is_written):
    for n in itertools.count(1):
        store, experiment = make_store(), next(experiments)
        failing = Failing(client, n, error, is_written=is_written)

        faults = follow(store, lambda s=store, e=experiment, f=failing: catching_up(s, uri, e, f))

        lived = everything(client, location_of(store.record()))
        assert lived == everything(client, catch_up(store, uri, next(experiments))), f"fault at write {n}"
        assert len(client.search_runs([client.get_experiment_by_name(experiment).experiment_id])) == 6
        if not faults:
            assert n > 20
            return


def catching_up(store, uri, experiment, client):
    return Projection(store, uri, experiment, make_client=lambda _: client)


def test_catching_up_again_writes_nothing(store, uri, client, experiment):
    for _ in history(store):
        catch_up(store, uri, experiment)
    before = everything(client, location_of(store.record()))
    store.note("mlflow", None)  # as if nothing were known: every trial is looked at again

    location = catch_up(store, uri, experiment)

    assert everything(client, location) == before


# --- where it goes


def test_a_deleted_database_is_rebuilt(store, database, tmp_path):
    for _ in history(store):
        pass
    first, second = (tmp_path / name / "mlflow.db" for name in ("first", "second"))
    for path in (first, second):
        path.parent.mkdir()
        shutil.copy(database, path)
    before = everything(
        MlflowClient(f"sqlite:///{first}"), catch_up(store, f"sqlite:///{first}", "deleted and rebuilt")
    )
    # MLflow keeps a file it has opened open, so the database without the study is another file.
    store.note("mlflow", store.record().notes["mlflow"] | {"tracking_uri": f"sqlite:///{second}"})

    location = catch_up(store, f"sqlite:///{second}", "deleted and rebuilt")

    assert everything(MlflowClient(f"sqlite:///{second}"), location) == before


def test_another_mlflow_is_filled_from_the_beginning(store, uri, client):
    run(store, 0)
    catch_up(store, uri, next(experiments))

    there = catch_up(store, uri, next(experiments))

    assert set(children(client, there)) == {0}


def test_a_deleted_parent_run_is_made_anew(store, uri, client, experiment):
    run(store, 0)
    first = catch_up(store, uri, experiment)
    client.delete_run(first.run_id)

    second = catch_up(store, uri, experiment)

    assert second.run_id != first.run_id
    assert set(children(client, second)) == {0}


def test_two_studies_of_one_name_are_two_runs(make_store, uri, experiment):
    first = catch_up(make_store(), uri, experiment)

    second = catch_up(make_store(seed=8), uri, experiment)

    assert first.run_id != second.run_id


def test_a_deleted_experiment_is_named_with_the_mend(store, uri, client, experiment):
    client.delete_experiment(client.create_experiment(experiment))

    with pytest.raises(UsageError, match="was deleted") as caught:
        catch_up(store, uri, experiment)

    assert "mlflow experiments restore" in caught.value.hint


def test_the_experiment_is_called_like_the_study_unless_named(store, uri, client):
    location = catch_up(store, uri, None)

    assert client.get_experiment(location.experiment_id).name == "digits"


def test_a_location_has_a_page_where_a_server_runs():
    served = Location("http://host:5000/", "3", "abc")
    in_a_file = Location("sqlite:////tmp/mlflow.db", "3", "abc")

    assert served.url is not None
    assert served.url.startswith("http://host:5000/#/experiments/3/runs?")
    assert in_a_file.url is None


def test_the_default_database_is_beside_the_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert default_tracking_uri("sqlite:////data/runs/hpo.db") == "sqlite:////data/runs/mlflow.db"
    assert default_tracking_uri("sqlite:///hpo.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert default_tracking_uri("mongodb://lab/hpo") == f"sqlite:///{tmp_path}/mlflow.db"


# --- files


def put(store, name, text, trial=None, folder=None):
    path = folder / "file"
    path.write_text(text)
    store.put_files({name: path}, trial)


def test_artifacts_and_logs_are_uploaded_and_checkpoints_are_not(store, uri, client, experiment, tmp_path):
    put(store, "snapshot/abc.zip", "code", folder=tmp_path)
    put(store, "artifacts/plots/a.txt", "plot", 0, folder=tmp_path)
    put(store, "artifacts/report.txt", "report", 0, folder=tmp_path)
    put(store, "log.txt", "log", 0, folder=tmp_path)
    put(store, "checkpoint/model.pt", "weights", 0, folder=tmp_path)
    run(store, 0)
    run(store, 1)

    location = catch_up(store, uri, experiment)

    child = children(client, location)[0].info.run_id
    assert [info.path for info in client.list_artifacts(location.run_id, "code")] == ["code/abc.zip"]
    assert [info.path for info in client.list_artifacts(child)] == ["log.txt", "plots", "report.txt"]
    assert Path(client.download_artifacts(child, "plots/a.txt", str(tmp_path))).read_text() == "plot"


def test_artifacts_lie_beside_the_database(store, database, uri, client, experiment):
    location = catch_up(store, uri, experiment)

    artifacts = client.get_run(location.run_id).info.artifact_uri
    assert artifacts == f"{database.parent}/mlartifacts/{location.run_id}/artifacts"


def test_files_that_were_left_are_uploaded_by_the_next_process(store, uri, client, experiment, tmp_path):
    put(store, "log.txt", "log", 0, folder=tmp_path)
    put(store, "log.txt", "log", 1, folder=tmp_path)
    run(store, 0)
    run(store, 1)
    killed = Projection(store, uri, experiment)
    while not killed.catch_up():
        pass
    killed.upload()  # the code
    killed.upload()  # trial 0

    location = catch_up(store, uri, experiment)

    runs = children(client, location).values()
    assert [[info.path for info in client.list_artifacts(run.info.run_id)] for run in runs] == [
        ["log.txt"]
    ] * 2


# --- live


def test_the_observer_follows_and_ends_the_parent(store, uri, client, experiment):
    observer = MlflowObserver(store.url, store.study, uri, experiment, pause_seconds=0.0)
    run(store, 0)
    observer.update(NEWS)

    is_complete = observer.close(status="KILLED")

    assert is_complete
    assert client.get_run(observer.location.run_id).info.status == "KILLED"
    assert set(children(client, observer.location)) == {0}
    assert observer.location == location_of(store.record())


def test_a_resumed_study_is_running_again(store, uri, client, experiment):
    MlflowObserver(store.url, store.study, uri, experiment).close()

    location = catch_up(store, uri, experiment)

    assert client.get_run(location.run_id).info.status == "RUNNING"


class Switched:
    """A client that fails while it is down."""

    def __init__(self, uri):
        self._client = MlflowClient(uri)
        self.is_down = threading.Event()
        self.has_failed = threading.Semaphore(0)

    def __getattr__(self, name):
        if self.is_down.is_set():
            self.has_failed.release()
            raise ConnectionError("no answer")
        return getattr(self._client, name)


def test_an_outage_is_logged_once_and_made_up_for(store, uri, client, experiment, caplog):
    switch = Switched(uri)
    switch.is_down.set()
    options = {"make_client": lambda _: switch, "pause_seconds": 0.0, "retry_seconds": 0.001}
    with caplog.at_level(logging.WARNING, "hpo.tracking"):
        observer = MlflowObserver(store.url, store.study, uri, experiment, **options)
        run(store, 0)
        observer.update(NEWS)
        for _ in range(3):
            assert switch.has_failed.acquire(timeout=60)

        switch.is_down.clear()
        is_complete = observer.close()

    assert is_complete
    assert set(children(client, observer.location)) == {0}
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "MLflow at sqlite",
        "MLflow at sqlite",
    ]
    assert "no answer" in caplog.records[0].message
    assert "answers again" in caplog.records[1].message


def test_an_outage_that_lasts_lets_the_study_end(store, uri, experiment):
    switch = Switched(uri)
    switch.is_down.set()
    observer = MlflowObserver(
        store.url, store.study, uri, experiment, make_client=lambda _: switch, retry_seconds=0.001
    )

    assert observer.close(timeout=0.1) is False
    assert observer.location is None


def test_sync_ends_a_study_that_nobody_drives(store, uri, client, experiment):
    run(store, 0)
    finished = client.get_run(sync(store, uri, experiment).run_id).info.status
    store.add(1, {}, {})
    interrupted = client.get_run(sync(store, uri, experiment).run_id).info.status

    assert (finished, interrupted) == ("FINISHED", "KILLED")


# --- at the start


def free_port():
    with contextlib.closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_a_server_that_does_not_answer_is_an_error_at_the_start(store):
    with pytest.raises(TrackingUnreachable, match="no MLflow server answered") as caught:
        MlflowObserver(store.url, store.study, f"http://127.0.0.1:{free_port()}")

    assert "--tracking-uri none" in caught.value.hint


def test_a_file_that_is_no_database_is_an_error_at_the_start(store, tmp_path):
    (tmp_path / "mlflow.db").write_text("Dear diary, " * 100)

    with pytest.raises(TrackingUnreachable, match="not a database"):
        MlflowObserver(store.url, store.study, f"sqlite:///{tmp_path}/mlflow.db")


def test_a_fresh_database_is_made_in_silence(store, tmp_path):
    uri = f"sqlite:///{tmp_path}/new folder/mlflow.db"
    run(store, 0)
    script = f"""if True:
        from hpo.tracking.mlflow import MlflowObserver
        import sys
        assert "mlflow" not in sys.modules
        assert MlflowObserver({store.url!r}, {store.study!r}, {uri!r}).close()
    """

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert set(children(MlflowClient(uri), location_of(store.record()))) == {0}


# --- a server


@contextlib.contextmanager
def serving(uri, port, folder):
    command, environment = ui_command(uri, "127.0.0.1", port)
    with open(folder / "server.log", "a") as log:
        server = subprocess.Popen(
            command, env=os.environ | environment, stdout=log, stderr=log, cwd=folder, start_new_session=True
        )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(0.1)
                pytest.fail(f"the server ended: {(folder / 'server.log').read_text()[-2000:]}")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_a_study_through_a_server(store, database, tmp_path, capfd):
    path, port = tmp_path / "mlflow.db", free_port()
    shutil.copy(database, path)
    url = f"http://127.0.0.1:{port}"
    put(store, "log.txt", "log", 0, folder=tmp_path)
    run(store, 0, 0.9, math.nan, params={"lr": 0.1, "empty": "", "name": "größe"}, up=math.inf, down=math.nan)
    run(store, 1, outcome=Failed(Kind.EXCEPTION, ""))

    with serving(f"sqlite:///{path}", port, tmp_path):
        location = sync(store, url, "served")
        once = everything(MlflowClient(url), location)
        store.note("mlflow", None)
        twice = everything(MlflowClient(url), sync(store, url, "served"))

    assert location.url.startswith(f"{url}/#/experiments/")
    oracle = everything(
        MlflowClient(f"sqlite:///{path}"), sync(store, f"sqlite:///{path}", "without a server")
    )
    assert once == twice == oracle
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_server_that_dies_is_brought_up_to_date_when_it_is_back(store, database, tmp_path):
    path, port = tmp_path / "mlflow.db", free_port()
    shutil.copy(database, path)
    url = f"http://127.0.0.1:{port}"
    with serving(f"sqlite:///{path}", port, tmp_path):
        observer = MlflowObserver(store.url, store.study, url, "served", pause_seconds=0.0, retry_seconds=0.1)
        run(store, 0)
        observer.update(NEWS)
        while store.record().notes.get("mlflow", {}).get("revision", 0) < store.record().revision:
            threading.Event().wait(0.02)
    run(store, 1)
    observer.update(NEWS)

    with serving(f"sqlite:///{path}", port, tmp_path):
        is_complete = observer.close()

    assert is_complete
    assert set(children(MlflowClient(f"sqlite:///{path}"), observer.location)) == {0, 1}


def test_an_objective_logs_live_into_the_run_that_is_made_before_its_trial(database, tmp_path, project):
    path, port = tmp_path / "mlflow.db", free_port()
    shutil.copy(database, path)
    url = f"http://127.0.0.1:{port}"
    project.write(
        """
        import mlflow, os, signal

        def objective(params, run):
            mlflow.log_param("x", "mine")
            with mlflow.start_run(mlflow.active_run().info.run_id, nested=True):
                mlflow.log_metric("loss", 9.0, step=40)
            mlflow.log_text(str(run.attempt), "attempt.txt")
            mlflow.end_run()
            run.report(0, 0.7)
            if run.number == 1 and run.attempt == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return 0.5
        """
    )

    with serving(f"sqlite:///{path}", port, tmp_path):
        result = project.hpo("optimize", "study.py", "--max-evals", 2, "--tracking-uri", url)
        store = connect(f"sqlite:///{project.folder}/hpo.db").open("study")
        location = location_of(store.record())
        once = everything(MlflowClient(url), location)
        store.note("mlflow", None)
        twice = everything(MlflowClient(url), sync(store, url))
        client = MlflowClient(f"sqlite:///{path}")
        runs = children(client, location)

    assert result.code == 0, str(result)
    assert once == twice
    assert {number: run.info.run_id for number, run in runs.items()} == {
        trial.number: trial.run_id for trial in store.trials()
    }
    for run in runs.values():
        assert (run.info.status, run.data.params["x"]) == ("FINISHED", "mine")
        assert curve(client, run.info.run_id, "loss") == [(0, 0.7), (40, 9.0), (41, 0.5)]
    assert url in result.stderr


@pytest.mark.slow
def test_trials_start_without_a_run_where_the_server_falls_silent(store, database, tmp_path):
    path, port = tmp_path / "mlflow.db", free_port()
    shutil.copy(database, path)
    url = f"http://127.0.0.1:{port}"
    with serving(f"sqlite:///{path}", port, tmp_path):
        observer = MlflowObserver(store.url, store.study, url, "served", pause_seconds=0.0, retry_seconds=0.1)
        while_up = observer.begin(0)

    while_down = [observer.begin(number) for number in (1, 2)]

    assert while_up is not None
    assert while_down == [None, None]
    observer.close(timeout=0.0)
