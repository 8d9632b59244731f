"""The loop, on a real store with workers that do as the test says."""

from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hyperopt import hp

from hpo.core.history import History
from hpo.core.trial import (
    Answer,
    Changes,
    Claim,
    Completed,
    Failed,
    Kind,
    Outcome,
    Pruned,
    State,
    Verdict,
)
from hpo.executors import Died, Event, Finished
from hpo.launch import differences
from hpo.search import algorithm
from hpo.search.pruning import Curves, Judge
from hpo.space import compile_space
from hpo.stores import Store, connect
from hpo.study import Ending, Fate, Limits, Study
from hpo.testing import IDENTITY, FakeClock

SPACE = compile_space({"x": hp.uniform("x", -1, 1)})
DEATH = Failed(Kind.SIGNAL, "SIGKILL")


@dataclass
class FakeExecutor:
    """Ends every trial at the next `wait` as ``ends`` says: with an outcome, or with the worker's death."""

    store: Store
    ends: Callable[[int, int], Outcome | None]
    slots: int = 1
    running: list[int] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    most: int = 0

    def free(self) -> int:
        return self.slots - len(self.running)

    def submit(self, number: int) -> None:
        self.running.append(number)
        self.order.append(number)
        self.most = max(self.most, len(self.running))

    def wait(self, seconds: float) -> list[Event]:
        number = self.running.pop(0)
        claim = self.store.claim(f"w{number}", number)
        assert claim is not None
        outcome = self.ends(number, claim.attempt)
        if outcome is None:
            return [Died(f"w{number}", number, DEATH)]
        self.store.finish(claim, outcome)
        return [Finished(number)]

    def withdraw(self) -> list[int]:
        return []

    def cancel(self, numbers: Collection[int] | None = None) -> None:
        self.running = [n for n in self.running if numbers is not None and n not in numbers]

    def close(self) -> None: ...


@dataclass
class Wish:
    drain: bool = False
    cancel: bool = False

    def is_drain(self) -> bool:
        return self.drain

    def is_cancel(self) -> bool:
        return self.cancel


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(connect(f"sqlite:///{tmp_path}/hpo.db", create=True)) as catalog:
        yield catalog.create(IDENTITY)


def square(number: int, attempt: int) -> Outcome:
    return Completed(float(number))


def study(store: Store, executor: FakeExecutor, limits: Limits, **more: object) -> Study:
    return Study(
        store=store,
        space=SPACE,
        algorithm=algorithm("random"),
        executor=executor,
        limits=limits,
        seed=7,
        work_folder=Path("unused"),
        **more,  # type: ignore[arg-type]
    )


def test_a_study_ends_after_its_evaluations(store: Store) -> None:
    executor = FakeExecutor(store, square)

    ending = study(store, executor, Limits(max_evals=5)).run(Wish())

    assert ending is Ending.DONE
    assert executor.order == [0, 1, 2, 3, 4]
    assert store.record().counts["completed"] == 5


def test_every_worker_is_busy_and_none_has_a_trial_in_advance(store: Store) -> None:
    executor = FakeExecutor(store, square, slots=3)

    study(store, executor, Limits(max_evals=8)).run(Wish())

    assert executor.most == 3
    assert store.record().counts == {"completed": 8, "waiting": 0, "running": 0, "pruned": 0, "failed": 0}


def test_a_study_waits_while_no_worker_is_there(store: Store) -> None:
    class WithoutWorkersAtFirst(FakeExecutor):
        looks = 0

        def free(self) -> int:
            return super().free() if self.looks >= 3 else 0

        def wait(self, seconds: float) -> list[Event]:
            self.looks += 1
            return super().wait(seconds) if self.running else []

    ending = study(store, WithoutWorkersAtFirst(store, square), Limits(max_evals=2)).run(Wish())

    assert ending is Ending.DONE
    assert store.record().counts["completed"] == 2


