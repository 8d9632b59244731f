"""Why the epochs of one trial take as long as they do.

Rules in this order; the first that holds is the cause. Shares are of the epochs after the first; the
thresholds are the constants below, with their reasons.

| cause | holds where |
|---|---|
| cpu_fallback | GPUs were assigned, and the training ran on the CPU |
| oversubscribed | several threads at once (`PARALLEL` on average) were running or ready to run, and for |
| | `WAITED` of that time they waited for a core; where the system doesn't tell: more threads than cores |
| shared_device | other processes were on the GPU, and it was busy for `BUSY` of the time |
| warm_up | the first epoch took longer than the median by `WARM_UP` of the whole training |
| | and by `WARM_UP_SECONDS` |
| input_bound | waiting for data takes `INPUT` of an epoch |
| validation_bound | validation takes `VALIDATION` of it |
| callback_bound | callbacks take `CALLBACKS` of it |
| oversubscribed | a single thread waited for a core for `WAITED_ALONE` of the training |
| overhead_bound | fixed costs of steps, which don't depend on the batch size, take `OVERHEAD` of it; |
| | or steps take `STEPS` of it, and fixed costs `OVERHEAD` of them |
| compute_bound | steps take `STEPS` of it |
| none | nothing of that |

What takes less than `WORTH_SECONDS` of an epoch is no cause: nobody gains by mending it.

From input to overhead, the one that exceeds its threshold by the largest factor is the cause: each can be
mended by itself, and the largest gives most. Waiting for a core comes first where threads wait for one
another, which can make steps 40 times slower; a single thread on a busy machine loses only its wait.

The fixed cost of a step is what is left when computing is taken off: training an example costs about three
times its forward pass, as the backward pass costs two (Kaplan et al. 2020, arXiv 2001.08361, section 2.1),
and validation tells what a forward pass costs in large batches. It has overheads of its own, so
this errs towards compute. Without validation examples, a step that is `SHORT_STEP_MS` or shorter at
`FEW_EXAMPLES` or fewer is taken for a fixed cost as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Cause = Literal[
    "none",
    "overhead_bound",
    "input_bound",
    "compute_bound",
    "validation_bound",
    "callback_bound",
    "warm_up",
    "cpu_fallback",
    "oversubscribed",
    "shared_device",
]

PARALLEL = 1.25  # below, it is one thread's work with helpers
WAITED = 0.25  # where one thread of an operation waits, the others wait for it
WAITED_ALONE = 0.5  # the training could be twice as fast on a quiet machine
BUSY = 0.8  # a GPU that is idle a fifth of the time has room for both
WARM_UP = 0.25  # without it the training would be a third faster
WARM_UP_SECONDS = 0.5  # less is lost in the trial's own start
WORTH_SECONDS = 0.05  # a hundred epochs would be five seconds shorter
INPUT = 0.25  # steps fed in time would make epochs a third faster
VALIDATION = 0.3  # a validation set of a quarter of the data takes 8 % if it runs as fast as training does
CALLBACKS = 0.15  # they compute nothing that the training needs
OVERHEAD = 0.5  # with a larger batch size an epoch would take little more than half
STEPS = 0.5  # less, and the epoch is many things
SHORT_STEP_MS = 1.0  # forward, backward and the optimizer call some hundred kernels, 2 to 10 µs each
FEW_EXAMPLES = 32
TRAINING_FORWARDS = 3  # forward passes that a training step costs


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a trial's epochs. Seconds unless named; None where nobody knows.

    ``shares``: of data, step, validation, callbacks and other, which sum to 1. ``validation_examples``: an
    epoch's. ``threads``: those of one operation on the CPU. ``seconds``, ``cpu_seconds``, ``wait_seconds``:
    of the whole training; the last two summed over threads, computing and waiting for a core. ``gpus``: how
    many were assigned. ``gpu_utilization``: 0 to 1.
    """

    epochs: int
    first_epoch: float
    median_epoch: float
    shares: Mapping[str, float] = field(default_factory=dict)
    steps_per_epoch: int = 0
    step_ms: float | None = None
    batch_size: float | None = None
    validation_examples: int = 0
    device: str | None = None
    threads: int | None = None
    cores: int | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    wait_seconds: float | None = None
    gpus: int = 0
    gpu_name: str | None = None
    gpu_utilization: float | None = None
    gpu_other_processes: int = 0

    @classmethod
    def of(cls, epoch_time: Mapping[str, Any], gpus: Sequence[str] = ()) -> Evidence:
        """From a result's ``epoch_time``, as far as it says, and the GPUs that the trial was given."""
        gpu = epoch_time.get("gpu") or {}
        names = cls.__dataclass_fields__.keys() & epoch_time.keys()
        return cls(
            **{name: epoch_time[name] for name in names},
            gpus=len(gpus),
            gpu_name=gpu.get("name"),
            gpu_utilization=gpu.get("utilization"),
            gpu_other_processes=gpu.get("other_processes", 0),
        )

    def seconds_of(self, phase: str) -> float:
        """The phase's seconds in a typical epoch."""
        return self.shares.get(phase, 0.0) * self.median_epoch

    @property
    def ready_seconds(self) -> float:
        """How long threads were running or ready to run, summed over them."""
        return self.cpu_seconds + (self.wait_seconds or 0.0)

    @property
    def waited_share(self) -> float:
        """The part of that in which they had no core."""
        return (self.wait_seconds or 0.0) / self.ready_seconds if self.ready_seconds else 0.0

    @property
    def compute_ms(self) -> float | None:
        """What computing a step's examples costs at most, from what validation costs; None if unknown."""
        validation = self.seconds_of("validation")
        if not (self.validation_examples and validation and self.batch_size):
            return None
        return 1000 * TRAINING_FORWARDS * validation / self.validation_examples * self.batch_size

    @property
    def fixed_share(self) -> float:
        """The part of a step that doesn't depend on the batch size, 0 to 1."""
        if not self.step_ms:
            return 0.0
        if self.compute_ms is not None:
            return max(0.0, 1 - self.compute_ms / self.step_ms)
        is_short = self.step_ms <= SHORT_STEP_MS and (self.batch_size or 1) <= FEW_EXAMPLES
        return 1.0 if is_short else 0.0


