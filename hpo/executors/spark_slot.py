"""What a Spark task does: give one trial to the worker process that its slot keeps.

Spark keeps the Python process of a slot for many tasks; so is its worker kept, with the frameworks that it
has imported. The worker is a process of its own, as on the driver's machine: when a task's Python process
dies, Spark runs the task again and says nothing, and other GPUs than it began with a process can't have.

    Spark's executor --task--> Python process (this module) --socket--> worker (`local_worker.py`)
                                  '--lifeline: closes when Spark kills it--> keeper, which kills the worker
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from hpo.core.errors import HpoError, StoreError, StoreUnreachable
from hpo.core.trial import State
from hpo.executors.processes import ProcessExecutor
from hpo.executors.protocol import Died, Finished, WorkerSettings
from hpo.stores import Store, connect
from hpo.stores.rpc import TOKEN_VARIABLE, error_document
from hpo.worker import keep_log

GPU = "gpu"  # Spark's name of the resource
POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Slot:
    """This process's worker, and what it was made for. ``java``: Spark's, of which this process is a part."""

    made_for: tuple[object, ...]
    executor: ProcessExecutor
    store: Store
    settings: WorkerSettings
    java: psutil.Process | None


_slot: _Slot | None = None


def serve(message: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Do what the driver's message asks for, in a Spark task; ``folder`` has its archive.

    Returns a document with ``ready`` (where, after loading the objective), ``done`` (the trial's number),
    ``died`` (a `Died`), ``again`` (Spark's attempt, when another one has claimed the trial), ``lost`` (why it
    could not run here, but may elsewhere) or ``broken`` (why no trial can run).
    """
    from pyspark import TaskContext

    context = TaskContext.get()
    assert context is not None
    resources = context.resources()
    gpus = tuple(resources[GPU].addresses) if GPU in resources else ()
    try:
        slot = _slot_for(message, folder, gpus)
        number = message["number"]
        if number is None:
            return {"ready": _warm(slot, gpus)}
        if context.attemptNumber() > 0 and slot.store.trial(number).state is not State.WAITING:
            return {"again": context.attemptNumber()}
        return _run(slot, number)
    except StoreUnreachable as error:
        _leave()
        where = f"{socket.gethostname()} must reach it; --driver-host says how this machine is called there"
        return {"broken": _told(error, where)} if message["number"] is None else {"lost": error.message}
    except HpoError as error:
        _leave()
        where = f"executors run {sys.executable} on {socket.gethostname()}"
        return {"broken": _told(error, f"{where}; PYSPARK_PYTHON names another Python")}


def _told(error: HpoError, where: str) -> dict[str, Any]:
    return error_document(type(error)(error.message, "; ".join(filter(None, [error.hint, where]))))


def _slot_for(message: Mapping[str, Any], folder: Path, gpus: tuple[str, ...]) -> _Slot:
    """This process's worker. Another study, other code or other GPUs are another worker's: what a framework
    has seen of the GPUs stays, and the idle worker would keep their memory."""
    global _slot
    made_for = (folder, message["settings"], message["isolate"], message["token"], gpus)
    if _slot is None or _slot.made_for != made_for:
        _leave()
        settings = WorkerSettings(**message["settings"])
        settings = replace(settings, code=str(folder / "code"), folder=str(folder / "work"))
        environment = {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
        if message["token"] is not None:
            environment[TOKEN_VARIABLE] = message["token"]
            os.environ[TOKEN_VARIABLE] = message["token"]
        store = connect(settings.store).open(settings.study)
        executor = ProcessExecutor(settings, [gpus], isolate=message["isolate"], environment=environment)
        java = next((one for one in psutil.Process().parents() if one.name() == "java"), None)
        _slot = _Slot(made_for, executor, store, settings, java)
    return _slot


def _leave() -> None:
    global _slot
    if _slot is not None:
        slot, _slot = _slot, None
        slot.executor.close()
        with contextlib.suppress(StoreError):
            slot.store.close()


def _warm(slot: _Slot, gpus: tuple[str, ...]) -> dict[str, Any]:
    """Have the worker load the objective; returns where that was."""
    slot.executor.start()
    while not slot.executor.is_ready():
        slot.executor.wait(POLL_SECONDS)
        slot.executor.start()
    return {"host": socket.gethostname(), "gpus": gpus, "python": platform.python_version()}


def _run(slot: _Slot, number: int) -> dict[str, Any]:
    slot.executor.submit(number)
    while True:
        if slot.java is not None and not slot.java.is_running():
            # Nobody is left who would kill this process, and its GPU may be another executor's by now.
            os._exit(1)
        for event in slot.executor.wait(POLL_SECONDS):
            if event.number != number:
                continue  # the idle worker had died: the trial is another one's
            if isinstance(event, Finished):
                return {"done": number}
            with contextlib.suppress(StoreError):
                keep_log(slot.store, number, slot.settings.work_folder)
            return {"died": _document(event)}


def _document(died: Died) -> dict[str, Any]:
    return {"worker": died.worker, "kind": died.failure.kind.value, "reason": died.failure.reason}