def test_a_trial_that_a_worker_of_its_own_has_taken_counts_and_is_waited_for(store: Store) -> None:
    """Such a worker takes whatever waits, also what this driver has not submitted."""

    class WithOneMore(FakeExecutor):
        looks = 0

        def wait(self, seconds: float) -> list[Event]:
            self.looks += 1
            if self.looks == 5:
                self.store.finish(claim, Completed(0.25))
            return super().wait(seconds) if self.running else []

    store.add(0, {"x": 0.5}, {})
    claim = store.claim("w", 0)
    assert claim is not None
    executor = WithOneMore(store, square)

    ending = study(store, executor, Limits(max_evals=2)).run(Wish())

    assert ending is Ending.DONE
    assert executor.order == [1]
    assert [trial.state for trial in store.trials()] == ["completed", "completed"]


def test_a_drain_takes_back_what_no_worker_has_begun(store: Store) -> None:
    class NobodyBegins(FakeExecutor):
        def wait(self, seconds: float) -> list[Event]:
            wish.drain = True
            return []

        def withdraw(self) -> list[int]:
            taken, self.running = self.running, []
            return taken

    wish = Wish()

    ending = study(store, NobodyBegins(store, square, slots=2), Limits(max_evals=9)).run(wish)

    assert ending is Ending.DRAINED
    assert [trial.state for trial in store.trials()] == ["waiting", "waiting"]


def test_the_points_do_not_depend_on_interruptions(store: Store, tmp_path: Path) -> None:
    study(store, FakeExecutor(store, square), Limits(max_evals=6)).run(Wish())
    with closing(connect(f"sqlite:///{tmp_path}/other.db", create=True)) as catalog:
        other = catalog.create(IDENTITY)

        for total in (1, 2, 5, 6):
            study(other, FakeExecutor(other, square), Limits(max_evals=total)).run(Wish())

        assert [t.point for t in other.trials()] == [t.point for t in store.trials()]


def test_trials_left_waiting_are_run_before_new_ones(store: Store) -> None:
    store.add(0, {"x": 0.25}, {"x": 0.25})
    executor = FakeExecutor(store, square)

    study(store, executor, Limits(max_evals=2)).run(Wish())

    assert executor.order == [0, 1]
    assert store.trial(0).point == {"x": 0.25}


def test_a_smaller_budget_starts_no_more_of_what_waits(store: Store) -> None:
    for number in range(4):
        store.add(number, {"x": 0.25}, {})
    executor = FakeExecutor(store, square, slots=3)

    study(store, executor, Limits(max_evals=2)).run(Wish())

    assert sorted(executor.order) == [0, 1]


def test_a_dead_workers_trial_runs_again_and_then_fails(store: Store) -> None:
    executor = FakeExecutor(store, lambda number, attempt: None if number == 1 else Completed(1.0))

    study(store, executor, Limits(max_evals=3, retries=1)).run(Wish())

    assert executor.order == [0, 1, 1, 2]
    assert store.trial(1).error == DEATH
    assert store.trial(2).state is State.COMPLETED


def test_a_worker_that_died_before_it_claimed_costs_nothing(store: Store) -> None:
    class DiesFirst(FakeExecutor):
        def wait(self, seconds: float) -> list[Event]:
            if len(self.order) == 1:
                return [Died("w", self.running.pop(), DEATH)]
            return super().wait(seconds)

    executor = DiesFirst(store, square)

    study(store, executor, Limits(max_evals=2, retries=0)).run(Wish())

    assert executor.order == [0, 0, 1]
    assert store.trial(0).attempts == 1


def test_a_share_of_failures_above_the_limit_stops_the_study(store: Store) -> None:
    executor = FakeExecutor(
        store, lambda number, _: Failed(Kind.NAN, "nan") if number % 2 else Completed(1.0)
    )

    ending = study(store, executor, Limits(max_evals=50, max_failures=0.4)).run(Wish())

    assert ending is Ending.FAILURES
    assert len(list(store.trials())) == 10


