"""What a suggestion costs, against hyperopt and Optuna, in studies small and large.

    python benchmarks/suggestion.py                                    # five minutes; more with optuna-gp
    python benchmarks/suggestion.py --algorithms hpo-tpe,optuna-tpe --trials 100 1000

Ten mixed columns, and fifty of which some twelve are active at a time. A study gets so many random trials at
once; then the median of 15 rounds of asking for a point and telling its loss, in milliseconds of CPU (what
else runs takes none of those), and the peak of the memory above what the imports and a small study take.
Each measurement is a process of its own, with one thread.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import logging
import math
import multiprocessing
import os
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
import psutil
from hyperopt import hp
from problems import Unavailable, problem

import hpo.search
from hpo.core.errors import UsageError
from hpo.core.history import History
from hpo.space import Space, compile_space
from hpo.space.distributions import Categorical, Normal, Randint, Uniform

PEERS = (
    "optuna-tpe",
    "optuna-tpe-group",
    "optuna-cmaes",
    "optuna-gp",
    "hyperopt-tpe",
    "hyperopt-anneal",
)
ALGORITHMS = ("hpo-auto", "hpo-tpe", "hpo-gp", "hpo-random", *PEERS)
TIMED = ("hpo-tpe", "hpo-auto", "hpo-gp", "optuna-tpe", "optuna-gp", "hyperopt-tpe")
LARGEST = {"optuna-gp": 100}
"""Studies beyond this size take an algorithm too long."""
ROUNDS = 15

MIXED = {
    "optimizer": hp.choice("optimizer", ["sgd", "adam", "adamw"]),
    "activation": hp.choice("activation", ["relu", "gelu", "tanh", "elu"]),
    "layers": hp.uniformint("layers", 1, 8),
    "units": hp.quniform("units", 16, 512, 16),
    "batch_size": hp.qloguniform("batch_size", np.log(16), np.log(512), 16),
    "learning_rate": hp.loguniform("learning_rate", np.log(1e-5), np.log(1)),
    "weight_decay": hp.loguniform("weight_decay", np.log(1e-8), np.log(0.1)),
    "dropout": hp.uniform("dropout", 0, 0.7),
    "momentum": hp.uniform("momentum", 0, 0.99),
    "warm_up": hp.uniform("warm_up", 0, 0.3),
}


# --- algorithms, each of them asked and told


class Searcher(Protocol):
    """A study in memory. Points are ``{label: number}``; trials are numbered from 0 as they are asked for."""

    def ask(self) -> Mapping[str, float]: ...

    def tell(self, number: int, loss: float) -> None: ...

    def fill(self, trials: int, loss: Callable[[Mapping[str, float]], float]) -> None:
        """Make a new study one that has so many trials, drawn at random."""


class Own:
    """hpo's, as its loop calls it."""

    def __init__(self, algorithm: hpo.search.Algorithm, space: Space, seed: int) -> None:
        self.algorithm, self.space, self.seed = algorithm, space, seed
        self.history, self.running, self.asked = History(len(space.columns)), {}, 0

    def ask(self) -> Mapping[str, float]:
        pending = np.array(list(self.running.values())).reshape(len(self.running), len(self.space.columns))
        rng = np.random.default_rng([self.seed, self.asked])
        [row] = self.algorithm.propose(self.space, self.history, pending, rng, 1)
        self.running[self.asked] = row
        self.asked += 1
        return self.space.point(row)

    def tell(self, number: int, loss: float) -> None:
        self.history.append(number, self.running.pop(number), loss)

    def fill(self, trials: int, loss: Callable[[Mapping[str, float]], float]) -> None:
        rng = np.random.default_rng(self.seed)
        for _ in range(trials):
            [row] = self.space.sample(rng, 1)
            self.history.append(self.asked, row, loss(self.space.point(row)))
            self.asked += 1


