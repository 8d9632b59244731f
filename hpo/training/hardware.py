"""What the machine does beside a trial: processor, memory and GPUs, sampled once a second.

Metrics are named as MLflow names its own, so that its "System metrics" tab draws them.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

Sample = Callable[[], Mapping[str, float]]

SECONDS = 1.0
FIRST_SECONDS = 0.2  # a trial that is over sooner is not looked at
CHILDREN_SECONDS = 5.0  # finding child processes reads the table of all processes


class Monitor:
    """A thread that samples while the monitor is entered; whatever fails in it costs metrics and no trial.

    Args: gpus: those of the trial, as in CUDA_VISIBLE_DEVICES; by default what that variable says.
    """

    def __init__(
        self,
        gpus: Sequence[str] = (),
        *,
        seconds: float = SECONDS,
        first_seconds: float = FIRST_SECONDS,
        nvml: Any = None,
    ) -> None:
        self._gpus_asked, self._nvml = gpus, nvml
        self._seconds, self._first_seconds = seconds, first_seconds
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._gpus: Gpus | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Monitor:
        self._thread = threading.Thread(target=self._run, name="hpo-monitor", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join(self._seconds)  # at once, unless a driver hangs

    def take(self) -> dict[str, float]:
        """The means of what was sampled since the last take, ``system/...``; empty if nothing was."""
        with self._lock:
            means = {name: round(total / count, 1) for name, (total, count) in self._sums.items()}
            self._sums.clear()
        return means

    def gpu(self) -> dict[str, Any] | None:
        """The trial's GPUs until now: ``name`` of the first, ``utilization`` (0 to 1, mean over samples),
        ``peak_bytes`` (most memory in use on one, by all processes), ``other_processes`` (most seen on one).
        None where there is no GPU or it can't be asked."""
        with self._lock:
            return self._gpus.summary() if self._gpus else None

    def _run(self) -> None:
        if self._ended.wait(self._first_seconds):
            return
        sources: list[Sample] = []
        try:
            sources.append(Machine().sample)
        except Exception:  # no psutil, no /proc
            pass
        try:
            gpus = Gpus(self._gpus_asked or visible_gpus(), self._nvml)
            sources.append(gpus.sample)
            with self._lock:
                self._gpus = gpus
        except Exception:  # no NVML, no driver, no such GPU
            pass
        while sources:
            for source in tuple(sources):
                try:
                    sample = source()  # outside the lock: a driver that hangs must not hold up a report
                    with self._lock:
                        for name, value in sample.items():
                            pair = self._sums["system/" + name]
                            pair[0] += value
                            pair[1] += 1
                except Exception:  # it won't be better in a second
                    sources.remove(source)
            if self._ended.wait(self._seconds):
                return


class Machine:
    """The machine's processor and memory, and this process's with its children."""

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil
        self._process = psutil.Process()
        self._busy, self._total = self._times()
        self._cpu, self._when = self._process_seconds(), time.monotonic()
        self._children: list[Any] = []
        self._looked = -CHILDREN_SECONDS

    def sample(self) -> dict[str, float]:
        memory = self._psutil.virtual_memory()
        sample = {
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "process_memory_usage_megabytes": self._resident_bytes() / 1e6,
        }
        busy, total = self._times()
        if total > self._total:
            sample["cpu_utilization_percentage"] = 100 * (busy - self._busy) / (total - self._total)
            self._busy, self._total = busy, total
        cpu, now = self._process_seconds(), time.monotonic()
        if now - self._when >= 0.1:  # processes are billed in ticks of 10 ms
            # As in `top`: 100 is one core.
            sample["process_cpu_utilization_percentage"] = 100 * (cpu - self._cpu) / (now - self._when)
            self._cpu, self._when = cpu, now
        return sample

    def _times(self) -> tuple[float, float]:
        times = self._psutil.cpu_times()._asdict()
        # Linux counts the time of guests in user and nice, too.
        total = sum(seconds for name, seconds in times.items() if not name.startswith("guest"))
        return total - times["idle"] - times.get("iowait", 0.0), total

    def _process_seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def _resident_bytes(self) -> float:
        now = time.monotonic()
        if now - self._looked >= CHILDREN_SECONDS:
            self._looked, self._children = now, self._process.children(recursive=True)
        total = self._process.memory_info().rss
        for child in self._children:
            try:
                total += child.memory_info().rss
            except self._psutil.Error:  # it has ended
                continue
        return float(total)


