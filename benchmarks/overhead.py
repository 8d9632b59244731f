"""What a trial costs beside its training, and whether that grows with the study.

    python benchmarks/overhead.py                    # 100 and 10 000 trials; some minutes
    python benchmarks/overhead.py --trials 100 1000  # quicker

An objective that returns at once, three parameters, random search (the search itself aside), one worker.
Peers in the same run: hyperopt's fmin, in memory, which keeps nothing; Optuna on SQLite, if it is installed.
Each study is a process of its own. Milliseconds a trial are from the end of the first trial to the end of
the process, so that what MLflow is still owed counts and start-up does not; those of the last hundred trials
are from their own times, where growth would show.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import psutil

SPACE = """
from hyperopt import hp
space = {"x": hp.uniform("x", 0, 1), "y": hp.loguniform("y", -5, 0), "z": hp.choice("z", ["a", "b", "c"])}
def objective(params):
    return params["x"]
"""
HYPEROPT = """
import sys, json, time, numpy as np
from hyperopt import fmin, hp, rand
from space import space, objective
stamps = []
def timed(params):
    stamps.append(time.time())
    return objective(params)
fmin(timed, space, algo=rand.suggest, max_evals=int(sys.argv[1]), rstate=np.random.default_rng(0),
     show_progressbar=False, verbose=False)
print(json.dumps(stamps))
"""
OPTUNA = """
import sys, json, time, optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
stamps = []
def objective(trial):
    stamps.append(time.time())
    trial.suggest_float("y", 0.006, 1, log=True), trial.suggest_categorical("z", ["a", "b", "c"])
    return trial.suggest_float("x", 0, 1)
study = optuna.create_study(storage="sqlite:///optuna.db", sampler=optuna.samplers.RandomSampler(seed=0))
study.optimize(objective, n_trials=int(sys.argv[1]))
print(json.dumps(stamps))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument(
        "--optuna-trials", type=int, default=1000, help="Optuna on SQLite is slow: at most so many"
    )
    options = parser.parse_args()
    columns = ("trials", "ms/trial", "last 100", "driver MiB", "again s", "show s")
    print(f"{'system':24}" + "".join(f"{column:>11}" for column in columns))
    costs: dict[tuple[str, int], float] = {}
    for trials in options.trials:
        for name, measure in (
            ("hpo, MLflow off", lambda n: ours(n, "--tracking-uri", "none")),
            ("hpo, MLflow on", ours),
            ("hyperopt fmin, memory", lambda n: peer(HYPEROPT, n)),
            ("Optuna, SQLite", lambda n: peer(OPTUNA, min(n, options.optuna_trials))),
        ):
            result = measure(trials)
            if result is None:
                print(f"{name:24}{trials:11}  not installed")
                continue
            stamps, memory, again, show = result
            costs[name, trials] = (stamps[-1] - stamps[0]) / (len(stamps) - 2) * 1000
            last = (stamps[-2] - stamps[-101]) / 99 * 1000 if len(stamps) > 100 else float("nan")
            figures = [costs[name, trials], last, memory]
            figures += [] if again is None else [again, show]
            print(
                f"{name:24}{len(stamps) - 1:11}" + "".join(f"{figure:11.2f}" for figure in figures),
                flush=True,
            )
    few, many = min(options.trials), max(options.trials)
    print(f"\nratios of milliseconds a trial ({few} trials where none are named)")
    for name in ("hpo, MLflow off", "hpo, MLflow on"):
        print(f"{name}, {many} trials / {few} trials: {costs[name, many] / costs[name, few]:.2f}")
        for other in ("Optuna, SQLite", "hyperopt fmin, memory"):
            if (other, few) in costs:
                print(f"{name} / {other}: {costs[name, few] / costs[other, few]:.2f}")


def ours(trials: int, *more: str) -> tuple[list[float], float, float, float]:
    """When each trial ended and the process did; the driver's memory; seconds to repeat and to show it."""
    from hpo.stores import connect

    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "space.py").write_text(SPACE)
        command = [sys.executable, "-m", "hpo", "optimize", "space.py", "--study", "s", "--algo", "random"]
        command += ["--max-evals", str(trials), *more]
        memory = run(command, project)[1]
        ended = time.time()
        again = seconds(command, project)
        show = seconds([sys.executable, "-m", "hpo", "show", "s"], project)
        with closing(connect(f"sqlite:///{project}/hpo.db")) as catalog:
            stamps = [trial.ended or 0.0 for trial in catalog.open("s").trials()]
    assert len(stamps) == trials
    return [*stamps, ended], memory, again, show


def peer(program: str, trials: int) -> tuple[list[float], float, None, None] | None:
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "space.py").write_text(SPACE)
        (project / "peer.py").write_text(program)
        output, memory = run([sys.executable, "peer.py", str(trials)], project)
        ended = time.time()
    return ([*json.loads(output), ended], memory, None, None) if output else None


def run(command: list[str], folder: Path) -> tuple[str, float]:
    """Standard output, and the process's own peak memory in MiB (its workers are not counted)."""
    # Into files: a pipe that nobody reads meanwhile would fill and hold the process up.
    with open(folder / "output", "w") as output, open(folder / "errors", "w") as errors:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=errors, env=quiet())
    watched, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            peak = max(peak, watched.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.05)
    process.wait()
    problem = (folder / "errors").read_text()
    if process.returncode and "ModuleNotFoundError" not in problem:
        sys.exit(f"{' '.join(command)} failed:\n{problem}")
    return (folder / "output").read_text(), peak / 2**20


def seconds(command: list[str], folder: Path) -> float:
    started = time.perf_counter()
    run(command, folder)
    return time.perf_counter() - started


def quiet() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


if __name__ == "__main__":
    main()
