"""The keeper: a small process beside every worker that no busy interpreter can hold up.

It renews the claim of the trial that the worker is busy with, ends a trial that passes its time-out, and
kills the worker when the driver is gone. A thread could do none of that while the objective holds the GIL.

    worker  --stdin: one JSON line when a trial starts and when it ends-->  keeper
    driver  --lifeline: a pipe nobody writes to; it closes when the driver dies-->  keeper

``Keeper`` is the worker's end, ``main`` the process.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpo.core.errors import ClaimLost, StoreError
from hpo.core.files import LOG
from hpo.core.trial import Claim, Failed, Kind
from hpo.stores import Store, connect

STORE_RETRY_SECONDS = 1.0
IDLE: dict[str, Any] = {"claim": None}


class Keeper:
    """Starts the process, and starts it again, with what it was told last, as soon as it has died.

    Args: lease_seconds: the claim is renewed at a third of it; timeout_seconds: how long one attempt
    may take, None for ever; lifeline: a file descriptor that reads end-of-file when the driver is gone.
    """

    def __init__(
        self,
        store_url: str,
        study: str,
        *,
        lease_seconds: float,
        timeout_seconds: float | None = None,
        lifeline: int | None = None,
    ) -> None:
        self._settings = {
            "store": store_url,
            "study": study,
            "lease_seconds": lease_seconds,
            "worker": os.getpid(),
            "lifeline": lifeline,
        }
        self._timeout_seconds = timeout_seconds
        self._lifeline = lifeline
        self._last = IDLE
        self._is_closed = False
        self._lock = threading.Lock()
        self._process = self._start()
        self._guard = threading.Thread(target=self._replace_when_killed, name="hpo-keeper", daemon=True)
        self._guard.start()

    def watch(self, claim: Claim, log: Path, *, is_timed: bool = True) -> None:
        """Keep this claim alive from now on. ``log``: what the trial prints, kept if it passes its time-out;
        not ``is_timed``: from now on it may take its time."""
        seconds = self._timeout_seconds if is_timed else None
        # The monotonic clock is the machine's: a keeper that is started later reads the same.
        deadline = None if seconds is None else time.monotonic() + seconds
        self._tell({"claim": asdict(claim), "log": str(log), "seconds": seconds, "deadline": deadline})

    def rest(self) -> None:
        """The trial has ended."""
        self._tell(IDLE)

    def close(self) -> None:
        """The process ends when its standard input does."""
        with self._lock:
            self._is_closed = True
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._guard.join()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hpo.keeper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=() if self._lifeline is None else (self._lifeline,),
        )
        _write(process, self._settings)
        _write(process, self._last)
        return process

    def _replace_when_killed(self) -> None:
        while True:
            self._process.wait()
            with self._lock:
                if self._is_closed:
                    return
                self._process = self._start()

    def _tell(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._last = message
            _write(self._process, message)


def _write(process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # it was killed: its successor is told
        process.stdin.write(json.dumps(message).encode() + b"\n")
        process.stdin.flush()


def main() -> None:
    """Serve one worker until it, or the driver, is gone."""
    # The terminal's Ctrl-C is the driver's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stdin = _Lines(sys.stdin.fileno())
    lines = stdin.read()
    while lines == []:
        lines = stdin.read()
    if lines is None:
        return
    settings = json.loads(lines.pop(0))
    worker, lifeline = settings["worker"], settings["lifeline"]
    # Opened where it is used: a server that is away for now must not end the keeper.
    store = functools.cache(lambda: connect(settings["store"]).open(settings["study"]))
    beat_seconds = settings["lease_seconds"] / 3  # one lost heartbeat must not cost a trial
    claim: Claim | None = None
    message = IDLE
    beat_at = deadline = float("inf")
    while True:
        for line in lines:
            message = json.loads(line)
            claim = None if message["claim"] is None else Claim(**message["claim"])
            beat_at = time.monotonic() + beat_seconds
            deadline = message.get("deadline") or float("inf")
        lines = []
        wait = None if claim is None else max(0.0, min(beat_at, deadline) - time.monotonic())
        readable, _, _ = select.select([stdin] if lifeline is None else [stdin, lifeline], [], [], wait)
        if lifeline in readable:
            _kill(worker)
            return
        if stdin in readable:
            if (more := stdin.read()) is None:  # the worker is gone
                return
            lines = more
        elif claim is not None and time.monotonic() >= deadline:
            _time_out(store, claim, message["seconds"], Path(message["log"]))
            _kill(worker)
            claim = None
        elif claim is not None:
            try:
                store().renew(claim)
                beat_at = time.monotonic() + beat_seconds
            except ClaimLost:  # the worker learns it at its next report
                claim = None
            except StoreError:
                beat_at = time.monotonic() + min(STORE_RETRY_SECONDS, beat_seconds)


def _time_out(opened: Callable[[], Store], claim: Claim, seconds: float, log: Path) -> None:
    # The worker may have been quicker; and if the store fails, the driver will see a death.
    with contextlib.suppress(ClaimLost, StoreError):
        store = opened()
        with contextlib.suppress(OSError):
            store.put_files({LOG: log}, claim.number, claim=claim)
        store.finish(claim, Failed(Kind.TIMEOUT, f"no result within {seconds:g} s (--trial-timeout)"))


def _kill(worker: int) -> None:
    """Kill the worker and, where it leads a process group, all that it started (this process, too)."""
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(worker) == worker:
            os.killpg(worker, signal.SIGKILL)
        else:
            os.kill(worker, signal.SIGKILL)


class _Lines:
    """Lines from a file descriptor that ``select`` can watch."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> list[bytes] | None:
        """The lines complete by now; None at the end."""
        data = os.read(self._descriptor, 1 << 16)
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines


if __name__ == "__main__":
    main()
