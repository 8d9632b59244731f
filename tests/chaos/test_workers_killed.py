"""Workers that people start, killed with -9 and started at random: every trial ends, and none twice."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hpo.core.errors import StoreUnreachable
from hpo.core.trial import State
from hpo.stores import connect

TRIALS = 12
KILLS = 5
AT_ONCE = 3  # workers
SPACE = """
import time
from hyperopt import hp
space = {"x": hp.uniform("x", -5, 5)}
def objective(params, run):
    for epoch in range(4):
        time.sleep(0.05)
        (run.checkpoint_directory / "epoch").write_text(str(epoch))
        run.report(epoch, params["x"] ** 2 + 1 / (epoch + 1))
    return {"loss": params["x"] ** 2, "attempt": run.attempt}
"""

# Every commit runs some seeds, `make test-all` the rest.
SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] if seed >= 2 else []) for seed in range(20)]


class Shells:
    """The processes that a person has started in the project's folder."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self._all: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with open(self.project / "log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "hpo", *arguments],
                cwd=self.project,
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        self._all.append(process)
        return process

    def close(self) -> None:
        for process in self._all:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def shells(tmp_path: Path) -> Iterator[Shells]:
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "space.py").write_text(SPACE)
    started = Shells(tmp_path)
    yield started
    started.close()


def ended(project: Path) -> dict[int, tuple[object, ...]]:
    try:
        with closing(connect(f"sqlite:///{project}/hpo.db")) as catalog:
            return {
                trial.number: (trial.state, trial.loss, dict(trial.result), trial.ended)
                for name in catalog.names()
                for trial in catalog.open(name).trials()
                if trial.state.has_ended
            }
    except StoreUnreachable:  # the driver has not made it yet
        return {}


@pytest.mark.parametrize("seed", SEEDS)
def test_workers_killed_and_started_at_random_end_every_trial_once(shells: Shells, seed: int) -> None:
    rng = random.Random(seed)
    # A worker's death counts as a retry of its trial: allow as many as there are kills.
    driver = shells.start(
        *("optimize", "space.py", "--study", "chaos", "--seed", str(seed), "--max-evals", str(TRIALS)),
        *("--workers", "0", "--lease", "1s", "--retries", "50", "--tracking-uri", "none"),
    )
    workers = [shells.start("worker") for _ in range(AT_ONCE)]
    kills = 0
    seen: dict[int, tuple[object, ...]] = {}
    deadline = time.monotonic() + 240
    while driver.poll() is None:
        assert time.monotonic() < deadline, (shells.project / "log").read_text()
        time.sleep(rng.uniform(0.2, 1.5))  # the instant of the kill, not a wait for anything
        now = ended(shells.project)
        assert {number: now[number] for number in seen} == seen
        seen = now
        if kills < KILLS and now:
            victim = rng.randrange(AT_ONCE)
            workers[victim].send_signal(signal.SIGKILL)
            workers[victim] = shells.start("worker")
            kills += 1

    assert driver.wait() == 0, (shells.project / "log").read_text()

    final = ended(shells.project)
    assert kills > 0
    assert sorted(final) == list(range(TRIALS))
    assert all(state is State.COMPLETED for state, *_ in final.values())
    assert {number: final[number] for number in seen} == seen
