"""The keeper: a small process beside every worker that no busy interpreter can hold up.

It renews the claim of the trial that the worker is busy with, ends a trial that passes its time-out, and
kills the worker when the driver is gone. A thread could do none of that while the objective holds the GIL.

    worker  --stdin: one JSON line when a trial starts and when it ends-->  keeper
    driver  --lifeline: a pipe nobody writes to; it closes when the driver dies-->  keeper

``Keeper`` is the worker's end, ``main`` the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from hpo.core.errors import ClaimLost, StoreError
from hpo.core.trial import Claim, Failed, Kind
from hpo.stores import Store, connect

STORE_RETRY_SECONDS = 1.0


class Keeper:
    """Starts the process, and starts it again if it has died.

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
            "timeout_seconds": timeout_seconds,
            "worker": os.getpid(),
            "lifeline": lifeline,
        }
        self._process = self._start()

    @contextlib.contextmanager
    def watching(self, claim: Claim, log: Path) -> Iterator[None]:
        """Keep this claim alive meanwhile. ``log``: what the trial prints, kept if it passes its time-out."""
        self._tell({"claim": asdict(claim), "log": str(log)})
        try:
            yield
        finally:
            self._tell({"claim": None, "log": None})

    def close(self) -> None:
        """The process ends when its standard input does."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        self._process.wait()

    @property
    def _stdin(self):  # type: ignore[no-untyped-def]  # IO[bytes], which Popen declares optional
        return self._process.stdin

    def _start(self) -> subprocess.Popen[bytes]:
        lifeline = self._settings["lifeline"]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hpo.keeper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=() if lifeline is None else (lifeline,),  # type: ignore[arg-type]
        )
        assert process.stdin is not None
        _write(process.stdin, self._settings)
        return process

    def _tell(self, message: dict[str, object]) -> None:
        try:
            _write(self._stdin, message)
        except OSError:  # somebody killed it
            self._process.wait()
            self._process = self._start()
            _write(self._stdin, message)


def _write(stream, message: dict[str, object]) -> None:  # type: ignore[no-untyped-def]
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def main() -> None:
    """Serve one worker until it, or the driver, is gone."""
    # The terminal's Ctrl-C is the driver's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stdin = _Lines(sys.stdin.fileno())
    settings = json.loads(stdin.wait_for_one())
    worker, lifeline = settings["worker"], settings["lifeline"]
    store = connect(settings["store"]).open(settings["study"])
    beat_seconds = settings["lease_seconds"] / 3  # one lost heartbeat must not cost a trial
    claim: Claim | None = None
    log = Path()
    beat_at = deadline = float("inf")
    while True:
        now = time.monotonic()
        wait = None if claim is None else max(0.0, min(beat_at, deadline) - now)
        readable, _, _ = select.select([stdin] if lifeline is None else [stdin, lifeline], [], [], wait)
        if lifeline in readable:
            _kill(worker)
            return
        if stdin in readable:
            lines = stdin.read()
            if lines is None:  # the worker is gone
                return
            for line in lines:
                message = json.loads(line)
                claim = None if message["claim"] is None else Claim(**message["claim"])
                log = Path(message["log"] or "")
                now = time.monotonic()
                beat_at = now + beat_seconds
                deadline = now + (settings["timeout_seconds"] or float("inf"))
        elif claim is not None and time.monotonic() >= deadline:
            _time_out(store, claim, settings["timeout_seconds"], log)
            _kill(worker)
            claim = None
        elif claim is not None:
            try:
                store.renew(claim)
                beat_at = time.monotonic() + beat_seconds
            except ClaimLost:  # the worker learns it at its next report
                claim = None
            except StoreError:
                beat_at = time.monotonic() + min(STORE_RETRY_SECONDS, beat_seconds)


def _time_out(store: Store, claim: Claim, seconds: float, log: Path) -> None:
    # The worker may have been quicker; and if the store fails, the driver will see a death.
    with contextlib.suppress(ClaimLost, StoreError):
        with contextlib.suppress(OSError):
            store.put_file("log.txt", log, claim.number)
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

    def wait_for_one(self) -> bytes:
        lines = self.read()
        while lines == []:
            lines = self.read()
        if lines is None:
            raise SystemExit
        return lines[0]


if __name__ == "__main__":
    main()