def diagnose(evidence: Evidence) -> tuple[Cause, str]:
    """The cause and one or two sentences with the trial's own figures on what to do; none has no advice,
    unless the clock could see too little."""
    for rule in (_cpu_fallback, _oversubscribed, _shared_device, _warm_up, _largest, _steps):
        if finding := rule(evidence):
            return finding
    if not evidence.steps_per_epoch:
        return "none", (
            "The clock saw no steps: let the loop go over run.batches(loader), and put validation into a"
            ' `with run.phase("validation")`.'
        )
    return "none", ""


Finding = tuple[Cause, str]


def _cpu_fallback(e: Evidence) -> Finding | None:
    if not e.gpus or e.device != "cpu":
        return None
    return "cpu_fallback", (
        f"The trial had {_count(e.gpus, 'GPU')} and trained on the CPU: move the model and the batches to the"
        " device, and see that the framework is installed with CUDA (torch.cuda.is_available())."
    )


def _oversubscribed(e: Evidence) -> Finding | None:
    is_more = bool(e.threads and e.cores and e.threads > e.cores)
    if e.wait_seconds is None:
        return ("oversubscribed", _threads_mend(e)) if is_more else None
    is_parallel = e.ready_seconds > PARALLEL * e.seconds
    if e.waited_share < WAITED or not is_parallel:
        return None
    return _waited(e)


def _waited(e: Evidence) -> Finding:
    waited = f"Threads that could run waited for a core {e.waited_share:.0%} of the time."
    return "oversubscribed", f"{waited} {_threads_mend(e)}"


def _threads_mend(e: Evidence) -> str:
    cores = _count(e.cores, "core") if e.cores else "cores"
    if e.threads and e.cores and e.threads > e.cores:
        return (
            f"An operation uses {e.threads} threads on {cores}: set {e.cores} or fewer"
            " (torch.set_num_threads, OMP_NUM_THREADS)."
        )
    uses = _count(e.threads, "thread") if e.threads else "threads"
    return (
        f"An operation uses {uses} on {cores}, which others use, too: run fewer workers, give each fewer"
        " threads, or leave less running beside the study."
    )


def _shared_device(e: Evidence) -> Finding | None:
    if not e.gpu_other_processes or (e.gpu_utilization or 0) < BUSY:
        return None
    return "shared_device", (
        f"{_count(e.gpu_other_processes, 'other process', 'other processes')} used the"
        f" {e.gpu_name or 'GPU'}, too, which was busy {e.gpu_utilization:.0%} of the time: start one worker"
        " for each GPU, or use another."
    )


