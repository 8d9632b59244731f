"""Where the seconds of an epoch go: to waiting for data, to steps, validation, callbacks, or elsewhere.

At any instant one phase is current, and every second counts for the phase that was current: so the phases
add up to the epoch. Times are the host's, at two readings of its clock a step. A GPU works behind the host:
there the wait for data is measured on the device, with events that are read once an epoch (`DeviceGaps`).
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from hpo.core.errors import UsageError
from hpo.training.hardware import available_cores

PHASES = ("data", "step", "validation", "callbacks", "other")

MEASURED_GAPS = 1000  # an epoch: two events each cost some µs of the host's time
KEPT_EPOCHS = 10_000  # for the medians: an objective that reports for ever must not eat the memory
PAIRS = (tuple, list)
MOST_STAMPS = 10_000  # written down before they are reckoned with
CONTENTION_SECONDS = 0.1  # at most so often: reading the kernel's counters takes 10 µs for each thread


@dataclass(frozen=True, slots=True)
class EpochTiming:
    """One epoch's seconds by phase, which add up to ``seconds``, and what was done in them.

    ``examples``, ``validation_examples``: 0 where the batches don't tell. ``cpu_seconds``: of all threads
    of this process. ``wait_seconds``: how long its threads were ready to run and had no core, summed over
    threads, since they were last looked at; None where the system doesn't tell, or it was too early to look.
    """

    seconds: float
    data: float
    step: float
    validation: float
    callbacks: float
    other: float
    steps: int
    examples: int
    validation_examples: int
    cpu_seconds: float
    wait_seconds: float | None

    def metrics(self) -> dict[str, float]:
        """What is reported of the epoch; of one whose loop the clock did not see, its seconds alone.

        ``time/examples_per_second`` is the training's: over data and step, without validation.
        """
        named = {"time/epoch_seconds": self.seconds}
        trained = self.data + self.step
        if not self.seconds or not (trained or self.validation):
            return named
        named |= {f"time/{phase}_share": getattr(self, phase) / self.seconds for phase in PHASES}
        if self.steps:
            named["time/steps"] = float(self.steps)
        if self.examples and trained:
            named["time/examples_per_second"] = self.examples / trained
        return named


class Clock:
    """The time of one trial's epochs.

    ``device``: "cpu", "cuda:0"; kits set it. Where nobody does, the clock takes the GPU that PyTorch has
    begun to use, if there is one. ``epochs``: how many were closed.
    """

    def __init__(
        self,
        *,
        now: Callable[[], float] = time.perf_counter,
        gaps: DeviceGaps | None = None,
        contention: Contention | None = None,
    ) -> None:
        self.device: str | None = None
        self.epochs = 0
        self._now = now
        self._gaps = gaps
        self._contention = contention or Contention()
        self._first: EpochTiming | None = None
        self._later: deque[EpochTiming] = deque(maxlen=KEPT_EPOCHS)
        self._has_begun = False
        self._loop: object = None  # the `batches` that switched last
        self._counting: object = None  # the `batches` whose steps count
        self._stamps: list[float] = []  # when steps began, and negative when they ended, since `_settle`
        self._lengths: list[int] = []  # how many examples they had
        self._phase = "other"
        self._since = 0.0
        self._seconds: dict[str, float] = {}
        self._start(now())

    # --- phases

    def begin(self) -> None:
        """The epoch begins here: what came before, such as building the model, belongs to none.

        Without it, the first epoch begins when a phase is first entered; if none ever is, with the trial.
        """
        self._settle()
        self._begin_at(self._now())
        self._look_for_device()

    def switch(self, phase: str) -> str:
        """Make the phase current; returns the one that was."""
        now = self._now()
        self._settle()
        before = self._phase
        if phase not in self._seconds:
            raise UsageError(f"the clock has no phase {phase!r}", f"phases are {', '.join(PHASES)}")
        if not self._has_begun:
            self._begin_at(now)
        self._seconds[before] += now - self._since
        self._since = now
        self._phase = phase
        if self._gaps is not None:
            self._gaps.switched(before, phase)
        return before

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """``with clock.phase("validation"):``; then the phase is the one before again, also after errors."""
        before = self.switch(name)
        try:
            yield
        finally:
            self.switch(before)

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The loader's batches: getting one is ``data``, what the loop does with it ``step``.

        Starting the iterator, and so a loader's workers, is ``data``. Inside a validation phase the phase
        stays, and the examples count as validation's.
        """
        self._settle()
        if self._phase == "validation":
            for batch in loader:
                self._validation_examples += examples_in(batch)
                yield batch
            return
        self._look_for_device()
        outer, me = self._loop, object()
        # Of loops inside of one another, and of zipped ones, the first counts.
        if self._counting is None:
            self._counting = me
        is_counting = self._counting is me
        now, stamp, count, gaps = self._now, self._stamps.append, self._lengths.append, self._gaps
        before = self.switch("data")
        self._loop = me
        try:
            for batch in loader:
                # A step may be 100 µs, and code that is cold by then takes ten times as long: here the time
                # is only written down; `_settle` reckons with it.
                stamp(now())
                if gaps is not None:
                    gaps.switched("data", "step")
                if is_counting:
                    try:
                        count(batch[0].shape[0] if batch.__class__ in PAIRS else examples_in(batch))
                    except (AttributeError, IndexError, TypeError):
                        count(examples_in(batch))
                if len(self._stamps) > MOST_STAMPS:
                    self._settle()
                yield batch
                stamp(-now())
                if gaps is not None:
                    gaps.switched("step", "data")
                self._loop = me
        finally:
            self._settle()
            if self._counting is me:
                self._counting = None
            # A loop that was left by `break` and kept in a variable is closed later, in somebody else's
            # phase, and must not change it.
            if self._loop is me and self._phase in ("data", "step"):
                if self._gaps is not None and before not in ("data", "step"):
                    self._gaps.wait()  # the training's last steps are not the validation's time
                self.switch(before)
                self._loop = outer

    def _settle(self) -> None:
        """Reckon with what `batches` has written down."""
        for stamp in self._stamps:
            now = abs(stamp)
            self._seconds[self._phase] += now - self._since
            self._since = now
            self._phase = "step" if stamp > 0 else "data"
        self._steps += len(self._lengths)
        self._examples += sum(self._lengths)
        self._stamps.clear()
        self._lengths.clear()

    # --- what kits tell

    def count(self, steps: int, examples: int) -> None:
        """So many steps with so many examples in all were done: for loops that step by themselves."""
        self._steps += steps
        self._examples += examples

    def count_validation(self, examples: int) -> None:
        """So many examples were validated."""
        self._validation_examples += examples

    def move(self, source: str, target: str, seconds: float) -> None:
        """Seconds of this epoch that turned out to belong to another phase; at most what the source has."""
        self._settle()
        self.switch(self._phase)  # what the current phase has until now counts, too
        seconds = min(max(seconds, 0.0), self._seconds[source])
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    # --- what comes out

    def end_epoch(self) -> EpochTiming:
        """Close the epoch; the next begins at the same instant, in the same phase."""
        if not self._has_begun:  # no phase was ever entered: it has lasted since the trial began
            self._has_begun = True
            self._contention.reset()
        self._settle()
        self.switch(self._phase)
        seconds = self._seconds
        if self._gaps is not None:
            trained = seconds["data"] + seconds["step"]
            waited = self._gaps.take(trained)
            if waited is not None:
                seconds = seconds | {"data": waited, "step": trained - waited}
        total = sum(seconds.values())
        cpu_seconds, wait_seconds = self._contention.take()
        timing = EpochTiming(
            seconds=total,
            **seconds,
            steps=self._steps,
            examples=self._examples,
            validation_examples=self._validation_examples,
            cpu_seconds=cpu_seconds,
            wait_seconds=wait_seconds,
        )
        if self._first is None:
            self._first = timing
        else:
            self._later.append(timing)
        self.epochs += 1
        self._counting = None
        self._start(self._since)
        self._look_for_device()
        return timing

    def summary(self) -> dict[str, Any] | None:
        """The trial's epochs in figures that JSON holds, seconds unless named; None before one was closed.

        The first epoch is told apart and left out of the rest where there are more: it has compilation and
        cold caches in it. ``shares`` are of the epochs' sum; ``batch_size`` is the mean. ``cpu_seconds`` and
        ``wait_seconds`` are of the whole time since the first epoch began, which is ``seconds``.
        """
        if self._first is None:
            return None
        epochs = list(self._later) or [self._first]
        total = sum(epoch.seconds for epoch in epochs) or 1.0
        trained = sum(epoch.data + epoch.step for epoch in epochs)
        steps, examples = sum(epoch.steps for epoch in epochs), sum(epoch.examples for epoch in epochs)
        stepped = [epoch.step / epoch.steps for epoch in epochs if epoch.steps]
        self._contention.look()
        return {
            "epochs": self.epochs,
            "first_epoch": _rounded(self._first.seconds),
            "median_epoch": _rounded(statistics.median(epoch.seconds for epoch in epochs)),
            "steps_per_epoch": round(statistics.median(epoch.steps for epoch in epochs)),
            "step_ms": _rounded(1000 * statistics.median(stepped)) if stepped else None,
            "examples_per_second": _rounded(examples / trained) if examples and trained else None,
            "shares": {
                phase: round(sum(getattr(epoch, phase) for epoch in epochs) / total, 4) for phase in PHASES
            },
            "batch_size": _rounded(examples / steps) if examples and steps else None,
            "validation_examples": round(statistics.median(epoch.validation_examples for epoch in epochs)),
            "device": self._device(),
            "threads": self.threads,
            "cores": available_cores(),
            "seconds": _rounded(self._contention.seconds),
            "cpu_seconds": _rounded(self._contention.cpu_seconds),
            "wait_seconds": _rounded(self._contention.wait_seconds),
        }

    @property
    def threads(self) -> int | None:
        """How many threads one operation on the CPU uses, as the loaded framework or OMP_NUM_THREADS says."""
        if torch := sys.modules.get("torch"):
            return int(torch.get_num_threads())
        if tensorflow := sys.modules.get("tensorflow"):
            # 0, TensorFlow's default, means as many as there are cores.
            return int(tensorflow.config.threading.get_intra_op_parallelism_threads()) or available_cores()
        said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
        return int(said) if said.isdecimal() else None

    def _begin_at(self, now: float) -> None:
        self._has_begun = True
        self._contention.reset()
        self._start(now)

    def _start(self, now: float) -> None:
        self._since = now
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._steps = self._examples = self._validation_examples = 0

    def _device(self) -> str | None:
        """Where the steps ran, as far as can be told."""
        if device := self.device or _cuda_device():
            return device
        if tensorflow := sys.modules.get("tensorflow"):
            return None if tensorflow.config.list_physical_devices("GPU") else "cpu"
        return "cpu" if "torch" in sys.modules else None

    def _look_for_device(self) -> None:
        if self._gaps is None and self.device != "cpu" and (device := _cuda_device()):
            chosen = self.device if self.device and self.device.startswith("cuda") else device
            self._gaps = DeviceGaps(CudaEvents(chosen))


