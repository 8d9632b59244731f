"""The Spark executor keeps the executor contract, in a Spark context that the process has already."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import hpo
from hpo.core.errors import LoadError, WorkerBroken
from hpo.core.trial import Kind, State
from hpo.executors import Died, Finished, WorkerSettings
from hpo.executors.java import prepare_java
from hpo.executors.spark import Cluster, SparkExecutor
from hpo.loading import load, locate
from hpo.stores import Store, connect
from hpo.stores.server import serving
from hpo.testing import IDENTITY, ExecutorContract

SPACE = """
from hyperopt import hp
space = {"x": hp.uniform("x", 0, 1)}
def objective(params, *, scale=1):
    return scale * params["x"]
"""


@pytest.fixture(scope="module")
def context():
    from pyspark import SparkConf, SparkContext

    prepare_java()
    os.environ["PYSPARK_PYTHON"] = sys.executable
    conf = SparkConf().setMaster("local[2]").set("spark.python.task.killTimeout", "1s")
    with SparkContext(conf=conf.set("spark.ui.showConsoleProgress", "false")) as context:
        context.setLogLevel("OFF")
        yield context


@pytest.fixture
def settings(tmp_path: Path, store: Store) -> WorkerSettings:
    code = tmp_path / "code"
    code.mkdir()
    (code / "space.py").write_text(ExecutorContract.OBJECTIVE)
    return WorkerSettings(
        store=store.url,
        study=store.study,
        study_seed=0,
        code=str(code),
        file="space.py",
        name="objective",
        fingerprint=load(locate(str(code / "space.py")), {}).space.fingerprint,
        folder=str(tmp_path / "work"),
    )


@pytest.fixture
def store(tmp_path: Path):
    with closing(connect(f"sqlite:///{tmp_path}/hpo.db", create=True)) as catalog:
        yield catalog.create(IDENTITY)


class TestSparkExecutor(ExecutorContract):
    @pytest.fixture
    def store(self, store: Store) -> Store:
        return store

    @pytest.fixture
    def executor(self, context, settings: WorkerSettings):
        executor = SparkExecutor(settings, Cluster("local[2]"))
        yield executor
        executor.close()

    def assert_gone(self, worker: str) -> None:
        pid = int(worker.rpartition(":")[2])
        _until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)

    def test_a_context_that_was_there_before_is_left_running(self, executor: SparkExecutor, context) -> None:
        executor.close()

        assert context.parallelize([1, 2], 2).sum() == 3

    def test_jobs_read_well_in_sparks_pages(self, executor: SparkExecutor, store: Store, context) -> None:
        self._add(store, 0, self.WAIT)
        executor.submit(0)
        _until(lambda: store.trial(0).state is State.RUNNING)

        [job] = context.statusTracker().getActiveJobsIds()

        found = context._jsc.sc().statusStore().job(job)
        assert found.description().get() == "hpo digits trial 0"
        assert found.jobGroup().get() != ""

    def test_a_job_that_is_killed_in_sparks_pages_is_a_death(
        self, executor: SparkExecutor, store: Store, context
    ) -> None:
        self._add(store, 0, self.WAIT)
        executor.submit(0)
        _until(lambda: store.trial(0).state is State.RUNNING)

        context._jsc.sc().cancelJob(context.statusTracker().getActiveJobsIds()[0])
        [died] = _events(executor)

        assert isinstance(died, Died)
        assert (died.worker, died.number, died.failure.kind) == (None, 0, Kind.LOST)
        assert "cancelled" in died.failure.reason

    def test_parallelism_above_the_slots_queues_nothing(self, context, settings: WorkerSettings) -> None:
        with closing(SparkExecutor(settings, Cluster("local[2]", parallelism=8))) as executor:
            assert executor.free() == executor.slots == 2

    def test_parallelism_below_the_slots_leaves_some_free(self, context, settings: WorkerSettings) -> None:
        with closing(SparkExecutor(settings, Cluster("local[2]", parallelism=1))) as executor:
            assert executor.free() == executor.slots == 1

    def test_a_slot_that_is_lost_while_a_point_is_proposed_is_no_error(
        self, executor: SparkExecutor, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._add(store, 0, self.RETURN)
        assert executor.free()

        def lost() -> int:
            executor._capacity = (0, time.monotonic())
            return 0

        with monkeypatch.context() as patched:
            patched.setattr(executor, "_slots_of_cluster", lost)
            executor.submit(0)

        assert _events(executor) == [Finished(0)]

    def test_trials_that_are_lost_at_once_are_one_loss_and_one_after_the_other_they_end_the_study(
        self, executor: SparkExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def lose(*_: object) -> dict[str, object]:
            raise RuntimeError("its machine is gone")

        def lost(trials: int) -> int:
            for number in range(trials):
                executor.submit(number)
            events: list[object] = []
            while len(events) < trials:
                events += _events(executor)
            return len(events)

        monkeypatch.setattr(executor, "_job", lose)
        monkeypatch.setattr(executor, "_slots_of_cluster", lambda: 20)
        executor._capacity = (20, time.monotonic())

        assert lost(20) == 20
        assert [lost(1) for _ in range(8)] == [1] * 8
        with pytest.raises(WorkerBroken, match="10 Spark jobs in a row were lost: its machine is gone"):
            lost(1)

    def test_the_worker_is_kept_for_many_trials(self, executor: SparkExecutor, store: Store) -> None:
        for number in range(6):
            self._add(store, number, self.RETURN)
            executor.submit(number)
            _events(executor)

        assert len({store.trial(number).worker for number in range(6)}) <= 2


def test_an_executor_that_cannot_reach_the_store_loses_its_trial_alone(
    context, settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_TOKEN", "secret")
    with serving(store.url, token="secret") as server:
        executor = SparkExecutor(replace(settings, store=server.url), Cluster("local[2]"))
    with closing(executor):
        store.add(0, {"do": 0}, {})
        # Their successors have yet to reach the store; Spark misses each one at a task of its own.
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # the worker of one that was killed is going, too
                if "pyspark.daemon" in process.cmdline() and "pyspark.daemon" in process.parent().cmdline():
                    process.kill()

        told = []
        while len(told) < 8 and not any("no server answers" in died.failure.reason for died in told):
            executor.submit(0)
            told += _events(executor)

    assert {(died.number, died.failure.kind) for died in told} == {(0, Kind.LOST)}
    assert "no server answers" in told[-1].failure.reason


def test_an_import_that_executors_lack_is_told_before_the_first_trial(
    context, settings: WorkerSettings
) -> None:
    space = Path(settings.code) / "space.py"
    space.write_text("import nosuchmodule\n" + space.read_text())

    with pytest.raises(LoadError) as raised:
        SparkExecutor(settings, Cluster("local[2]"))

    assert "on a Spark executor" in raised.value.message
    assert "nosuchmodule" in raised.value.message


def test_a_notebook_searches_on_the_session_that_it_has(
    context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyspark.sql import SparkSession

    monkeypatch.chdir(tmp_path)
    Path("space.py").write_text(SPACE)
    session = SparkSession(context)

    found = hpo.optimize(
        "space.py", max_evals=3, spark=session, study="noted", set={"scale": 2}, tracking_uri="none"
    )

    assert found["trials"] == {"completed": 3, "pruned": 0, "failed": 0}
    assert found["best"]["loss"] == pytest.approx(2 * found["best"]["params"]["x"])
    assert context.parallelize([1, 2], 2).sum() == 3  # the session lives on


def test_a_notebook_searches_in_a_thread_too(
    context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("space.py").write_text(SPACE)

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(hpo.optimize, "space.py", max_evals=1, tracking_uri="none").result(120)

    assert found["trials"]["completed"] == 1


def test_another_session_than_the_one_there_is_is_refused(context, settings: WorkerSettings) -> None:
    with pytest.raises(hpo.UsageError, match=r"local\[2\].*one on local\[1\]"):
        SparkExecutor(settings, Cluster("local[1]"))
    with pytest.raises(hpo.UsageError, match="properties stay as they are"):
        SparkExecutor(settings, Cluster("local[2]", conf={"spark.task.cpus": "2"}))


def test_a_function_call_has_the_options_of_the_command(tmp_path: Path) -> None:
    with pytest.raises(hpo.UsageError) as unknown:
        hpo.optimize("space.py", max_eval=3)
    with pytest.raises(hpo.UsageError) as wrong:
        hpo.optimize("space.py", max_evals="many")

    with pytest.raises(hpo.UsageError, match="Spark Connect"):
        hpo.optimize("space.py", max_evals=3, spark=object())

    assert "--max-evals" in str(unknown.value)
    assert "many" in str(wrong.value)


def _events(executor: SparkExecutor) -> list[object]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if events := executor.wait(0.1):
            return list(events)
    return []


def _until(holds) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)
