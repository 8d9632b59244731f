"""How good the search is, against hyperopt, Optuna and random search, on problems whose best is known.

    python benchmarks/search.py                                    # all of it; hours
    python benchmarks/search.py --algorithms hpo-tpe,optuna-tpe --problems network,tree --seeds 5
    python benchmarks/search.py --keep build/peers.json            # the same, the next time without the peers
    python benchmarks/search.py --workers 4                        # trials that run at the same time
    python benchmarks/search.py --ablate tpe                       # each field of TPE varied by itself
    python benchmarks/search.py --algorithms hpo-tpe,hpo-tpe:starts=5:candidates=64

OMP_NUM_THREADS=1 keeps the processes of --jobs out of each other's way.

Regret is how far the best trial found is from the best there is, divided by the same for random search with
as many evaluations (the median of 2000 searches): 0 is perfect, 1 is random search. Where losses are noisy,
it is the noise-free loss of the trial that looked best. A figure is the median over seeds, then the mean
over problems; the brackets hold 95 % of what it is when seeds are drawn anew (bootstrap). Comparisons are
paired: of the same seeds, in the same run. The best peer is chosen at each budget, after the fact.
"""

from __future__ import annotations

import argparse
import heapq
import json
import multiprocessing
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from problems import PROBLEMS, Problem, Unavailable, problem
from suggestion import ALGORITHMS, PEERS, Searcher, searcher

from hpo.core.errors import UsageError
from hpo.core.history import Array

VARIANTS: dict[str, dict[str, tuple[Any, ...]]] = {
    "tpe": {
        "starts": (5, 20),
        "good_share": (0.05, 0.2),
        "good_limit": (10, 50),
        "candidates": (24, 512),
        "bandwidth": (0.1, 0.3),
        "nested_bandwidth": (0.05, 0.2),
        "least_bandwidth": (0.003, 0.03),
        "prior_share": (0.1, 0.5),
    },
    "gp": {
        "starts": (3, 10),
        "wide": (100, 2000),
        "rounds": (0, 10),
        "clip": (1.0, 4.0),
        "width": (0.05, 0.2),
        "refit": (1.0, 1.5),
        "explore": (2, 10**9),  # the last: never
        "apart": (0.1, 0.6),
    },
}
"""For --ablate: by algorithm and field of its dataclass, what to try beside the default."""

DEFAULT = tuple(name for name in ALGORITHMS if name != "optuna-gp")  # which takes hours
RESAMPLES = 1000


# --- one search


def trace(problem: Problem, searcher: Searcher, evaluations: int, workers: int, seed: int) -> list[float]:
    """The noise-free loss of the trial that looks best, after each trial that ended.

    Workers start their next trial as soon as one ends; trials last 1 on average, 0.5 to 1.5.
    """
    rng = np.random.default_rng([seed, 1])
    durations, noise = rng.uniform(0.5, 1.5, evaluations), problem.noise * rng.normal(size=evaluations)
    running: list[tuple[float, int, float]] = []
    values: list[float] = []
    now, started, best, value = 0.0, 0, np.inf, np.inf
    while len(values) < evaluations:
        while len(running) < workers and started < evaluations:
            loss = problem.at(searcher.ask())
            heapq.heappush(running, (now + durations[started], started, loss))
            started += 1
        now, number, loss = heapq.heappop(running)
        seen = loss + noise[number]
        searcher.tell(number, seen)
        if seen < best:
            best, value = seen, loss
        values.append(value)
    return values


def run_one(task: tuple[str, str, int, tuple[int, ...], int]) -> list[float]:
    """The losses at each budget."""
    name, algorithm, seed, budgets, workers = task
    of = problem(name)
    values = trace(of, searcher(algorithm, of.space, seed), max(budgets), workers, seed)
    return [values[budget - 1] for budget in budgets]


def by_random_search(task: tuple[str, tuple[int, ...]]) -> list[float]:
    """Random search's median loss at each budget: of 2000 searches, whose points come from 20 000."""
    name, budgets = task
    of, rng = problem(name), np.random.default_rng(0)
    losses = np.array([of.at(of.space.point(row)) for row in of.space.sample(rng, 20_000)])
    return medians_of_best(losses, of.noise, budgets, rng)


