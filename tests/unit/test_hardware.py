"""What is sampled beside a trial, and that nothing of it can harm one."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpo.training import hardware
from hpo.training.hardware import Gpus, Machine, Monitor, available_cores, visible_gpus


class NvmlError(Exception):
    pass


class Nvml:
    """Two GPUs; the second is a MIG slice that tells neither its utilization nor its power."""

    NVMLError = NvmlError

    def __init__(self) -> None:
        self.used = [2e9, 3e9]
        self.busy = [50, 0]
        self.pids = [[os.getpid(), 1], []]

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index > 1:
            raise NvmlError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        found = {"GPU-aaaa": 0, "MIG-bbbb": 1}
        if uuid not in found:
            raise NvmlError("Not Found")
        return found[uuid]

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        return [b"GPU-aaaa", b"MIG-bbbb"][handle]

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return [b"NVIDIA A", b"NVIDIA B"][handle]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(used=self.used[handle], total=4e9)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        if handle == 1:
            raise NvmlError("Not Supported")
        return SimpleNamespace(gpu=self.busy[handle], memory=1)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if handle == 1:
            raise NvmlError("Not Supported")
        return 250_000

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        return [SimpleNamespace(pid=pid) for pid in self.pids[handle]]


def watched(until: Callable[[Monitor], Any], **arguments: Any) -> Any:
    """What ``until`` gives of a monitor that samples without a pause, as soon as it is something."""
    with Monitor(seconds=0.001, first_seconds=0.0, **arguments) as monitor:
        for _ in range(10_000):
            if found := until(monitor):
                return found
            threading.Event().wait(0.001)
    raise AssertionError("nothing was sampled")


# --- the monitor


def test_the_machine_is_measured_under_mlflows_names() -> None:
    pytest.importorskip("mlflow.system_metrics.metrics.cpu_monitor")
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

    theirs = CPUMonitor()
    theirs.collect_metrics()
    seen: set[str] = set()

    def all_of_theirs(monitor: Monitor) -> bool:
        seen.update(monitor.take())
        return {f"system/{name}" for name in theirs.metrics} <= seen

    assert watched(all_of_theirs, nvml=SimpleNamespace())


def test_what_was_taken_is_not_taken_again() -> None:
    monitor = Monitor()

    with monitor:
        pass
    first, second = monitor.take(), monitor.take()

    assert (first, second) == ({}, {})


def test_a_trial_that_is_over_at_once_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "Machine", lambda: pytest.fail("the machine was looked at"))

    with Monitor(first_seconds=60) as monitor:
        pass

    assert monitor.take() == {}
    assert monitor.gpu() is None
    assert "hpo-monitor" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("error", [ImportError, NvmlError, OSError, ZeroDivisionError])
def test_a_machine_that_cant_be_measured_costs_nothing_but_its_metrics(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fails(*_: object) -> Any:
        raise error

    monkeypatch.setattr(hardware, "Machine", lambda: SimpleNamespace(sample=fails))

    memory = watched(lambda monitor: monitor.take(), gpus=("0",), nvml=Nvml())

    assert {name.split("_")[0] for name in memory} == {"system/gpu"}


def test_without_nvml_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)

    found = watched(lambda monitor: (monitor.take(), monitor.gpu()))

    assert found[1] is None


def test_a_driver_that_hangs_holds_up_no_report() -> None:
    reached, may_go_on = threading.Event(), threading.Event()

    def hangs(*_: object) -> Any:
        reached.set()
        may_go_on.wait()

    nvml = Nvml()
    nvml.nvmlDeviceGetMemoryInfo = hangs  # type: ignore[method-assign]
    with Monitor(["0"], seconds=0.001, first_seconds=0.0, nvml=nvml) as monitor:
        reached.wait()
        monitor.take()
        gpu = monitor.gpu()
    may_go_on.set()

    assert gpu is not None


# --- GPUs


def test_gpus_are_measured_under_mlflows_names_and_numbered_as_the_trial_numbers_them() -> None:
    sample = Gpus(["1", "0"], Nvml()).sample()

    assert sample == {
        "gpu_0_memory_usage_megabytes": 3000,
        "gpu_0_memory_usage_percentage": 75,
        "gpu_1_memory_usage_megabytes": 2000,
        "gpu_1_memory_usage_percentage": 50,
        "gpu_1_utilization_percentage": 50,
        "gpu_1_power_usage_watts": 250,
    }


@pytest.mark.parametrize("asked", ["GPU-aaaa", "GPU-aa", "0"])
def test_a_gpu_is_found_by_its_number_its_uuid_and_the_beginning_of_that(asked: str) -> None:
    assert Gpus([asked], Nvml()).summary()["name"] == "NVIDIA A"


def test_a_gpu_that_is_not_there_is_an_error_of_nvmls() -> None:
    for asked in ("7", "GPU-ffff"):
        with pytest.raises(NvmlError):
            Gpus([asked], Nvml())


def test_the_summary_has_the_mean_utilization_and_the_peaks() -> None:
    nvml = Nvml()
    gpus = Gpus(["GPU-aaaa"], nvml)

    for busy, used, pids in ((20, 1e9, [os.getpid(), 1, 2]), (100, 3e9, []), (90, 2e9, [])):
        nvml.busy[0], nvml.used[0], nvml.pids[0] = busy, used, pids
        gpus.sample()

    assert gpus.summary() == {
        "name": "NVIDIA A",
        "utilization": 0.7,
        "peak_bytes": 3_000_000_000,
        "other_processes": 2,
    }


def test_a_slice_that_tells_no_utilization_has_none() -> None:
    gpus = Gpus(["MIG-bbbb"], Nvml())

    gpus.sample()

    assert gpus.summary()["utilization"] is None


def test_in_a_container_one_of_the_unknown_processes_is_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_uses_cuda", lambda: True)

    assert hardware._others([1, 2]) == 1
    assert hardware._others([]) == 0
    assert hardware._others([os.getpid(), 1]) == 1


@pytest.mark.parametrize(
    ("said", "gpus"),
    [
        (None, ["0"]),
        ("", []),
        ("-1", []),
        ("1", ["1"]),
        ("2, 0", ["2", "0"]),
        ("GPU-aaaa,MIG-bbbb", ["GPU-aaaa", "MIG-bbbb"]),
        ("0,-1,1", ["0"]),
    ],
)
def test_visible_gpus_are_read_as_cuda_reads_them(
    monkeypatch: pytest.MonkeyPatch, said: str | None, gpus: list[str]
) -> None:
    if said is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)

    assert visible_gpus() == gpus


def test_the_real_library_has_every_function_that_is_called() -> None:
    pynvml = pytest.importorskip("pynvml")

    missing = [name for name in dir(Nvml) if name.startswith("nvml") and not hasattr(pynvml, name)]

    assert missing == []
    assert issubclass(pynvml.NVMLError, Exception)


# --- the machine


def test_the_process_and_its_children_have_memory() -> None:
    psutil = importlib.import_module("psutil")

    sample = Machine().sample()

    assert sample["process_memory_usage_megabytes"] >= 0.5 * psutil.Process().memory_info().rss / 1e6
    assert 0 < sample["system_memory_usage_percentage"] < 100


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_containers_quota_limits_the_cores(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)

    assert hardware._quota_cores(str(tmp_path)) == cores


def test_there_are_no_more_cores_than_the_quota_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = available_cores()

    monkeypatch.setattr(hardware, "_quota_cores", lambda: 1)

    assert available_cores() == 1
    assert unlimited >= 1