class Gpus:
    """GPUs as NVML (nvidia-ml-py) sees them, numbered as the trial numbers them.

    Args: asked: indices or UUIDs (also of MIG slices), as in CUDA_VISIBLE_DEVICES. Raises whatever NVML
    raises where there is none.
    """

    def __init__(self, asked: Sequence[str], nvml: Any = None) -> None:
        self._nvml = nvml = nvml or importlib.import_module("pynvml")
        nvml.nvmlInit()
        self._handles = [self._handle(gpu) for gpu in asked]
        self._name = _text(nvml.nvmlDeviceGetName(self._handles[0]))
        self._utilizations: list[float] = []
        self._samples = 0
        self._utilization_sum = 0.0
        self._peak_bytes: int | None = None
        self._others = 0

    def sample(self) -> dict[str, float]:
        nvml, sample = self._nvml, {}
        utilizations = []
        for number, handle in enumerate(self._handles):
            name = f"gpu_{number}"
            if (memory := self._asked(nvml.nvmlDeviceGetMemoryInfo, handle)) is not None:
                sample[f"{name}_memory_usage_megabytes"] = memory.used / 1e6
                sample[f"{name}_memory_usage_percentage"] = 100 * memory.used / memory.total
                self._peak_bytes = max(self._peak_bytes or 0, int(memory.used))
            if (rates := self._asked(nvml.nvmlDeviceGetUtilizationRates, handle)) is not None:
                sample[f"{name}_utilization_percentage"] = float(rates.gpu)
                utilizations.append(rates.gpu / 100)
            if (watts := self._asked(nvml.nvmlDeviceGetPowerUsage, handle)) is not None:
                sample[f"{name}_power_usage_watts"] = watts / 1000
            processes = self._asked(nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()
            self._others = max(self._others, _others([process.pid for process in processes]))
        if utilizations:
            self._samples += 1
            self._utilization_sum += sum(utilizations) / len(utilizations)
        return sample

    def summary(self) -> dict[str, Any]:
        return {
            "name": self._name,
            "utilization": round(self._utilization_sum / self._samples, 3) if self._samples else None,
            "peak_bytes": self._peak_bytes,
            "other_processes": self._others,
        }

    def _handle(self, gpu: str) -> Any:
        if gpu.isdecimal():
            return self._nvml.nvmlDeviceGetHandleByIndex(int(gpu))
        try:
            return self._nvml.nvmlDeviceGetHandleByUUID(gpu)
        except self._nvml.NVMLError:
            # CUDA takes the beginning of a UUID, too.
            for index in range(self._nvml.nvmlDeviceGetCount()):
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                if _text(self._nvml.nvmlDeviceGetUUID(handle)).startswith(gpu):
                    return handle
            raise

    def _asked(self, question: Callable[[Any], Any], handle: Any) -> Any:
        try:
            return question(handle)
        except self._nvml.NVMLError:  # MIG slices and some cards don't tell everything
            return None


def visible_gpus() -> list[str]:
    """The GPUs in CUDA_VISIBLE_DEVICES; without it the first, which frameworks use by default."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is None:
        return ["0"]
    # CUDA ends the list at the first device that is none: "-1" hides all.
    gpus = [gpu.strip() for gpu in said.split(",")]
    return gpus[: next((place for place, gpu in enumerate(gpus) if not gpu or gpu.startswith("-")), None)]


def available_cores() -> int:
    """How many cores this process may use: those it is bound to, at most its control group's quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    return min(cores, _quota_cores() or cores)


def _quota_cores(root: str = "/sys/fs/cgroup") -> int | None:
    """The quota of the control group, as containers see their own at the root; rounded up."""
    try:
        # Version 2: "200000 100000", or "max 100000".
        quota, period = Path(root, "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = Path(root, "cpu/cpu.cfs_quota_us").read_text().strip()
            period = Path(root, "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not (quota.isdecimal() and period.isdecimal() and int(period)):  # "max", or -1: no quota
        return None
    return max(1, -(-int(quota) // int(period)))


def _others(pids: Sequence[int]) -> int:
    """How many of the processes are neither this one nor its children."""
    own = {os.getpid()}
    try:
        import psutil

        own |= {child.pid for child in psutil.Process().children(recursive=True)}
    except Exception:
        pass
    others = [pid for pid in pids if pid not in own]
    if len(others) == len(pids) and pids and _uses_cuda():
        return len(pids) - 1  # in a container NVML tells the host's numbers: one of them is this process
    return len(others)


def _uses_cuda() -> bool:
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return "tensorflow" in sys.modules or bool(cuda and cuda.is_initialized())


def _text(said: str | bytes) -> str:
    return said.decode() if isinstance(said, bytes) else said  # by the library's version
