"""The rules that name the cause of slow epochs: each at its threshold, and in their order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest

from hpo.diagnosis import epochs
from hpo.diagnosis.epochs import Cause, Evidence, diagnose


def shares(**phases: float) -> dict[str, float]:
    """Those shares of an epoch; the rest is steps."""
    rest = 1 - sum(phases.values())
    return {"data": 0.0, "step": rest, "validation": 0.0, "callbacks": 0.0, "other": 0.0} | phases


# 100 steps of 95 ms with 32 examples; validating one costs 1 ms, so computing them costs 96 ms.
COMPUTING = Evidence(
    epochs=5,
    first_epoch=10.0,
    median_epoch=10.0,
    shares=shares(validation=0.05),
    steps_per_epoch=100,
    step_ms=95.0,
    batch_size=32,
    validation_examples=500,
    device="cpu",
    threads=2,
    cores=2,
    seconds=50.0,
    cpu_seconds=50.0,
    wait_seconds=0.0,
)

# The same with one example a step: computing it costs 0.3 ms, and a step takes 10.
ONE_BY_ONE = replace(
    COMPUTING, shares=shares(validation=0.005), steps_per_epoch=1000, step_ms=10.0, batch_size=1
)

CASES: dict[str, Evidence] = {
    "compute_bound": COMPUTING,
    "cpu_fallback": replace(COMPUTING, gpus=1),
    "oversubscribed": replace(COMPUTING, threads=8, cpu_seconds=80.0, wait_seconds=120.0),
    "shared_device": replace(
        COMPUTING, device="cuda:0", gpus=1, gpu_name="H200", gpu_utilization=0.97, gpu_other_processes=2
    ),
    "warm_up": replace(COMPUTING, first_epoch=40.0),
    "input_bound": replace(COMPUTING, shares=shares(data=0.6)),
    "validation_bound": replace(COMPUTING, shares=shares(validation=0.6)),
    "callback_bound": replace(COMPUTING, shares=shares(callbacks=0.3)),
    "overhead_bound": ONE_BY_ONE,
    "none": replace(COMPUTING, shares=shares(data=0.2, validation=0.2, other=0.2)),
}


@pytest.mark.parametrize("cause", get_args(Cause))
def test_every_cause_has_its_case(cause: str) -> None:
    found, advice = diagnose(CASES[cause])

    assert found == cause
    assert bool(advice) == (cause != "none")


@pytest.mark.parametrize(
    ("cause", "figures"),
    [
        ("cpu_fallback", ["1 GPU "]),
        ("oversubscribed", ["60%", "8 threads on 2 cores"]),
        ("shared_device", ["2 other processes", "H200", "97%"]),
        ("warm_up", ["40 s", "10 s", "38%"]),
        ("input_bound", ["60%", "6 s", "60 ms"]),
        ("validation_bound", ["60%", "6 s", "500 examples"]),
        ("callback_bound", ["30%", "3 s"]),
        ("compute_bound", ["95%", "100 steps", "95 ms", "32 examples"]),
    ],
)
def test_the_advice_has_the_trials_own_figures(cause: str, figures: list[str]) -> None:
    _, advice = diagnose(CASES[cause])

    assert [figure for figure in figures if figure not in advice] == []


@pytest.mark.parametrize(
    ("cause", "change", "at", "below"),
    [
        ("input_bound", lambda x: {"shares": shares(data=x)}, epochs.INPUT, 0.01),
        ("validation_bound", lambda x: {"shares": shares(validation=x)}, epochs.VALIDATION, 0.01),
        ("callback_bound", lambda x: {"shares": shares(callbacks=x)}, epochs.CALLBACKS, 0.01),
        ("compute_bound", lambda x: {"shares": shares(other=1 - x)}, epochs.STEPS, 0.01),
        ("warm_up", lambda x: {"epochs": 4, "first_epoch": 10 + x}, 40 * 0.25 / 0.75, 0.1),
        (
            "oversubscribed",
            lambda x: {"cpu_seconds": 100 * (1 - x), "wait_seconds": 100 * x},
            epochs.WAITED,
            0.01,
        ),
        (
            "shared_device",
            lambda x: {"device": "cuda:0", "gpu_other_processes": 1, "gpu_utilization": x},
            epochs.BUSY,
            0.01,
        ),
    ],
)
def test_a_rule_holds_from_its_threshold_on(cause: str, change: Any, at: float, below: float) -> None:
    reached = diagnose(replace(COMPUTING, **change(at + 1e-9)))[0]
    missed = diagnose(replace(COMPUTING, **change(at - below)))[0]

    assert reached == cause
    assert missed != cause


def test_the_order_is_that_of_the_table() -> None:
    everything = replace(
        COMPUTING,
        gpus=1,
        threads=8,
        cpu_seconds=80.0,
        wait_seconds=120.0,
        gpu_utilization=0.97,
        gpu_other_processes=2,
        first_epoch=40.0,
        shares=shares(data=0.6),
    )
    mended: list[dict[str, Any]] = [
        {"device": "cuda:0"},
        {"wait_seconds": 0.0},
        {"gpu_other_processes": 0},
        {"first_epoch": 10.0},
        {"shares": shares(validation=0.05)},
    ]
    found = [diagnose(everything)[0]]

    for mend in mended:
        everything = replace(everything, **mend)
        found.append(diagnose(everything)[0])

    assert found == [
        "cpu_fallback",
        "oversubscribed",
        "shared_device",
        "warm_up",
        "input_bound",
        "compute_bound",
    ]


@pytest.mark.parametrize(
    ("phases", "cause"),
    [
        ({"data": 0.45, "validation": 0.5}, "input_bound"),
        ({"data": 0.3, "validation": 0.6}, "validation_bound"),
        ({"data": 0.3, "validation": 0.31, "callbacks": 0.35}, "callback_bound"),
    ],
)
def test_of_several_the_one_that_exceeds_its_threshold_most(phases: dict[str, float], cause: str) -> None:
    assert diagnose(replace(COMPUTING, shares=shares(**phases)))[0] == cause


def test_a_loader_that_is_slow_because_batches_are_small_is_overhead() -> None:
    # What a step costs and what a batch costs both go away with larger batches.
    slow = replace(ONE_BY_ONE, shares=shares(data=0.26, validation=0.005))

    assert diagnose(slow)[0] == "overhead_bound"


def test_the_fixed_cost_of_a_step_is_what_is_left_when_computing_is_taken_off() -> None:
    # 10 ms a step; 500 examples are validated in 50 ms, so one costs 0.1 ms and training it 0.3 ms.
    evidence = ONE_BY_ONE

    assert evidence.compute_ms == pytest.approx(0.3)
    assert evidence.fixed_share == pytest.approx(0.97)


def test_the_advice_on_overhead_predicts_the_epoch_at_a_larger_batch_size() -> None:
    _, advice = diagnose(ONE_BY_ONE)

    # 9.7 ms of fixed cost are 32 examples' computing: 1000 examples are 31 steps of 9.7 ms and 0.3 s.
    assert "1000 steps of 10 ms, about 97% of it a fixed cost" in advice
    assert "batches of 32 instead of 1" in advice
    assert "at most about 653 ms instead of 10 s" in advice


def test_a_batch_that_is_the_whole_data_set_is_told_no_larger_one() -> None:
    whole = replace(ONE_BY_ONE, steps_per_epoch=1, step_ms=9950.0, batch_size=100)

    cause, advice = diagnose(whole)

    assert cause == "overhead_bound"
    assert "no larger batch" in advice


@pytest.mark.parametrize(
    ("step_ms", "batch_size", "cause"),
    [
        (0.2, 1, "overhead_bound"),
        (0.2, None, "overhead_bound"),
        (0.2, 128, "compute_bound"),
        (20.0, 1, "compute_bound"),
    ],
)
def test_without_validation_short_steps_with_few_examples_are_overhead(
    step_ms: float, batch_size: float | None, cause: str
) -> None:
    evidence = replace(
        COMPUTING, shares=shares(), validation_examples=0, step_ms=step_ms, batch_size=batch_size
    )

    assert diagnose(evidence)[0] == cause


def test_a_first_epoch_that_costs_less_than_half_a_second_more_is_no_warm_up() -> None:
    quick = replace(COMPUTING, epochs=2, first_epoch=0.5, median_epoch=0.02)

    assert diagnose(quick)[0] != "warm_up"


def test_a_single_epoch_has_no_warm_up() -> None:
    assert diagnose(replace(COMPUTING, epochs=1, first_epoch=40.0, median_epoch=10.0))[0] != "warm_up"


# --- cores


def test_one_thread_on_a_busy_machine_is_oversubscribed_only_where_nothing_else_costs_more() -> None:
    waits = {"threads": 1, "cpu_seconds": 20.0, "wait_seconds": 30.0}

    assert diagnose(replace(COMPUTING, **waits))[0] == "oversubscribed"
    assert diagnose(replace(ONE_BY_ONE, **waits))[0] == "overhead_bound"
    assert diagnose(replace(COMPUTING, **waits, shares=shares(data=0.9)))[0] == "input_bound"


def test_a_process_that_sleeps_most_of_the_time_is_not_oversubscribed() -> None:
    sleeper = replace(COMPUTING, threads=1, cpu_seconds=0.5, wait_seconds=1.5)

    assert diagnose(sleeper)[0] == "compute_bound"


def test_more_threads_than_cores_that_do_not_get_in_each_others_way_are_no_cause() -> None:
    assert diagnose(replace(COMPUTING, threads=8))[0] == "compute_bound"


def test_where_the_system_does_not_tell_waits_more_threads_than_cores_are_oversubscribed() -> None:
    unknown = replace(COMPUTING, wait_seconds=None)

    assert diagnose(unknown)[0] == "compute_bound"
    assert diagnose(replace(unknown, threads=3))[0] == "oversubscribed"


# --- what is missing


def test_a_loop_that_the_clock_did_not_see_is_told_how_it_could() -> None:
    cause, advice = diagnose(Evidence(epochs=3, first_epoch=1.0, median_epoch=1.0, shares=shares(other=1.0)))

    assert cause == "none"
    assert "run.batches" in advice


def test_an_unknown_device_is_no_fallback() -> None:
    assert diagnose(replace(COMPUTING, device=None, gpus=1))[0] == "compute_bound"


def test_the_evidence_is_what_a_result_keeps() -> None:
    epoch_time = {
        "epochs": 3,
        "first_epoch": 2.0,
        "median_epoch": 1.0,
        "steps_per_epoch": 10,
        "step_ms": 95.0,
        "examples_per_second": 1000.0,
        "shares": shares(),
        "gpu": {"name": "H200", "utilization": 0.9, "peak_bytes": 10**9, "other_processes": 1},
        "cause": "none",
        "advice": "",
    }

    evidence = Evidence.of(epoch_time, gpus=("0", "1"))

    assert (evidence.epochs, evidence.step_ms, evidence.gpus) == (3, 95.0, 2)
    assert (evidence.gpu_name, evidence.gpu_utilization, evidence.gpu_other_processes) == ("H200", 0.9, 1)
    assert Evidence.of(epoch_time | {"gpu": None}).gpu_name is None


def test_the_table_in_the_documentation_names_every_cause() -> None:
    assert epochs.__doc__ is not None

    assert [cause for cause in get_args(Cause) if f"| {cause} |" not in epochs.__doc__] == []


@pytest.mark.parametrize("cause", ["input_bound", "validation_bound", "callback_bound", "overhead_bound"])
def test_what_takes_less_than_a_twentieth_of_a_second_of_an_epoch_is_no_cause(cause: str) -> None:
    quick = replace(CASES[cause], first_epoch=0.05, median_epoch=0.05)

    assert diagnose(CASES[cause])[0] == cause
    assert diagnose(quick)[0] == "none"
