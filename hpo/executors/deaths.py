"""Why a process ended: its exit code, a signal, or the kernel for want of memory."""

from __future__ import annotations

import signal
from pathlib import Path

from hpo.core.trial import Failed, Kind
from hpo.executors.protocol import Died
from hpo.stores import Store
from hpo.worker import keep_log


def mourn(store: Store, died: Died, work_folder: Path, retries: int) -> None:
    """Tell the study of a worker's death: its trial is offered again, or failed after so many ``retries``."""
    worker = died.worker
    if died.number is not None:
        # What a trial printed is kept before it ends: what watches takes its files then.
        trial = keep_log(store, died.number, work_folder)
        worker = worker or trial.worker
    if worker is not None:
        store.lose(worker, died.failure, retries)


def explain(returncode: int, was_oom: bool) -> Failed:
    """The failure of a trial whose worker ended with this code (negative: a signal, as in subprocess)."""
    if returncode >= 0:
        return Failed(Kind.EXIT_CODE, f"the worker process ended by itself with exit code {returncode}")
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    if was_oom and returncode == -signal.SIGKILL:
        return Failed(Kind.OUT_OF_MEMORY, "the kernel killed the worker process: out of memory")
    return Failed(Kind.SIGNAL, f"the worker process was killed by {name} (signal {-returncode})")


class OomCounter:
    """Whether the kernel killed a process for memory: SIGKILL by hand looks the same, the cgroup tells.

    `look` now and then: a process may be moved to another group, and a dead one's group can't be asked for
    (version 1 says the root). Without cgroups the answer is no.
    """

    def __init__(self, pid: int, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        self._pid = pid
        self._proc = proc
        self._cgroups = cgroups
        self._before: dict[Path, int] = {}
        self.look()

    def look(self) -> None:
        """Remember the groups the process is in, and their counters when first seen."""
        for path in self._files():
            if path not in self._before:
                self._before[path] = _count(path)

    def forget(self) -> None:
        """What the counters say now is another process's death."""
        self._before = {path: _count(path) for path in self._before}

    def has_killed(self) -> bool:
        """Whether a counter has moved. Ask before the process is reaped."""
        # In a group that was not seen before, the process is the newcomer: it counts from zero.
        groups = dict.fromkeys(self._files(), 0) | self._before
        return any(_count(path) > before for path, before in groups.items())

    def _files(self) -> list[Path]:
        """The files that count kills in the process's groups: of version 2, and of version 1's memory."""
        try:
            lines = (self._proc / str(self._pid) / "cgroup").read_text().splitlines()
        except OSError:
            return []
        files = []
        for line in lines:
            _, controllers, group = line.split(":", 2)
            group = group.lstrip("/")
            if not controllers:
                files += [self._cgroups / top / group / "memory.events" for top in ("", "unified")]
            elif "memory" in controllers.split(","):
                files.append(self._cgroups / "memory" / group / "memory.oom_control")
        return [path for path in files if path.exists()]


def _count(path: Path) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