def test_failures_of_an_earlier_call_do_not_stop_a_mended_study(store: Store) -> None:
    broken = FakeExecutor(store, lambda *_: Failed(Kind.EXCEPTION, "typo"))
    assert study(store, broken, Limits(max_evals=30)).run(Wish()) is Ending.FAILURES

    ending = study(store, FakeExecutor(store, square), Limits(max_evals=30)).run(Wish())

    assert ending is Ending.DONE
    assert store.record().counts["completed"] == 20


def test_a_point_that_is_none_of_the_space_fails_its_trial_alone(store: Store) -> None:
    for number, point in enumerate(({"y": 1}, {"x": "a"}, {"x": 7.0}, {"x": 0.5, "y": 1})):
        store.add(number, point, {})
    executor = FakeExecutor(store, square)

    ending = study(store, executor, Limits(max_evals=6)).run(Wish())

    assert ending is Ending.DONE
    assert executor.order == [4, 5]
    assert {store.trial(number).state for number in range(4)} == {State.FAILED}
    assert store.trial(0).error.reason.startswith("OutsideSpace")  # type: ignore[union-attr]


def test_a_space_whose_every_parameter_is_fixed_is_run(store: Store) -> None:
    fixed = study(store, FakeExecutor(store, square, slots=2), Limits(max_evals=3))
    fixed.space = compile_space({"x": hp.uniform("x", -1, 1)}, {"x": 0.5})
    fixed.history = History(0)

    assert fixed.run(Wish()) is Ending.DONE
    assert [trial.point for trial in store.trials()] == [{}, {}, {}]


def test_a_worker_that_fell_silent_is_killed_and_its_trial_runs_again(store: Store) -> None:
    clock = FakeClock()
    store._leases._clock = clock  # type: ignore[attr-defined]

    class SilentOnce(FakeExecutor):
        def wait(self, seconds: float) -> list[Event]:
            if len(self.order) == 1:
                store.claim("w", 0)
                clock.advance(20)
                return []
            return super().wait(seconds)

    executor = SilentOnce(store, square)

    study(store, executor, Limits(max_evals=2, lease_seconds=30), clock=clock).run(Wish())

    assert executor.order == [0, 0, 1]
    assert store.trial(0).attempts == 2


def test_failures_below_the_limit_do_not(store: Store) -> None:
    executor = FakeExecutor(
        store, lambda number, _: Failed(Kind.NAN, "nan") if number % 2 else Completed(1.0)
    )

    assert study(store, executor, Limits(max_evals=20, max_failures=0.5)).run(Wish()) is Ending.DONE


def test_a_search_that_has_nothing_left_ends_the_study_when_its_trials_have_ended(store: Store) -> None:
    one = study(store, FakeExecutor(store, square, slots=2), Limits(max_evals=10))
    one.algorithm = algorithm("grid:5")

    ending = one.run(Wish())

    assert ending is Ending.DONE
    assert store.record().counts["completed"] == 5
    assert one.exhausted is not None
    assert sorted(trial.point["x"] for trial in store.trials()) == pytest.approx([-0.8, -0.4, 0, 0.4, 0.8])


def test_points_of_a_persons_run_first_and_once(store: Store) -> None:
    first = study(store, FakeExecutor(store, square), Limits(max_evals=2))
    assert first.enqueue(np.array([[0.5], [0.25], [0.75], [0.5]]), Wish()) == [
        Fate.NEW,
        Fate.NEW,
        Fate.NEW,
        Fate.TWICE,
    ]
    first.run(Wish())

    second = study(store, FakeExecutor(store, square), Limits(max_evals=4))
    assert second.enqueue(np.array([[0.5], [0.125], [0.75]]), Wish()) == [Fate.HAD, Fate.NEW, Fate.WAITING]
    second.run(Wish())

    assert [trial.point["x"] for trial in store.trials()] == [0.5, 0.25, 0.75, 0.125]


