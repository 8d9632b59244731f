"""The epoch clock: every second has its phase, on the host and on a device that works behind it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hpo.core.errors import StoreFull, TrialPruned, UsageError
from hpo.core.trial import Answer
from hpo.run import Run
from hpo.training import clock as clocks
from hpo.training.clock import PHASES, Clock, Contention, CudaEvents, DeviceGaps, EpochTiming, examples_in


class Time:
    """A clock that stands still until it is told to advance."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def clock(time: Time) -> Clock:
    return Clock(now=time)


@pytest.fixture
def run(clock: Clock) -> Run:
    return new_run(clock, lambda *_: Answer.CONTINUE)


def new_run(clock: Clock, send: Any) -> Run:
    return Run(3, seed=1, directory=Path("a"), checkpoint_directory=Path("b"), send=send, clock=clock)


def slow_loader(time: Time, batches: int = 3, size: int = 4, seconds: float = 2.0) -> Iterator[Any]:
    """Batches of (inputs, targets) that take so many seconds each to come."""
    for _ in range(batches):
        time.advance(seconds)
        yield np.zeros((size, 5)), np.zeros(size)


def phases(timing: EpochTiming) -> dict[str, float]:
    """The phases that took time."""
    found = {phase: getattr(timing, phase) for phase in PHASES}
    return {phase: pytest.approx(seconds) for phase, seconds in found.items() if seconds}


# --- phases


def test_an_epochs_seconds_are_told_by_phase(run: Run, clock: Clock, time: Time) -> None:
    for _ in run.batches(slow_loader(time)):
        time.advance(5)
    with run.phase("validation"):
        time.advance(7)
    with run.phase("callbacks"):
        time.advance(1)
    time.advance(0.5)

    timing = clock.end_epoch()

    assert phases(timing) == {"data": 6, "step": 15, "validation": 7, "callbacks": 1, "other": 0.5}
    assert timing.seconds == pytest.approx(29.5)
    assert (timing.steps, timing.examples) == (3, 12)


def test_the_phases_add_up_to_the_epoch_whatever_happens_in_it() -> None:
    random = np.random.default_rng(0)
    time = Time()
    clock = Clock(now=time)
    clock.begin()
    begun = time.now

    for name in random.choice(PHASES, 200):
        time.advance(random.exponential())
        clock.switch(str(name))
        if random.random() < 0.1:
            clock.move(*map(str, random.choice(PHASES, 2, replace=False)), seconds=random.exponential())
    timing = clock.end_epoch()

    assert timing.seconds == pytest.approx(time.now - begun)
    assert timing.seconds == pytest.approx(sum(getattr(timing, phase) for phase in PHASES))


def test_phases_within_phases_take_their_own_time_away(clock: Clock, time: Time) -> None:
    with clock.phase("callbacks"):
        time.advance(1)
        with clock.phase("validation"):
            time.advance(2)
        time.advance(4)

    assert phases(clock.end_epoch()) == {"callbacks": 5, "validation": 2}


def test_a_loop_whose_kit_switches_phases_itself_is_none_the_worse(
    run: Run, clock: Clock, time: Time
) -> None:
    for _ in run.batches(slow_loader(time, batches=3, seconds=2.0)):
        clock.switch("step")
        time.advance(1.0)
        clock.switch("data")
    timing = clock.end_epoch()

    assert (timing.data, timing.step, timing.steps) == (6.0, 3.0, 3)


def test_of_loops_inside_of_one_another_and_of_zipped_ones_the_first_counts(run: Run, time: Time) -> None:
    for _ in run.batches(slow_loader(time, batches=2)):
        for _ in run.batches(slow_loader(time, batches=3)):
            pass
    nested = run.clock.end_epoch()
    for _ in zip(
        run.batches(slow_loader(time, batches=2)), run.batches(slow_loader(time, batches=2)), strict=True
    ):
        pass
    zipped = run.clock.end_epoch()

    assert (nested.steps, zipped.steps) == (2, 2)


