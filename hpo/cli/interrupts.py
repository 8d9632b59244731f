"""What signals ask of a study, before it runs and while it does."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from hpo.core.errors import ExitCode


class Interrupts:
    """Before and after the study runs, a signal ends the command. While it runs (`gently`), the first Ctrl-C
    drains, the second cancels, the third leaves at once; SIGTERM and SIGHUP cancel.
    """

    def __init__(self) -> None:
        self._say: Callable[[str], None] | None = None
        self._patience = 1
        self._then = ""
        self._ctrl_c = 0
        self._ended_by: signal.Signals | None = None

    def __enter__(self) -> Interrupts:
        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # In another thread than the main one (a notebook's widget) Python takes none: they stay as they are.
        is_main = threading.current_thread() is threading.main_thread()
        self._before = {number: signal.signal(number, self._on_signal) for number in handled if is_main}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def gently(
        self,
        say: Callable[[str], None],
        patience: int = 3,
        then: str = "they run again when you continue",
    ) -> Iterator[None]:
        """Meanwhile signals only leave a wish. ``patience``: the Ctrl-C that raises KeyboardInterrupt all the
        same; say: tells the person what happens now; then: what becomes of trials that are stopped.
        """
        self._say, self._patience, self._then = say, patience, then
        try:
            yield
        finally:
            self._say = None

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Meanwhile, within `gently`, a signal ends the command all the same: nothing runs yet."""
        say, self._say = self._say, None
        try:
            yield
        finally:
            self._say = say

    def is_drain(self) -> bool:
        return self._ctrl_c == 1

    def is_cancel(self) -> bool:
        return self._ctrl_c >= 2 or self._ended_by is not None

    @property
    def exit_code(self) -> int:
        """128 + n as shells do; 75 for SIGTERM, by which machines are taken back."""
        if self._ended_by is signal.SIGTERM:
            return ExitCode.PREEMPTED
        return 128 + (self._ended_by or signal.SIGINT)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            self._ended_by = signal.Signals(number)
            if self._say is None:
                raise KeyboardInterrupt
            self._say(f"{self._ended_by.name}: stopping the running trials; {self._then}")
            return
        self._ctrl_c += 1
        if self._say is None or self._ctrl_c >= self._patience:
            raise KeyboardInterrupt
        if self._ctrl_c == 1:
            self._say("letting the running trials end; Ctrl-C again stops them now")
        else:
            self._say(f"stopping the running trials; {self._then}")
