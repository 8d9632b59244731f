"""What a trial costs beside its training, against hyperopt and Optuna, and whether that grows with the study.

    python benchmarks/overhead.py                     # all systems, both objectives; some minutes
    python benchmarks/overhead.py --trials 50 10      # fewer trials of each
    python benchmarks/overhead.py --growth 100 10000  # instead: one study small and large

Two objectives: one returns at once; one reports 50 epochs of a loss and 24 more metrics. Three parameters,
random search (the search itself aside). Every system keeps its trials in SQLite and logs them to an MLflow
database of their own that exists already: parameters, the loss, the epochs. hyperopt's objective does so
itself in nested runs, with `log_metrics` for each epoch; so does Optuna's, beside its MLflowCallback
(optuna-integration; where that is not installed, its calls are written out here).

Each study is a process of its own. Milliseconds a trial are from the end of the first trial to the end of
the process, so that what MLflow is still owed counts and start-up does not. --growth also shows the last
hundred trials alone, from their own times, the driver's memory, and seconds to repeat and to show a study.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil

SPACE = """
import sys
from hyperopt import hp
space = {"x": hp.uniform("x", 0, 1), "y": hp.loguniform("y", -5, 0), "z": hp.choice("z", ["a", "b", "c"])}
def objective(params, run):
    for epoch in range(%(epochs)d):
        run.report(epoch, params["x"] / (epoch + 1), **{f"m{k}": 0.5 for k in range(24)})
    return params["x"]
"""
HYPEROPT_MLFLOW = """
import sys, json, time, mlflow, numpy as np
from hyperopt import fmin, rand
from space import space
mlflow.set_tracking_uri("sqlite:///mlflow.db")
mlflow.set_experiment("s")
stamps = []
def objective(params):
    with mlflow.start_run(nested=True):
        mlflow.log_params(params)
        for epoch in range(%(epochs)d):
            loss = params["x"] / (epoch + 1)
            mlflow.log_metrics({"loss": loss} | {f"m{k}": 0.5 for k in range(24)}, step=epoch)
        mlflow.log_metric("loss", params["x"], step=%(epochs)d)
    stamps.append(time.time())
    return params["x"]
with mlflow.start_run():
    fmin(objective, space, algo=rand.suggest, max_evals=int(sys.argv[1]), rstate=np.random.default_rng(0),
         show_progressbar=False, verbose=False)
print(json.dumps(stamps))
"""
OPTUNA_MLFLOW = """
import sys, json, time, mlflow, optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
mlflow.set_tracking_uri("sqlite:///mlflow.db")
mlflow.set_experiment("s")
stamps = []
def objective(trial):
    trial.suggest_float("y", 0.006, 1, log=True), trial.suggest_categorical("z", ["a", "b", "c"])
    x = trial.suggest_float("x", 0, 1)
    for epoch in range(%(epochs)d):
        values = {"loss": x / (epoch + 1)} | {f"m{k}": 0.5 for k in range(24)}
        mlflow.log_metrics(values, step=epoch)
    return x
try:
    from optuna.integration import MLflowCallback
    callback = MLflowCallback("sqlite:///mlflow.db", "loss", create_experiment=False)
    objective = callback.track_in_mlflow()(objective)
    print("with optuna-integration", file=sys.stderr)
except ImportError:
    class Callback:  # the calls that MLflowCallback makes
        def __call__(self, study, trial):
            with mlflow.start_run(run_id=trial.system_attrs.get("mlflow_run_id"), nested=True):
                mlflow.log_metrics({"loss": trial.value})
                mlflow.log_params(trial.params)
                mlflow.set_tags({"number": trial.number, "state": str(trial.state), "direction": "MINIMIZE",
                    "datetime_start": trial.datetime_start, "datetime_complete": trial.datetime_complete}
                    | {f"{name}_distribution": str(one) for name, one in trial.distributions.items()})
    callback, plain = Callback(), objective
    def objective(trial):
        with mlflow.start_run(run_name=str(trial.number), nested=True) as run:
            trial.storage.set_trial_system_attr(trial._trial_id, "mlflow_run_id", run.info.run_id)
            return plain(trial)
def stamp(study, trial):
    stamps.append(time.time())
study = optuna.create_study(storage="sqlite:///optuna.db", sampler=optuna.samplers.RandomSampler(seed=0))
study.optimize(objective, n_trials=int(sys.argv[1]), callbacks=[callback, stamp])
print(json.dumps(stamps))
"""
HYPEROPT = """
import sys, json, time, numpy as np
from hyperopt import fmin, hp, rand
from space import space
stamps = []
def timed(params):
    stamps.append(time.time())
    return params["x"]
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
    parser.add_argument(
        "--trials",
        type=int,
        nargs=2,
        default=[100, 30],
        help="of the quick objective and of that with epochs",
    )
    parser.add_argument(
        "--growth", type=int, nargs="+", metavar="TRIALS", help="studies of these sizes instead"
    )
    parser.add_argument(
        "--optuna-trials", type=int, default=1000, help="with --growth: Optuna is slow, at most so many"
    )
    options = parser.parse_args()
    if options.growth:
        growth(options.growth, options.optuna_trials)
    else:
        compare(*options.trials)