def test_the_phase_is_restored_after_an_error_and_a_break(run: Run, clock: Clock, time: Time) -> None:
    def fails() -> None:
        for _ in run.batches(slow_loader(time)):
            with run.phase("validation"):
                raise ValueError

    with pytest.raises(ValueError):
        fails()
    for _ in run.batches(slow_loader(time)):
        break

    assert clock.switch("other") == "other"


def test_a_loader_that_fails_leaves_the_phase_as_it_was(run: Run, clock: Clock) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        list(run.batches(broken()))

    assert clock.switch("other") == "other"


def test_starting_a_loaders_workers_is_waiting_for_data(run: Run, clock: Clock, time: Time) -> None:
    class Loader:
        def __iter__(self) -> Iterator[int]:
            time.advance(3)
            return iter([1])

    for _ in run.batches(Loader()):
        pass

    assert phases(clock.end_epoch()) == {"data": 3}


def test_batches_in_a_validation_are_validation(run: Run, clock: Clock, time: Time) -> None:
    with run.phase("validation"):
        for _ in run.batches(slow_loader(time)):
            time.advance(1)

    timing = clock.end_epoch()

    assert phases(timing) == {"validation": 9}
    assert (timing.steps, timing.examples, timing.validation_examples) == (0, 0, 12)


def test_an_iterator_that_is_kept_and_asked_for_batches_one_by_one(
    run: Run, clock: Clock, time: Time
) -> None:
    endless = run.batches(slow_loader(time, batches=1000))
    timings = []

    for _ in range(2):
        for _ in range(2):
            next(endless)
            time.advance(5)
        with run.phase("validation"):
            time.advance(7)
        timings.append(clock.end_epoch())

    assert [phases(timing) for timing in timings] == 2 * [{"data": 4, "step": 10, "validation": 7}]


def test_a_loop_that_is_closed_late_changes_nobody_elses_phase(run: Run, clock: Clock, time: Time) -> None:
    kept = run.batches(slow_loader(time))
    next(kept)

    with run.phase("validation"):
        time.advance(1)
        kept.close()
        time.advance(1)

    assert clock.end_epoch().validation == 2


def test_two_loaders_side_by_side_leave_the_phase_as_it_was(run: Run, clock: Clock, time: Time) -> None:
    for _ in zip(run.batches(slow_loader(time)), run.batches(slow_loader(time)), strict=False):
        time.advance(5)

    assert clock.switch("other") == "other"
    assert phases(clock.end_epoch()) == {"data": 12, "step": 15}


def test_kits_that_step_by_themselves_count(clock: Clock) -> None:
    clock.count(steps=8, examples=256)
    clock.count(steps=2, examples=50)
    clock.count_validation(300)

    timing = clock.end_epoch()

    assert (timing.steps, timing.examples, timing.validation_examples) == (10, 306, 300)


def test_seconds_that_turn_out_to_be_anothers_are_moved_but_no_more_than_there_are(
    clock: Clock, time: Time
) -> None:
    clock.switch("step")
    time.advance(10)

    clock.move("step", "data", 4)
    clock.move("data", "callbacks", 100)
    clock.move("validation", "other", 1)
    clock.move("step", "data", -1)

    assert phases(clock.end_epoch()) == {"step": 6, "callbacks": 4}


def test_a_phase_that_is_none_is_refused(run: Run) -> None:
    with pytest.raises(UsageError, match="'valid'") as error, run.phase("valid"):
        pass

    assert "validation" in error.value.hint


# --- where epochs begin and end


def test_the_first_epoch_begins_where_a_phase_is_first_entered(clock: Clock, time: Time) -> None:
    time.advance(60)

    clock.switch("data")
    time.advance(1)

    assert clock.end_epoch().seconds == 1


def test_the_first_epoch_begins_where_a_kit_says_so(clock: Clock, time: Time) -> None:
    time.advance(60)

    clock.begin()
    time.advance(1)
    clock.switch("data")
    time.advance(1)

    assert phases(clock.end_epoch()) == {"other": 1, "data": 1}


