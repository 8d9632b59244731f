"""Workers that people start are counted by their announcements; no more trials wait than they can begin."""

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hpo.core.study import TERMS_NOTE, Terms
from hpo.core.trial import Claim, Completed
from hpo.executors import Finished
from hpo.executors.external import ExternalExecutor
from hpo.stores import Store, connect
from hpo.testing import IDENTITY, FakeClock

TERMS = Terms(lease_seconds=30, retries=1, timeout_seconds=60)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(connect(f"sqlite:///{tmp_path}/hpo.db", create=True)) as catalog:
        yield catalog.create(IDENTITY)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def executor(store: Store, clock: FakeClock) -> ExternalExecutor:
    return ExternalExecutor(store, TERMS, "hpo worker", clock)


@pytest.fixture
def offered(store: Store, executor: ExternalExecutor) -> Callable[[int], None]:
    """``offered(number)``: a trial that the driver has submitted."""

    def offer(number: int) -> None:
        store.add(number, {"x": 0.5}, {})
        executor.submit(number)

    return offer


def claimed(store: Store, worker: str) -> Claim:
    claim = store.claim(worker)
    assert claim is not None
    return claim


def test_what_workers_must_know_is_in_the_study_while_it_has_trials_for_them(
    store: Store, executor: ExternalExecutor
) -> None:
    assert Terms.of(store.record().notes[TERMS_NOTE]) == TERMS

    executor.close()

    assert Terms.of(store.record().notes[TERMS_NOTE]) is None


@pytest.mark.parametrize(
    "note",
    [
        None,
        7,
        [],
        {},
        {"lease_seconds": "30", "retries": 1, "timeout_seconds": None},
        {"lease_seconds": -1, "retries": 1, "timeout_seconds": None},
        {"lease_seconds": float("nan"), "retries": 1, "timeout_seconds": None},
        {"lease_seconds": 30, "retries": [], "timeout_seconds": None},
        {"lease_seconds": 30, "retries": 1, "timeout_seconds": {}},
        {"lease_seconds": 30, "retries": 1, "timeout_seconds": None, "tracking_uri": "http://elsewhere"},
    ],
)
def test_terms_that_no_driver_wrote_are_none(note: object) -> None:
    assert Terms.of(note) is None


def test_as_many_trials_are_taken_as_idle_workers_are_there(
    store: Store, executor: ExternalExecutor, offered: Callable[[int], None]
) -> None:
    assert executor.wait(0) == []
    assert executor.free() == 0
    for worker in ("a", "b"):
        store.announce(worker, {})

    executor.wait(0)
    assert (executor.free(), executor.slots) == (2, 2)
    offered(0)
    assert executor.free() == 1
    claimed(store, "a")
    executor.wait(0)
    assert (executor.free(), executor.slots) == (1, 2)
    offered(1)

    with pytest.raises(IndexError):
        executor.submit(2)


def test_the_end_of_a_trial_is_told_once_and_its_worker_is_free_again(
    store: Store, executor: ExternalExecutor, offered: Callable[[int], None]
) -> None:
    store.announce("a", {})
    executor.wait(0)
    offered(0)

    store.finish(claimed(store, "a"), Completed(0.5))

    assert executor.wait(0) == [Finished(0)]
    assert executor.wait(0) == []
    assert executor.free() == 1


def test_a_trial_that_is_handed_back_waits_for_another_worker(
    store: Store, executor: ExternalExecutor, offered: Callable[[int], None]
) -> None:
    for worker in ("a", "b"):
        store.announce(worker, {})
    executor.wait(0)
    offered(0)
    store.release(claimed(store, "a"))

    assert executor.wait(0) == []
    assert executor.free() == 1
    store.finish(claimed(store, "b"), Completed(0.5))
    assert executor.wait(0) == [Finished(0)]


def test_a_worker_that_fell_silent_counts_no_more_and_is_forgotten(
    store: Store, executor: ExternalExecutor, clock: FakeClock
) -> None:
    for worker in ("a", "b"):
        store.announce(worker, {})
    executor.wait(0)
    clock.advance(29)
    store.announce("b", {})
    executor.wait(0)
    clock.advance(2)

    executor.wait(0)

    assert executor.free() == 1
    assert [worker.name for worker in store.workers()] == ["b"]


def test_a_worker_that_was_there_before_counts_when_it_announces_itself_again(
    store: Store, clock: FakeClock
) -> None:
    for worker in ("dead", "alive"):
        store.announce(worker, {})
    executor = ExternalExecutor(store, TERMS, "hpo worker", clock)
    executor.wait(0)
    assert executor.free() == 0

    store.announce("alive", {})
    executor.wait(0)

    assert executor.free() == 1
    clock.advance(31)
    store.announce("alive", {})
    executor.wait(0)
    assert [worker.name for worker in store.workers()] == ["alive"]


def test_a_worker_is_silent_while_its_trial_runs_and_counts_when_it_has_ended(
    store: Store, executor: ExternalExecutor, offered: Callable[[int], None], clock: FakeClock
) -> None:
    store.announce("a", {})
    executor.wait(0)
    offered(0)
    claim = claimed(store, "a")
    for _ in range(3):
        clock.advance(25)
        executor.wait(0)
        assert executor.slots == 1

    store.finish(claim, Completed(0.5))
    executor.wait(0)

    assert executor.free() == 1


def test_the_worker_of_an_expired_trial_is_there_again_when_it_says_so(
    store: Store, executor: ExternalExecutor, offered: Callable[[int], None]
) -> None:
    store.announce("a", {})
    executor.wait(0)
    offered(0)
    claimed(store, "a")
    executor.wait(0)

    executor.cancel([0])
    store.recall([0])
    executor.wait(0)
    assert executor.free() == 0
    store.announce("a", {})
    executor.wait(0)

    assert executor.free() == 1


def test_what_nobody_has_begun_can_be_withdrawn(
    store: Store, executor: ExternalExecutor, offered: Callable[[int], None]
) -> None:
    for worker in ("a", "b"):
        store.announce(worker, {})
    executor.wait(0)
    for number in (0, 1):
        offered(number)
    claimed(store, "a")
    executor.wait(0)

    assert executor.withdraw() == [1]

    assert executor.withdraw() == []
    assert Terms.of(store.record().notes[TERMS_NOTE]) is None


def test_a_person_is_told_how_to_start_a_worker_whenever_there_is_none(
    store: Store, executor: ExternalExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    def times_told() -> int:
        return sum("hpo worker" in record.message for record in caplog.records)

    with caplog.at_level(logging.WARNING, "hpo"):
        for _ in range(3):
            executor.wait(0)
        assert times_told() == 1
        store.announce("a", {})
        executor.wait(0)
        store.retire("a")
        for _ in range(3):
            executor.wait(0)

    assert times_told() == 2
