"""Studies on a real Spark cluster: a master, two workers of one core and one (fake) GPU each."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import psutil
import pytest
from spark_cluster import running_cluster

SPACES = Path(__file__).parents[2] / "spaces"
ONE_GPU = (
    "--spark-conf",
    "spark.executor.resource.gpu.amount=1",
    "--spark-conf",
    "spark.task.resource.gpu.amount=1",
)
OFF = ("--tracking-uri", "none")
SHORT = """
    def objective(params, run, *, pause=0.0):
        import os, time
        print("on GPU", os.environ.get("CUDA_VISIBLE_DEVICES"))
        run.report(0, params["x"])
        time.sleep(pause)
        return params["x"]
"""
LONG = """
    import time
    def objective(params, run):
        for epoch in range(600):
            run.report(epoch, params["x"])
            time.sleep(0.1)
        return params["x"]
"""


@pytest.fixture
def digits(project):
    """The project's own example, with what it imports."""
    for folder in ("spaces", "objectives"):
        shutil.copytree(
            SPACES.parent / folder, project.folder / folder, ignore=shutil.ignore_patterns("__pyc*")
        )
    return project


def test_a_cluster_trains_networks_on_both_its_gpus_and_tells_every_epoch(
    digits, spark_cluster, until
) -> None:
    arguments = ("--spark", spark_cluster.master, "--parallelism", "2", *ONE_GPU, "--set", "epochs=3")
    command = digits.start("optimize", "spaces/digits_mlp.py", "--max-evals", "6", "--seed", "1", *arguments)

    def running_with_epochs() -> bool:
        shown = digits.trials("digits_mlp").values()
        return any(trial["state"] == "running" and trial["epochs"] for trial in shown)

    until(running_with_epochs, "an epoch of a running trial")
    result = command.result()

    assert result.code == 0, result
    trials = digits.trials("digits_mlp")
    assert sorted(trials) == list(range(6))
    assert {trial["state"] for trial in trials.values()} == {"completed"}
    assert {tuple(trial["gpus"]) for trial in trials.values()} == {("0",), ("1",)}
    assert_mlflow_is_whole(digits.folder, trials)


def assert_mlflow_is_whole(folder: Path, trials) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    [experiment] = [one for one in client.search_experiments() if one.name == "digits_mlp"]
    runs = client.search_runs([experiment.experiment_id])
    children = {int(run.data.tags["hpo.trial"]): run for run in runs if "hpo.trial" in run.data.tags}
    assert sorted(children) == sorted(trials)
    for number, run in children.items():
        assert run.info.status == "FINISHED"
        assert run.data.metrics["loss"] == trials[number]["loss"]
        assert len(client.get_metric_history(run.info.run_id, "loss")) >= trials[number]["epochs"]
        assert client.list_artifacts(run.info.run_id)


def test_trials_share_gpus_or_have_several_as_sparks_amounts_say(
    project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project.write(SHORT)
    shape = ("--workers", "1", "--cores", "4", "--gpus", "0,1", "--port", "0")
    had = {}

    with running_cluster(tmp_path_factory.mktemp("gpus"), shape) as cluster:
        for study, amount, trials in (("two", "2", 2), ("half", "0.5", 4)):
            gpus = ("spark.executor.resource.gpu.amount=2", f"spark.task.resource.gpu.amount={amount}")
            options = [word for setting in gpus for word in ("--spark-conf", setting)]
            done = project.hpo(
                *("optimize", "study.py", "--study", study, "--max-evals", trials, "--set", "pause=1"),
                *("--spark", cluster.master, *options, *OFF),
            )
            assert done.code == 0, str(done)
            shown = project.trials(study)
            had[study] = {tuple(trial["gpus"]) for trial in shown.values()}
            told = {project.hpo("log", study, number).stdout.strip() for number in shown}
            assert told == {f"on GPU {','.join(devices)}" for devices in had[study]}

    assert had == {"two": {("0", "1")}, "half": {("0",), ("1",)}}


def test_trials_run_the_code_as_it_was_at_launch(project, spark_cluster, until) -> None:
    space = project.write(SHORT)
    command = project.start(
        "optimize", "study.py", "--max-evals", "4", "--spark", spark_cluster.master, "--set", "pause=1", *OFF
    )
    until(lambda: project.trials(), "a first trial")

    space.write_text(space.read_text().replace('return params["x"]', "return -1.0"))

    assert command.result().code == 0
    assert all(0 <= trial["loss"] <= 1 for trial in project.trials().values())


def test_ctrl_c_leaves_no_job_and_no_process(project, spark_cluster, until, is_alive) -> None:
    project.write(LONG)
    command = project.start("optimize", "study.py", "--max-evals", "4", "--spark", spark_cluster.master, *OFF)
    until(lambda: any(trial["epochs"] for trial in project.trials().values()), "an epoch")
    workers = [int(trial["worker"].rpartition(":")[2]) for trial in project.trials().values()]

    command.signal(signal.SIGINT)
    until(lambda: "letting the running trials end" in command.said(), "the first Ctrl-C")
    command.signal(signal.SIGINT)
    result = command.result()

    assert result.code == 130, result
    assert {trial["state"] for trial in project.trials().values()} == {"waiting"}
    until(lambda: not any(map(is_alive, workers)), "the end of the workers")
    until(lambda: not spark_cluster.executors, "the end of the executors")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 129)]
)
def test_while_spark_starts_a_signal_ends_all_at_once(
    project, until, is_alive, number: int, code: int
) -> None:
    project.write(SHORT)
    command = project.start("optimize", "study.py", "--max-evals", "2", "--spark", "local[2]", *OFF)
    until(lambda: java_of(command.pid), "Spark's Java")
    java = java_of(command.pid)

    os.killpg(command.pid, number)  # as a terminal does
    result = command.result()

    assert result.code == code, result
    assert "Traceback" not in result.stderr
    until(lambda: not any(map(is_alive, java)), "the end of Java")