class Optuna:
    """Optuna's, defined by run: each parameter is asked for where the choices before it make it active."""

    def __init__(self, kind: str, space: Space, seed: int) -> None:
        import optuna
        from optuna.samplers import CmaEsSampler, GPSampler, TPESampler

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", module="optuna")
        samplers = {
            "tpe": partial(TPESampler, warn_independent_sampling=False),
            "tpe-group": partial(TPESampler, multivariate=True, group=True),
            "cmaes": partial(CmaEsSampler, warn_independent_sampling=False),
            "gp": partial(GPSampler, warn_independent_sampling=False),
        }
        self.space, self.trials = space, []
        self.study = optuna.create_study(sampler=samplers[kind](seed=seed))

    def ask(self) -> Mapping[str, float]:
        self.trials.append(self.study.ask())
        return suggested(self.space, self.trials[-1])

    def tell(self, number: int, loss: float) -> None:
        self.study.tell(self.trials[number], loss)

    def fill(self, trials: int, loss: Callable[[Mapping[str, float]], float]) -> None:
        import optuna

        sampler = self.study.sampler
        self.study.sampler = optuna.samplers.RandomSampler(seed=0)
        for number in range(trials):
            self.tell(number, loss(self.ask()))
        self.study.sampler = sampler


class Hyperopt:
    """hyperopt's suggest functions, with its trials kept as its fmin keeps them."""

    def __init__(self, suggest: Callable[..., list[dict[str, Any]]], space: Space, seed: int) -> None:
        import hyperopt

        logging.getLogger("hyperopt").setLevel(logging.ERROR)
        self.suggest, self.rng = suggest, np.random.default_rng(seed)
        self.domain, self.trials = hyperopt.Domain(float, space.expression), hyperopt.Trials()

    def ask(self) -> Mapping[str, float]:
        seed = int(self.rng.integers(2**31 - 1))
        [doc] = self.suggest(self.trials.new_trial_ids(1), self.domain, self.trials, seed)
        doc["state"] = 1  # hyperopt.JOB_STATE_RUNNING
        self.trials._insert_trial_docs([doc])
        self.trials.refresh()
        return {label: values[0] for label, values in doc["misc"]["vals"].items() if values}

    def tell(self, number: int, loss: float) -> None:
        self._end(number, loss)
        self.trials.refresh()

    def fill(self, trials: int, loss: Callable[[Mapping[str, float]], float]) -> None:
        from hyperopt import rand

        docs = rand.suggest(self.trials.new_trial_ids(trials), self.domain, self.trials, 0)
        self.trials._insert_trial_docs(docs)
        for number, doc in enumerate(docs):
            vals = doc["misc"]["vals"]
            self._end(number, loss({label: values[0] for label, values in vals.items() if values}))
        self.trials.refresh()

    def _end(self, number: int, loss: float) -> None:
        doc = self.trials._dynamic_trials[number]
        doc["state"], doc["result"] = 2, {"status": "ok", "loss": loss}  # hyperopt.JOB_STATE_DONE


def suggested(space: Space, trial: Any) -> dict[str, float]:
    """A point of the space by an Optuna trial's own means.

    Its choices have no probabilities; a normal parameter, which it lacks, is asked for as the unit of it.
    """
    point: dict[str, float] = {}
    for column in space.columns:
        if column.conditions and not any(
            all(point.get(label) == value for label, value in path) for path in column.conditions
        ):
            continue
        label, kind = column.label, column.distribution
        if isinstance(kind, Categorical):
            point[label] = trial.suggest_categorical(label, [int(value) for value in kind.values()])
        elif isinstance(kind, Randint):
            point[label] = trial.suggest_int(label, kind.low, kind.high - 1)
        elif isinstance(kind, Normal):
            point[label] = float(kind.from_unit(np.array(trial.suggest_float(label, 0, 1))))
        elif isinstance(kind, Uniform) and kind.q:
            steps = np.round(kind.values() / kind.q)
            point[label] = trial.suggest_int(label, int(steps[0]), int(steps[-1]), log=kind.is_log) * kind.q
        elif isinstance(kind, Uniform):
            point[label] = trial.suggest_float(label, *kind.bounds, log=kind.is_log)
        else:
            raise TypeError(f"Optuna has nothing like {label}: {kind}")
    return point


