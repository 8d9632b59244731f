"""What an objective returns or raises becomes an outcome; what it reports reaches the store."""

import math
from pathlib import Path

import numpy as np
import pytest

from hpo.core import files
from hpo.core.errors import ClaimLost, StoreFull, TrialPruned
from hpo.core.trial import Answer, Completed, Failed, Kind, trial_seed
from hpo.run import Run
from hpo.worker import _is_out_of_memory, judge


@pytest.mark.parametrize(
    ("returned", "outcome"),
    [
        (0.5, Completed(0.5)),
        (3, Completed(3.0)),
        (np.float32(0.5), Completed(0.5)),
        (np.array(0.5), Completed(0.5)),
        ({"loss": 0.5}, Completed(0.5)),
        ({"loss": 0.5, "status": "ok", "f1": np.float64(0.9)}, Completed(0.5, {"f1": 0.9})),
        ({"loss": 0.5, "sizes": (1, np.int64(2))}, Completed(0.5, {"sizes": [1, 2]})),
        ({"loss": 0.5, "score": math.inf}, Completed(0.5, {"score": math.inf})),
    ],
)
def test_a_loss_with_what_json_holds_completes_the_trial(returned: object, outcome: Completed) -> None:
    assert judge(returned) == outcome


@pytest.mark.parametrize(
    ("returned", "kind", "reason"),
    [
        (math.nan, Kind.NAN, "nan"),
        (-math.inf, Kind.NAN, "-inf"),
        (np.float32("nan"), Kind.NAN, "nan"),
        (None, Kind.NO_LOSS, "returned None"),
        ({}, Kind.NO_LOSS, "without a loss"),
        ({"loss": None}, Kind.NO_LOSS, "without a loss"),
        ("0.5", Kind.WRONG_TYPE, "'0.5', a str"),
        (True, Kind.WRONG_TYPE, "a bool"),
        ([0.5], Kind.WRONG_TYPE, "a list"),
        (lambda: 0.5, Kind.WRONG_TYPE, "a function"),
        (1j, Kind.WRONG_TYPE, "a complex"),
        ({"loss": "low"}, Kind.WRONG_TYPE, "'low'"),
        ({"loss": 0.5, "model": object()}, Kind.NOT_JSON, "result['model'] is a object"),
        ({"loss": 0.5, "by": {1: 2}}, Kind.NOT_JSON, "the key 1"),
        ({"status": "fail", "loss": 0.5}, Kind.REPORTED, "status 'fail'"),
        ({"status": "fail", "reason": "no data"}, Kind.REPORTED, "no data"),
    ],
)
def test_anything_else_fails_it_with_its_own_kind(returned: object, kind: Kind, reason: str) -> None:
    outcome = judge(returned)

    assert isinstance(outcome, Failed)
    assert outcome.kind is kind
    assert reason in outcome.reason


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (type("OutOfMemoryError", (RuntimeError,), {})("x"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_want_of_memory_is_told_from_other_errors(error: Exception, is_memory: bool) -> None:
    assert _is_out_of_memory(error) is is_memory


@pytest.mark.parametrize(
    ("name", "is_below"), [("a/b", True), ("../a", False), ("/etc/a", False), ("a/../../b", False)]
)
def test_a_stored_name_stays_in_its_folder(name: str, is_below: bool) -> None:
    assert files.is_below(name) is is_below


def make_run(send) -> Run:  # type: ignore[no-untyped-def]
    return Run(number=3, seed=1, directory=Path("a"), checkpoint_directory=Path("b"), send=send)


def test_a_report_is_sent_with_its_numbers_as_floats() -> None:
    sent = []
    run = make_run(lambda *epoch: sent.append(epoch) or Answer.CONTINUE)

    run.report(np.int64(0), np.float32(0.5), accuracy=np.float64(0.75), **{"f1/cat": 1})

    [(epoch, loss, metrics, _)] = sent
    assert (epoch, loss) == (0, 0.5)
    assert metrics == {"accuracy": 0.75, "f1/cat": 1.0, "time/epoch_seconds": metrics["time/epoch_seconds"]}
    assert run.last_loss == 0.5


@pytest.mark.parametrize("arguments", [(-1, 0.5), (0.5, 0.5), ("1", 0.5), (0, "low")])
def test_a_report_of_no_numbers_is_refused(arguments: tuple[object, ...]) -> None:
    run = make_run(lambda *_: Answer.CONTINUE)

    with pytest.raises(TypeError, match="report"):
        run.report(*arguments)


def test_the_answer_stop_ends_the_objective() -> None:
    run = make_run(lambda *_: Answer.STOP)

    with pytest.raises(TrialPruned, match="trial 3 after epoch 7"):
        run.report(7, 0.5)


def test_epochs_that_could_not_be_sent_go_with_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    is_full, sent = [True], []

    def send(epoch: int, *_: object) -> Answer:
        if is_full[0]:
            raise StoreFull("the disk is full")
        sent.append(epoch)
        return Answer.CONTINUE

    run = make_run(send)
    run.report(0, 0.5)
    run.report(1, 0.4)
    is_full[0] = False

    run.report(2, 0.3)

    assert sent == [0, 1, 2]
    assert "the disk is full" in capsys.readouterr().err


def test_a_lost_claim_ends_the_objective() -> None:
    def send(*_: object) -> Answer:
        raise ClaimLost("gone")

    with pytest.raises(ClaimLost):
        make_run(send).report(0, 0.5)


def test_the_seed_of_a_trial_is_its_own_and_always_the_same() -> None:
    seeds = {trial_seed(study, number) for study in range(20) for number in range(50)}

    assert len(seeds) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert trial_seed(5, 17) == 141035254
