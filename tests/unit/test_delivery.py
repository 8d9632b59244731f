"""What a trial leaves waits for a store that is away: epochs, files, and last the outcome."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hyperopt import hp

from hpo.core.errors import ClaimLost, HpoError, StoreFull, StoreUnreachable
from hpo.core.trial import Answer, Claim, Completed, Outcome
from hpo.delivery import DELIVERY_SECONDS, LONGEST_DELAY_SECONDS, Delivery
from hpo.loading import Task
from hpo.run import Run
from hpo.space import compile_space
from hpo.testing import FakeClock
from hpo.worker import Workplace, run_one

CLAIM = Claim(number=3, token="t", attempt=1, worker="w", point={"x": 0.5})


@dataclass
class FakeStore:
    """A store that takes what a worker brings, and fails when ``failing`` says with what."""

    failing: Callable[[str], HpoError | None] = lambda call: None
    got: list[Any] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def claim(self, worker: str, number: int | None = None, **_: object) -> Claim:
        return CLAIM

    def files(self, trial: int | None = None) -> list[Any]:
        self._ask("files")
        return []

    def report(
        self, claim: Claim, epoch: int, loss: float | None, metrics: Mapping[str, float], *, time: float
    ) -> Answer:
        self._ask("report")
        self.got.append(epoch)
        return Answer.CONTINUE

    def put_files(
        self, files: Mapping[str, Path], trial: int, *, drop: Collection[str] = (), claim: Claim
    ) -> None:
        self._ask("put_files")
        self.got.append(sorted(files))

    def finish(self, claim: Claim, outcome: Outcome) -> None:
        self._ask("finish")
        self.got.append(outcome)

    def _ask(self, call: str) -> None:
        self.asked.append(call)
        if (error := self.failing(call)) is not None:
            raise error


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Waiting for the store takes no time here, but the clock goes on."""
    clock = FakeClock()
    monkeypatch.setattr("hpo.worker.Delivery", lambda what: Delivery(what, clock=clock, sleep=clock.advance))
    return clock


def train(store: FakeStore, folder: Path) -> None:
    """Run a trial of three epochs that leaves a checkpoint each and a file at its end."""

    def objective(params: Any, run: Run) -> float:
        for epoch in range(3):
            (run.checkpoint_directory / "state").write_text("weights" * (epoch + 1))
            run.report(epoch, 0.5)
        (run.directory / "model").write_text("weights")
        return 0.25

    task = Task(compile_space({"x": hp.uniform("x", 0, 1)}), objective, {}, wants_run=True)
    place = Workplace(worker="w", folder=folder, code=folder, study_seed=1, is_apart=False)
    run_one(store, 3, task, place)  # type: ignore[arg-type]


def away(times: int, *calls: str) -> Callable[[str], HpoError | None]:
    """So many times nobody answers these calls."""
    left = [times]

    def failing(call: str) -> HpoError | None:
        if call not in calls or left[0] == 0:
            return None
        left[0] -= 1
        return StoreUnreachable("no server answers")

    return failing


CHECKPOINT, FILES, OUTCOME = ["checkpoint/state"], ["artifacts/model"], Completed(0.25)


def results(store: FakeStore) -> list[Any]:
    """What reached the store, without checkpoints and the outcome's times."""
    kept = [one for one in store.got if one != CHECKPOINT]
    return [Completed(one.loss) if isinstance(one, Completed) else one for one in kept]


def test_a_trial_leaves_its_epochs_its_files_and_last_its_outcome(tmp_path: Path, clock: FakeClock) -> None:
    store = FakeStore()

    train(store, tmp_path)

    assert results(store) == [0, 1, 2, FILES, OUTCOME]
    assert clock.now == 0


@pytest.mark.parametrize("calls", [("report",), ("put_files",), ("report", "put_files")])
@pytest.mark.parametrize("times", [1, 2, 3, 30])
def test_epochs_that_could_not_be_sent_go_with_the_next_or_with_the_result(
    calls: tuple[str, ...], times: int, tmp_path: Path, clock: FakeClock
) -> None:
    store = FakeStore(away(times, *calls))

    train(store, tmp_path)

    assert results(store) == [0, 1, 2, FILES, OUTCOME]


def test_a_checkpoint_that_could_not_be_kept_is_tried_again_at_the_next_report(
    tmp_path: Path, clock: FakeClock
) -> None:
    store = FakeStore(away(1, "put_files"))

    train(store, tmp_path)

    assert store.got[:3] == [CHECKPOINT, 0, 1]


@pytest.mark.parametrize("call", ["files", "report", "put_files", "finish"])
def test_a_result_waits_for_minutes_and_is_not_lost(call: str, tmp_path: Path, clock: FakeClock) -> None:
    store = FakeStore(away(50, call))

    train(store, tmp_path)

    assert results(store) == [0, 1, 2, FILES, OUTCOME]
    assert 5 * 60 < clock.now < DELIVERY_SECONDS


def test_a_store_that_never_comes_back_is_given_up_after_ten_minutes(
    tmp_path: Path, clock: FakeClock
) -> None:
    store = FakeStore(lambda call: StoreUnreachable("no server answers") if call != "files" else None)

    with pytest.raises(StoreUnreachable):
        train(store, tmp_path)

    assert DELIVERY_SECONDS <= clock.now <= DELIVERY_SECONDS + LONGEST_DELAY_SECONDS
    assert {"report", "put_files", "finish"} <= set(store.asked)


@pytest.mark.parametrize("call", ["report", "put_files", "finish"])
def test_a_lost_claim_ends_the_waiting_at_once(call: str, tmp_path: Path, clock: FakeClock) -> None:
    unreachable = away(5, call)
    store = FakeStore(lambda c: unreachable(c) or (ClaimLost("taken back") if c == call else None))

    train(store, tmp_path)

    assert OUTCOME not in results(store)
    assert store.asked[-1] == call


def test_a_full_disk_costs_the_files_and_not_the_loss(tmp_path: Path, clock: FakeClock) -> None:
    store = FakeStore(lambda call: StoreFull("the disk is full") if call == "put_files" else None)

    train(store, tmp_path)

    assert results(store) == [0, 1, 2, OUTCOME]
    assert clock.now == 0