def test_the_first_epoch_of_a_loop_that_tells_nothing_began_with_the_trial(clock: Clock, time: Time) -> None:
    time.advance(60)

    timing = clock.end_epoch()

    assert phases(timing) == {"other": 60}
    assert timing.metrics() == {"time/epoch_seconds": 60}


def test_the_next_epoch_begins_where_the_last_ended_and_counts_anew(
    run: Run, clock: Clock, time: Time
) -> None:
    timings = []
    for _ in range(2):
        for _ in run.batches(slow_loader(time)):
            pass
        timings.append(clock.end_epoch())
        time.advance(1)

    assert [timing.seconds for timing in timings] == [6, 7]
    assert [timing.examples for timing in timings] == [12, 12]


# --- reports


def test_a_report_closes_the_epoch_and_tells_its_time(clock: Clock, time: Time) -> None:
    sent = []

    def send(epoch: int, loss: float, metrics: dict[str, float], when: float) -> Answer:
        sent.append(metrics)
        time.advance(3)
        return Answer.CONTINUE

    run = new_run(clock, send)
    for epoch in range(2):
        for _ in run.batches(slow_loader(time)):
            time.advance(5)
        run.report(epoch, 0.5, accuracy=0.75)

    first, second = sent
    assert first == pytest.approx(
        {
            "accuracy": 0.75,
            "time/epoch_seconds": 21,
            "time/data_share": 6 / 21,
            "time/step_share": 15 / 21,
            "time/validation_share": 0,
            "time/callbacks_share": 0,
            "time/other_share": 0,
            "time/steps": 3,
            "time/examples_per_second": 12 / 21,
        }
    )
    assert second["time/callbacks_share"] == pytest.approx(3 / 24)


def test_a_metric_of_the_users_own_stays_theirs(clock: Clock, time: Time) -> None:
    sent = []
    run = new_run(clock, lambda epoch, loss, metrics, when: sent.append(metrics) or Answer.CONTINUE)
    run.system = lambda: {"system/a": 1.0, "system/b": 2.0}
    time.advance(1)

    run.report(0, 0.5, **{"system/a": 9.0})

    assert sent == [{"time/epoch_seconds": 1.0, "system/a": 9.0, "system/b": 2.0}]


def test_an_epoch_that_is_told_with_its_time_closes_none(clock: Clock, time: Time) -> None:
    sent = []
    run = new_run(clock, lambda epoch, loss, metrics, when: sent.append(metrics) or Answer.CONTINUE)

    run.report(6, 0.5, **{"time/epoch_seconds": 12.5})

    assert sent == [{"time/epoch_seconds": 12.5}]
    assert clock.epochs == 0


def test_an_epoch_that_is_told_twice_was_one(clock: Clock, time: Time) -> None:
    sent = []
    run = new_run(clock, lambda epoch, loss, metrics, when: sent.append(metrics) or Answer.CONTINUE)
    time.advance(1)

    run.report(0, 0.5)
    time.advance(1)
    run.report(0, 0.4)
    time.advance(1)
    run.report(1, 0.3)

    assert [metrics["time/epoch_seconds"] for metrics in sent] == [1, 1, 2]
    assert clock.epochs == 2