def test_a_closed_terminal_hands_trials_back(project, until, is_alive) -> None:
    project.write(LONG)
    command = project.start("optimize", "study.py", "--max-evals", "2", "--spark", "local[2]", *OFF)
    until(lambda: any(trial["epochs"] for trial in project.trials().values()), "an epoch")
    java = java_of(command.pid)

    os.killpg(command.pid, signal.SIGHUP)
    result = command.result()

    assert result.code == 129, result
    assert "Traceback" not in result.stderr
    assert {trial["state"] for trial in project.trials().values()} == {"waiting"}
    until(lambda: not any(map(is_alive, java)), "the end of Java")


def java_of(driver: int) -> list[int]:
    """Spark's Java under a driver, which begins as a script."""
    found = []
    for child in psutil.Process(driver).children():
        with contextlib.suppress(psutil.Error):  # those that have ended meanwhile
            found += [child.pid] if "pyspark-shell" in child.cmdline() else []
    return found


def test_a_trial_ends_with_its_executor_even_if_sparks_daemon_for_python_is_dead(
    project, spark_cluster, until, is_alive
) -> None:
    project.write(SHORT)
    arguments = (
        "--set",
        "pause=600",
        "--max-evals",
        "1",
        "--spark",
        spark_cluster.master,
        "--parallelism",
        "1",
        *OFF,
    )
    command = project.start("optimize", "study.py", *arguments)
    until(lambda: "trial 0 started" in command.said(), "a trial")
    worker = int(project.trials()[0]["worker"].rpartition(":")[2])

    for executor in map(psutil.Process, spark_cluster.executors):
        for daemon in executor.children():
            daemon.kill()
        executor.kill()

    until(lambda: not is_alive(worker), "the end of the worker")
    until(lambda: is_running(project, 2), "another attempt")


def test_a_spark_that_dies_is_told_in_a_sentence(project, until) -> None:
    project.write(LONG)
    command = project.start("optimize", "study.py", "--max-evals", "2", "--spark", "local[2]", *OFF)
    until(lambda: any(trial["epochs"] for trial in project.trials().values()), "an epoch")

    [java] = [one for one in command.descendants() if one.name() == "java"]
    java.kill()
    result = command.result()

    assert result.code == 5, result
    assert "the Spark application on local[2] was ended from outside" in result.stderr
    assert {trial["state"] for trial in project.trials().values()} == {"waiting"}


def test_one_session_has_several_studies_of_the_same_code(project, spark_cluster) -> None:
    project.write(SHORT)
    script = project.folder / "notebook.py"
    script.write_text(
        "import hpo, sys\n"
        "from pyspark.sql import SparkSession\n"
        "session = SparkSession.builder.master(sys.argv[1]).getOrCreate()\n"
        "for study in ('first', 'second'):\n"
        "    hpo.optimize('study.py', max_evals=2, spark=session, study=study, tracking_uri='none')\n"
        "session.stop()\n"
    )

    subprocess.run(
        [sys.executable, script, spark_cluster.master],
        cwd=project.folder,
        env=os.environ | {"PYSPARK_PYTHON": sys.executable},
        timeout=180,
        check=True,
    )

    assert len(project.trials("first")) == len(project.trials("second")) == 2


def test_a_trial_killed_in_sparks_pages_runs_again_and_then_fails(project, spark_cluster, until) -> None:
    project.write(LONG)
    port = free_port()
    ui = ("--spark-conf", f"spark.ui.port={port}")
    command = project.start(
        "optimize",
        "study.py",
        "--max-evals",
        "1",
        "--spark",
        spark_cluster.master,
        "--retries",
        "1",
        *ui,
        *OFF,
    )

    for attempt in (1, 2):
        until(lambda n=attempt: is_running(project, n), f"attempt {attempt}")
        kill_running_job(f"http://127.0.0.1:{port}")

    result = command.result()
    assert result.code == 3, result
    assert project.trials()[0]["error"]["kind"] == "lost"
    assert "cancelled" in project.trials()[0]["error"]["reason"]


