"""A real Spark cluster on this machine: a master and two workers of one core and one fake GPU each."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

SCRIPT = Path(__file__).parents[1] / "spark-conf" / "local-cluster"
SHAPE = ("--workers", "2", "--cores", "1", "--memory", "1g", "--gpus", "0,1", "--port", "0")


@dataclass(frozen=True)
class SparkCluster:
    """``master``: its address, spark://127.0.0.1:PORT. Killed workers are put back by `start_worker`."""

    folder: Path
    master: str

    @property
    def workers(self) -> list[int]:
        """The pids of Spark's workers that live, the one of GPU 0 first."""
        return [pid for pid in self._remembered()["workers"] if _lives(pid)]

    @property
    def master_pid(self) -> int:
        pid: int = self._remembered()["master"]
        return pid

    @property
    def executors(self) -> list[int]:
        """The pids of the executors (of all applications) that live."""
        return [pid for pid, command in self._processes() if "CoarseGrainedExecutorBackend" in command]

    @property
    def python_workers(self) -> list[int]:
        """The pids of the Python processes that executors have started, and of what these have."""
        return [
            child.pid
            for pid in self.executors
            for child in _children(pid)
            if child.status() != psutil.STATUS_ZOMBIE
        ]

    def start_worker(self) -> None:
        """Start the workers that have died again, with the GPU each had, and wait until the master knows."""
        local_cluster(self.folder, "start", *SHAPE)

    def kill_worker(self, number: int = 0) -> int:
        """``kill -9`` of a Spark worker, which is not its executors' end; returns its pid."""
        pid = self.workers[number]
        os.kill(pid, signal.SIGKILL)
        return pid

    def kill_executor(self, number: int = 0) -> int:
        """``kill -9`` of an executor; Spark starts another one. Returns its pid."""
        pid = self.executors[number]
        os.kill(pid, signal.SIGKILL)
        return pid

    def log(self, name: str) -> str:
        """What the ``master``, ``worker-0`` or ``worker-1`` has said."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _remembered(self) -> dict[str, Any]:
        remembered: dict[str, Any] = json.loads((self.folder / "cluster.json").read_text())
        return remembered

    def _processes(self) -> Iterator[tuple[int, str]]:
        """Those that carry this cluster's mark in their environment, with their command lines."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("HPO_LOCAL_CLUSTER") == str(self.folder):
                    yield process.pid, " ".join(process.cmdline())


@contextlib.contextmanager
def running_cluster(folder: Path, shape: tuple[str, ...] = SHAPE) -> Iterator[SparkCluster]:
    """The cluster, with its logs in ``folder``; stopped whatever happens."""
    try:
        yield SparkCluster(folder, local_cluster(folder, "start", *shape).strip())
    finally:
        local_cluster(folder, "stop")


def local_cluster(folder: Path, *arguments: str) -> str:
    """``spark-conf/local-cluster ARGUMENTS``: what it prints. Raises AssertionError with what it said."""
    command = [sys.executable, str(SCRIPT), *arguments, "--folder", str(folder)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def _lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def _children(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []
