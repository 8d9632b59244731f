"""The process that `ProcessExecutor` starts: load the objective once, then run trial after trial."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
from pathlib import Path

from hpo.core.errors import HpoError, LoadError
from hpo.executors.processes import worker_name
from hpo.executors.protocol import WorkerSettings
from hpo.keeper import Keeper
from hpo.loading import EntryPoint, load
from hpo.stores import connect
from hpo.worker import Workplace, file_store, run_one


def main() -> None:
    """Serve the driver at the other end of the socket until it closes."""
    faulthandler.enable()  # a segmentation fault leaves its stack in the trial's log
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    lines = channel.makefile("rb")
    first = json.loads(lines.readline())
    settings = WorkerSettings(**first["settings"])
    name = worker_name(os.getpid())
    keeper = Keeper(
        settings.store,
        settings.study,
        lease_seconds=settings.lease_seconds,
        timeout_seconds=settings.timeout_seconds,
        lifeline=first["lifeline"],
    )
    # The driver alone writes to its database. What the file itself asks of MLflow, outside of every trial,
    # goes where the next driver clears away.
    os.environ |= file_store(settings.work_folder / "trials" / f"mlflow-{os.getpid()}")
    try:
        code = Path(settings.code)
        task = load(EntryPoint(code, Path(settings.file), settings.name), settings.arguments)
        if task.space.fingerprint != settings.fingerprint:
            raise LoadError(
                "its search space is not the one that the driver has",
                "a space must be the same in every process: build it without sets, random numbers, the time"
                " or the environment",
            )
    except HpoError as error:
        _say(channel, broken={"message": error.message, "hint": error.hint})
        return
    store = connect(settings.store).open(settings.study)
    gpus = tuple(first["gpus"])
    store.announce(name, {"host": socket.gethostname(), "pid": os.getpid(), "gpus": gpus})
    place = Workplace(
        name, settings.work_folder, code, settings.study_seed, gpus, tracking_uri=settings.tracking_uri
    )
    _say(channel, ready=name)
    for line in lines:
        number = json.loads(line)["run"]
        run_one(store, number, task, place, keeper)
        _say(channel, done=number)


def _say(channel: socket.socket, **message: object) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