def test_a_clock_that_fails_costs_no_report(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    sent = []
    run = new_run(clock, lambda epoch, loss, metrics, when: sent.append(metrics) or Answer.CONTINUE)
    run.system = lambda: 1 / 0  # type: ignore[assignment,return-value]

    run.report(0, 0.5, accuracy=1.0)

    assert sent == [{"accuracy": 1.0}]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_phase_is_restored_when_the_study_says_stop_or_the_store_fails(clock: Clock) -> None:
    def full(*_: object) -> Answer:
        raise StoreFull("the disk is full")

    with pytest.raises(TrialPruned):
        new_run(clock, lambda *_: Answer.STOP).report(0, 0.5)
    new_run(clock, full).report(1, 0.5)

    assert clock.switch("other") == "other"


# --- the summary


def test_there_is_no_summary_before_an_epoch_was_closed(run: Run, clock: Clock, time: Time) -> None:
    list(run.batches(slow_loader(time)))

    assert clock.summary() is None


def test_the_summary_leaves_the_first_epoch_out_where_there_are_more(clock: Clock, time: Time) -> None:
    for epoch in range(4):
        for _ in clock.batches(slow_loader(time, seconds=1)):
            time.advance(100 if epoch == 0 else epoch)
        with clock.phase("validation"):
            clock.count_validation(6)
            time.advance(1)
        clock.end_epoch()

    summary = clock.summary()

    assert summary is not None
    assert summary["epochs"] == 4
    assert (summary["first_epoch"], summary["median_epoch"]) == (304, 10)
    assert (summary["steps_per_epoch"], summary["step_ms"], summary["batch_size"]) == (3, 2000, 4)
    assert summary["examples_per_second"] == pytest.approx(36 / 27, rel=1e-3)
    assert summary["validation_examples"] == 6
    shares = {"data": 9 / 30, "step": 18 / 30, "validation": 3 / 30, "callbacks": 0, "other": 0}
    assert summary["shares"] == pytest.approx(shares, abs=1e-4)
    assert json.loads(json.dumps(summary)) == summary


def test_a_single_epoch_is_its_own_summary(clock: Clock, time: Time) -> None:
    time.advance(2)
    clock.end_epoch()

    summary = clock.summary()

    assert summary is not None
    assert (summary["first_epoch"], summary["median_epoch"], summary["shares"]["other"]) == (2, 2, 1)
    assert (summary["step_ms"], summary["examples_per_second"], summary["batch_size"]) == (None, None, None)


def test_an_epoch_of_no_time_at_all_has_a_summary(clock: Clock) -> None:
    clock.end_epoch()

    assert clock.end_epoch().metrics() == {"time/epoch_seconds": 0}
    assert clock.summary() is not None


# --- examples


@pytest.mark.parametrize(
    ("batch", "examples"),
    [
        (np.zeros((7, 2)), 7),
        ((np.zeros((7, 2)), np.zeros(3)), 7),
        ({"tokens": np.zeros((5, 9)), "mask": np.zeros((5, 9))}, 5),
        ([{"a": ("name", [np.zeros(4)])}, 1], 4),
        (("a", 3, None), 0),
        (np.float32(1), 0),
        ((), 0),
        ("a string has a length, too", 0),
        (SimpleNamespace(shape=(None, 3)), 0),
    ],
)
def test_a_batch_has_as_many_examples_as_its_first_array_is_long(batch: object, examples: int) -> None:
    assert examples_in(batch) == examples


def test_tensors_tell_their_examples() -> None:
    torch = pytest.importorskip("torch")

    assert examples_in({"pixels": torch.zeros(6, 3, 8, 8)}) == 6


# --- a device that works behind the host


class Device:
    """A device with a queue: work that is submitted begins when what is before it has ended."""

    def __init__(self, time: Time) -> None:
        self._time = time
        self.free_at = time.now
        self.recorded = self.made = self.waits = 0

    def submit(self, seconds: float) -> None:
        self.free_at = max(self.free_at, self._time.now) + seconds

    def record(self, used: Any = None) -> Any:
        self.recorded += 1
        if used is None:
            self.made += 1
            used = SimpleNamespace()
        used.at = max(self.free_at, self._time.now)
        return used

    def seconds_between(self, first: Any, second: Any) -> float:
        return float(second.at - first.at)

    def synchronize(self, event: Any) -> None:
        self.waits += 1
        self._time.now = max(self._time.now, event.at)


def epoch_on(
    device: Device, clock: Clock, time: Time, *, batches: int, wait: float, compute: float
) -> EpochTiming:
    """A loop whose steps take 1 ms of the host, ``compute`` of the device, and batches ``wait`` to come."""
    for _ in clock.batches(slow_loader(time, batches=batches, seconds=wait)):
        time.advance(0.001)
        device.submit(compute)
    return clock.end_epoch()


@pytest.fixture
def device(time: Time) -> Device:
    return Device(time)


@pytest.fixture
def device_clock(time: Time, device: Device) -> Clock:
    return Clock(now=time, gaps=DeviceGaps(device))


def test_a_device_that_is_behind_does_not_wait_for_its_loader(
    device_clock: Clock, device: Device, time: Time
) -> None:
    # The host waits 50 ms for each batch, and the device is busy for 80 ms with the one before.
    timing = epoch_on(device, device_clock, time, batches=10, wait=0.05, compute=0.08)

    assert timing.data == pytest.approx(0.05)  # the first batch
    assert timing.step == pytest.approx(0.001 + 10 * 0.08)


def test_a_device_that_runs_dry_waits_for_its_loader(device_clock: Clock, device: Device, time: Time) -> None:
    timing = epoch_on(device, device_clock, time, batches=10, wait=0.1, compute=0.03)

    # Of each 101 ms the device computes 30, and the host's 1 ms in the step is none of the loader's.
    assert timing.data == pytest.approx(0.1 + 9 * (0.1 - 0.03))
    assert timing.data + timing.step == pytest.approx(timing.seconds)


def test_the_last_steps_of_a_device_are_not_the_validations(
    device_clock: Clock, device: Device, time: Time
) -> None:
    for _ in device_clock.batches(slow_loader(time, seconds=0)):
        device.submit(1)
    with device_clock.phase("validation"):
        time.advance(0.5)

    assert phases(device_clock.end_epoch()) == {"step": 3, "validation": 0.5}


def test_a_long_epochs_gaps_are_sampled_and_scaled(device_clock: Clock, device: Device, time: Time) -> None:
    batches = 5 * clocks.MEASURED_GAPS
    first = epoch_on(device, device_clock, time, batches=batches, wait=0.1, compute=0.03)
    before = device.recorded

    second = epoch_on(device, device_clock, time, batches=batches, wait=0.1, compute=0.03)

    assert device.recorded - before < 2.1 * clocks.MEASURED_GAPS
    assert second.data == pytest.approx(first.data, rel=0.01)


def test_the_device_is_waited_for_a_few_times_an_epoch_and_its_marks_are_used_again(
    device_clock: Clock, device: Device, time: Time
) -> None:
    epoch_on(device, device_clock, time, batches=50, wait=0.1, compute=0.03)
    made = device.made

    epoch_on(device, device_clock, time, batches=50, wait=0.1, compute=0.03)

    assert device.made == made
    assert device.waits == 2 * 2


def test_an_epoch_that_ends_in_the_middle_of_a_loop_keeps_its_gaps_apart(
    device_clock: Clock, device: Device, time: Time
) -> None:
    endless = device_clock.batches(slow_loader(time, batches=100, seconds=0.1))
    timings = []

    for _ in range(3):
        for _ in range(4):
            next(endless)
            device.submit(0.03)
        timings.append(device_clock.end_epoch())

    assert [timing.data for timing in timings[1:]] == pytest.approx([4 * 0.07] * 2)


def test_a_device_whose_marks_are_far_apart_can_not_exceed_the_hosts_time(time: Time) -> None:
    gaps = DeviceGaps(SimpleNamespace(record=lambda used: 0, seconds_between=lambda *_: 99.0, synchronize=id))
    clock = Clock(now=time, gaps=gaps)
    for _ in clock.batches(slow_loader(time)):
        time.advance(1)

    assert phases(clock.end_epoch()) == {"data": 9}


def test_pytorch_is_asked_for_its_gpu_only_where_it_uses_one(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: False))
    busy = SimpleNamespace(
        cuda=SimpleNamespace(is_initialized=lambda: True, current_device=lambda: 1), device=str
    )

    found = []
    for torch in (None, SimpleNamespace(), idle, busy):
        monkeypatch.setitem(sys.modules, "torch", torch)
        found.append(clocks._cuda_device())

    assert found == [None, None, None, "cuda:1"]


