"""Every executor keeps the executor contract."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from hpo import snapshot
from hpo.core.files import snapshot_name
from hpo.core.study import Driver, Terms
from hpo.core.trial import Failed, Kind, State
from hpo.executors import Finished, WorkerSettings
from hpo.executors.external import ExternalExecutor
from hpo.executors.processes import ProcessExecutor, environment_of_workers
from hpo.loading import load, locate
from hpo.stores import connect
from hpo.testing import IDENTITY, ExecutorContract


class TestProcessExecutor(ExecutorContract):
    @pytest.fixture
    def store(self, tmp_path: Path):
        (tmp_path / "space.py").write_text(self.OBJECTIVE)
        with closing(connect(f"sqlite:///{tmp_path}/hpo.db", create=True)) as catalog:
            yield catalog.create(IDENTITY)

    @pytest.fixture
    def executor(self, store, tmp_path: Path):
        settings = WorkerSettings(
            store=store.url,
            study=store.study,
            study_seed=0,
            code=str(tmp_path),
            file="space.py",
            name="objective",
            fingerprint=load(locate(str(tmp_path / "space.py")), {}).space.fingerprint,
            folder=str(tmp_path / "work"),
        )
        executor = ProcessExecutor(settings, [(), ()])
        yield executor
        executor.close()

    def assert_gone(self, worker: str) -> None:
        pid = int(worker.rpartition(":")[2])
        assert not psutil.pid_exists(pid)


class TestExternalExecutor(ExecutorContract):
    """With a real worker of two slots, which a person has started.

    What the contract says of deaths and cancelled trials is another here: this executor kills nobody and sees
    nobody die, so the worker must learn of a cancelled trial from the store, and tells it of deaths itself.
    """

    @pytest.fixture
    def store(self, tmp_path: Path):
        """A study as its driver leaves it to workers."""
        (tmp_path / "pyproject.toml").write_text("")
        (tmp_path / "space.py").write_text(self.OBJECTIVE)
        entry = locate(str(tmp_path / "space.py"))
        code = snapshot.take(entry.root, {"space.py"})
        snapshot.pack(code, tmp_path / "code.zip")
        fingerprint = load(entry, {}).space.fingerprint
        with closing(connect(f"sqlite:///{tmp_path}/hpo.db", create=True)) as catalog:
            store = catalog.create(replace(IDENTITY, fingerprint=fingerprint, arguments={}))
            store.put_files({snapshot_name(code.sha256): tmp_path / "code.zip"})
            store.use_snapshot(code.sha256)
            store.lead(Driver("here", os.getpid(), 0.0, "token"))
            yield store

    @pytest.fixture
    def executor(self, store, tmp_path: Path):
        executor = ExternalExecutor(store, Terms(lease_seconds=2, retries=0), "hpo worker")
        command = [sys.executable, "-m", "hpo", "worker", "--store", store.url, "--workers", "2"]
        worker = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
        try:
            _wait_for(executor, lambda: executor.free() == 2)
            yield executor
        finally:
            worker.terminate()
            worker.communicate(timeout=60)
        executor.close()

    def test_a_death_is_told_with_its_reason_and_the_slot_is_free_again(self, executor, store) -> None:
        """The worker tells the store, so the death is the trial's end."""
        self._add(store, 0, self.DIE)
        executor.submit(0)

        assert _events(executor) == [Finished(0)]

        assert store.trial(0).error.kind is Kind.SIGNAL
        _wait_for(executor, lambda: executor.free() == 2)

    def test_cancelled_trials_are_told_no_more_and_their_slots_are_free(self, executor, store) -> None:
        """As soon as the worker has learned from the store that its trial was taken back."""
        self._add(store, 0, self.WAIT)
        executor.submit(0)
        _wait_for(executor, lambda: store.trial(0).state is State.RUNNING)

        executor.cancel([0])
        store.finish(_taken_back(store, 0), Failed(Kind.LOST, "cancelled"))

        _wait_for(executor, lambda: executor.free() == 2)
        self._add(store, 1, self.RETURN)
        executor.submit(1)
        assert _events(executor) == [Finished(1)]

    # Its workers are not its own: it kills neither some of them, nor any when it closes.
    test_some_trials_can_be_cancelled_and_others_go_on = None
    test_close_ends_busy_workers_too = None


def _taken_back(store, number: int):
    store.recall([number])
    claim = store.claim("driver", number)
    assert claim is not None
    return claim


def _events(executor, seconds: float = 60.0):
    deadline = time.monotonic() + seconds
    while not (events := executor.wait(0.1)):
        assert time.monotonic() < deadline, "nothing came"
    return events


def _wait_for(executor, holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        executor.wait(0.1)


def test_workers_share_the_cores_and_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))

    shares = [environment_of_workers(workers)["OMP_NUM_THREADS"] for workers in (1, 3, 8, 20)]

    assert shares == ["8", "2", "1", "1"]
    assert environment_of_workers(2)["MKL_NUM_THREADS"] == "7"
