"""`hpo submit` with Spark's own spark-submit: results, exit codes and signals are those of `hpo optimize`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from spark_cluster import SparkCluster

from hpo.loading import locate
from hpo.submission import LAUNCHER, pack_code

Until = Callable[[Callable[[], Any], str], Any]
HERE = ("--conf", "spark.driver.host=127.0.0.1", "--conf", "spark.ui.enabled=false")
QUICK = ("--tracking-uri", "none", "--seed", "1")


def test_a_submitted_study_prints_its_document_and_nothing_else(project: Any) -> None:
    file = project.write("def objective(params):\n    print('hello')\n    return params['x']")

    done = project.hpo(
        *("submit", file, "--master", "local[2]", *HERE, "--", "--max-evals", 4, "--json", *QUICK)
    )

    assert done.code == 0, done
    assert done.json["trials"]["completed"] == 4
    assert "trial 3 completed" in done.stderr
    assert "INFO TaskSetManager" not in done.stderr
    assert len(project.trials()) == 4


def test_the_exit_code_is_that_of_the_driver(project: Any) -> None:
    file = project.write("def objective(params):\n    raise ValueError('no')")

    done = project.hpo("submit", file, "--master", "local[1]", *HERE, "--", "--max-evals", 1, *QUICK)

    assert done.code == 3, done


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGINT, 130, "letting the running trials end"),
        (signal.SIGTERM, 75, "run again when you continue"),
    ],
)
def test_a_signal_reaches_the_driver_and_spark_stays_until_it_has_ended(
    project: Any, until: Until, number: int, code: int, says: str
) -> None:
    file = project.write(
        """
        import pathlib, time

        def objective(params):
            pathlib.Path("started").touch()
            while not pathlib.Path("go on").exists():
                time.sleep(0.02)
            return params["x"]
        """
    )
    command = project.start("submit", file, "--master", "local[1]", *HERE, "--", "--max-evals", 9, *QUICK)
    until(lambda: (project.folder / "started").exists(), "a trial")
    submitting = command.descendants()

    command.signal(number)
    until(lambda: says in command.said(), "the driver's answer")
    if number == signal.SIGINT:
        (project.folder / "go on").touch()
    done = command.result()

    assert done.code == code, done
    assert f"hpo submit {file} --master" in done.stderr  # how to go on
    states = {trial["state"] for trial in project.trials().values()}
    assert states == ({"completed"} if number == signal.SIGINT else {"waiting"})
    psutil.wait_procs(submitting, timeout=30)
    assert not [process for process in submitting if process.is_running()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_before_there_is_a_driver_ends_everything(
    project: Any, until: Until, number: int, code: int
) -> None:
    file = project.write("def objective(params):\n    return params['x']")
    command = project.start("submit", file, "--master", "local[1]", *HERE, "--", "--max-evals", 9, *QUICK)
    until(lambda: any(is_spark_submit(process) for process in command.descendants()), "spark-submit")
    submitting = command.descendants()

    command.signal(number)

    assert command.result().code == code
    psutil.wait_procs(submitting, timeout=30)
    assert not [process for process in submitting if process.is_running()]


def is_spark_submit(process: psutil.Process) -> bool:
    try:
        return "org.apache.spark.deploy.SparkSubmit" in process.cmdline()
    except psutil.Error:  # it has just ended
        return False


def test_trials_of_a_cluster_run_in_the_environment_that_travels(
    project: Any, spark_cluster: SparkCluster, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPACKED="$0" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with tarfile.open(project.folder / "env.tar.gz", "w:gz") as archive:
        archive.add(python, "bin/python")
    file = project.write(
        """
        import os

        def objective(params):
            return float("PACKED" in os.environ)
        """
    )

    done = project.hpo(
        *("submit", file, "--master", spark_cluster.master, "--archives", "env.tar.gz", *HERE),
        *("--conf", "spark.executor.memory=512m", "--", "--max-evals", 2, *QUICK),
    )

    assert done.code == 0, done
    assert [trial["loss"] for trial in project.trials().values()] == [1.0, 1.0]


def test_a_driver_in_the_cluster_runs_from_what_came_along(project: Any, tmp_path: Path) -> None:
    (project.folder / "spaces").mkdir()
    (project.folder / "losses.py").write_text("def loss(x):\n    return x")
    project.write(
        "import losses\n\ndef objective(params):\n    return losses.loss(params['x'])", name="spaces/study.py"
    )
    (project.folder / "pyproject.toml").unlink()  # git's folder says where the project begins
    subprocess.run(["git", "init", "-q", project.folder], check=True)
    there = tmp_path / "container"  # as YARN and Kubernetes lay it out
    code = pack_code(locate(str(project.folder / "spaces" / "study.py")), tmp_path)
    zipfile.ZipFile(code).extractall(there / "hpo_code")
    shutil.copy(LAUNCHER, there)
    shutil.rmtree(project.folder)

    done = subprocess.run(
        [
            *(sys.executable, "submitted.py", "optimize", "hpo_code/code/spaces/study.py:objective"),
            *("--max-evals", "1", *QUICK),
        ],
        cwd=there,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert "trial 0 completed" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--master", "nonsense", "--", "--max-evals", 2), "--master nonsense is no master"),
        (("--master", "local[2]", "--max-evals", 2), "-- --max-evals"),
    ],
)
def test_a_command_that_spark_would_not_understand_is_refused(
    project: Any, arguments: Any, said: str
) -> None:
    file = project.write("def objective(params):\n    return params['x']")

    refused = project.hpo("submit", file, *arguments)

    assert refused.code == 2
    assert said in " ".join(refused.stderr.split())