def examples_in(batch: Any) -> int:
    """The length of the batch's first array or tensor, however deep in tuples, lists and dicts; 0 if none."""
    if isinstance(batch, tuple | list | Mapping):
        items = batch.values() if isinstance(batch, Mapping) else batch
        return next((count for item in items if (count := examples_in(item))), 0)
    try:
        return int(batch.shape[0])
    except (AttributeError, TypeError, ValueError, IndexError):  # a scalar, or a shape that is not known yet
        return 0


# --- a device that works behind the host


class DeviceEvents(Protocol):
    """Marks in a device's queue of work."""

    def record(self, used: Any = None) -> Any:
        """Put a mark behind the work that is queued now; ``used`` is one that may be used again."""

    def seconds_between(self, first: Any, second: Any) -> float:
        """How much later the device came to the second mark."""

    def synchronize(self, event: Any) -> None:
        """Wait until the device has come to the mark."""


class DeviceGaps:
    """How long a device had nothing to do because the next batch was not there.

    One mark when the host begins to wait for a batch, behind the step before, and one when it has it: a
    device that is behind passes both at once, one that has run dry waits in between. The first gap of an
    epoch (workers start) is always measured, of the others every k-th, so that about `MEASURED_GAPS` are;
    these are scaled up.
    """

    def __init__(self, events: DeviceEvents) -> None:
        self._events = events
        self._spare: list[Any] = []
        self._pairs: list[tuple[Any, Any]] = []
        self._open: Any = None
        self._gaps = 0
        self._every = 1

    def switched(self, before: str, phase: str) -> None:
        if phase == before:
            return
        if before == "data" and self._open is not None:
            self._pairs.append((self._open, self._record()))
            self._open = None
        if phase == "data":
            if self._gaps == 0 or self._gaps % self._every == 0:
                self._open = self._record()
            self._gaps += 1

    def wait(self) -> None:
        """Wait until the device has done what is queued."""
        event = self._record()
        self._events.synchronize(event)
        self._spare.append(event)

    def take(self, limit: float) -> float | None:
        """Seconds of all gaps since the last time, at most ``limit``; None if there was none."""
        pairs, count = self._pairs, self._gaps
        is_open = self._open is not None
        self._pairs, self._gaps = [], int(is_open)
        if not pairs:
            return None
        self._events.synchronize(pairs[-1][1])
        first, *others = (self._events.seconds_between(*pair) for pair in pairs)
        unmeasured = (count - is_open - 1) / len(others) if others else 0.0
        self._spare += [event for pair in pairs for event in pair]
        self._every = max(1, -(-count // MEASURED_GAPS))
        return min(first + sum(others) * unmeasured, limit)

    def _record(self) -> Any:
        return self._events.record(self._spare.pop() if self._spare else None)


class CudaEvents:
    """PyTorch's events on the stream that is current on the device."""

    def __init__(self, device: str) -> None:
        self._torch = sys.modules["torch"]
        self._device = self._torch.device(device)

    def record(self, used: Any = None) -> Any:
        event = used or self._torch.cuda.Event(enable_timing=True)
        event.record(self._torch.cuda.current_stream(self._device))
        return event

    def seconds_between(self, first: Any, second: Any) -> float:
        return float(first.elapsed_time(second)) / 1000

    def synchronize(self, event: Any) -> None:
        event.synchronize()


def _cuda_device() -> str | None:
    """The GPU that PyTorch uses in this process; asking neither imports PyTorch nor starts CUDA."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)  # absent while torch is being imported
    if cuda is None or not cuda.is_initialized():
        return None
    return f"cuda:{cuda.current_device()}"


# --- other work on the same cores


class Contention:
    """How much this process computed, and how long its threads were ready to run while others had the cores.

    The latter is the second number of /proc/self/task/*/schedstat, in ns (Linux; sched-stats in the kernel's
    documentation). ``seconds``, ``cpu_seconds``, ``wait_seconds``: since `reset`, until the last look.
    """

    def __init__(self, tasks: str = "/proc/self/task") -> None:
        self._tasks = tasks
        self._waits: dict[str, int] | None = None
        self.wait_seconds: float | None = None
        self.seconds = self.cpu_seconds = 0.0
        self._cpu = self._begun_cpu = time.process_time()
        self._begun = self._looked = time.perf_counter()

    def reset(self) -> None:
        self._waits = self._read()
        self.wait_seconds = None if self._waits is None else 0.0
        self._cpu = self._begun_cpu = time.process_time()
        self._begun = self._looked = time.perf_counter()
        self.seconds = self.cpu_seconds = 0.0

    def take(self) -> tuple[float, float | None]:
        """CPU seconds since the last take; of waiting since the last look, None if that was just now."""
        before, self._cpu = self._cpu, time.process_time()
        used = self._cpu - before
        if time.perf_counter() - self._looked < CONTENTION_SECONDS:
            return used, None
        return used, self.look()

    def look(self) -> float | None:
        """Seconds of waiting since the last look."""
        self._looked = time.perf_counter()
        self.seconds = self._looked - self._begun
        self.cpu_seconds = time.process_time() - self._begun_cpu
        before, waits = self._waits, self._read()
        if before is None or waits is None or self.wait_seconds is None:
            return None
        self._waits = waits
        # By thread: one that ended takes its sum with it.
        waited = sum(max(0, wait - before.get(task, 0)) for task, wait in waits.items()) / 1e9
        self.wait_seconds += waited
        return waited

    def _read(self) -> dict[str, int] | None:
        waits = {}
        try:
            for task in os.listdir(self._tasks):
                try:
                    with open(f"{self._tasks}/{task}/schedstat", "rb") as file:
                        waits[task] = int(file.read().split()[1])
                except (ProcessLookupError, FileNotFoundError):
                    continue  # the thread has ended meanwhile
        except (OSError, ValueError, IndexError):
            return None
        return waits or None


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