def is_running(project, attempt: int) -> bool:
    trial = project.trials().get(0)
    return bool(trial and trial["state"] == "running" and trial["attempts"] == attempt)


def kill_running_job(page: str) -> None:
    """As the link beside the job in Spark's pages does: it sends a form with a token of the page."""
    with urllib.request.urlopen(f"{page}/jobs/", timeout=10) as answer:
        shown = answer.read().decode()
    [job] = re.findall(r"hpo study trial 0</span>((?:(?!</tr>).)*?)</form>", shown, re.DOTALL)
    form = dict(re.findall(r'name="(\w+)" value="(\w+)"', job))
    urllib.request.urlopen(f"{page}/jobs/job/kill/", urllib.parse.urlencode(form).encode(), timeout=10)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_what_keeps_spark_from_starting_is_one_sentence_each(project, spark_cluster) -> None:
    project.write(SHORT)
    study = ("optimize", "study.py", "--max-evals", "2", *OFF)
    master = spark_cluster.master

    nobody = project.hpo(*study, "--spark", "spark://127.0.0.1:1")
    too_much = project.hpo(
        *study, "--spark", master, "--spark-conf", "spark.executor.memory=900g", "--executor-timeout", "3s"
    )
    on_demand = project.hpo(
        *(
            *study,
            "--spark",
            master,
            "--spark-conf",
            "spark.executor.memory=900g",
            "--executor-timeout",
            "3s",
        ),
        *("--spark-conf", "spark.dynamicAllocation.enabled=true"),
    )
    other_python = project.hpo(*study, "--spark", master, env={"PYSPARK_PYTHON": "/nowhere/python"})
    named_python = project.hpo(
        *study, "--spark", master, "--spark-conf", "spark.pyspark.python=/nowhere/named"
    )
    no_number = project.hpo(*study, "--spark", master, "--spark-conf", "spark.executor.memory=lots")
    unreached = project.hpo(
        *study, "--spark", master, "--driver-host", "no.such.host", "--executor-timeout", "3s"
    )

    assert (nobody.code, too_much.code, on_demand.code) == (5, 5, 5)
    assert (other_python.code, named_python.code) == (5, 5)
    assert "no Spark master answers at spark://127.0.0.1:1" in nobody.stderr
    assert "gave no executor within 3 s" in too_much.stderr
    assert "spark.executor.memory=900g" in too_much.stderr
    assert "gave no executor within 3 s" in on_demand.stderr
    assert "executors have no Python at /nowhere/python" in other_python.stderr
    assert "executors have no Python at /nowhere/named" in named_python.stderr
    assert "Executor memory must be a positive number" in no_number.stderr
    assert "executors must reach this machine at no.such.host (--driver-host)" in unreached.stderr
    for result in (nobody, too_much, on_demand, other_python, named_python, no_number, unreached):
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--spark", "nonsense"], "is no master"),
        (["--spark", "local[0]"], "is no master"),
        (["--spark", "local[2]", "--driver-host", ""], "--driver-host is empty"),
        (["--spark", "local[2]", "--workers", "2"], "--parallelism"),
        (["--spark", "local[2]", "--gpus", "0"], "spark.task.resource.gpu.amount"),
        (["--parallelism", "2"], "--parallelism is about Spark"),
        (["--spark", "local[2]", "--spark-conf", "memory=1"], "spark.executor.memory=4g"),
        (["--spark", "local[2]", "--properties-file", "nowhere.conf"], "nowhere.conf"),
    ],
)
def test_options_that_make_no_sense_are_refused(project, options: list[str], said: str) -> None:
    project.write(SHORT)

    refused = project.hpo("optimize", "study.py", "--max-evals", "2", *options)

    assert refused.code == 2
    assert said in " ".join(refused.stderr.split())
    assert not (project.folder / "hpo.db").exists()


def test_properties_that_are_no_text_are_refused(project) -> None:
    project.write(SHORT)
    (project.folder / "spark.conf").write_bytes(bytes(range(256)))

    refused = project.hpo(
        "optimize", "study.py", "--max-evals", "2", "--spark", "local[2]", "--properties-file", "spark.conf"
    )

    assert refused.code == 2
    assert "spark.conf can't be read" in refused.stderr


def test_the_master_of_the_command_goes_before_that_of_the_properties(project) -> None:
    project.write(SHORT)
    (project.folder / "spark.conf").write_text(
        "spark.master spark://127.0.0.1:1\nspark.submit.deployMode cluster\n"
    )

    result = project.hpo(
        "optimize",
        "study.py",
        "--max-evals",
        "2",
        "--spark",
        "local[2]",
        "--properties-file",
        "spark.conf",
        *OFF,
    )

    assert result.code == 0, result