def medians_of_best(
    losses: Array, noise: float, budgets: Sequence[int], rng: np.random.Generator, searches: int = 2000
) -> list[float]:
    """The median over searches of the loss that looks best among so many draws."""
    drawn = losses[rng.integers(len(losses), size=(searches, max(budgets)))]
    seen = drawn + noise * rng.normal(size=drawn.shape)
    return [
        float(np.median(drawn[np.arange(searches), seen[:, :budget].argmin(axis=1)])) for budget in budgets
    ]


# --- scores


def normalised(found: Array, best: Array, by_random: Array) -> Array:
    """Regret in units of random search's.

    Args: found: ``(problems, seeds, budgets)``; best: ``(problems,)``; by_random: ``(problems, budgets)``.
    """
    best = best[:, np.newaxis]
    return (found - best[:, np.newaxis]) / (by_random - best)[:, np.newaxis]


def score(regrets: Array) -> Array:
    """``(budgets,)`` of ``(problems, seeds, budgets)``: the median over seeds, the mean over problems."""
    return np.median(regrets, axis=1).mean(axis=0)


def resampled(regrets: Array, rng: np.random.Generator, resamples: int = RESAMPLES) -> Array:
    """``(resamples, budgets)``: the score with other seeds, drawn from these for each problem by itself.

    Two algorithms' are paired where ``rng`` starts from the same state.
    """
    problems, seeds, _ = regrets.shape
    drawn = rng.integers(seeds, size=(resamples, problems, seeds))
    return np.median(regrets[np.arange(problems)[:, np.newaxis], drawn], axis=2).mean(axis=1)


def interval(values: Array) -> tuple[Array, Array]:
    """The middle 95 % along the first axis."""
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    return low, high


# --- the tables


