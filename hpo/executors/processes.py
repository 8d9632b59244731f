"""Workers as processes on this machine, one for each slot, kept between trials.

    driver  --socket: settings, then {"run": number}-->  worker (`local_worker.py`)
    driver <--socket: {"ready"}, {"broken": …}, {"claimed": number}, {"done": number}--  worker
    driver  --lifeline: closes when the driver dies-->  the worker's keeper, which kills it

A worker leads a process group: killing it takes along what the objective has started.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpo.core.errors import LoadError, WorkerBroken
from hpo.executors.deaths import OomCounter, explain
from hpo.executors.protocol import Died, Event, Finished, WorkerSettings

DEATHS_BEFORE_BROKEN = 3
CLOSE_SECONDS = 5.0
POLL_SECONDS = 0.1  # where the kernel can't tell of deaths


class ProcessExecutor:
    """See `hpo.executors.protocol.Executor`.

    Args: gpus: for each worker the devices it has, as CUDA_VISIBLE_DEVICES names them; ``()`` leaves them
    as they are. isolate: a fresh process for every trial. environment: what workers have beside this
    process's own.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        gpus: Sequence[tuple[str, ...]],
        *,
        isolate: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = settings
        self._isolate = isolate
        self._environment = {**environment_of_workers(len(gpus)), **(environment or {})}
        # Nobody writes to it and only this process holds its other end: it closes when this process dies.
        self._pipe: tuple[int, ...] = os.pipe()
        self._deaths_in_a_row = 0
        settings.work_folder.mkdir(parents=True, exist_ok=True)
        self._slots = len(gpus)
        self._workers: list[_Worker] = []
        self._vacant = list(gpus)  # the devices of slots without a process

    @property
    def slots(self) -> int:
        return self._slots

    def start(self) -> None:
        """Start the workers that do not run: their first trials will find them ready."""
        while self._vacant:
            self._workers.append(self._start(self._vacant.pop(0)))

    def is_ready(self) -> bool:
        """Whether every worker has loaded the objective; `wait` brings it about."""
        return not self._vacant and all(worker.is_ready for worker in self._workers)

    def free(self) -> int:
        return sum(not worker.is_busy for worker in self._workers) + len(self._vacant)

    def submit(self, number: int | None) -> None:
        """None: whatever waits first, where the study's driver is another process. The worker announces
        itself and looks for one until it has to announce itself again; `running` says when it has one."""
        worker = next((worker for worker in self._workers if not worker.is_busy), None)
        if worker is None:
            if not self._vacant:
                raise IndexError("all workers are busy")
            worker = self._start(self._vacant.pop(0))
            self._workers.append(worker)
        worker.is_busy, worker.number = True, number
        worker.send({"run": number})

    def running(self) -> dict[int, str]:
        """The trials that workers are busy with, and the workers' names."""
        return {worker.number: worker.name for worker in self._workers if worker.number is not None}

    def wait(self, seconds: float) -> list[Event]:
        watched = {descriptor: worker for worker in self._workers for descriptor in worker.descriptors()}
        if any(worker.pidfd is None for worker in self._workers):
            seconds = min(seconds, POLL_SECONDS)
        readable, _, _ = select.select(list(watched), [], [], seconds)
        woken = {watched[descriptor] for descriptor in readable}
        events: list[Event] = []
        for worker in self._workers:
            worker.oom.look()
        for worker in [worker for worker in self._workers if worker in woken or worker.pidfd is None]:
            # Whether it has died is asked first: its last message is then surely there to be read.
            has_died = worker.has_died()
            messages = worker.read()
            events += [event for message in messages if (event := self._heard(worker, message))]
            if has_died:
                events.append(self._bury(worker))
            elif self._isolate and messages and not worker.is_busy:
                self._remove(worker)
        return events

    def withdraw(self) -> list[int]:
        """Workers that look for a trial are stopped; those that were given one begin it."""
        for worker in list(self._workers):
            if worker.is_busy and worker.number is None:
                self._remove(worker)
        return []

    def cancel(self, numbers: Collection[int] | None = None) -> None:
        for worker in list(self._workers):
            if worker.is_busy and (numbers is None or worker.number in numbers):
                self._remove(worker)

    def close(self) -> None:
        for worker in self._workers:
            worker.socket.close()  # an idle worker ends by itself
        deadline = time.monotonic() + CLOSE_SECONDS
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if not worker.is_busy:
                    worker.process.wait(max(0.0, deadline - time.monotonic()))
            worker.kill()
        self._workers = []
        for descriptor in self._pipe:
            os.close(descriptor)
        self._pipe = ()  # closing twice does nothing

    def _heard(self, worker: _Worker, message: Mapping[str, Any]) -> Finished | None:
        if "broken" in message:
            broken = message["broken"]
            raise LoadError(
                f"a worker can't load the objective: {broken['message']}",
                f"{broken['hint']} (workers load a copy of the project: what git does not ignore)",
            )
        if "claimed" in message:
            worker.number = message["claimed"]
        if "done" in message:
            self._deaths_in_a_row = 0
            worker.is_busy, worker.number = False, None
            return Finished(message["done"])
        return None

    def _bury(self, worker: _Worker) -> Died:
        code, was_oom = worker.take_leave()
        died = Died(worker.name, worker.number, explain(code, was_oom))
        self._vacate(worker)
        if was_oom:
            for other in self._workers:
                other.oom.forget()  # this kill is explained
        self._deaths_in_a_row = 0 if worker.is_ready else self._deaths_in_a_row + 1
        if self._deaths_in_a_row >= DEATHS_BEFORE_BROKEN:
            raise WorkerBroken(
                f"{DEATHS_BEFORE_BROKEN} workers in a row died before a first trial: {died.failure.reason}",
                f"the last one's output:\n{worker.tail_of_log()}",
            )
        return died

    def _remove(self, worker: _Worker) -> None:
        worker.kill()
        self._vacate(worker)

    def _vacate(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        self._vacant.append(worker.gpus)

    def _start(self, gpus: tuple[str, ...]) -> _Worker:
        environment = dict(self._environment)
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        ours, theirs = socket.socketpair()
        log = self._settings.work_folder / "workers.log"
        with theirs, open(log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "hpo.executors.local_worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                pass_fds=(theirs.fileno(), self._pipe[0]),
                start_new_session=True,  # Ctrl-C on the terminal is for the driver alone
            )
        worker = _Worker(process, ours, gpus, log)
        settings = asdict(self._settings)
        worker.send({"settings": settings, "gpus": gpus, "lifeline": self._pipe[0]})
        return worker


@dataclass(eq=False)
class _Worker:
    """The driver's view of one worker process."""

    process: subprocess.Popen[bytes]
    socket: socket.socket
    gpus: tuple[str, ...]
    log: Path
    is_busy: bool = False
    number: int | None = None  # of its trial; a busy worker without one looks for one
    is_ready: bool = False
    is_mute: bool = False
    rest: bytes = b""
    pidfd: int | None = field(init=False)
    oom: OomCounter = field(init=False)

    def __post_init__(self) -> None:
        self.pidfd = _pidfd(self.process.pid)
        self.oom = OomCounter(self.process.pid)

    @property
    def name(self) -> str:
        return worker_name(self.process.pid)

    def send(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # it has died: `wait` will tell
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def descriptors(self) -> list[int]:
        """What turns readable when the worker speaks or ends."""
        ours = [] if self.is_mute else [self.socket.fileno()]
        return ours if self.pidfd is None else [*ours, self.pidfd]

    def read(self) -> list[dict[str, Any]]:
        """The messages that have come."""
        try:
            data = self.socket.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            data = b""
        self.is_mute = not data
        *lines, self.rest = (self.rest + data).split(b"\n")
        messages = [json.loads(line) for line in lines]
        self.is_ready |= any("ready" in message for message in messages)
        return messages

    def has_died(self) -> bool:
        """Whether the process has ended; it is not reaped by asking."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def take_leave(self) -> tuple[int, bool]:
        """The exit code, and whether the kernel killed it for memory; what it had started is killed."""
        was_oom = self.oom.has_killed()  # before it is reaped: then its cgroup is forgotten
        self.kill()
        return self.process.returncode, was_oom

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.socket.close()
        if self.pidfd is not None:
            os.close(self.pidfd)

    def tail_of_log(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def _pidfd(pid: int) -> int | None:
    """A descriptor that turns readable when the process ends; None where the kernel has no such thing."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def worker_name(pid: int) -> str:
    """A name that no other worker on any machine has at the same time."""
    return f"{socket.gethostname()}:{pid}"


def environment_of_workers(workers: int) -> dict[str, str]:
    """This process's environment, with each worker's share of the cores; what the user has set stays.

    Threads that spin for more cores than there are make an epoch 40 times slower, so each worker has
    ``max(1, cores // workers)``, and waiting threads sleep. It must be set before a framework is imported.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Who sets one limit means them all: Keras on TensorFlow would not ask OpenMP.
    share = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // workers))
    ours = dict.fromkeys(
        (
            "OMP_NUM_THREADS",
            "MKL_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "NUMEXPR_NUM_THREADS",
            "TF_NUM_INTRAOP_THREADS",
            "TF_NUM_INTEROP_THREADS",
        ),
        share,
    )
    # TensorFlow's remarks on its own build would fill each trial's log.
    quiet = {"PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    return ours | {"OMP_WAIT_POLICY": "PASSIVE"} | quiet | os.environ