def test_a_kit_that_says_cpu_has_no_device(monkeypatch: pytest.MonkeyPatch, time: Time) -> None:
    monkeypatch.setattr(clocks, "_cuda_device", lambda: "cuda:0")
    monkeypatch.setattr(clocks, "CudaEvents", lambda device: pytest.fail("a device was used"))
    clock = Clock(now=time)
    clock.device = "cpu"

    for _ in clock.batches(slow_loader(time)):
        time.advance(1)

    assert phases(clock.end_epoch()) == {"data": 6, "step": 3}


def test_cuda_events_are_recorded_on_the_stream_of_the_clocks_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str) -> None:
            self.stream = stream

        def elapsed_time(self, other: object) -> float:
            return 1500.0  # milliseconds

    cuda = SimpleNamespace(Event=Event, current_stream=lambda device: f"stream of {device}")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, device=str))
    events = CudaEvents("cuda:1")

    first = events.record()
    again = events.record(first)

    assert again is first
    assert first.stream == "stream of cuda:1"
    assert events.seconds_between(first, again) == 1.5


def _has_gpu() -> bool:
    torch = pytest.importorskip("torch")
    return bool(torch.cuda.is_available())


@pytest.mark.skipif("not _has_gpu()", reason="needs a GPU")
def test_a_gpus_wait_for_its_loader_is_told_from_its_steps() -> None:
    import time as real_time

    import torch

    matrix = torch.randn(4096, 4096, device="cuda")
    clock = Clock()

    def loader() -> Iterator[torch.Tensor]:
        for _ in range(10):
            real_time.sleep(0.05)
            yield matrix

    for batch in clock.batches(loader()):
        batch @ batch
    timing = clock.end_epoch()

    assert timing.data > 0.5 * timing.seconds
    assert timing.data + timing.step == pytest.approx(timing.seconds, rel=0.05)


