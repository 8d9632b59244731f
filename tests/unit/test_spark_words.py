"""What Spark says is told in one line, and its properties are read as it reads them."""

from pathlib import Path

import pytest

from hpo.executors.spark import _properties, _reason, is_local

FAILED = (
    "An error occurred while calling z:org.apache.spark.api.python.PythonRDD.collectAndServe.\n"
    ": org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 0.0 failed 4 times,"
    " most recent failure: Lost task 0.3 in stage 0.0 (TID 3) (10.0.0.7 executor 0): "
)
MISMATCH = FAILED + (
    "org.apache.spark.api.python.PythonException: Traceback (most recent call last):\n"
    "pyspark.errors.exceptions.base.PySparkRuntimeError: [PYTHON_VERSION_MISMATCH] Python in worker has"
    " different version: 3.9 than that in driver: 3.11, PySpark cannot run with different minor versions.\n"
    "Please check environment variables PYSPARK_PYTHON and PYSPARK_DRIVER_PYTHON are correctly set.\n"
)
NO_PYTHON = FAILED + 'java.io.IOException: Cannot run program "/opt/python": error=2, No such file\n'
LOST = FAILED + "ExecutorLostFailure (executor 1 exited): killed\nDriver stacktrace:\n"
CANCELLED = (
    "An error occurred while calling z:org.apache.spark.api.python.PythonRDD.collectAndServe.\n"
    ": org.apache.spark.SparkException: [SPARK_JOB_CANCELLED] Job 2 cancelled via the Web UI SQLSTATE: XX\n"
)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (MISMATCH, ["3.9 than that in driver: 3.11", "PYSPARK_PYTHON"]),
        (NO_PYTHON, ["/opt/python", "PYSPARK_PYTHON"]),
        (LOST, ["ExecutorLostFailure (executor 1 exited): killed"]),
        (CANCELLED, ["Job 2 cancelled via the Web UI"]),
        ("", ["RuntimeError"]),
    ],
    ids=["version", "no python", "lost", "cancelled", "nothing"],
)
def test_why_a_job_failed_is_one_line(said: str, told: list[str]) -> None:
    reason = _reason(RuntimeError(said))

    assert "\n" not in reason
    for words in told:
        assert words in reason


def test_properties_are_read_as_spark_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "spark.conf"
    file.write_text(
        "# a comment\n\nspark.executor.memory   4g\nspark.a=b=c\n  spark.b : x y  \n! another\nspark.empty\n"
    )

    assert _properties(file) == {
        "spark.executor.memory": "4g",
        "spark.a": "b=c",
        "spark.b": "x y",
        "spark.empty": "",
    }


@pytest.mark.parametrize("master", ["local", "local[2]", "local[*]", "local[2,4]"])
def test_threads_of_this_process_are_local(master: str) -> None:
    assert is_local(master)


@pytest.mark.parametrize("master", ["local-cluster[2,1,1024]", "spark://localhost:7077", "yarn"])
def test_other_processes_are_not_local(master: str) -> None:
    assert not is_local(master)
