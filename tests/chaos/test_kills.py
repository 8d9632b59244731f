"""`kill -9` at random instants, then the same command again: nothing is lost, nothing is run twice."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from hpo.core.errors import StoreUnreachable
from hpo.core.trial import Trial
from hpo.stores import connect

TRIALS = 15
KILLS = 4
SPACE = """
import math, time
from hyperopt import hp
space = {
    "x": hp.uniform("x", -5, 5),
    "model": hp.choice("model", [{"kind": "a", "depth": hp.quniform("depth", 1, 9, 1)}, {"kind": "b"}]),
}
def objective(params, run):
    for epoch in range(5):
        time.sleep(0.01)
        (run.checkpoint_directory / "epoch").write_text(str(epoch))
        run.report(epoch, params["x"] ** 2 + 1 / (epoch + 1))
    return {"loss": params["x"] ** 2 + math.sin(params["model"].get("depth", 0)), "seen": run.seed}
"""

# Every commit runs some seeds, `make test-all` the rest.
SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] if seed >= 2 else []) for seed in range(20)]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "space.py").write_text(SPACE)
    return tmp_path


def start(project: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hpo", "optimize", "space.py", "--study", "chaos", "--seed", "5"]
    with open(project / "driver.log", "a") as log:
        return subprocess.Popen(
            [*command, "--max-evals", str(TRIALS), *more],
            cwd=project,
            stdout=log,
            stderr=log,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def trials(project: Path) -> dict[int, Trial]:
    try:
        with closing(connect(f"sqlite:///{project}/hpo.db", check=True)) as catalog:
            names = catalog.names()
            return {trial.number: trial for trial in catalog.open("chaos").trials()} if names else {}
    except StoreUnreachable:  # killed before there was one
        return {}


def ended(project: Path) -> dict[int, tuple[object, ...]]:
    return {
        number: (trial.state, trial.loss, trial.result, trial.ended, trial.point)
        for number, trial in trials(project).items()
        if trial.state.has_ended
    }


def finish(project: Path, *more: str) -> None:
    driver = start(project, *more)
    assert driver.wait(timeout=120) == 0, (project / "driver.log").read_text()


def kill(driver: subprocess.Popen[str], *, with_workers: bool) -> None:
    victims = [psutil.Process(driver.pid)]
    if with_workers:
        victims += victims[0].children(recursive=True)
    for victim in victims:
        try:
            victim.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            pass
    driver.wait()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[int, object]:
    project = tmp_path_factory.mktemp("unbroken")
    (project / "space.py").write_text(SPACE)
    finish(project, "--tracking-uri", "none")
    return {number: trial.point for number, trial in trials(project).items()}


@pytest.mark.parametrize("with_workers", [False, True], ids=["driver", "driver and workers"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_driver_killed_again_and_again_loses_nothing(
    project: Path, unbroken: dict[int, object], seed: int, with_workers: bool
) -> None:
    rng = random.Random(seed)
    for _ in range(KILLS):
        driver = start(project, "--tracking-uri", "none")
        time.sleep(rng.uniform(0.1, 2.2))  # the instant of the kill, not a wait for anything
        kill(driver, with_workers=with_workers)
        before = ended(project)
        driver = start(project, "--tracking-uri", "none")
        time.sleep(rng.uniform(0.0, 2.2))
        kill(driver, with_workers=with_workers)
        after = ended(project)
        assert {number: after[number] for number in before} == before

    finish(project, "--tracking-uri", "none")

    final = trials(project)
    assert sorted(final) == list(range(TRIALS))
    assert all(trial.state == "completed" for trial in final.values())
    assert {number: trial.point for number, trial in final.items()} == unbroken


@pytest.mark.parametrize("seed", SEEDS)
def test_workers_killed_at_random_cost_no_trial(project: Path, seed: int) -> None:
    rng = random.Random(seed)
    # A worker's death counts as a retry of its trial: allow as many as there are kills.
    driver = start(project, "--tracking-uri", "none", "--workers", "2", "--retries", "50")
    kills = 0
    while driver.poll() is None and kills < 8:
        time.sleep(rng.uniform(0.0, 0.05))
        busy = [trial.worker for trial in trials(project).values() if trial.state == "running"]
        if busy:
            kills += kill_worker(rng.choice(busy))

    assert driver.wait(timeout=120) == 0, (project / "driver.log").read_text()

    final = trials(project)
    assert kills > 0
    assert sorted(final) == list(range(TRIALS))
    assert all(trial.state == "completed" for trial in final.values())


def kill_worker(name: str) -> bool:
    try:
        os.kill(int(name.rpartition(":")[2]), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    "seed", [pytest.param(s, marks=[pytest.mark.slow] if s >= 1 else []) for s in range(6)]
)
def test_mlflow_is_whole_after_the_driver_was_killed(project: Path, seed: int) -> None:
    from mlflow import MlflowClient

    rng = random.Random(seed)
    for _ in range(3):
        driver = start(project)
        time.sleep(rng.uniform(1.0, 6.0))
        kill(driver, with_workers=False)

    finish(project)

    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name == "chaos"]
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(runs) - len(children) == 1
    assert sorted(int(run.data.tags["hpo.trial"]) for run in children) == list(range(TRIALS))
    losses = {number: trial.loss for number, trial in trials(project).items()}
    for run in children:
        assert run.info.status == "FINISHED"
        assert run.data.metrics["loss"] == losses[int(run.data.tags["hpo.trial"])]
        epochs = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
        assert len(epochs) == len(set(epochs))
