"""What the epoch clock costs, and on a GPU how far its split is from a profiler's.

    python benchmarks/clock.py                # a minute or two
    python benchmarks/clock.py --seconds 2    # quicker

The plain PyTorch loop on scikit-learn's digits at batch sizes from 1 to 128, with the clock and without it,
in turns: the quickest epoch of each, as whatever else runs only makes epochs longer; and without it again: as
far as that is from 1, the ratio tells nothing. So the clock alone, too: an empty loop with it, less the
loop without, as a share of the epoch. On a GPU also batches that take a while to come, and the share of
the training in which no kernel ran, by the clock's events and by torch.profiler.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hpo.training.clock import Clock
from hpo.training.data import digits

BATCH_SIZES = (1, 4, 16, 64, 128)
EMPTY_STEPS = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15, help="for each batch size (15)")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step_cost, epoch_cost = alone()
    print(
        f"PyTorch {torch.__version__} on {device}; the clock alone: {step_cost * 1e9:.0f} ns a step,", end=" "
    )
    print(f"{epoch_cost * 1e6:.0f} µs an epoch")
    print(
        f"{'batch':>6} {'steps':>6} {'step µs':>8} {'alone':>8} {'with/without':>13} {'without/without':>16}"
    )
    for batch_size in BATCH_SIZES:
        without, timed, again, steps = compare(batch_size, seconds, device)
        share = (step_cost * steps + epoch_cost) / without
        print(
            f"{batch_size:6} {steps:6} {without / steps * 1e6:8.0f} {share:8.2%} {timed / without:13.4f}"
            f" {again / without:16.4f}"
        )
    if device.type == "cuda":
        for wait_seconds in (0.0, 0.002, 0.02):
            against_profiler(wait_seconds)


def alone() -> tuple[float, float]:
    """The clock's own seconds a step and an epoch, the best of several tries."""
    inputs, targets = torch.zeros(4, 64), torch.zeros(4)
    batches = [(inputs, targets)] * EMPTY_STEPS
    clock = Clock()

    def empty(loader: Any) -> float:
        begun = time.perf_counter()
        for _ in loader:
            pass
        return time.perf_counter() - begun

    step = min(empty(clock.batches(batches)) for _ in range(7)) - min(empty(batches) for _ in range(7))
    epochs = []
    for _ in range(1000):
        begun = time.perf_counter()
        clock.end_epoch().metrics()
        epochs.append(time.perf_counter() - begun)
    return step / EMPTY_STEPS, sorted(epochs)[len(epochs) // 2]


def compare(batch_size: int, budget_seconds: float, device: torch.device) -> tuple[float, float, float, int]:
    """Seconds of the quickest epoch without the clock, with it, and without it again; the epoch's steps."""
    torch.manual_seed(0)
    data = digits()
    inputs, targets = (torch.tensor(part, device=device) for part in data.train)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def batches() -> Iterator[Any]:
        for chosen in torch.randperm(len(inputs), device=device).split(batch_size):
            yield inputs[chosen], targets[chosen]

    def epoch(loader: Any) -> None:
        for batch, wanted in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch), wanted).backward()
            optimizer.step()

    def without() -> None:
        epoch(batches())
        if device.type == "cuda":
            torch.cuda.synchronize()

    def timed() -> None:
        epoch(clock.batches(batches()))
        clock.end_epoch().metrics()

    # On a CPU its own seconds: what else runs on the machine takes none of those.
    now = time.perf_counter if device.type == "cuda" else time.thread_time
    clock = Clock()
    seconds: list[list[float]] = [[], [], []]
    without(), timed()
    end = time.perf_counter() + budget_seconds
    while time.perf_counter() < end:
        for kind, kept in zip((without, timed, without), seconds, strict=True):
            begun = now()
            kind()
            kept.append(now() - begun)
    first, with_clock, again = map(min, seconds)
    return first, with_clock, again, -(-len(inputs) // batch_size)


def against_profiler(wait_seconds: float, steps: int = 100) -> None:
    """The part of the training in which the GPU waited for batches, by the clock and by its kernels."""
    from torch.profiler import ProfilerActivity, profile

    model = nn.Sequential(nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 4096)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch = torch.randn(2048, 4096, device="cuda")

    def loader() -> Iterator[torch.Tensor]:
        for _ in range(steps):
            time.sleep(wait_seconds)
            yield batch

    def train(clock: Clock) -> Any:
        for inputs in clock.batches(loader()):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
        return clock.end_epoch()

    train(Clock())  # kernels are loaded
    timing = train(Clock())
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        watched = train(Clock())
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiled.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    idle = last = 0.0
    for start, end in spans:
        if last and start > last:
            idle += start - last
        last = max(last, end)
    trained = timing.data + timing.step
    by_clock, profiled_clock = timing.data / trained, watched.data / (watched.data + watched.step)
    print(
        f"batches every {wait_seconds * 1e3:g} ms: data is {by_clock:.1%} of the training by the clock,"
        f" {profiled_clock:.1%} under the profiler, by which the GPU was idle"
        f" {idle / (spans[-1][1] - spans[0][0]):.1%}"
    )


if __name__ == "__main__":
    main()