def test_a_wish_ends_the_taking_of_points(store: Store) -> None:
    one = study(store, FakeExecutor(store, square), Limits(max_evals=9))

    assert one.enqueue(np.array([[0.5], [0.25]]), Wish(drain=True)) == []
    assert list(store.trials()) == []


def test_each_point_has_its_repeats_before_the_next_and_the_search_sees_their_mean(store: Store) -> None:
    seen = []

    class Spy:
        def propose(self, space, history, pending, rng, k):  # type: ignore[no-untyped-def]
            seen.append((history.numbers.tolist(), history.losses.tolist(), len(pending)))
            return np.array([[len(seen) / 10]])

    one = study(store, FakeExecutor(store, square), Limits(max_evals=9), repeats=3)
    one.algorithm = Spy()
    one.run(Wish())

    assert [trial.point["x"] for trial in store.trials()] == [0.1] * 3 + [0.2] * 3 + [0.3] * 3
    assert seen == [([], [], 0), ([0], [1.0], 0), ([0, 3], [1.0, 4.0], 0)]


def test_a_point_of_which_one_repeat_failed_is_a_failed_point(store: Store) -> None:
    executor = FakeExecutor(store, lambda n, _: Failed(Kind.NAN, "nan") if n == 1 else Completed(1.0))

    one = study(store, executor, Limits(max_evals=4), repeats=2)
    one.run(Wish())

    assert one.history.losses.tolist() == [np.inf, 1.0]


def test_repeats_that_run_at_once_are_one_pending_point(store: Store) -> None:
    pendings = []

    class Spy:
        def propose(self, space, history, pending, rng, k):  # type: ignore[no-untyped-def]
            pendings.append(pending[:, 0].tolist())
            return np.array([[len(pendings) / 10]])

    one = study(store, FakeExecutor(store, square, slots=4), Limits(max_evals=4), repeats=2)
    one.algorithm = Spy()
    one.run(Wish())

    assert pendings == [[], [0.1]]


@pytest.mark.parametrize("ended", range(1, 6))
def test_a_point_whose_repeats_were_interrupted_gets_the_others_first(store: Store, ended: int) -> None:
    study(store, FakeExecutor(store, square), Limits(max_evals=ended), repeats=3).run(Wish())

    one = study(store, FakeExecutor(store, square, slots=2), Limits(max_evals=9), repeats=3)
    one.enqueue(np.array([[0.5]]), Wish())
    one.run(Wish())

    points = [trial.point["x"] for trial in store.trials()]
    assert [len(set(points[first : first + 3])) for first in (0, 3, 6)] == [1, 1, 1]
    assert len(set(points)) == 3
    assert points.count(0.5) == 3
    assert sorted(one.history.numbers) == [0, 3, 6]


def test_a_drain_lets_running_trials_end_and_starts_none(store: Store) -> None:
    wish = Wish()

    def drain_at_two(number: int, attempt: int) -> Outcome:
        wish.drain = wish.drain or number == 2
        return Completed(1.0)

    executor = FakeExecutor(store, drain_at_two, slots=2)

    ending = study(store, executor, Limits(max_evals=10)).run(wish)

    assert ending is Ending.DRAINED
    assert store.record().counts["completed"] == len(executor.order) == 4


def test_a_cancel_hands_running_trials_back(store: Store) -> None:
    wish = Wish()

    def cancel_at_two(number: int, attempt: int) -> Outcome:
        wish.cancel = wish.cancel or number == 2
        return Completed(1.0)

    executor = FakeExecutor(store, cancel_at_two, slots=2)

    ending = study(store, executor, Limits(max_evals=10)).run(wish)

    assert ending is Ending.CANCELLED
    counts = store.record().counts
    assert (counts["completed"], counts["waiting"], counts["running"]) == (3, 1, 0)


