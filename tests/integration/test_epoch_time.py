"""Trainings that are slow for a reason, and the cause that their result names.

Each case is a real loop. What else runs on the machine may take the cores away, and must not decide a test:
the clock of all but the last is told that it does not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hpo.diagnosis.epochs import Evidence, diagnose
from hpo.run import Run
from hpo.training.clock import Clock, Contention
from hpo.training.data import digits


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    quiet = Clock(contention=Contention("/nowhere"))
    return Run(number=0, seed=0, directory=tmp_path, checkpoint_directory=tmp_path, clock=quiet)


def train(
    run: Run,
    *,
    batch_size: int = 64,
    units: int = 32,
    epochs: int = 3,
    loader: Callable[[Any], Any] = lambda batches: batches,
    validations: int = 1,
    after_epoch: Callable[[int], None] = lambda epoch: None,
    before_steps: Callable[[int], None] = lambda epoch: None,
) -> dict[str, Any]:
    """The loop that people write, on the digits; returns the trial's ``epoch_time``."""
    torch.manual_seed(0)
    data = digits()
    inputs, targets = map(torch.tensor, data.train)
    held_out = tuple(map(torch.tensor, data.validation))
    model = nn.Sequential(nn.Linear(64, units), nn.ReLU(), nn.Linear(units, units), nn.Linear(units, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for epoch in range(epochs):
        batches = ((inputs[rows], targets[rows]) for rows in torch.randperm(len(inputs)).split(batch_size))
        for number, (batch, wanted) in enumerate(run.batches(loader(batches))):
            if number == 0:
                before_steps(epoch)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch), wanted).backward()
            optimizer.step()
        with run.phase("validation"), torch.no_grad():
            for _ in range(validations):
                for batch, wanted in run.batches([held_out]):
                    loss = nn.functional.cross_entropy(model(batch), wanted).item()
        with run.phase("callbacks"):
            after_epoch(epoch)
        run.report(epoch, loss)
    summary = run.clock.summary()
    assert summary is not None
    cause, advice = diagnose(Evidence.of(summary, run.gpus))
    return summary | {"cause": cause, "advice": advice}


def test_a_batch_size_of_one_is_overhead(run: Run) -> None:
    found = train(run, batch_size=1, epochs=2)

    assert found["cause"] == "overhead_bound"
    assert found["steps_per_epoch"] == 1257
    assert found["advice"].startswith("1257 steps of ")


def test_large_batches_through_a_large_model_are_computing(run: Run) -> None:
    found = train(run, batch_size=629, units=8000, epochs=2)

    assert found["cause"] == "compute_bound"
    assert "2 steps of" in found["advice"]


def test_a_loader_that_waits_is_input_bound(run: Run) -> None:
    def waits(batches: Any) -> Iterator[Any]:
        for batch in batches:
            time.sleep(0.05)
            yield batch

    found = train(run, loader=waits, epochs=2)

    assert found["cause"] == "input_bound"
    assert found["shares"]["data"] > 0.5


def test_heavy_validation_is_named(run: Run) -> None:
    found = train(run, batch_size=256, validations=2000, epochs=2)

    assert found["cause"] == "validation_bound"
    assert f"{2000 * 270} examples" in found["advice"]


def test_a_slow_callback_is_named(run: Run) -> None:
    found = train(run, after_epoch=lambda epoch: time.sleep(0.5), epochs=2)

    assert found["cause"] == "callback_bound"


def test_a_slow_store_is_a_slow_callback(run: Run) -> None:
    run.send = lambda *_: time.sleep(0.5)  # type: ignore[assignment,return-value]

    found = train(run, epochs=2)

    assert found["cause"] == "callback_bound"


def test_a_first_epoch_that_compiles_is_warm_up(run: Run) -> None:
    found = train(run, before_steps=lambda epoch: time.sleep(3 if epoch == 0 else 0))

    assert found["cause"] == "warm_up"
    assert found["first_epoch"] > found["median_epoch"] + 2


def test_a_gpu_that_was_given_and_not_used_is_a_fallback(run: Run) -> None:
    run.gpus = ("0",)
    run.clock.device = "cpu"

    found = train(run, epochs=1)

    assert found["cause"] == "cpu_fallback"