def _warm_up(e: Evidence) -> Finding | None:
    excess = e.first_epoch - e.median_epoch
    whole = e.first_epoch + (e.epochs - 1) * e.median_epoch
    if e.epochs < 2 or excess < WARM_UP_SECONDS or excess < WARM_UP * whole:
        return None
    return "warm_up", (
        f"The first epoch took {_seconds(e.first_epoch)}, the others {_seconds(e.median_epoch)}:"
        f" {excess / whole:.0%} of the training is compilation, caching or set-up. Keep compiled models and"
        " cached data between the trials of a worker, or train without compiling."
    )


def _largest(e: Evidence) -> Finding | None:
    """Of what can be mended by itself, the one that exceeds its threshold most."""
    shares = {
        _input_bound: (e.shares.get("data", 0.0), INPUT),
        _validation_bound: (e.shares.get("validation", 0.0), VALIDATION),
        _callback_bound: (e.shares.get("callbacks", 0.0), CALLBACKS),
        _waited: (min(e.waited_share, (e.wait_seconds or 0.0) / (e.seconds or 1.0)), WAITED_ALONE),
        _overhead_bound: (e.shares.get("step", 0.0) * e.fixed_share, OVERHEAD),
    }
    finding, (share, threshold) = max(shares.items(), key=lambda item: item[1][0] / item[1][1])
    is_worth_it = share * e.median_epoch >= WORTH_SECONDS
    return finding(e) if share >= threshold and is_worth_it else None


def _input_bound(e: Evidence) -> Finding:
    waited = e.seconds_of("data")
    of_batches = f", {_seconds(waited / e.steps_per_epoch)} for each batch" if e.steps_per_epoch else ""
    return "input_bound", (
        f"{e.shares['data']:.0%} of an epoch ({_seconds(waited)}{of_batches}) is waiting for data: keep the"
        " data set in memory as arrays, prefetch, or load with more workers."
    )


def _validation_bound(e: Evidence) -> Finding:
    of_examples = f" of {e.validation_examples} examples" if e.validation_examples else ""
    return "validation_bound", (
        f"{e.shares['validation']:.0%} of an epoch ({_seconds(e.seconds_of('validation'))}) is"
        f" validation{of_examples}: validate in larger batches without gradients, on fewer examples, or every"
        " few epochs."
    )


def _callback_bound(e: Evidence) -> Finding:
    return "callback_bound", (
        f"{e.shares['callbacks']:.0%} of an epoch ({_seconds(e.seconds_of('callbacks'))}) is callbacks and"
        " reports: save, plot and report less often."
    )


def _overhead_bound(e: Evidence) -> Finding:
    assert e.step_ms is not None  # or nothing of it were fixed
    steps = f"{_count(e.steps_per_epoch, 'step')} of {_seconds(e.step_ms / 1000)}"
    if e.compute_ms is None or not e.batch_size:
        return "overhead_bound", (
            f"{steps}: so short that calling the framework is most of it. A larger batch size makes fewer"
            " of them."
        )
    part = (
        f"{steps}, about {min(e.fixed_share, 0.99):.0%} of it a fixed cost per step whatever the batch size"
    )
    if e.steps_per_epoch == 1:
        return "overhead_bound", f"{part}, and no larger batch to be had."
    fixed_ms, example_ms = e.step_ms - e.compute_ms, e.compute_ms / e.batch_size
    examples = e.batch_size * e.steps_per_epoch
    # From where computing has caught up with the fixed cost on, larger batches gain less than twice.
    size = 1 << max(0, round(min(fixed_ms / example_ms, examples)) - 1).bit_length()
    would_take = e.median_epoch - e.seconds_of("step") + examples * (fixed_ms / size + example_ms) / 1000
    return "overhead_bound", (
        f"{part}: with batches of {size} instead of {e.batch_size:.0f}, an epoch would take at most about"
        f" {_seconds(would_take)} instead of {_seconds(e.median_epoch)}."
    )


def _steps(e: Evidence) -> Finding | None:
    """What is most of the steps, where they are most of the epoch."""
    if e.step_ms is None or e.shares.get("step", 0.0) < STEPS or e.seconds_of("step") < WORTH_SECONDS:
        return None
    if e.fixed_share >= OVERHEAD:
        return _overhead_bound(e)
    examples = f" of {e.batch_size:.0f} examples" if e.batch_size else ""
    mend = (
        "a GPU"
        if not (e.device or "cpu").startswith(("cuda", "gpu"))
        else "mixed precision, compiling the model"
    )
    return "compute_bound", (
        f"{e.shares['step']:.0%} of an epoch is computing: {_count(e.steps_per_epoch, 'step')} of"
        f" {_seconds(e.step_ms / 1000)}{examples}. What helps is {mend}, a smaller model, or fewer epochs."
    )


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _seconds(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