# --- other work on the same cores


def schedstat(folder: Path, task: int, wait_seconds: float) -> None:
    (folder / str(task)).mkdir(exist_ok=True)
    (folder / str(task) / "schedstat").write_text(f"0 {int(wait_seconds * 1e9)} 1\n")


def test_the_waits_of_all_threads_add_up(tmp_path: Path) -> None:
    schedstat(tmp_path, 1, 10)
    schedstat(tmp_path, 2, 20)
    contention = Contention(str(tmp_path))
    contention.reset()

    schedstat(tmp_path, 1, 11)
    schedstat(tmp_path, 2, 23)
    waited = contention.look()

    assert waited == pytest.approx(4)
    assert contention.wait_seconds == pytest.approx(4)


def test_threads_that_come_and_go_do_not_take_the_others_waits_away(tmp_path: Path) -> None:
    schedstat(tmp_path, 1, 10)
    schedstat(tmp_path, 2, 20)
    contention = Contention(str(tmp_path))
    contention.reset()

    (tmp_path / "2" / "schedstat").unlink()
    schedstat(tmp_path, 1, 11)
    schedstat(tmp_path, 3, 5)

    assert contention.look() == pytest.approx(6)


@pytest.mark.parametrize("content", [None, "", "0\n", "not a number\n"])
def test_a_system_that_does_not_tell_waits_says_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "schedstat").write_text(content)
    contention = Contention(str(tmp_path if content is not None else tmp_path / "nowhere"))
    contention.reset()

    assert contention.look() is None
    assert contention.wait_seconds is None


def test_the_processs_own_work_is_counted() -> None:
    contention = Contention()
    contention.reset()

    sum(i * i for i in range(300_000))
    contention.look()

    assert 0 < contention.cpu_seconds < 60


# --- lightness


def test_the_clock_brings_no_framework() -> None:
    code = (
        "import sys, hpo.training.clock, hpo.training.hardware, hpo.diagnosis.epochs\n"
        "clock = hpo.training.clock.Clock()\n"
        "list(clock.batches([1])), clock.end_epoch(), clock.summary()\n"
        "print({'torch', 'tensorflow', 'keras', 'numpy', 'psutil', 'pynvml'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def test_threads_are_what_the_environment_says_where_no_framework_is_loaded(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    found = []

    for said in ("3", "4,2", "", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        found.append(clock.threads)

    assert found == [3, 4, None, None]


def test_threads_are_what_the_framework_says(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: 5))

    assert clock.threads == 5
