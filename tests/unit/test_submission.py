"""The spark-submit command: which words for which master and driver, and what may not be asked."""

from __future__ import annotations

import shlex
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hpo.cli import hpo
from hpo.core.errors import LoadError, SparkUnavailable
from hpo.submission import LAUNCHER, spark_home

REMOTE = ("--store", "http://studies:8765", "--tracking-uri", "http://tracking:5000")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a project with a space in a folder."""
    for name in ("HPO_STORE", "HPO_TOKEN", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_TOKEN", "SPARK_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "project" / "spaces").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    Path("pyproject.toml").touch()
    Path("spaces/net.py").write_text("space = objective = None")
    return tmp_path / "project"


def dry_run(*words: str) -> Result:
    """`hpo submit spaces/net.py WORDS`, with --dry-run among Spark's options."""
    return CliRunner().invoke(hpo, ["submit", "spaces/net.py", "--dry-run", *words])


def words_of(*words: str) -> list[str]:
    """The words of the command that would run, without its environment."""
    done = dry_run(*words)
    assert done.exception is None, done.output
    found = shlex.split(done.output)
    return found[[word.endswith("bin/spark-submit") for word in found].index(True) :]


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def confs(words: list[str]) -> dict[str, str]:
    pairs = [words[i + 1].partition("=") for i, word in enumerate(words) if word == "--conf"]
    return {key: value for key, _, value in pairs}


def refused(*words: str) -> str:
    done = dry_run(*words)
    assert done.exit_code == 2, done.output
    return done.output


def test_a_driver_here_runs_the_file_of_here_with_this_python(folder: Path) -> None:
    words = words_of("--master", "spark://lab:7077", "--", "--max-evals", "9", "--parallelism", "4")

    assert words[0] == str(spark_home() / "bin" / "spark-submit")
    assert (option(words, "--master"), option(words, "--deploy-mode")) == ("spark://lab:7077", "client")
    assert confs(words)["spark.pyspark.driver.python"] == sys.executable
    assert confs(words)["spark.pyspark.python"] == sys.executable
    assert words[words.index(str(LAUNCHER)) :] == [
        str(LAUNCHER),
        "optimize",
        f"{folder}/spaces/net.py:objective",
        *("--spark", "spark://lab:7077"),
        *("--max-evals", "9", "--parallelism", "4"),
    ]


def test_settings_of_a_person_come_after_ours() -> None:
    Path("lab.conf").touch()

    words = words_of(
        *("--master", "yarn", "--properties-file", "lab.conf"),
        *("--conf", "spark.log.level=INFO", "--conf", "spark.executor.memory=4g"),
    )

    assert option(words, "--properties-file") == "lab.conf"
    assert confs(words)["spark.log.level"] == "INFO"
    assert confs(words)["spark.executor.memory"] == "4g"


@pytest.mark.parametrize(("given", "name"), [("env.tar.gz", "environment"), ("env.tar.gz#torch", "torch")])
def test_executors_run_in_an_environment_that_travels_and_the_driver_in_its_own(
    given: str, name: str
) -> None:
    Path("env.tar.gz").touch()

    words = words_of("--master", "spark://lab:7077", "--archives", given)

    assert option(words, "--archives") == f"env.tar.gz#{name}"
    assert confs(words)["spark.pyspark.python"] == f"./{name}/bin/python"
    assert confs(words)["spark.pyspark.driver.python"] == sys.executable


@pytest.mark.parametrize(
    ("master", "more"),
    [
        ("yarn", []),
        ("k8s://https://lab:6443", ["--conf", "spark.kubernetes.file.upload.path=s3a://lab/studies"]),
    ],
)
def test_a_driver_in_the_cluster_takes_code_and_environment_along(master: str, more: list[str]) -> None:
    Path("env.tar.gz").touch()

    words = words_of(
        *("--master", master, "--deploy-mode", "cluster", "--archives", "env.tar.gz", *more),
        *("--", "--max-evals", "9", *REMOTE),
    )

    environment, code = option(words, "--archives").split(",")
    assert (environment, code.rpartition("#")[2]) == ("env.tar.gz#environment", "hpo_code")
    assert {"code/spaces/net.py", "code/pyproject.toml", "hpo/cli/optimize.py"} <= set(
        zipfile.ZipFile(code.rpartition("#")[0]).namelist()
    )
    assert confs(words)["spark.pyspark.python"] == "./environment/bin/python"
    assert "spark.pyspark.driver.python" not in confs(words)
    assert words[words.index("optimize") + 1 :] == [
        *("hpo_code/code/spaces/net.py:objective", "--spark", master, "--max-evals", "9", *REMOTE)
    ]


def test_what_the_environment_says_here_is_said_on_the_line_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_STORE", "http://studies:8765")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")

    words = words_of("--master", "yarn", "--deploy-mode", "cluster")

    assert option(words, "--store") == "http://studies:8765"
    assert option(words, "--tracking-uri") == "http://tracking:5000"


