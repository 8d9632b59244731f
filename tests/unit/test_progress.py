"""What a person reads while a study runs."""

import io
import re

import pytest
from rich.console import Console

from hpo.core.trial import Changes, Failed, Kind, Report, State, Trial
from hpo.tracking.progress import Progress


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def log():
    """A console that is no terminal."""
    return Console(file=io.StringIO(), width=80, force_terminal=False)


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), width=80, height=24, force_terminal=True, color_system=None)


def running(number, *, worker="worker-1", attempts=1, params=None):
    params = {"lr": 0.01, "layers": 2} if params is None else params
    return Trial(number, State.RUNNING, {}, params, worker=worker, attempts=attempts, started=100.0)


def ended(number, state=State.COMPLETED, *, loss=None, seconds=4.2, error=None, epochs=0):
    times = {"started": 100.0, "ended": 100.0 + seconds}
    return Trial(number, state, {}, {}, loss=loss, error=error, epochs=epochs, attempts=1, **times)


def changes(*trials, reports=()):
    return Changes(1, tuple(trials), tuple(reports))


def report(number, epoch, loss):
    return Report(number, epoch, loss, {}, 0.0, 1, 1)


def lines(console):
    return console.file.getvalue().splitlines()


def screen(console):
    """The lines of the last picture drawn on the terminal."""
    last = re.split(r"\x1b\[2K", console.file.getvalue())[-1]
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", last).replace("\r", "").splitlines()


# --- elsewhere than on a terminal


def test_each_event_is_one_line(log, clock):
    progress = Progress(log, "s", 20, counts={"completed": 6}, best=0.05, clock=clock)

    progress.update(changes(running(7)))
    progress.update(changes(ended(7, loss=0.021)))
    progress.update(changes(ended(8, loss=0.031)))

    assert lines(log) == [
        "trial 7 started on worker-1: lr=0.01 layers=2",
        "trial 7 completed: loss 0.021 in 4.2 s (7/20, best 0.021)",
        "trial 8 completed: loss 0.031 in 4.2 s (8/20, best 0.021)",
    ]


def test_a_failure_says_its_kind_and_reason(log, clock):
    progress = Progress(log, "s", 20, clock=clock)

    progress.update(
        changes(ended(3, State.FAILED, error=Failed(Kind.SIGNAL, "killed by signal 11 (SIGSEGV)")))
    )

    assert lines(log) == ["trial 3 failed (signal): killed by signal 11 (SIGSEGV)"]


def test_a_pruned_trial_says_after_how_many_epochs(log, clock):
    progress = Progress(log, "s", 20, clock=clock)

    progress.update(changes(ended(3, State.PRUNED, loss=0.9, epochs=5)))

    assert lines(log) == ["trial 3 pruned: loss 0.9 after 5 epochs in 4.2 s (1/20, best ?)"]


def test_the_line_counts_pruned_and_failed_trials(log, clock):
    counts = {"completed": 5, "pruned": 3, "failed": 2}

    progress = Progress(log, "s", 20, counts=counts, best=0.5, clock=clock)

    assert progress.line().endswith("best loss: 0.5, 3 pruned, 2 failed]")


def test_a_retried_trial_says_so(log, clock):
    progress = Progress(log, "s", 20, clock=clock)
    waiting = Trial(3, State.WAITING, {}, {}, attempts=1)

    progress.update(changes(running(3, params={})))
    progress.update(changes(waiting))
    progress.update(changes(running(3, worker="worker-2", attempts=2, params={})))

    assert lines(log)[1:] == [
        "trial 3 is offered again",
        "trial 3 started again (attempt 2) on worker-2",
    ]


def test_a_trial_that_only_waits_is_no_event(log, clock):
    progress = Progress(log, "s", 20, clock=clock)

    progress.update(changes(Trial(0, State.WAITING, {}, {"lr": 1.0})))

    assert lines(log) == []


def test_a_reason_of_many_lines_and_escape_codes_stays_one_plain_line(log, clock):
    progress = Progress(log, "s", 20, clock=clock)
    reason = "ValueError: \x1b[31mbad\x1b[0m [bold]\nat line 3\r\nat line 4 " + "x" * 2000

    progress.update(changes(ended(3, State.FAILED, error=Failed(Kind.EXCEPTION, reason))))

    (line,) = lines(log)
    assert line.isprintable()
    assert "[bold] at line 3" in line
    assert len(line) == 500


def test_a_console_without_unicode_gets_question_marks(clock):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    progress = Progress(Console(file=file, width=80), "s", 20, clock=clock)

    progress.update(changes(running(1, params={"größe": "λ"})))

    file.flush()
    assert file.buffer.getvalue().decode("ascii") == "trial 1 started on worker-1: gr??e=?\n"


# --- on a terminal


def test_the_table_shows_running_trials_above_the_line(terminal, clock):
    progress = Progress(terminal, "s", 20, counts={"completed": 9}, best=0.0213, clock=clock)

    progress.update(changes(running(9), reports=[report(9, 4, 0.3)]))
    clock.now += 65
    progress.update(changes())

    head, row, line = screen(terminal)
    assert head.split() == ["trial", "worker", "epoch", "loss", "elapsed", "parameters"]
    assert row.split() == ["9", "worker-1", "4", "0.3", "01:05", "lr=0.01", "layers=2"]
    assert line == " 45%|####      | 9/20 [01:05<?, best loss: 0.0213]"


