"""Trials per second on Spark with an objective that returns at once: ours, hyperopt's, and what Spark allows.

    python benchmarks/spark.py                            # local[2], two trials at a time
    python benchmarks/spark.py --master spark://HOST:7077 --parallelism 4 --trials 200

The floor is a bare job of one task, `parallelize([x], 1).map(f).collect()`, from a pool of as many threads:
no search, no store, no process that outlives a crash of the objective. Ours is `hpo optimize --algo random`
as a user runs it, with and without MLflow (a database that exists already). hyperopt's is
`fmin(trials=SparkTrials(parallelism))` with random search, MLflow off.

Each is a process of its own, one after another, as often as --rounds says; rates are from the end of the
first trial to the end of the last, so Spark's start does not count. --growth N runs a study of N trials
instead, and shows the memory of the driver and of its JVM after every tenth of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import psutil

from hpo.executors.java import prepare_java
from hpo.stores import connect
from hpo.tracking.mlflow.client import quiet_client

SPACE = """
from hyperopt import hp
space = {"x": hp.uniform("x", 0, 1), "y": hp.loguniform("y", -5, 0), "z": hp.choice("z", ["a", "b", "c"])}
def objective(params):
    return params["x"]
"""
FLOOR = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from pyspark import SparkConf, SparkContext
master, parallelism, trials = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
context = SparkContext(conf=SparkConf().setMaster(master).set("spark.locality.wait", "0s"))
context.setLogLevel("ERROR")
def job(number):
    context.parallelize([number], 1).map(lambda x: x).collect()
    return time.time()
with ThreadPoolExecutor(parallelism) as threads:
    list(threads.map(job, range(parallelism)))
    stamps = sorted(threads.map(job, range(trials)))
print(json.dumps(stamps))
"""
HYPEROPT = """
import json, sys, time, numpy as np
from hyperopt import SparkTrials, fmin, rand
from pyspark.sql import SparkSession
from space import space
master, parallelism, trials = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
session = SparkSession.builder.master(master).config("spark.locality.wait", "0s").getOrCreate()
session.sparkContext.setLogLevel("ERROR")
found = SparkTrials(parallelism=parallelism, spark_session=session)
def objective(params):
    import time
    return {"loss": params["x"], "status": "ok", "ended": time.time()}
fmin(objective, space, algo=rand.suggest, max_evals=trials, trials=found, rstate=np.random.default_rng(0),
     show_progressbar=False, verbose=False)
print(json.dumps(sorted(result["ended"] for result in found.results)))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--master", default="local[2]")
    parser.add_argument("--parallelism", type=int, default=2)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--hyperopt-trials", type=int, default=20, help="it takes a second for each")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--growth", type=int, metavar="TRIALS", help="the driver's memory instead")
    options = parser.parse_args()
    prepare_java()
    if options.growth:
        growth(options.master, options.parallelism, options.growth)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Print trials per second of each system, and the ratios the project aims at."""
    master, parallelism, trials = options.master, options.parallelism, options.trials
    systems = {
        "floor: bare jobs": lambda: peer(FLOOR, master, parallelism, trials),
        "hpo, MLflow off": lambda: ours(master, parallelism, trials, "--tracking-uri", "none"),
        "hpo, MLflow on": lambda: ours(master, parallelism, trials),
        "hyperopt SparkTrials": lambda: peer(HYPEROPT, master, parallelism, options.hyperopt_trials),
    }
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(options.rounds):
        for name, measure in systems.items():
            stamps = measure()
            rates[name].append((len(stamps) - 1) / (stamps[-1] - stamps[0]))
            print(f"{name:24}{rates[name][-1]:8.2f} trials/s", flush=True)
    median = {name: statistics.median(each) for name, each in rates.items()}
    print(f"\n{master}, {parallelism} at a time, median of {options.rounds}")
    for one, other in (
        ("hpo, MLflow off", "floor: bare jobs"),
        ("hpo, MLflow on", "floor: bare jobs"),
        ("hpo, MLflow on", "hyperopt SparkTrials"),
    ):
        print(f"{one} / {other}: {median[one] / median[other]:.2f}")


def ours(master: str, parallelism: int, trials: int, *more: str) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "space.py").write_text(SPACE)
        quiet_client(f"sqlite:///{project}/mlflow.db")
        run(command(master, parallelism, trials, *more), project)
        with closing(connect(f"sqlite:///{project}/hpo.db")) as catalog:
            return sorted(trial.ended or 0.0 for trial in catalog.open("s").trials())


def command(master: str, parallelism: int, trials: int, *more: str) -> list[str]:
    words = [sys.executable, "-m", "hpo", "optimize", "space.py", "--study", "s", "--algo", "random"]
    words += ["--spark", master, "--parallelism", str(parallelism), "--max-evals", str(trials)]
    return [*words, *more]


def peer(program: str, master: str, parallelism: int, trials: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "space.py").write_text(SPACE)
        (project / "peer.py").write_text(program)
        output = run([sys.executable, "peer.py", master, str(parallelism), str(trials)], project)
    stamps: list[float] = json.loads(output.splitlines()[-1])
    return stamps


def growth(master: str, parallelism: int, trials: int) -> None:
    """Print the memory of the driver and of its JVM while a study grows."""
    print(f"{'trials':>8}{'driver MiB':>12}{'JVM MiB':>10}")
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "space.py").write_text(SPACE)
        words = command(master, parallelism, trials, "--tracking-uri", "none")
        with open(project / "output", "w") as output:
            process = subprocess.Popen(words, cwd=project, env=environment(), stdout=output, stderr=output)
        driver, shown = psutil.Process(process.pid), 0
        while process.poll() is None:
            time.sleep(0.2)
            ended = count(project)
            if ended >= shown + trials // 10:
                shown = ended
                java = [one for one in driver.children(recursive=True) if one.name() == "java"]
                sizes = [driver.memory_info().rss, sum(one.memory_info().rss for one in java)]
                print(f"{ended:8}{sizes[0] / 2**20:12.1f}{sizes[1] / 2**20:10.1f}", flush=True)
        if process.returncode:
            sys.exit((project / "output").read_text())


def count(project: Path) -> int:
    if not (project / "hpo.db").exists():
        return 0
    with closing(connect(f"sqlite:///{project}/hpo.db")) as catalog:
        return catalog.open("s").record().counts["completed"] if catalog.names() else 0


def run(words: list[str], folder: Path) -> str:
    with open(folder / "output", "w") as output, open(folder / "errors", "w") as errors:
        done = subprocess.run(words, cwd=folder, stdout=output, stderr=errors, env=environment())
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{(folder / 'errors').read_text()}")
    return (folder / "output").read_text()


def environment() -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "PYSPARK_PYTHON": sys.executable,
    }


if __name__ == "__main__":
    main()
