"""spark-conf/: Spark knows each setting, and starts with them on a machine without a GPU and on a cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from spark_cluster import SparkCluster

FOLDER = Path(__file__).parents[2] / "spark-conf"
SETTING = re.compile(r"^(#?)(spark\.\S+) {2,}(\S.*)$", re.MULTILINE)  # also those that are commented out
RESOURCE = re.compile(r"spark\.(executor|task)\.resource\.gpu\.(amount|discoveryScript|vendor)")


def test_spark_knows_every_setting_and_starts_with_them() -> None:
    settings = SETTING.findall((FOLDER / "spark-defaults.conf").read_text())
    keys = [key for _, key, _ in settings if not RESOURCE.fullmatch(key)]

    found = in_spark(
        f"""
        know = context._jvm.org.apache.spark.internal.config.ConfigEntry.findEntry
        unknown = [key for key in {keys!r} if know(key) is None]
        job = context.parallelize([20], 1).map(lambda number: number + 1).collect()
        print(json.dumps({{"unknown": unknown, "job": job, "settings": dict(context.getConf().getAll())}}))
        """,
        master="local[1]",
    )

    assert len(keys) > 15
    assert (found["unknown"], found["job"]) == ([], [21])
    in_force = {key: value for comment, key, value in settings if not comment}
    assert found["settings"].items() >= in_force.items()


def test_a_task_of_a_cluster_has_the_gpu_that_the_settings_ask_for(spark_cluster: SparkCluster) -> None:
    found = in_spark(
        """
        from pyspark import TaskContext
        address = lambda _: TaskContext.get().resources()["gpu"].addresses[0]
        print(json.dumps(context.parallelize([0], 1).map(address).collect()))
        """,
        master=spark_cluster.master,
        **{"spark.executor.resource.gpu.amount": "1", "spark.task.resource.gpu.amount": "1"},
    )

    assert found in (["0"], ["1"])


def in_spark(program: str, *, master: str, **settings: str) -> Any:
    """What the program prints, as JSON; it has a ``context`` made with the settings of the folder."""
    start = f"""
        import json
        from pyspark import SparkConf, SparkContext

        conf = SparkConf().setMaster({master!r}).setAll({list(settings.items())!r})
        context = SparkContext(conf=conf.set("spark.driver.host", "127.0.0.1"))
    """
    environment = {"SPARK_CONF_DIR": str(FOLDER), "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(program)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert " INFO " not in done.stderr.replace(
        "INFO StandaloneAppClient$ClientEndpoint", ""
    )  # log4j2.properties
    return json.loads(done.stdout)
