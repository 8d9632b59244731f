"""`kill -9` of whatever runs a study on a Spark cluster, at random: nothing is lost, nothing runs twice."""

from __future__ import annotations

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
from spark_cluster import SparkCluster

from hpo.core.errors import StoreUnreachable
from hpo.core.trial import State, Trial
from hpo.stores import connect

TRIALS = 14
KILLS = 3
SECONDS = 240.0
SPACE = """
import os, time
from hyperopt import hp
space = {"x": hp.uniform("x", -5, 5)}
def objective(params, run):
    with open(os.environ["CHAOS_LEDGER"], "a") as ledger:
        ledger.write(f"{run.number} {run.attempt}\\n")
    for epoch in range(10):
        time.sleep(0.08)
        run.report(epoch, params["x"] ** 2 + 1 / (epoch + 1))
    return params["x"] ** 2
"""
SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] if seed >= 1 else []) for seed in range(20)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
def test_executors_workers_and_drivers_killed_at_random_cost_no_trial(
    spark_cluster: SparkCluster, tmp_path: Path, seed: int
) -> None:
    study = _Study(tmp_path, spark_cluster)
    rng = random.Random(seed)
    kinds = ["executor", "spark worker", "Python process", "trial's process"]
    driver_is_killed_at = rng.randrange(KILLS)
    before: dict[int, Trial] = {}
    study.start()
    for kill in range(KILLS):
        study.wait_for_a_running_trial()
        time.sleep(rng.uniform(0.0, 0.8))  # the instant of the kill, not a wait for anything
        if kill == driver_is_killed_at:
            study.kill_driver()
            before = study.ended()
            study.start()
        else:
            study.kill(rng.choice(kinds), rng)

    study.wait()

    trials = study.trials()
    assert sorted(trials) == list(range(TRIALS))
    assert {trial.state for trial in trials.values()} == {State.COMPLETED}
    assert {number: trials[number] for number in before} == before
    begun = (tmp_path / "ledger").read_text().splitlines()
    assert len(begun) == len(set(begun)), "an attempt ran twice"


class _Study:
    """A study whose parts are killed."""

    def __init__(self, folder: Path, cluster: SparkCluster) -> None:
        self.folder, self.cluster = folder, cluster
        self.started = time.monotonic()
        (folder / "space.py").write_text(SPACE)

    def start(self) -> None:
        command = [sys.executable, "-m", "hpo", "optimize", "space.py", "--study", "chaos", "--seed", "5"]
        command += ["--max-evals", str(TRIALS), "--retries", "50", "--tracking-uri", "none"]
        ledger = f"spark.executorEnv.CHAOS_LEDGER={self.folder / 'ledger'}"
        command += ["--spark", self.cluster.master, "--spark-conf", ledger]
        with open(self.folder / "driver.log", "a") as log:
            self.driver = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        assert self.driver.wait(SECONDS) == 0, self.log()

    def wait_for_a_running_trial(self) -> None:
        def is_running() -> bool:
            return any(trial.state is State.RUNNING for trial in self.trials().values())

        while not is_running() and self.driver.poll() is None:
            assert time.monotonic() < self.started + SECONDS, self.log()
            time.sleep(0.05)

    def kill_driver(self) -> None:
        self.driver.kill()
        self.driver.wait()

    def kill(self, what: str, rng: random.Random) -> None:
        match what:
            case "executor":
                pids = self.cluster.executors
            case "spark worker":
                pids = self.cluster.workers
            case "Python process":
                pids = self._commands("pyspark.daemon")
            case _:
                pids = self._commands("hpo.executors.local_worker")
        for pid in rng.sample(pids, min(1, len(pids))):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if what == "spark worker":
            self.cluster.start_worker()

    def _commands(self, word: str) -> list[int]:
        found = []
        for pid in self.cluster.python_workers:
            try:
                found += [pid] if word in psutil.Process(pid).cmdline() else []
            except psutil.NoSuchProcess:
                pass
        return found

    def trials(self) -> dict[int, Trial]:
        try:
            with closing(connect(f"sqlite:///{self.folder}/hpo.db")) as catalog:
                names = catalog.names()
                return {trial.number: trial for trial in catalog.open("chaos").trials()} if names else {}
        except StoreUnreachable:  # there is none yet
            return {}

    def ended(self) -> dict[int, Trial]:
        return {number: trial for number, trial in self.trials().items() if trial.state.has_ended}

    def log(self) -> str:
        return (self.folder / "driver.log").read_text()