def test_points_travel_to_a_driver_in_the_cluster() -> None:
    Path("known").mkdir()
    Path("known/points.csv").touch()

    words = words_of(
        *("--master", "yarn", "--deploy-mode", "cluster"), *("--", "--points", "known/points.csv", *REMOTE)
    )

    assert option(words, "--files") == "known/points.csv"
    assert words[-2:] == ["--points", "points.csv"]


def test_a_token_is_named_and_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_TOKEN", "hush")

    done = dry_run("--master", "yarn", "--deploy-mode", "cluster", "--", *REMOTE)

    assert 'spark.yarn.appMasterEnv.HPO_TOKEN="$HPO_TOKEN"' in done.output
    assert "hush" not in done.output


@pytest.mark.parametrize("properties", ["", "spark.executor.memory 4g"])
def test_a_token_travels_in_a_file_that_nobody_else_can_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, properties: str
) -> None:
    submitting = tmp_path / "spark" / "bin" / "spark-submit"
    submitting.parent.mkdir(parents=True)
    submitting.write_text(
        f'#!/bin/sh\nwhile [ "$1" != --properties-file ]; do shift; done\ncp -p "$2" {tmp_path}/seen\n'
    )
    submitting.chmod(0o755)
    monkeypatch.setenv("SPARK_HOME", str(tmp_path / "spark"))
    monkeypatch.setenv("HPO_TOKEN", r"back\slash")
    given = []
    if properties:
        Path("lab.conf").write_text(properties)
        given = ["--properties-file", "lab.conf"]

    subprocess.run(
        [
            *(sys.executable, "-m", "hpo", "submit", "spaces/net.py", "--master", "k8s://https://lab:6443"),
            *("--conf", "spark.kubernetes.file.upload.path=s3a://lab/studies"),
            *("--deploy-mode", "cluster", *given, "--", *REMOTE),
        ],
        check=True,
    )

    seen = tmp_path / "seen"
    assert seen.read_text().split("\n")[:2] == [
        properties,
        r"spark.kubernetes.driverEnv.HPO_TOKEN=back\\slash",
    ]
    assert stat.S_IMODE(seen.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--spark", "local[2]"], "--spark is what --master says"),
        (["--workers", "2"], "say --parallelism"),
        (["--gpus", "0,1"], "spark.task.resource.gpu.amount"),
        (["--inline"], "hpo optimize --inline"),
        (["--spark-conf", "spark.a=b"], "--spark-conf goes before the --"),
        (["--max-eval", "2"], "--max-evals"),
    ],
)
def test_options_that_contradict_spark_are_refused(options: list[str], sentence: str) -> None:
    assert sentence in refused("--master", "local[2]", "--", *options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "the study would be lost"),
        (["--store", "sqlite:///mine.db"], "sqlite:///mine.db"),
        (["--store", "http://localhost:8765"], "http://localhost:8765"),
        ([], "MLflow's runs would be lost"),
        (["--tracking-uri", "http://me:secret@lab:5000"], "MLFLOW_TRACKING_PASSWORD"),
        (["--tracking-uri", "sqlite:///mlflow.db"], "--tracking-uri http://HOST:PORT, or none"),
        ([*REMOTE, "--tensorboard"], "leave --tensorboard out"),
        ([*REMOTE, "--json"], "hpo best STUDY --json"),
        ([*REMOTE, "--warm-start", "sqlite:///old.db#study"], "sqlite:///old.db#study"),
    ],
)
def test_what_a_driver_in_the_cluster_would_lose_is_refused(options: list[str], sentence: str) -> None:
    assert sentence in refused("--master", "yarn", "--deploy-mode", "cluster", "--", *options)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--master", "spark://lab:7077"], "only on YARN and Kubernetes; with --deploy-mode client"),
        (["--master", "local[2]"], "only on YARN and Kubernetes"),
        (["--master", "k8s://https://lab:6443"], "spark.kubernetes.file.upload.path"),
    ],
)
def test_clusters_that_cannot_run_a_driver_are_named(words: list[str], sentence: str) -> None:
    assert sentence in refused(*words, "--deploy-mode", "cluster", "--", *REMOTE)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--archives", "gone.tar.gz"], "there is no file gone.tar.gz"),
        (["--master", "local[2]", "--archives", "spaces/net.py"], "this machine's Python"),
        (["--conf", "memory"], "--conf memory: write spark.executor.memory=4g"),
    ],
)
def test_what_spark_would_stumble_over_is_refused(words: list[str], sentence: str) -> None:
    assert sentence in refused("--master", "yarn", *words)


def test_several_faults_are_one_report() -> None:
    said = refused("--master", "yarn", "--archives", "gone", "--", "--workers", "2", "--gpus", "0")

    assert all(word in said for word in ("--workers", "--gpus", "gone"))


def test_a_file_that_is_not_there_is_an_error_before_anything_starts() -> None:
    done: Any = CliRunner().invoke(hpo, ["submit", "spaces/ne.py", "--master", "local[2]"])

    assert isinstance(done.exception, LoadError)
    assert "net.py" in done.exception.hint


def test_a_spark_home_without_spark_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARK_HOME", str(tmp_path))

    with pytest.raises(SparkUnavailable, match=str(tmp_path)):
        spark_home()