def test_nothing_is_wider_than_the_terminal(terminal, clock):
    progress = Progress(terminal, "s", 10_000, counts={"completed": 9999, "failed": 1234}, clock=clock)
    huge = {f"a.rather.long.name{i}": "語" * 60 for i in range(200)}

    progress.update(changes(running(123456, worker="a-machine-of-a-long-name-4711-0", params=huge)))

    pictured = screen(terminal)
    assert len(pictured) == 3
    assert all(Console(width=200).measure(line).maximum <= 80 for line in pictured)


def test_more_trials_than_rows_are_counted(terminal, clock):
    progress = Progress(terminal, "s", 100, clock=clock)

    progress.update(changes(*(running(number) for number in range(30))))

    pictured = screen(terminal)
    assert len(pictured) < terminal.height
    assert pictured[-2] == "and 11 more"


def test_a_failure_stands_above_the_table(terminal, clock):
    progress = Progress(terminal, "s", 20, clock=clock)
    progress.update(changes(running(1), running(2)))

    progress.update(changes(ended(1, State.FAILED, error=Failed(Kind.TIMEOUT, "20 minutes are over"))))

    assert "trial 1 failed (timeout): 20 minutes are over" in terminal.file.getvalue()
    assert screen(terminal)[-1] == "  5%|          | 1/20 [00:00<01:19, best loss: ?, 1 failed]"


def test_the_line_says_how_many_workers_are_there_where_they_come_and_go(log, clock):
    workers = [2, 1]
    progress = Progress(log, "s", 20, counts={"completed": 6}, best=0.5, clock=clock)
    progress.count_workers = workers.pop

    assert progress.line().endswith("best loss: 0.5, 1 worker]")
    assert progress.line().endswith("best loss: 0.5, 2 workers]")


def test_closing_takes_the_table_away_and_leaves_the_line(terminal, clock):
    progress = Progress(terminal, "s", 1, clock=clock)
    progress.update(changes(running(0)))
    progress.update(changes(ended(0, loss=0.5)))

    progress.close()
    progress.close()
    progress.update(changes(running(1)))

    assert screen(terminal) == ["100%|##########| 1/1 [00:00<00:00, best loss: 0.5]"]
    assert terminal.file.getvalue().count("\x1b[?25l") == terminal.file.getvalue().count("\x1b[?25h") == 1


def test_messages_stand_above_the_table(terminal, clock):
    progress = Progress(terminal, "s", 20, clock=clock)
    progress.update(changes(running(0)))

    progress.say("draining: [2] trials end first")

    message, *table = screen(terminal)
    assert message == "draining: [2] trials end first"
    assert len(table) == 3


# --- time left


def test_time_left_is_unknown_until_a_trial_has_ended(log, clock):
    progress = Progress(log, "s", 20, clock=clock)

    assert progress.line() == "  0%|          | 0/20 [00:00<?, best loss: ?]"


@pytest.mark.parametrize(
    ("parallelism", "left"),
    [(1, "00:30"), (2, "00:15"), (8, "00:10")],  # three trials of 10 s are left
)
def test_time_left_is_the_median_trial_times_those_left_over_those_at_once(log, clock, parallelism, left):
    progress = Progress(log, "s", 6, parallelism=parallelism, clock=clock)

    progress.update(changes(*(ended(n, loss=1.0, seconds=s) for n, s in enumerate([9.0, 10.0, 500.0]))))

    assert progress.line() == f" 50%|#####     | 3/6 [00:00<{left}, best loss: 1]"


def test_time_left_falls_while_a_trial_runs(log, clock):
    progress = Progress(log, "s", 2, clock=clock, seconds=[3600.0])
    progress.update(changes(running(0)))

    clock.now += 600

    assert "[10:00<1:50:00" in progress.line()


def test_a_study_without_an_end_shows_no_share(log, clock):
    progress = Progress(log, "s", None, clock=clock)

    progress.update(changes(ended(0, loss=1.0)))

    assert progress.line() == "  0%|          | 1/? [00:00<?, best loss: 1]"


# --- odd data


@pytest.mark.parametrize(
    "trial",
    [
        Trial(0, State.COMPLETED, {}, {}, loss=None),
        Trial(0, State.COMPLETED, {}, {}, loss=float("nan")),
        Trial(0, State.PRUNED, {}, {}),
        Trial(0, State.FAILED, {}, {}, error=None),
        Trial(0, State.RUNNING, {}, {"a": {"b": [None, {"c": float("inf")}]}}, worker=None),
        Trial(0, State.RUNNING, {}, [1, "two"], worker="w"),
        Trial(0, State.RUNNING, {}, "alone", worker="[/red]"),
        Trial(0, State.COMPLETED, {}, {}, loss=-1e300, started=5.0, ended=1.0),
    ],
)
@pytest.mark.parametrize("is_terminal", [True, False])
def test_odd_trials_are_shown_as_well_as_can_be(trial, is_terminal, clock):
    console = Console(file=io.StringIO(), width=80, force_terminal=is_terminal)
    progress = Progress(console, "s", 20, clock=clock)

    progress.update(changes(trial, reports=[report(0, 0, None), report(99, 0, 1.0)]))
    progress.close()

    assert re.fullmatch(r"  [05]%\|          \| [01]/20 \[00:00<[?:0-9]+, best loss: .+\]", progress.line())


def test_a_loss_that_is_no_number_is_never_the_best(log, clock):
    progress = Progress(log, "s", 20, clock=clock)

    progress.update(changes(ended(0, loss=float("nan")), ended(1, loss=2.0)))

    assert lines(log)[-1].endswith("(2/20, best 2)")
