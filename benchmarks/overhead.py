"""What a trial costs beside its training, and whether that grows with the study.

    python benchmarks/overhead.py                    # 100 and 10 000 trials; some minutes
    python benchmarks/overhead.py --trials 100 1000  # quicker

An objective that returns at once, three parameters, random search (the search itself aside), one worker.
Peers in the same run: hyperopt's fmin, in memory, which keeps nothing; Optuna on SQLite, if it is installed.
Each study is a process of its own; milliseconds per trial are from the first trial to the last, start-up
aside, and of the last hundred trials alone, where growth would show.
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
    print(
        f"{'system':28} {'trials':>7} {'ms/trial':>9} {'last 100':>9} {'driver MiB':>11} {'again s':>8} {'show s':>7}"
    )
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
                print(f"{name:28} {trials:7}   not installed")
                continue
            stamps, memory, again, show = result
            each, last = milliseconds(stamps), milliseconds(stamps[-100:])
            costs[name, trials] = each
            rest = f"{again:8.2f} {show:7.2f}" if again is not None else ""
            print(f"{name:28} {len(stamps):7} {each:9.2f} {last:9.2f} {memory:11.0f} {rest}", flush=True)
    few, many = min(options.trials), max(options.trials)
    print()
    for name in ("hpo, MLflow off", "hpo, MLflow on"):
        print(f"{name}: a trial of {many} costs {costs[name, many] / costs[name, few]:.2f} of one of {few}")
        if ("Optuna, SQLite", few) in costs:
            print(
                f"{name}: {costs[name, few] / costs['Optuna, SQLite', few]:.2f} of Optuna's time ({few} trials)"
            )
        print(
            f"{name}: {costs[name, few] / costs['hyperopt fmin, memory', few]:.2f} of hyperopt's ({few} trials)"
        )


def ours(trials: int, *more: str) -> tuple[list[float], float, float, float]:
    from hpo.stores import connect

    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "space.py").write_text(SPACE)
        command = [sys.executable, "-m", "hpo", "optimize", "space.py", "--study", "s", "--algo", "random"]
        command += ["--max-evals", str(trials), *more]
        memory = run(command, project)[1]
        again = seconds(command, project)
        show = seconds([sys.executable, "-m", "hpo", "show", "s"], project)
        with closing(connect(f"sqlite:///{project}/hpo.db")) as catalog:
            stamps = [trial.ended or 0.0 for trial in catalog.open("s").trials()]
    assert len(stamps) == trials
    return stamps, memory, again, show


def peer(program: str, trials: int) -> tuple[list[float], float, None, None] | None:
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "space.py").write_text(SPACE)
        (project / "peer.py").write_text(program)
        output, memory = run([sys.executable, "peer.py", str(trials)], project)
    return (json.loads(output), memory, None, None) if output else None


def run(command: list[str], folder: Path) -> tuple[str, float]:
    """Standard output, and the process's own peak memory in MiB (its workers are not counted)."""
    with open(folder / "errors", "w") as errors:
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True, env=quiet()
        )
    watched, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            peak = max(peak, watched.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.05)
    output = process.communicate()[0]
    problem = (folder / "errors").read_text()
    if process.returncode and "ModuleNotFoundError" not in problem:
        sys.exit(f"{' '.join(command)} failed:\n{problem}")
    return output, peak / 2**20


def seconds(command: list[str], folder: Path) -> float:
    started = time.perf_counter()
    run(command, folder)
    return time.perf_counter() - started


def milliseconds(stamps: list[float]) -> float:
    return (stamps[-1] - stamps[0]) / (len(stamps) - 1) * 1000


def quiet() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


if __name__ == "__main__":
    main()
