"""Which trials are stopped early: the rules, who is spared, and what is said of it."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pytest

from hpo.core.errors import UsageError
from hpo.core.pruning import full_epochs, saving, summary
from hpo.core.trial import Changes, Report, State, Trial, Verdict
from hpo.search.pruning import Asha, Auto, Curves, Hyperband, Judge, Median, pruner
from hpo.search.pruning.chance import chance_to_win
from hpo.search.pruning.judge import STOPPED_FOR_ONE


def curves_of(losses: Mapping[int, Sequence[float | None]]) -> Curves:
    curves = Curves()
    for number, curve in losses.items():
        for epoch, loss in enumerate(curve):
            curves.report(number, epoch, loss)
    return curves


# --- curves


def test_curves_hold_the_best_loss_so_far() -> None:
    curves = curves_of({0: [0.5, 0.7, 0.3]})

    assert [curves.best(0, epoch) for epoch in range(4)] == [0.5, 0.5, 0.3, None]


def test_a_loss_that_is_not_finite_leaves_the_best_as_it_was() -> None:
    curves = curves_of({0: [math.nan, 0.7, -math.inf, math.nan]})

    assert [curves.best(0, epoch) for epoch in range(4)] == [math.inf, 0.7, 0.7, 0.7]


def test_an_epoch_without_a_loss_is_not_compared() -> None:
    curves = curves_of({0: [0.5, None, 0.4], 1: [0.6, 0.5]})

    assert curves.best(0, 1) is None
    assert curves.at(1).tolist() == [0.5]


def test_an_epoch_told_again_begins_the_curve_anew_from_there() -> None:
    curves = curves_of({0: [0.5, 0.1, 0.05], 1: [0.6, 0.3]})

    curves.report(0, 1, 0.4)

    assert curves.best(0, 1) == 0.4
    assert sorted(curves.at(1)) == [0.3, 0.4]
    assert curves.at(2).tolist() == []


# --- rules


def test_the_median_rule_stops_what_is_above_the_median_at_its_epoch() -> None:
    curves = curves_of({number: [1.0, loss] for number, loss in enumerate([0.1, 0.2, 0.3, 0.4, 0.5])})
    rule = Median(starts=4, warm_up=1)

    assert [rule.stops(curves, number, 1) for number in range(5)] == [False, False, False, True, True]


def test_the_median_rule_looks_at_the_best_loss_so_far() -> None:
    curves = curves_of({0: [0.1, 0.9], 1: [0.5, 0.5], 2: [0.6, 0.6]})

    assert not Median(starts=2, warm_up=1).stops(curves, 0, 1)


def test_the_median_rule_waits_for_its_warm_up_and_its_starts() -> None:
    curves = curves_of({0: [0.1, 0.1], 1: [0.2, 0.2], 2: [0.9, 0.9]})

    assert Median(starts=2, warm_up=1).stops(curves, 2, 1)
    assert not Median(starts=2, warm_up=2).stops(curves, 2, 1)
    assert not Median(starts=3, warm_up=1).stops(curves, 2, 1)


def test_asha_judges_at_its_rungs_alone() -> None:
    curves = curves_of({number: [number / 100] * 20 for number in range(9)})
    rule = Asha(first=2, factor=3, starts=4)

    judged = [epoch for epoch in range(20) if rule.stops(curves, 8, epoch)]

    assert judged == [1, 5, 17]


def test_asha_keeps_the_best_third_of_those_that_got_so_far() -> None:
    curves = curves_of({number: [number / 100] * 2 for number in range(9)})
    rule = Asha(first=2, factor=3, starts=4)

    assert [number for number in range(9) if not rule.stops(curves, number, 1)] == [0, 1, 2]


def test_asha_judges_a_trial_that_skipped_a_rung_at_its_next_epoch() -> None:
    curves = Curves()
    for number in range(6):
        for epoch in (0, 4, 9):
            curves.report(number, epoch, number / 10)

    assert Asha(first=2, factor=3, starts=4).stops(curves, 5, 4)  # rung 2, after 5 epochs
    assert Asha(first=2, factor=3, starts=4).stops(curves, 5, 9)  # rung 6, after 10


def test_asha_never_stops_the_best() -> None:
    rng = np.random.default_rng(0)
    losses = rng.random((40, 30))
    best = int(losses[:, :18].min(axis=1).argmin())
    curves = curves_of(dict(enumerate(losses.tolist())))

    assert not Asha(starts=2).stops(curves, best, 17)


def test_hyperbands_later_brackets_give_more_time() -> None:
    curves = curves_of({number: [1.0 if number >= 9 else 0.1] * 20 for number in range(13)})
    rule = Hyperband(first=2, factor=3, brackets=3)

    first_stop = {n: next((e for e in range(20) if rule.stops(curves, n, e)), None) for n in range(9, 13)}

    assert first_stop == {9: 5, 10: 5, 11: 5, 12: 17}


def test_auto_waits_until_trials_have_completed() -> None:
    curves = curves_of({number: [number / 10] * 20 for number in range(10)})
    rule = Auto(starts=5)

    before = [rule.stops(curves, 9, epoch) for epoch in range(20)]
    for number in range(5):
        curves.complete(number)

    assert not any(before)
    assert rule.stops(curves, 9, 10)


@pytest.mark.parametrize("epochs", [10, 100, 1000])
def test_the_warm_up_of_auto_is_a_share_of_the_epochs(epochs: int) -> None:
    curves = curves_of({number: [number / 10] * epochs for number in range(10)})
    for number in range(5):
        curves.complete(number)

    first = next(epoch for epoch in range(epochs) if Auto(warm_up=0.2).stops(curves, 9, epoch))

    assert first == 0.2 * epochs


def test_auto_stops_a_trial_of_the_better_half_that_is_unlikely_to_win() -> None:
    # Each completed trial gained 0.1 from any epoch on; the best ended at 0.1.
    good = {number: [0.2 + number / 100] * 20 + [0.1 + number / 100] for number in range(12)}
    bad = {number: [0.9] * 20 for number in range(12, 30)}
    curves = curves_of(good | bad | {30: [0.25] * 20, 31: [0.195] * 20})
    for number in range(12):
        curves.complete(number)
    rule = Auto()

    assert any(rule.stops(curves, 30, epoch) for epoch in range(20))
    assert not any(rule.stops(curves, 31, epoch) for epoch in range(20))
    assert not any(Median(5, 0).stops(curves, 30, epoch) for epoch in range(20))


@pytest.mark.parametrize("name", ["auto", "median", "asha", "hyperband"])
def test_no_rule_stops_where_nobody_knows_how_others_do(name: str) -> None:
    rule = pruner(name)
    assert rule is not None
    curves = curves_of({0: [0.1] * 30, 1: [9.0] * 30})

    assert not any(rule.stops(curves, 1, epoch) for epoch in range(30))


@pytest.mark.parametrize("name", ["auto", "median", "asha", "hyperband"])
def test_every_rule_stops_a_hopeless_trial_and_never_the_leader(name: str) -> None:
    rule = pruner(name)
    assert rule is not None
    curves = curves_of(
        {number: [0.1 + number / 100 + 1 / (1 + e) for e in range(40)] for number in range(39)}
    )
    for number in range(20):
        curves.complete(number)

    assert any(rule.stops(curves, 38, epoch) for epoch in range(40))
    assert not any(rule.stops(curves, 0, epoch) for epoch in range(40))


@pytest.mark.parametrize("name", ["auto", "median", "asha", "hyperband"])
def test_losses_that_are_not_finite_are_hopeless_and_no_error(name: str) -> None:
    rule = pruner(name)
    assert rule is not None
    curves = curves_of({number: [0.1 + number / 100] * 40 for number in range(39)} | {39: [math.nan] * 40})
    for number in range(20):
        curves.complete(number)

    assert any(rule.stops(curves, 39, epoch) for epoch in range(40))


def test_an_unknown_pruner_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'mean'") as raised:
        pruner("mean")

    assert "auto, none, median, asha, hyperband" in str(raised.value.hint)


# --- the chance to win


def test_the_chance_asks_every_completed_trial_whether_its_gain_would_be_enough() -> None:
    # They gained 0.1, 0.3 and 0.5; the best ended at 0.2; at epoch 0 this trial has 0.5.
    curves = curves_of({0: [0.3, 0.2], 1: [0.6, 0.3], 2: [0.9, 0.4], 3: [0.5]})
    for number in range(3):
        curves.complete(number)

    assert chance_to_win(curves, 3, 0) == (1 + 0.5) / (3 + 1)


def test_where_nothing_is_known_the_chance_is_a_half() -> None:
    assert chance_to_win(curves_of({0: [0.3]}), 0, 0) == 0.5


def test_a_loss_that_is_infinite_wins_by_no_gain() -> None:
    curves = curves_of({0: [math.inf, 0.2], 1: [math.inf]})
    curves.complete(0)

    assert chance_to_win(curves, 1, 0) == 0.25


# --- the judge


class Above:
    """Stops what is above a half."""

    def stops(self, curves: Curves, number: int, epoch: int) -> bool:
        best = curves.best(number, epoch)
        return best is not None and best > 0.5


class Happenings:
    """Changes as a store tells them."""

    def __init__(self) -> None:
        self.revision = 0

    def trial(self, number: int, state: State, loss: float | None = None, attempt: int = 1) -> Trial:
        self.revision += 1
        return Trial(number, state, {}, {}, self.revision, loss, attempts=attempt)

    def report(self, number: int, epoch: int, loss: float, attempt: int = 1) -> Report:
        self.revision += 1
        return Report(number, epoch, loss, {}, 0.0, attempt, self.revision)

    def changes(self, *happened: Trial | Report) -> Changes:
        trials = tuple(one for one in happened if isinstance(one, Trial))
        return Changes(self.revision, trials, tuple(one for one in happened if isinstance(one, Report)))


@pytest.fixture
def happen() -> Happenings:
    return Happenings()


def stopped(judge: Judge, happen: Happenings, numbers: Iterable[int]) -> list[int]:
    """Those of the trials, all hopeless, that are not spared."""
    return [
        ruling.number
        for number in numbers
        for ruling in judge.rule(
            happen.changes(happen.trial(number, State.RUNNING), happen.report(number, 0, 0.9))
        )
        if not ruling.verdict.is_spared
    ]


def test_a_trial_is_ruled_on_once(happen: Happenings) -> None:
    judge = Judge(Above(), seed=7)
    running = happen.trial(0, State.RUNNING)

    rulings = judge.rule(happen.changes(running, happen.report(0, 0, 0.4), happen.report(0, 1, 0.3)))
    assert rulings == []
    rulings = judge.rule(
        happen.changes(happen.trial(1, State.RUNNING), happen.report(1, 0, 0.9), happen.report(1, 1, 0.9))
    )

    assert [(ruling.number, ruling.verdict.epoch) for ruling in rulings] == [(1, 0)]
    assert judge.rule(happen.changes(happen.report(1, 2, 0.9))) == []


def test_a_trial_that_has_ended_is_not_ruled_on(happen: Happenings) -> None:
    judge = Judge(Above(), seed=7)
    report = happen.report(0, 0, 0.9)

    assert judge.rule(happen.changes(report, happen.trial(0, State.COMPLETED, 0.9))) == []


def test_what_an_earlier_attempt_reported_does_not_stop_the_next_one(happen: Happenings) -> None:
    judge = Judge(Above(), seed=7)
    running = happen.trial(0, State.RUNNING, attempt=2)

    assert judge.rule(happen.changes(running, happen.report(0, 0, 0.9, attempt=1))) == []
    assert len(judge.rule(happen.changes(happen.report(0, 1, 0.9, attempt=2)))) == 1


def test_the_verdict_remembers_the_best_loss_by_then(happen: Happenings) -> None:
    judge = Judge(Above(), seed=7)
    first = happen.changes(
        happen.trial(0, State.RUNNING), happen.report(0, 0, 0.2), happen.trial(0, State.COMPLETED, 0.25)
    )

    judge.rule(first)
    [ruling] = judge.rule(happen.changes(happen.trial(1, State.RUNNING), happen.report(1, 0, 0.9)))

    assert ruling.verdict == Verdict(epoch=0, chance=0.25, best=0.25)


def test_a_few_are_spared_and_at_least_one_of_the_first_nine(happen: Happenings) -> None:
    for seed in range(20):
        spared = STOPPED_FOR_ONE + 1 - len(stopped(Judge(Above(), seed), happen, range(STOPPED_FOR_ONE + 1)))

        assert 1 <= spared <= 4


def test_the_share_of_the_spared_shrinks(happen: Happenings) -> None:
    spared = [1000 - len(stopped(Judge(Above(), seed), happen, range(1000))) for seed in range(3)]

    assert all(6 <= count <= 20 for count in spared)


def test_a_judge_that_was_restored_rules_as_one_that_heard_all(happen: Happenings) -> None:
    def study(judge: Judge, numbers: range, trials: list[Trial]) -> list[tuple[int, bool]]:
        rulings = []
        for number in numbers:
            loss = 0.3 if number % 2 else 0.9
            changes = happen.changes(happen.trial(number, State.RUNNING), happen.report(number, 0, loss))
            found = judge.rule(changes)
            rulings += [(ruling.number, ruling.verdict.is_spared) for ruling in found]
            is_stopped = bool(found) and not found[0].verdict.is_spared
            verdict = found[0].verdict if found else None
            state = State.PRUNED if is_stopped else State.COMPLETED
            ended = Trial(number, state, {}, {}, 0, loss, attempts=1, verdict=verdict)
            trials.append(ended)
            judge.rule(Changes(0, (ended,), ()))
        return rulings

    trials: list[Trial] = []
    unbroken = study(Judge(Above(), seed=3), range(60), trials)
    first = Judge(Above(), seed=3)
    broken = study(first, range(30), [])
    second = Judge(Above(), seed=3)

    second.restore(trials[:30], [(trial.number, 0, trial.loss) for trial in trials[:30]])
    broken += study(second, range(30, 60), [])

    assert broken == unbroken


# --- what is said of it


def ended(number: int, state: State, epochs: int, loss: float, *, best: float | None = None) -> Trial:
    verdict = None if best is None else Verdict(1, 0.1, best, is_spared=state is State.COMPLETED)
    return Trial(
        number, state, {}, {}, 0, loss, epochs=epochs, started=0.0, ended=2.0 * epochs, verdict=verdict
    )


def test_what_was_saved_is_reckoned_from_the_median_of_the_completed() -> None:
    trials = [ended(n, State.COMPLETED, epochs, 0.5) for n, epochs in enumerate((8, 10, 30))]
    pruned = ended(3, State.PRUNED, 4, 0.9, best=0.5)

    saved = saving(pruned, full_epochs([*trials, pruned]))

    assert saved is not None
    assert (saved.epochs, saved.seconds) == (6, 12.0)


def test_a_trial_that_was_not_pruned_has_saved_nothing() -> None:
    assert saving(ended(0, State.COMPLETED, 4, 0.9, best=0.5), 10) is None
    assert saving(ended(0, State.PRUNED, 4, 0.9, best=0.5), None) is None


def test_the_summary_counts_who_was_stopped_and_who_would_have_won() -> None:
    trials = [
        *(ended(number, State.COMPLETED, 10, 0.5) for number in range(4)),
        ended(4, State.PRUNED, 2, 0.9, best=0.5),
        ended(5, State.PRUNED, 3, 0.9, best=0.5),
        ended(6, State.COMPLETED, 10, 0.4, best=0.5),
        ended(7, State.COMPLETED, 10, 0.7, best=0.5),
    ]

    found = summary(trials)

    assert found is not None
    assert (found.pruned, found.ended, found.checked, found.won, found.good) == (2, 8, 2, 1, 1)
    assert found.share == 15 / 20
    assert str(found) == (
        "pruned 2 of 8 trials, saved about 75% of their epochs;"
        " 2 ran on to check: 1 would have won, 1 ended in the better half"
    )


def test_without_a_verdict_there_is_nothing_to_say() -> None:
    assert summary([ended(0, State.COMPLETED, 10, 0.5), ended(1, State.PRUNED, 2, 0.9)]) is None