OVERSUBSCRIBED = """
    import json, os, threading, time
    from pathlib import Path
    import torch
    from hpo.diagnosis.epochs import Evidence, diagnose
    from hpo.run import Run
    from hpo.training.hardware import available_cores

    threads = 4 * available_cores()
    torch.set_num_threads(threads)
    run = Run(0, 0, Path(), Path())
    matrix = torch.randn(600, 600)
    for epoch in range(3):
        for _ in run.batches(range(60)):
            matrix @ matrix
        run.report(epoch, 1.0)
    found = run.clock.summary()
    cause, advice = diagnose(Evidence.of(found))
    print(json.dumps(found | {"cause": cause, "advice": advice, "asked": threads}))
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel counts no waits for cores")
def test_more_threads_than_cores_are_oversubscribed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(OVERSUBSCRIBED)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)

    assert found["threads"] == found["asked"] > found["cores"]
    assert found["cause"] == "oversubscribed"
    assert f"{found['asked']} threads" in found["advice"]


# --- in studies

LOOP = """
    import time

    def objective(params, run):
        for epoch in range(3):
            for batch in run.batches(range(5)):
                time.sleep(0.002)
            with run.phase("validation"):
                time.sleep(0.001)
            run.report(epoch, 1.0)
        return {"loss": 1.0, "accuracy": 0.5}
"""
KEYS = {"epochs", "first_epoch", "median_epoch", "steps_per_epoch", "step_ms", "examples_per_second"} | {
    "shares",
    "gpu",
    "cause",
    "advice",
}


def test_the_result_of_a_trial_says_where_its_time_went(project, hpo) -> None:  # type: ignore[no-untyped-def]
    project.write(LOOP)

    hpo("optimize", "study.py", "--max-evals", 1)

    found = project.trials()[0]["epoch_time"]
    assert found.keys() >= KEYS
    assert (found["epochs"], found["steps_per_epoch"]) == (3, 5)
    assert sum(found["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert found["shares"]["step"] > found["shares"]["data"]


def test_a_loop_that_only_reports_has_epochs_without_phases(project, hpo) -> None:  # type: ignore[no-untyped-def]
    project.write("""
        def objective(params, run):
            for epoch in range(3):
                run.report(epoch, 1.0)
            return 1.0
    """)

    hpo("optimize", "study.py", "--max-evals", 1)

    found = project.trials()[0]["epoch_time"]
    assert (found["epochs"], found["steps_per_epoch"], found["step_ms"]) == (3, 0, None)


def test_an_objective_that_reports_nothing_has_no_epoch_time(project, hpo) -> None:  # type: ignore[no-untyped-def]
    project.write("def objective(params): return 1.0")

    hpo("optimize", "study.py", "--max-evals", 1)

    assert project.trials()[0]["epoch_time"] is None


def test_an_objective_tells_its_epoch_time_itself_if_it_wants(project, hpo) -> None:  # type: ignore[no-untyped-def]
    project.write("""
        def objective(params, run):
            run.report(0, 1.0)
            return {"loss": 1.0, "epoch_time": {"cause": "none"}}
    """)

    hpo("optimize", "study.py", "--max-evals", 1)

    assert project.trials()[0]["epoch_time"] == {"cause": "none"}


def test_a_pruned_trial_says_where_its_time_went_too(project, hpo) -> None:  # type: ignore[no-untyped-def]
    project.write("""
        from hpo import TrialPruned

        def objective(params, run):
            for _ in run.batches(range(5)):
                pass
            run.report(0, 1.0)
            raise TrialPruned
    """)

    hpo("optimize", "study.py", "--max-evals", 1)

    trial = project.trials()[0]
    assert trial["state"] == "pruned"
    assert trial["epoch_time"]["steps_per_epoch"] == 5


def test_a_clock_that_fails_costs_no_trial(project, hpo) -> None:  # type: ignore[no-untyped-def]
    project.write("""
        def objective(params, run):
            run.report(0, 1.0)
            run.clock.summary = lambda: 1 / 0
            return 0.25
    """)

    hpo("optimize", "study.py", "--max-evals", 1)

    trial = project.trials()[0]
    assert (trial["state"], trial["loss"], trial["epoch_time"]) == ("completed", 0.25, None)
    assert "ZeroDivisionError" in hpo("log", "study", 0).stdout
