"""The process executor keeps the executor contract."""

from contextlib import closing
from pathlib import Path

import psutil
import pytest

from hpo.executors import WorkerSettings
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


def test_workers_share_the_cores_and_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))

    shares = [environment_of_workers(workers)["OMP_NUM_THREADS"] for workers in (1, 3, 8, 20)]

    assert shares == ["8", "2", "1", "1"]
    assert environment_of_workers(2)["MKL_NUM_THREADS"] == "7"