def test_the_time_out_ends_the_study(store: Store) -> None:
    clock = FakeClock()

    def slow(number: int, attempt: int) -> Outcome:
        clock.advance(40)
        return Completed(1.0)

    ending = study(store, FakeExecutor(store, slow), Limits(timeout_seconds=100), clock=clock).run(Wish())

    assert ending is Ending.TIMEOUT
    assert store.record().counts["completed"] == 3


def test_a_failing_observer_is_logged_and_the_study_goes_on(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def update(self, changes: Changes) -> None:
            raise RuntimeError("no more ink")

        def close(self) -> None: ...

    ending = study(store, FakeExecutor(store, square), Limits(max_evals=2), observers=[Broken()]).run(Wish())

    assert ending is Ending.DONE
    assert "no more ink" in caplog.text


def test_the_search_sees_what_runs_and_what_ended(store: Store) -> None:
    seen = []

    class Spy:
        def propose(self, space, history, pending, rng, k):  # type: ignore[no-untyped-def]
            seen.append((len(history), len(pending)))
            return np.array([[0.5]])

    one = study(store, FakeExecutor(store, square, slots=2), Limits(max_evals=4))
    one.algorithm = Spy()
    one.run(Wish())

    assert seen == [(0, 0), (0, 1), (1, 1), (2, 1)]


@dataclass
class TrainingExecutor(FakeExecutor):
    """Trains one epoch of every running trial at each `wait`; trial ``n`` reports ``n`` all the time."""

    epochs: int = 6
    claims: dict[int, Claim] = field(default_factory=dict)
    trained: dict[int, int] = field(default_factory=dict)

    def wait(self, seconds: float) -> list[Event]:
        events: list[Event] = []
        for number in list(self.running):
            claim = self.claims.get(number) or self.store.claim(f"w{number}", number)
            assert claim is not None
            self.claims[number] = claim
            epoch = self.trained.get(number, 0)
            self.trained[number] = epoch + 1
            answer = self.store.report(claim, epoch, float(number), {}, time=0.0)
            if answer is Answer.STOP or epoch + 1 == self.epochs:
                outcome = Pruned if answer is Answer.STOP else Completed
                self.store.finish(claim, outcome(float(number)))
                self.running.remove(number)
                events.append(Finished(number))
        return events


class AboveThree:
    def stops(self, curves: Curves, number: int, epoch: int) -> bool:
        return number > 3 and epoch >= 1


def test_the_trials_that_the_pruner_stops_are_pruned_and_the_search_learns_their_last_loss(
    store: Store,
) -> None:
    executor = TrainingExecutor(store, square, slots=2)
    one = study(store, executor, Limits(max_evals=8), judge=Judge(AboveThree(), seed=7))

    one.run(Wish())

    states = [trial.state for trial in store.trials()]
    assert states == [State.COMPLETED] * 4 + [State.PRUNED] * 4
    assert set(executor.trained.values()) == {6, 3}
    assert one.history.losses.tolist() == [float(number) for number in one.history.numbers]


def test_every_pruned_trial_has_the_pruners_verdict(store: Store) -> None:
    executor = TrainingExecutor(store, square)

    study(store, executor, Limits(max_evals=6), judge=Judge(AboveThree(), seed=7)).run(Wish())

    verdicts = {trial.number: trial.verdict for trial in store.trials()}
    assert verdicts == dict.fromkeys(range(4)) | {n: Verdict(1, 0.1, 0.0) for n in (4, 5)}


def test_without_a_judge_no_trial_is_stopped(store: Store) -> None:
    study(store, TrainingExecutor(store, square), Limits(max_evals=6)).run(Wish())

    assert store.record().counts["completed"] == 6


def test_differences_between_a_study_and_a_command_are_told() -> None:
    from dataclasses import replace

    asked = replace(IDENTITY, seed=8, arguments={"epochs": 9, "data": "/x"})

    assert differences(IDENTITY, asked) == [
        "seed: 7 -> 8",
        "--set data: its default -> /x",
        "--set epochs: 5 -> 9",
    ]