def compare(quick: int, with_epochs: int) -> None:
    """Print milliseconds a trial of each system, and their ratios to Optuna's."""
    off, two = ("--tracking-uri", "none"), ("--workers", "2")
    systems: dict[str, Callable[[int, int], list[float] | None]] = {
        "hpo, 1 worker, MLflow": lambda n, epochs: ours(n, epochs=epochs)[0],
        "hpo, 2 workers, MLflow": lambda n, epochs: ours(n, *two, epochs=epochs)[0],
        "hpo, 1 worker, without": lambda n, epochs: ours(n, *off, epochs=epochs)[0],
        "hpo, 2 workers, without": lambda n, epochs: ours(n, *two, *off, epochs=epochs)[0],
        "hyperopt, nested runs": lambda n, epochs: stamps_of(peer(HYPEROPT_MLFLOW, n, epochs)),
        "Optuna, MLflowCallback": lambda n, epochs: stamps_of(peer(OPTUNA_MLFLOW, n, epochs)),
    }
    objectives = {f"at once x {quick}": (quick, 0), f"50 epochs x {with_epochs}": (with_epochs, 50)}
    print(f"{'ms a trial':28}" + "".join(f"{name:>20}" for name in objectives))
    costs: dict[str, list[float]] = {}
    for name, measure in systems.items():
        costs[name] = []
        for trials, epochs in objectives.values():
            stamps = measure(trials, epochs)
            cost = float("nan") if stamps is None else (stamps[-1] - stamps[0]) / (len(stamps) - 2) * 1000
            costs[name].append(cost)
        print(f"{name:28}" + "".join(f"{cost:20.1f}" for cost in costs[name]), flush=True)
    optuna = costs["Optuna, MLflowCallback"]
    print("\nshare of Optuna's")
    for name, figures in costs.items():
        print(f"{name:28}" + "".join(f"{a / b:20.2f}" for a, b in zip(figures, optuna, strict=True)))


def stamps_of(result: tuple[list[float], float, None, None] | None) -> list[float] | None:
    return None if result is None else result[0]


def growth(sizes: list[int], optuna_trials: int) -> None:
    """Print what a trial costs in small and large studies; MLflow's database is made on the way."""
    columns = ("trials", "ms/trial", "last 100", "driver MiB", "again s", "show s")
    print(f"{'system':24}" + "".join(f"{column:>11}" for column in columns))
    costs: dict[tuple[str, int], float] = {}
    for trials in sizes:
        for name, measure in (
            ("hpo, MLflow off", lambda n: ours(n, "--tracking-uri", "none")),
            ("hpo, MLflow on", lambda n: ours(n, has_database=False)),
            ("hyperopt fmin, memory", lambda n: peer(HYPEROPT, n)),
            ("Optuna, SQLite", lambda n: peer(OPTUNA, min(n, optuna_trials))),
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
    few, many = min(sizes), max(sizes)
    print(f"\nratios of milliseconds a trial ({few} trials where none are named)")
    for name in ("hpo, MLflow off", "hpo, MLflow on"):
        print(f"{name}, {many} trials / {few} trials: {costs[name, many] / costs[name, few]:.2f}")
        for other in ("Optuna, SQLite", "hyperopt fmin, memory"):
            if (other, few) in costs:
                print(f"{name} / {other}: {costs[name, few] / costs[other, few]:.2f}")


def ours(
    trials: int, *more: str, epochs: int = 0, has_database: bool = True
) -> tuple[list[float], float, float, float]:
    """When each trial ended and the process did; the driver's memory; seconds to repeat and to show it."""
    from hpo.stores import connect

    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "space.py").write_text(SPACE % {"epochs": epochs})
        if has_database:
            make_database(project)
        command = [sys.executable, "-m", "hpo", "optimize", "space.py", "--study", "s", "--algo", "random"]
        command += ["--max-evals", str(trials), *more]
        memory = run(command, project)[1]
        ended = time.time()
        again = seconds(command, project)
        show = seconds([sys.executable, "-m", "hpo", "show", "s"], project)
        with closing(connect(f"sqlite:///{project}/hpo.db")) as catalog:
            stamps = sorted(trial.ended or 0.0 for trial in catalog.open("s").trials())
    assert len(stamps) == trials
    return [*stamps, ended], memory, again, show


def peer(program: str, trials: int, epochs: int = 0) -> tuple[list[float], float, None, None] | None:
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "space.py").write_text(SPACE % {"epochs": epochs})
        (project / "peer.py").write_text(program % {"epochs": epochs} if "mlflow" in program else program)
        if "mlflow" in program:
            make_database(project)
        output, memory = run([sys.executable, "peer.py", str(trials)], project)
        ended = time.time()
    return ([*json.loads(output), ended], memory, None, None) if output else None


def make_database(project: Path) -> None:
    """An empty MLflow database, copied: to make one takes a second, which is no trial's."""
    global _database
    if _database is None:
        from hpo.tracking.mlflow.client import quiet_client

        with tempfile.TemporaryDirectory() as folder:
            quiet_client(f"sqlite:///{folder}/mlflow.db")
            _database = (Path(folder) / "mlflow.db").read_bytes()
    (project / "mlflow.db").write_bytes(_database)


_database: bytes | None = None


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