def searcher(name: str, space: Space, seed: int) -> Searcher:
    """A new study: of ``hpo-ALGORITHM``, with ``:FIELD=VALUE`` as often as wanted, or of a peer.

    Raises Unavailable where it is not there, UsageError for a field that the algorithm hasn't.
    """
    name, *changes = name.split(":")
    family, _, kind = name.partition("-")
    if family == "hpo":
        try:
            algorithm = hpo.search.algorithm(kind)
        except UsageError as error:
            raise Unavailable(f"{name}: {error.message}") from None
        return Own(changed(algorithm, changes), space, seed)
    if name not in ALGORITHMS or changes:
        raise UsageError(
            f"there is no algorithm {':'.join([name, *changes])!r}", f"choose of {', '.join(ALGORITHMS)}"
        )
    try:
        if family == "hyperopt":
            return Hyperopt(importlib.import_module(f"hyperopt.{kind}").suggest, space, seed)
        return Optuna(kind, space, seed)
    except ImportError as error:
        raise Unavailable(f"{name}: {error} (pip install '.[bench]' cmaes)") from None


def changed(algorithm: Any, changes: Iterable[str]) -> Any:
    """The algorithm with other values in its fields. Raises UsageError for a field it hasn't."""
    for change in changes:
        field, _, text = change.partition("=")
        fields = (
            [each.name for each in dataclasses.fields(algorithm)]
            if dataclasses.is_dataclass(algorithm)
            else []
        )
        if field not in fields:
            raise UsageError(
                f"{type(algorithm).__name__} has no field {field!r}", f"it has {', '.join(fields) or 'none'}"
            )
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        algorithm = dataclasses.replace(algorithm, **{field: value})
    return algorithm


# --- one measurement


SPACES: dict[str, Callable[[], Space]] = {
    "10 mixed columns": lambda: compile_space(MIXED),
    "50 conditional columns": lambda: problem("tree-50").space,
}


def measure(name: str, space_name: str, trials: int) -> tuple[float, float]:
    """Milliseconds of a round, and MiB. Raises Unavailable."""
    space = SPACES[space_name]()

    def loss(point: Mapping[str, float]) -> float:
        return float(np.nansum((space.to_unit(space.row(point)) - 0.4) ** 2))

    def rounds(study: Searcher, first: int) -> list[float]:
        seconds = []
        for number in range(first, first + ROUNDS):
            began = time.process_time()
            point = study.ask()
            asked = time.process_time() - began
            value = loss(point)
            began = time.process_time()
            study.tell(number, value)
            seconds.append(asked + time.process_time() - began)
        return seconds

    small = searcher(name, space, 1)  # loads what is only loaded when it is used
    small.fill(30, loss)
    rounds(small, 30)
    before = psutil.Process().memory_info().rss
    study = searcher(name, space, 0)
    study.fill(trials, loss)
    milliseconds = statistics.median(rounds(study, trials)) * 1000
    # Linux counts in KiB.
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return milliseconds, max(grown, 0) / 2**20


# --- the command


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algorithms", default=",".join(TIMED), help=f"of {','.join(ALGORITHMS)}")
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--limit", type=float, default=600, help="seconds for each measurement (600)")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # before a process imports NumPy
    spawn = multiprocessing.get_context("spawn")
    print("| space | algorithm | trials | ms | × Optuna's TPE | MiB | × Optuna's TPE |")
    print("|---|---|---|---|---|---|---|")
    for space_name in SPACES:
        for trials in options.trials:
            names = [each for each in options.algorithms.split(",") if trials <= LARGEST.get(each, trials)]
            # Optuna's first, whose shares the others are given in.
            optuna = (math.nan, math.nan)
            for name in sorted(names, key=lambda each: each != "optuna-tpe"):
                with spawn.Pool(1) as process:
                    try:
                        ms, mib = process.apply_async(measure, (name, space_name, trials)).get(options.limit)
                    except multiprocessing.TimeoutError:
                        print(f"| {space_name} | {name} | {trials} | > {options.limit:g} s in all | | | |")
                        continue
                    except Unavailable as error:
                        print(f"left out: {error}", file=sys.stderr)
                        continue
                    except UsageError as error:
                        raise SystemExit(f"{name}: {error.message}\nhint: {error.hint}") from None
                if name == "optuna-tpe":
                    optuna = ms, mib
                cells = [name, f"{trials}", f"{ms:.2f}", share(ms, optuna[0])]
                cells += [f"{mib:.1f}", share(mib, optuna[1])]
                print(f"| {space_name} | {' | '.join(cells)} |", flush=True)


def share(value: float, of: float, least: float = 1) -> str:
    """Empty where there is nothing to compare with, or too little: less than 1 ms or 1 MiB is noise."""
    return f"{value / of:.2f}" if of >= least else ""


if __name__ == "__main__":
    main()
