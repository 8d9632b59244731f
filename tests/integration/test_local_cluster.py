"""spark-conf/local-cluster: a Spark cluster on this machine, that is whole and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from spark_cluster import SCRIPT, SHAPE, SparkCluster, local_cluster

Until = Callable[[Callable[[], Any], str], Any]


def test_both_workers_offer_their_own_gpu_to_tasks(spark_cluster: SparkCluster) -> None:
    program = f"""
        import sys
        from pyspark import SparkConf, SparkContext, TaskContext, BarrierTaskContext

        conf = SparkConf().setMaster({spark_cluster.master!r}).setAppName("addresses")
        for key, value in {{
            "spark.executor.memory": "512m", "spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1",
            "spark.executor.resource.gpu.amount": "1", "spark.task.resource.gpu.amount": "1",
        }}.items():
            conf.set(key, value)

        def addresses(_):
            BarrierTaskContext.get().barrier()  # both at once: on both workers
            return TaskContext.get().resources()["gpu"].addresses

        with SparkContext(conf=conf) as context:
            print(sorted(context.parallelize(range(2), 2).barrier().mapPartitions(addresses).collect()))
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYSPARK_PYTHON": sys.executable},
    )

    assert done.stdout == "['0', '1']\n", done.stderr


def test_a_killed_worker_is_started_again_with_its_gpu(spark_cluster: SparkCluster, until: Until) -> None:
    first, second = spark_cluster.workers
    spark_cluster.kill_worker(0)
    until(lambda: spark_cluster.workers == [second], "the worker's death")

    spark_cluster.start_worker()

    again, other = spark_cluster.workers
    assert (again != first, other) == (True, second)
    assert "gpu -> [name: gpu, addresses: 0]" in spark_cluster.log("worker-0")


def test_a_second_start_says_where_it_runs(spark_cluster: SparkCluster) -> None:
    before = spark_cluster.workers

    said = local_cluster(spark_cluster.folder, "start", *SHAPE)

    assert said.strip() == spark_cluster.master
    assert spark_cluster.workers == before


def test_a_start_with_other_options_is_refused(spark_cluster: SparkCluster) -> None:
    done = run(spark_cluster.folder, "start", "--workers", "5")

    assert done.returncode == 2
    assert spark_cluster.master in done.stderr
    assert len(spark_cluster.workers) == 2


def test_nobody_but_this_machine_can_reach_it(spark_cluster: SparkCluster) -> None:
    master = spark_cluster.log("master")
    listening = {
        connection.laddr.ip
        for pid in [*spark_cluster.workers, spark_cluster.master_pid]
        for connection in psutil.Process(pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }

    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    assert "6066" not in master  # the port where anybody may submit programs


def test_stop_ends_all_processes_and_status_says_so(tmp_path: Path) -> None:
    local_cluster(tmp_path, "start", "--workers", "1", "--gpus", "", "--port", "0")
    try:
        running = run(tmp_path, "status")
        assert running.returncode == 0
        assert "worker-0 runs as" in running.stderr
    finally:
        local_cluster(tmp_path, "stop")

    stopped = run(tmp_path, "status")
    assert stopped.returncode == 1
    assert str(tmp_path) in stopped.stderr
    assert not [p for p in psutil.process_iter() if is_of(p, tmp_path)]


def test_what_is_left_of_a_cluster_whose_master_died_does_not_hinder_a_start(tmp_path: Path) -> None:
    one = ("--workers", "1", "--gpus", "", "--port", "0")
    local_cluster(tmp_path, "start", *one)
    try:
        died = SparkCluster(tmp_path, "")
        (left,) = died.workers
        os.kill(died.master_pid, signal.SIGKILL)

        local_cluster(tmp_path, "start", *one)

        (new,) = died.workers
        assert new != left
        assert not psutil.pid_exists(left)
    finally:
        local_cluster(tmp_path, "stop")


def test_a_worker_that_cannot_start_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    done = run(tmp_path, "start", "--memory", "much", "--port", "0")

    assert done.returncode == 5
    assert "did not start" in done.stderr
    assert not [p for p in psutil.process_iter() if is_of(p, tmp_path)]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments, "--folder", str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


def is_of(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.environ().get("HPO_LOCAL_CLUSTER") == str(folder)
    except (psutil.Error, OSError):
        return False
