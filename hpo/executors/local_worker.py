"""The process that `ProcessExecutor` starts: load the objective once, then run trial after trial."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from hpo.core.errors import ClaimLost, HpoError, LoadError, StoreError
from hpo.core.study import TERMS_NOTE
from hpo.core.trial import Claim
from hpo.delivery import Delivery
from hpo.executors.processes import worker_name
from hpo.executors.protocol import WorkerSettings
from hpo.keeper import Keeper
from hpo.loading import EntryPoint, load
from hpo.run import complain
from hpo.stores import Store, connect
from hpo.worker import Workplace, file_store, run_claimed, run_one

POLL_SECONDS = 5.0  # how long one look for a trial lasts, and how late a new driver knows of this worker
STORE_RETRY_SECONDS = 2.0


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
    place = Workplace(
        name, settings.work_folder, code, settings.study_seed, gpus, tracking_uri=settings.tracking_uri
    )
    _say(channel, ready=name)
    for line in lines:
        number = json.loads(line)["run"]
        if number is not None:
            run_one(store, number, task, place, keeper)
        elif (claim := found(store, settings, place)) is not None:
            number = claim.number
            _say(channel, claimed=number)
            run_claimed(store, claim, task, place, keeper)
        _say(channel, done=number)


def found(store: Store, settings: WorkerSettings, place: Workplace) -> Claim | None:
    """A trial that waits, where the driver is another process; None if there was none for a while."""
    try:
        store.announce(place.worker, offers(place.gpus))
        # The announcement is an idle worker's sign of life: the next must come well within the lease.
        claim = store.claim(
            place.worker, gpus=place.gpus, wait_seconds=min(POLL_SECONDS, settings.lease_seconds / 3)
        )
        if claim is None:
            return None
        # A claim that nobody runs, because the store went away meanwhile, would count as a worker's death.
        record = Delivery(f"trial {claim.number}").make(store.record)
        if record.snapshot == settings.snapshot and record.notes.get(TERMS_NOTE) is not None:
            return claim
        # While this worker waited, the driver has left, or come back with other code.
        store.release(claim)
    except ClaimLost:
        pass
    except StoreError as error:
        complain(f"{error}; trying again")
        time.sleep(STORE_RETRY_SECONDS)
    return None


def offers(gpus: tuple[str, ...]) -> dict[str, Any]:
    """What a worker says of itself. ``started_by``: the process that sees to it."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "gpus": list(gpus),
        "started_by": worker_name(os.getppid()),
    }


def _say(channel: socket.socket, **message: object) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
