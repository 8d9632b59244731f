"""Contract suites: what a new store or executor must pass. They need pytest.

    class TestMyStore(StoreContract):
        @pytest.fixture
        def catalog(self, tmp_path, clock): return MyCatalog(...)

A suite's tests are its specification; read them as such.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hpo.core.errors import ClaimLost, NoSuchStudy, NoSuchTrial
from hpo.core.study import Driver, Identity
from hpo.core.trial import Answer, Claim, Completed, Failed, Kind, Outcome, Pruned, State, Verdict
from hpo.executors import Died, Event, Executor, Finished
from hpo.stores import Catalog, Store, connect

IDENTITY = Identity(
    study="digits",
    entry_point="space.py:objective",
    fingerprint="f" * 64,
    space={"x": "uniform(0, 1)"},
    arguments={"epochs": 5},
    seed=7,
    algorithm="tpe",
)
VERDICT = Verdict(epoch=3, chance=0.02, best=None)
SPARED = Verdict(epoch=3, chance=0.02, best=0.5, is_spared=True)
DEATH = Failed(Kind.SIGNAL, "killed by SIGKILL")


@dataclass
class FakeClock:
    """A monotonic clock that moves when told to."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class StoreContract:
    """Every `hpo.stores.Store` passes these. Subclasses give the fixture ``catalog``, with ``clock``, and
    ``second``, another handle on the same place, where `connect` is not enough for it."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def second(self, catalog: Catalog) -> Iterator[Catalog]:
        with contextlib.closing(connect(catalog.url)) as second:
            yield second

    @pytest.fixture
    def store(self, catalog: Catalog) -> Store:
        return catalog.create(IDENTITY)

    @pytest.fixture
    def payload(self, tmp_path: Path) -> Path:
        path = tmp_path / "payload.bin"
        path.write_bytes(b"weights" * 100_000)
        return path

    # --- studies

    def test_a_study_is_found_again_by_its_name(self, catalog: Catalog) -> None:
        catalog.create(IDENTITY)

        record = catalog.open("digits").record()

        assert catalog.names() == ["digits"]
        assert record.identity == IDENTITY
        assert set(record.counts.values()) == {0}

    def test_creating_a_study_twice_keeps_the_first(self, catalog: Catalog) -> None:
        catalog.create(IDENTITY)

        again = catalog.create(replace(IDENTITY, seed=8))

        assert again.record().identity.seed == 7

    def test_an_unknown_study_is_an_error_that_names_the_known_ones(self, catalog: Catalog) -> None:
        catalog.create(IDENTITY)

        with pytest.raises(NoSuchStudy) as raised:
            catalog.open("digit")

        assert "digits" in raised.value.hint

    def test_studies_side_by_side_do_not_see_each_other(self, catalog: Catalog, store: Store) -> None:
        other = catalog.create(replace(IDENTITY, study="other"))
        _add(store, 0)

        assert other.claim("w") is None
        assert list(other.trials()) == []
        assert other.changes(0).trials == ()

    def test_notes_are_kept_and_replaced(self, store: Store) -> None:
        store.note("mlflow", {"revision": 1})
        store.note("mlflow", {"revision": 2})

        assert store.record().notes == {"mlflow": {"revision": 2}}

    def test_one_driver_leads_until_it_resigns(self, store: Store) -> None:
        first, second = _driver("a"), _driver("b")

        assert store.lead(first) == first
        assert store.lead(second) == first
        store.resign(second)  # not the driver: nothing happens
        assert store.lead(second) == first
        store.resign(first)
        assert store.lead(second) == second

    def test_a_dead_driver_is_replaced_by_one_successor_only(self, store: Store) -> None:
        dead, heir, rival = _driver("a"), _driver("b"), _driver("c")
        store.lead(dead)

        assert store.lead(heir, instead_of=dead) == heir
        assert store.lead(rival, instead_of=dead) == heir

    # --- claims

    def test_a_trial_waits_runs_and_ends(self, store: Store) -> None:
        _add(store, 0)
        assert store.trial(0).state is State.WAITING

        claim = _claimed(store, 0)
        running = store.trial(0)
        store.finish(claim, Completed(0.25, {"accuracy": 0.75}))
        ended = store.trial(0)

        assert (running.state, running.worker, running.attempts) == (State.RUNNING, "w", 1)
        assert running.seconds is None
        assert (ended.state, ended.loss, ended.result) == (State.COMPLETED, 0.25, {"accuracy": 0.75})
        assert ended.seconds is not None
        assert ended.params == {"lr": 0.5, "activation": "relu"}

    def test_trials_are_added_together_or_not_at_all(self, store: Store) -> None:
        store.add_all([(0, {"x": 1}, {"x": "one"}), (1, {"x": 2}, {"x": "two"})])

        with pytest.raises(Exception):  # noqa: B017 - as the store's own way to say it
            store.add_all([(2, {"x": 3}, {}), (1, {"x": 4}, {})])

        assert [(trial.number, trial.point, trial.params) for trial in store.trials()] == [
            (0, {"x": 1}, {"x": "one"}),
            (1, {"x": 2}, {"x": "two"}),
        ]

    def test_a_claim_brings_the_point_exactly(self, store: Store) -> None:
        point = {"x": 0.1 + 0.2, "k": 3, "tiny": 5e-324, "y": -1e300}
        store.add(0, point, {})

        claim = _claimed(store, 0)

        assert claim.point == point
        assert isinstance(claim.point["k"], int)

    def test_a_claim_brings_the_run_that_was_made_for_the_trial(self, store: Store) -> None:
        store.add(0, {}, {}, "first")
        _add(store, 1)

        claim, without = _claimed(store, 0), _claimed(store, 1)
        store.release(claim)
        store.track(0, "second")
        again = _claimed(store, 0)

        assert (claim.run_id, again.run_id, without.run_id) == ("first", "second", None)
        assert [trial.run_id for trial in store.trials()] == ["second", None]

    def test_trials_are_claimed_in_their_order_each_once(self, store: Store) -> None:
        for number in (0, 1, 2):
            _add(store, number)

        claims = [store.claim("w") for _ in range(4)]

        assert [claim and claim.number for claim in claims] == [0, 1, 2, None]

    def test_a_trial_is_claimed_by_its_number(self, store: Store) -> None:
        for number in (0, 1):
            _add(store, number)

        assert _claimed(store, 1).number == 1
        assert store.claim("v", 1) is None
        assert store.claim("v", 9) is None

    def test_a_claim_waits_until_a_trial_is_offered(self, store: Store, second: Catalog) -> None:
        other, begins = second.open("digits"), threading.Event()
        _add(other, 0)
        held = _claimed(other, 0)

        def wait() -> Claim | None:
            begins.set()
            return store.claim("v", wait_seconds=60)

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(wait)
            begins.wait()
            other.release(held)
            claim = waiting.result(60)

        assert claim is not None
        assert (claim.number, claim.worker) == (0, "v")

    def test_a_claim_that_waits_in_vain_is_none(self, store: Store) -> None:
        _add(store, 0)
        _claimed(store, 0)

        assert store.claim("v", wait_seconds=0.1) is None
        assert store.claim("v", 0, wait_seconds=0.1) is None

    def test_a_claim_that_is_asked_for_again_under_its_token_is_the_same(self, store: Store) -> None:
        for number in (0, 1):
            _add(store, number)

        first = store.claim("w", token="mine")
        again = store.claim("w", token="mine")

        assert first is not None
        assert first.token == "mine"
        assert again == first
        store.finish(first, Completed(0.5))
        later = store.claim("w", token="mine")
        assert later is not None
        assert later.number == 1

    def test_a_trial_remembers_the_gpus_of_its_last_attempt(self, store: Store) -> None:
        for number in (0, 1):
            _add(store, number)
        first = store.claim("a", 0, gpus=("0", "1"))
        assert first is not None
        assert store.trial(0).gpus == ("0", "1")
        store.release(first)

        store.claim("b", 0, gpus=("GPU-5a",))

        assert store.trial(0).gpus == ("GPU-5a",)
        assert store.trial(1).gpus == ()

    def test_a_number_is_used_once(self, store: Store) -> None:
        _add(store, 0)

        with pytest.raises(Exception):  # noqa: B017 - which one is the store's own
            _add(store, 0)

        assert store.record().counts["waiting"] == 1

    def test_a_trial_handed_back_is_offered_again(self, store: Store) -> None:
        _add(store, 0)
        first = _claimed(store, 0)

        store.release(first)
        second = _claimed(store, 0)

        assert second.attempt == 2
        assert second.token != first.token
        with pytest.raises(ClaimLost):
            store.renew(first)

    def test_a_revived_worker_cannot_overwrite_its_successor(self, store: Store) -> None:
        _add(store, 0)
        lost = _claimed(store, 0, worker="a")
        store.lose("a", DEATH, retries=1)
        successor = _claimed(store, 0, worker="b")

        with pytest.raises(ClaimLost):
            store.report(lost, 0, 9.0, {}, time=1.0)
        with pytest.raises(ClaimLost):
            store.finish(lost, Completed(9.0))
        with pytest.raises(ClaimLost):
            store.release(lost)
        store.finish(successor, Completed(0.5))

        assert store.trial(0).loss == 0.5
        assert store.reports(0) == []

    def test_finishing_twice_changes_nothing(self, store: Store) -> None:
        _add(store, 0)
        claim = _claimed(store, 0)
        store.finish(claim, Completed(0.5))
        revision = store.record().revision

        store.finish(claim, Failed(Kind.TIMEOUT, "too late"))

        assert store.trial(0).loss == 0.5
        assert store.record().revision == revision

    def test_a_failed_trial_has_a_reason_and_no_loss(self, store: Store) -> None:
        _add(store, 0)

        store.finish(_claimed(store, 0), Failed(Kind.NAN, "the loss is nan"))

        trial = store.trial(0)
        assert (trial.state, trial.loss) == (State.FAILED, None)
        assert trial.error == Failed(Kind.NAN, "the loss is nan")

    def test_a_pruned_trial_keeps_its_last_loss(self, store: Store) -> None:
        _add(store, 0)

        store.finish(_claimed(store, 0), Pruned(0.7))

        assert (store.trial(0).state, store.trial(0).loss) == (State.PRUNED, 0.7)

    # --- death

    def test_a_trial_is_offered_again_until_its_retries_are_used(self, store: Store) -> None:
        _add(store, 0)
        for worker in ("a", "b"):
            _claimed(store, 0, worker=worker)
            assert store.lose(worker, DEATH, retries=1) == [0]

        trial = store.trial(0)
        assert (trial.state, trial.attempts) == (State.FAILED, 2)
        assert trial.error == DEATH

    def test_handing_back_does_not_count_against_retries(self, store: Store) -> None:
        _add(store, 0)
        for _ in range(3):
            store.release(_claimed(store, 0))
        _claimed(store, 0)
        store.recall()
        _claimed(store, 0, worker="a")

        store.lose("a", DEATH, retries=1)

        assert store.trial(0).state is State.WAITING

    def test_the_death_of_an_idle_worker_costs_no_trial(self, store: Store) -> None:
        _add(store, 0)
        _claimed(store, 0, worker="a")

        assert store.lose("b", DEATH, retries=0) == []
        assert store.trial(0).state is State.RUNNING

    def test_recall_takes_back_what_runs_and_leaves_what_ended(self, store: Store) -> None:
        for number in (0, 1, 2):
            _add(store, number)
        store.finish(_claimed(store, 0), Completed(0.1))
        _claimed(store, 1)

        assert store.recall() == [1]

        assert [trial.state for trial in store.trials()] == ["completed", "waiting", "waiting"]

    def test_a_trial_whose_worker_fell_silent_is_offered_again(self, store: Store, clock: FakeClock) -> None:
        _add(store, 0)
        lost = _claimed(store, 0, worker="a")
        assert store.expire(lease_seconds=30, retries=1) == []
        clock.advance(31)

        expired = store.expire(lease_seconds=30, retries=1)

        found = _claimed(store, 0, worker="b")
        assert expired == [0]
        assert found.number == lost.number
        with pytest.raises(ClaimLost):
            store.finish(lost, Completed(0.1))

    def test_a_worker_that_renews_or_reports_keeps_its_trial(self, store: Store, clock: FakeClock) -> None:
        _add(store, 0)
        claim = _claimed(store, 0)
        store.expire(lease_seconds=30, retries=1)
        for sign_of_life in (
            lambda: store.renew(claim),
            lambda: store.report(claim, 0, 0.5, {}, time=1.0),
        ):
            clock.advance(29)
            sign_of_life()
            assert store.expire(lease_seconds=30, retries=1) == []

        clock.advance(29)

        assert store.expire(lease_seconds=30, retries=1) == []
        assert store.trial(0).state is State.RUNNING

    # --- workers

    def test_a_worker_that_announces_itself_is_known_with_what_it_offers(self, store: Store) -> None:
        assert store.workers() == []

        store.announce("lab:7", {"host": "lab", "pid": 7, "gpus": ["0"]})
        store.announce("attic:3", {"host": "attic", "pid": 3, "gpus": []})

        attic, lab = store.workers()
        assert (attic.name, lab.name) == ("attic:3", "lab:7")
        assert lab.offers == {"host": "lab", "pid": 7, "gpus": ["0"]}
        assert lab.trial is None

    def test_each_announcement_moves_the_workers_counter_and_replaces_its_offers(self, store: Store) -> None:
        store.announce("lab:7", {"gpus": ["0"]})
        [before] = store.workers()

        store.announce("lab:7", {"gpus": ["1"]})

        [after] = store.workers()
        assert after.beats > before.beats
        assert after.offers == {"gpus": ["1"]}

    def test_a_worker_is_shown_with_the_trial_that_it_runs(self, store: Store) -> None:
        for worker in ("a", "b"):
            store.announce(worker, {})
        for number in (0, 1):
            _add(store, number)
        store.finish(_claimed(store, 0, worker="b"), Completed(0.5))
        _claimed(store, 1, worker="a")

        assert {worker.name: worker.trial for worker in store.workers()} == {"a": 1, "b": None}

    def test_a_retired_worker_is_forgotten_until_it_announces_itself_again(self, store: Store) -> None:
        store.announce("a", {})
        store.announce("b", {})

        store.retire("a")
        store.retire("nobody")

        assert [worker.name for worker in store.workers()] == ["b"]
        store.announce("a", {})
        assert [worker.name for worker in store.workers()] == ["a", "b"]

    def test_an_announcement_is_no_change(self, store: Store) -> None:
        before = store.record().revision

        store.announce("a", {})
        store.retire("a")

        assert store.record().revision == before

    def test_workers_of_one_study_are_unknown_to_another(self, catalog: Catalog, store: Store) -> None:
        other = catalog.create(replace(IDENTITY, study="other"))
        store.announce("a", {})

        other.retire("a")

        assert other.workers() == []
        assert [worker.name for worker in store.workers()] == ["a"]

    # --- reports

    def test_epochs_are_kept_and_the_same_epoch_replaces(self, store: Store) -> None:
        _add(store, 0)
        claim = _claimed(store, 0)
        for epoch, loss in ((0, 0.9), (1, 0.8), (1, 0.7)):
            store.report(claim, epoch, loss, {"f1/cat": loss / 2}, time=10.0 + epoch)

        reports = store.reports(0)

        assert [(r.epoch, r.loss, r.metrics, r.time) for r in reports] == [
            (0, 0.9, {"f1/cat": 0.45}, 10.0),
            (1, 0.7, {"f1/cat": 0.35}, 11.0),
        ]
        assert store.trial(0).epochs == 2

    def test_an_epoch_that_a_retry_tells_again_as_it_was_is_no_change(self, store: Store) -> None:
        _add(store, 0)
        first = _claimed(store, 0, worker="a")
        store.report(first, 0, 0.9, {"accuracy": 0.1}, time=1.0)
        store.report(first, 1, None, {"accuracy": 0.2}, time=2.0)
        store.lose("a", DEATH, retries=1)
        second = _claimed(store, 0, worker="b")
        before = store.changes(0).revision

        store.report(second, 1, None, {"accuracy": 0.2}, time=9.0)

        assert store.changes(before).reports == ()
        assert [(r.epoch, r.time, r.attempt) for r in store.reports(0)] == [(0, 1.0, 1), (1, 2.0, 1)]

    def test_a_report_may_lack_its_loss(self, store: Store) -> None:
        _add(store, 0)

        store.report(_claimed(store, 0), 0, None, {"accuracy": 0.5}, time=1.0)

        assert store.reports(0)[0].loss is None

    def test_a_retry_that_begins_anew_begins_a_new_curve(self, store: Store) -> None:
        _add(store, 0)
        first = _claimed(store, 0, worker="a")
        for epoch in range(5):
            store.report(first, epoch, 0.5, {}, time=1.0)
        store.lose("a", DEATH, retries=1)
        second = _claimed(store, 0, worker="b")

        store.report(second, 0, 0.4, {}, time=2.0)
        store.report(second, 1, 0.3, {}, time=3.0)

        assert [(r.epoch, r.loss) for r in store.reports(0)] == [(0, 0.4), (1, 0.3)]
        assert store.trial(0).epochs == 2

    def test_a_retry_that_continues_keeps_the_curve(self, store: Store) -> None:
        _add(store, 0)
        first = _claimed(store, 0, worker="a")
        for epoch in range(3):
            store.report(first, epoch, 0.5, {}, time=1.0)
        store.lose("a", DEATH, retries=1)

        store.report(_claimed(store, 0, worker="b"), 3, 0.4, {}, time=2.0)

        assert [r.epoch for r in store.reports(0)] == [0, 1, 2, 3]
        assert store.trial(0).epochs == 4

    def test_the_losses_of_all_trials_are_told_by_trial_and_epoch(self, store: Store) -> None:
        for number in (0, 1):
            _add(store, number)
        first, second = _claimed(store, 0), _claimed(store, 1)
        store.report(second, 0, 0.5, {}, time=1.0)
        store.report(first, 0, 0.7, {"accuracy": 0.3}, time=1.0)
        store.report(first, 2, None, {}, time=1.0)

        assert list(store.losses()) == [(0, 0, 0.7), (0, 2, None), (1, 0, 0.5)]

    def test_a_stopped_trial_learns_it_from_its_next_sign_of_life(self, store: Store) -> None:
        _add(store, 0)
        claim = _claimed(store, 0)
        assert store.renew(claim) is Answer.CONTINUE

        store.stop(0)

        assert store.renew(claim) is Answer.STOP
        assert store.report(claim, 0, 0.5, {}, time=1.0) is Answer.STOP

    def test_a_trial_offered_again_is_not_stopped_any_more(self, store: Store) -> None:
        _add(store, 0)
        claim = _claimed(store, 0)
        store.stop(0)
        store.release(claim)

        assert store.renew(_claimed(store, 0)) is Answer.CONTINUE

    def test_a_stopped_trial_keeps_the_verdict(self, store: Store) -> None:
        _add(store, 0)
        claim = _claimed(store, 0)

        store.stop(0, VERDICT)
        store.finish(claim, Pruned(0.7))

        assert store.trial(0).verdict == VERDICT

    def test_a_spared_trial_keeps_the_verdict_and_runs_on(self, store: Store) -> None:
        _add(store, 0)
        claim = _claimed(store, 0)

        store.stop(0, SPARED)

        assert store.renew(claim) is Answer.CONTINUE
        assert store.trial(0).verdict == SPARED

    def test_an_attempt_begins_without_a_verdict(self, store: Store) -> None:
        _add(store, 0)
        claim = _claimed(store, 0)
        store.stop(0, VERDICT)
        store.release(claim)

        _claimed(store, 0)

        assert store.trial(0).verdict is None

    def test_a_trial_that_has_ended_takes_no_verdict(self, store: Store) -> None:
        _add(store, 0)
        store.finish(_claimed(store, 0), Completed(0.5))

        store.stop(0, VERDICT)

        assert store.trial(0).verdict is None

    # --- changes

    def test_changes_tell_what_happened_since_and_no_more(self, store: Store) -> None:
        _add(store, 0)
        start = store.changes(0)
        claim = _claimed(store, 0)
        store.report(claim, 0, 0.5, {}, time=1.0)
        store.finish(claim, Completed(0.5))

        changes = store.changes(start.revision)

        assert [trial.state for trial in start.trials] == ["waiting"]
        assert [trial.state for trial in changes.trials] == ["completed"]
        assert [report.epoch for report in changes.reports] == [0]
        assert store.changes(changes.revision).trials == ()
        assert store.changes(changes.revision).revision == changes.revision

    def test_changes_in_portions_miss_and_repeat_nothing(self, store: Store) -> None:
        for number in range(7):
            _add(store, number)
            claim = _claimed(store, number)
            for epoch in range(3):
                store.report(claim, epoch, 0.5, {}, time=1.0)
            store.finish(claim, Completed(0.5))

        trials, reports, revision = [], [], 0
        while (portion := store.changes(revision, limit=4)).revision > revision:
            assert len(portion.trials) + len(portion.reports) <= 4
            trials += [trial.number for trial in portion.trials]
            reports += [(report.number, report.epoch) for report in portion.reports]
            revision = portion.revision

        assert trials == list(range(7))
        assert reports == [(number, epoch) for number in range(7) for epoch in range(3)]

    def test_several_trials_lost_at_once_are_all_told(self, store: Store) -> None:
        for number in (0, 1):
            _add(store, number)
            _claimed(store, number, worker="a")
        before = store.record().revision

        store.lose("a", DEATH, retries=1)

        assert {trial.number for trial in store.changes(before).trials} == {0, 1}

    def test_a_heartbeat_is_no_change(self, store: Store) -> None:
        _add(store, 0)
        claim = _claimed(store, 0)
        before = store.record().revision

        store.renew(claim)

        assert store.record().revision == before

    # --- reading

    def test_trials_are_read_by_state_in_the_order_of_their_numbers(self, store: Store) -> None:
        for number in (2, 0, 1):
            _add(store, number)
        store.finish(_claimed(store, 1), Completed(0.1))

        assert [trial.number for trial in store.trials()] == [0, 1, 2]
        assert [trial.number for trial in store.trials(State.WAITING)] == [0, 2]

    def test_trials_can_be_written_while_they_are_read(self, store: Store) -> None:
        for number in (0, 1):
            _add(store, number)

        for trial in store.trials(State.WAITING):
            _claimed(store, trial.number)

        assert store.record().counts["running"] == 2

    def test_the_best_trial_has_the_lowest_loss_and_of_equals_is_the_first(self, store: Store) -> None:
        assert store.best() is None
        outcomes: list[Outcome] = [Completed(0.5), Completed(0.2), Pruned(0.1), Failed(Kind.NAN, "")]
        for number, outcome in enumerate([*outcomes, Completed(0.2)]):
            _add(store, number)
            store.finish(_claimed(store, number), outcome)

        best = store.best()

        assert best is not None
        assert best.number == 1

    def test_an_unknown_trial_is_an_error(self, store: Store) -> None:
        with pytest.raises(NoSuchTrial, match="trial 3"):
            store.trial(3)

    def test_a_trial_remembers_the_code_it_ran(self, store: Store) -> None:
        store.use_snapshot("a" * 64)
        _add(store, 0)
        _claimed(store, 0)
        store.use_snapshot("b" * 64)

        assert store.trial(0).snapshot == "a" * 64

    def test_text_of_every_kind_comes_back_as_it_was(self, store: Store) -> None:
        text = "naïve 日本 \U0001f600 'quoted' \"twice\" \\ \n\t {} $set a.b \udc80"
        store.add(0, {"x": 1}, {text: text})

        store.finish(_claimed(store, 0), Completed(0.1, {text: [text, {text: text}]}))

        assert store.trial(0).params == {text: text}
        assert store.trial(0).result == {text: [text, {text: text}]}

    def test_a_reason_may_hold_what_no_text_may(self, store: Store) -> None:
        _add(store, 0)

        store.finish(_claimed(store, 0), Failed(Kind.EXCEPTION, "no file caf\udce9.npz"))

        error = store.trial(0).error
        assert error is not None
        assert error.reason.startswith("no file caf")

    # --- files

    def test_a_file_comes_back_byte_for_byte(self, store: Store, payload: Path, tmp_path: Path) -> None:
        [kept] = store.put_files({"artifacts/model.pt": payload}, trial=3)

        assert store.get_file("artifacts/model.pt", tmp_path / "new" / "model.pt", trial=3)
        assert (tmp_path / "new" / "model.pt").read_bytes() == payload.read_bytes()
        assert kept.sha256 == hashlib.sha256(payload.read_bytes()).hexdigest()
        assert store.files(trial=3) == [kept]
        assert store.files() == []

    def test_a_file_of_the_same_name_is_replaced(self, store: Store, payload: Path, tmp_path: Path) -> None:
        store.put_files({"checkpoint/state": payload}, trial=0)
        payload.write_bytes(b"newer")

        store.put_files({"checkpoint/state": payload}, trial=0)

        assert store.get_file("checkpoint/state", tmp_path / "back", trial=0)
        assert (tmp_path / "back").read_bytes() == b"newer"
        assert [file.size for file in store.files(trial=0)] == [5]

    def test_equal_files_of_two_trials_do_not_need_each_other(
        self, store: Store, payload: Path, tmp_path: Path
    ) -> None:
        for number in (0, 1):
            store.put_files({"model": payload}, trial=number)

        store.put_files({}, trial=0, drop=["model"])

        assert not store.get_file("model", tmp_path / "gone", trial=0)
        assert store.get_file("model", tmp_path / "kept", trial=1)

    def test_a_file_that_is_not_there_is_false_and_dropping_it_no_error(
        self, store: Store, tmp_path: Path
    ) -> None:
        store.put_files({}, drop=["nothing"])

        assert not store.get_file("nothing", tmp_path / "nothing")
        assert not (tmp_path / "nothing").exists()

    def test_several_files_are_kept_at_once_or_not_at_all(
        self, store: Store, payload: Path, tmp_path: Path
    ) -> None:
        store.put_files({"model": payload, "optimizer": payload}, trial=0)

        with pytest.raises(OSError, match="missing"):
            store.put_files({"model": payload, "optimizer": tmp_path / "missing"}, trial=0, drop=["model"])

        assert [file.name for file in store.files(trial=0)] == ["model", "optimizer"]
        assert store.get_file("model", tmp_path / "back", trial=0)

    def test_who_lost_the_claim_changes_no_file(self, store: Store, payload: Path, tmp_path: Path) -> None:
        _add(store, 0)
        lost = _claimed(store, 0, worker="a")
        store.recall()
        successor = _claimed(store, 0, worker="b")
        store.put_files({"checkpoint/state": payload}, trial=0, claim=successor)
        stale = tmp_path / "stale"
        stale.write_bytes(b"stale")

        with pytest.raises(ClaimLost):
            store.put_files({"checkpoint/state": stale}, trial=0, claim=lost)

        assert store.get_file("checkpoint/state", tmp_path / "back", trial=0)
        assert (tmp_path / "back").read_bytes() == payload.read_bytes()

    @pytest.mark.parametrize("outcome", [Completed(0.5), DEATH])
    def test_checkpoints_go_with_the_end_of_their_trial_and_artifacts_stay(
        self, store: Store, payload: Path, outcome: Outcome
    ) -> None:
        _add(store, 0)
        claim = _claimed(store, 0)
        store.put_files({"checkpoint/state": payload, "artifacts/plot": payload}, trial=0, claim=claim)

        store.finish(claim, outcome)

        assert [file.name for file in store.files(trial=0)] == ["artifacts/plot"]


class ExecutorContract:
    """Every executor passes these.

    Subclasses give ``store`` (an empty study whose objective is `OBJECTIVE`'s in a file) and ``executor``
    with two slots on it.
    """

    OBJECTIVE = """
import os, signal, time
from hyperopt import hp
space = {"do": hp.choice("do", ["return", "die", "wait"])}
def objective(params, run):
    if params["do"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    while params["do"] == "wait":
        time.sleep(0.01)
    return 0.5
"""
    RETURN, DIE, WAIT = 0, 1, 2

    @pytest.fixture
    def executor(self, store: Store) -> Iterator[Executor]:
        raise NotImplementedError

    def test_a_submitted_trial_is_run_and_told(self, executor: Executor, store: Store) -> None:
        assert executor.free() == executor.slots == 2
        self._add(store, 0, self.RETURN)

        executor.submit(0)

        assert executor.free() == 1
        assert _events(executor, 1) == [Finished(0)]
        assert executor.free() == 2
        assert store.trial(0).loss == 0.5

    def test_no_more_trials_are_taken_than_there_are_slots(self, executor: Executor, store: Store) -> None:
        for number in (0, 1):
            self._add(store, number, self.WAIT)
            executor.submit(number)

        with pytest.raises(IndexError):
            executor.submit(2)

    def test_a_death_is_told_with_its_reason_and_the_slot_is_free_again(
        self, executor: Executor, store: Store
    ) -> None:
        self._add(store, 0, self.DIE)
        self._add(store, 1, self.RETURN)
        executor.submit(0)

        [died] = _events(executor, 1)
        executor.submit(1)

        assert isinstance(died, Died)
        assert died.number == 0
        assert died.failure.kind is Kind.SIGNAL
        assert died.worker == store.trial(0).worker
        assert _events(executor, 1) == [Finished(1)]

    def test_cancelled_trials_are_told_no_more_and_their_slots_are_free(
        self, executor: Executor, store: Store
    ) -> None:
        self._add(store, 0, self.WAIT)
        self._add(store, 1, self.RETURN)
        executor.submit(0)
        _until(lambda: store.trial(0).state is State.RUNNING)

        executor.cancel()

        assert executor.free() == 2
        executor.submit(1)
        assert _events(executor, 1) == [Finished(1)]

    def test_some_trials_can_be_cancelled_and_others_go_on(self, executor: Executor, store: Store) -> None:
        self._add(store, 0, self.WAIT)
        self._add(store, 1, self.RETURN)
        executor.submit(0)
        _until(lambda: store.trial(0).state is State.RUNNING)
        executor.submit(1)

        executor.cancel([0])

        assert _events(executor, 1) == [Finished(1)]
        assert executor.free() == 2

    def test_close_ends_busy_workers_too(self, executor: Executor, store: Store) -> None:
        self._add(store, 0, self.WAIT)
        executor.submit(0)
        _until(lambda: store.trial(0).state is State.RUNNING)
        worker = store.trial(0).worker
        assert worker is not None

        executor.close()

        self.assert_gone(worker)

    def assert_gone(self, worker: str) -> None:
        """The worker of that name lives no more."""
        raise NotImplementedError

    @staticmethod
    def _add(store: Store, number: int, what: int) -> None:
        store.add(number, {"do": what}, {})


def _add(store: Store, number: int) -> None:
    store.add(number, {"lr": 0.5, "activation": 1}, {"lr": 0.5, "activation": "relu"})


def _claimed(store: Store, number: int, worker: str = "w") -> Claim:
    claim = store.claim(worker, number)
    assert claim is not None
    return claim


def _driver(token: str) -> Driver:
    return Driver(host="here", pid=1, started=2.5, token=token)


def _events(executor: Executor, count: int, seconds: float = 60.0) -> list[Event]:
    events: list[Event] = []
    deadline = time.monotonic() + seconds
    while len(events) < count and time.monotonic() < deadline:
        events += executor.wait(0.1)
    return events


def _until(holds: object, seconds: float = 60.0) -> None:
    assert callable(holds)
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)