Results = Mapping[str, Array]
"""By algorithm, normalised regrets: ``(problems, seeds, budgets)``."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def with_interval(value: float, low: float, high: float, form: str = ".3f") -> str:
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def regret_table(results: Results, budgets: Sequence[int]) -> str:
    rows = []
    for name, regrets in results.items():
        low, high = interval(resampled(regrets, np.random.default_rng(0)))
        rows.append([name, *map(with_interval, score(regrets), low, high)])
    return table(["regret after", *map(str, budgets)], rows)


def difference_table(results: Results, reference: Sequence[str], budgets: Sequence[int], head: str) -> str:
    """Every algorithm less the reference, and their ratio. Args: reference: one algorithm for each budget."""
    rows = []
    for name in results:
        cells = []
        for i, other in enumerate(reference):
            if name == other:
                cells.append("–")
                continue
            mine, others = (results[each][..., i : i + 1] for each in (name, other))
            one, two = (resampled(each, np.random.default_rng(0)) for each in (mine, others))
            difference = with_interval(
                (score(mine) - score(others))[0], *np.ravel(interval(one - two)), form="+.3f"
            )
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = with_interval(
                    (score(mine) / score(others))[0], *np.ravel(interval(one / two)), form=".2f"
                )
            cells.append(f"{difference} × {ratio}")
        if set(cells) != {"–"}:
            rows.append([name, *cells])
    named = [
        f"{budget}: {other}" if len(set(reference)) > 1 else str(budget)
        for budget, other in zip(budgets, reference, strict=True)
    ]
    return table([head, *named], rows)


def problem_table(results: Results, problems: Sequence[str], budget: int) -> str:
    rows = [
        [name, *(f"{median:.3f}" for median in np.median(regrets[..., -1], axis=1))]
        for name, regrets in results.items()
    ]
    return table([f"regret after {budget}", *problems], rows)


def best_at(results: Results, names: Sequence[str]) -> list[str]:
    """The name with the least regret, for each budget."""
    scores = np.array([score(results[name]) for name in names])
    return [names[i] for i in scores.argmin(axis=0)]


# --- the command


def main() -> None:
    options = parsed()
    budgets = tuple(sorted(options.budgets))
    if options.ablate:
        default = f"hpo-{options.ablate}"
        varied = [
            f"{default}:{field}={value!r}"
            for field, values in VARIANTS[options.ablate].items()
            for value in values
        ]
        names = usable([default, *varied])
    else:
        names = usable(options.algorithms)
    problems = usable_problems(options.problems)
    if not names or not problems:
        raise SystemExit("nothing is left to measure")
    results = measured(names, problems, options.seeds, budgets, options.workers, options.jobs, options.keep)
    print(
        f"{len(problems)} problems, {options.seeds} seeds, {options.workers} workers: {', '.join(problems)}\n"
    )
    print(regret_table(results, budgets), end="\n\n")
    if options.ablate:
        reference, head = [names[0]] * len(budgets), f"less {names[0]}, × of it"
    else:
        peers = [name for name in names if name.split(":")[0] in PEERS] or names[:1]
        reference, head = best_at(results, peers), f"less the best of {', '.join(peers)}, × of it"
    print(difference_table(results, reference, budgets, head), end="\n\n")
    print(problem_table(results, problems, budgets[-1]))


def parsed() -> argparse.Namespace:
    def listed(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algorithms", type=listed, default=DEFAULT, help=f"of {','.join(ALGORITHMS)}")
    parser.add_argument("--ablate", choices=VARIANTS, help="vary this algorithm of hpo's instead")
    parser.add_argument("--problems", type=listed, default=list(PROBLEMS), help=f"of {','.join(PROBLEMS)}")
    parser.add_argument("--seeds", type=int, default=20, help="searches of each problem (20)")
    parser.add_argument("--budgets", type=int, nargs="+", default=[25, 50, 100, 200], help="evaluations")
    parser.add_argument("--workers", type=int, default=1, help="trials at the same time (1)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument(
        "--keep", type=Path, help="a file for the peers' searches, which are then not run again"
    )
    options = parser.parse_args()
    if unknown := [name for name in options.problems if name not in PROBLEMS]:
        parser.error(f"there is no problem {', '.join(unknown)}; choose of {', '.join(PROBLEMS)}")
    if min(options.seeds, options.workers, options.jobs, *options.budgets) < 1:
        parser.error("--seeds, --budgets, --workers and --jobs are 1 or more")
    return options


def usable(names: Sequence[str]) -> list[str]:
    """The algorithms that are there; the others are named. A name or field that nobody knows ends it all."""
    left = []
    for name in names:
        try:
            searcher(name, problem("network").space, 0)
            left.append(name)
        except Unavailable as error:
            print(f"left out: {error}", file=sys.stderr)
        except UsageError as error:
            raise SystemExit(f"{name}: {error.message}\nhint: {error.hint}") from None
    return left


def usable_problems(names: Sequence[str]) -> list[str]:
    left = []
    for name in names:
        try:
            problem(name)
            left.append(name)
        except Unavailable as error:
            print(f"left out: {error}", file=sys.stderr)
    return left


def measured(
    names: Sequence[str],
    problems: Sequence[str],
    seeds: int,
    budgets: tuple[int, ...],
    workers: int,
    jobs: int,
    keep: Path | None,
) -> Results:
    """Run all the searches; peers' that are in the file ``keep`` are not run again, new ones go there."""
    tasks = [
        (each, name, seed, budgets, workers) for seed in range(seeds) for name in names for each in problems
    ]
    with multiprocessing.Pool(jobs) as pool:
        by_random = pool.map(by_random_search, [(each, budgets) for each in problems], chunksize=1)
        # A problem that was changed has another random search, too.
        keys = [json.dumps([*task, by_random[problems.index(task[0])]]) for task in tasks]
        found: dict[str, list[float]] = json.loads(keep.read_text()) if keep and keep.exists() else {}
        new = [i for i, key in enumerate(keys) if key not in found]
        if len(new) < len(tasks):
            print(f"{len(tasks) - len(new)} searches were kept", file=sys.stderr)
        of_peers = set(found) | {keys[i] for i in new if tasks[i][1] in PEERS}
        searched = pool.imap(run_one, [tasks[i] for i in new])
        for done, (i, losses) in enumerate(zip(new, searched, strict=True), 1):
            found[keys[i]] = losses
            if done % 100 == 0 or done == len(new):
                print(f"{done} of {len(new)} searches", file=sys.stderr, flush=True)
                if keep:
                    keep.write_text(json.dumps({key: found[key] for key in found if key in of_peers}))
    # (seeds, names, problems, budgets), as the tasks are ordered
    losses = np.reshape([found[key] for key in keys], (seeds, len(names), len(problems), len(budgets)))
    best = np.array([problem(each).best for each in problems])
    return {
        name: normalised(losses[:, i].swapaxes(0, 1), best, np.array(by_random))
        for i, name in enumerate(names)
    }


if __name__ == "__main__":
    main()
