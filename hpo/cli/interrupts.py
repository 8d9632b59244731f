"""What signals ask of a running study."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

PREEMPTED = 75  # EX_TEMPFAIL: run the command again


class Interrupts:
    """First Ctrl-C drains, the second cancels, the third leaves at once. SIGTERM and SIGHUP cancel.

    Args: say: tells the person what happens now; patience: the Ctrl-C that raises KeyboardInterrupt.
    """

    def __init__(self, say: Callable[[str], None], patience: int = 3) -> None:
        self._say = say
        self._patience = patience
        self._ctrl_c = 0
        self._ended_by: signal.Signals | None = None

    def __enter__(self) -> Interrupts:
        handled = {signal.SIGINT: self._on_ctrl_c, signal.SIGTERM: self._on_end, signal.SIGHUP: self._on_end}
        self._before = {number: signal.signal(number, handler) for number, handler in handled.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def is_drain(self) -> bool:
        return self._ctrl_c == 1

    def is_cancel(self) -> bool:
        return self._ctrl_c >= 2 or self._ended_by is not None

    @property
    def exit_code(self) -> int:
        """128 + n as shells do; 75 for SIGTERM, by which machines are taken back."""
        if self._ended_by is signal.SIGTERM:
            return PREEMPTED
        return 128 + (self._ended_by or signal.SIGINT)

    def _on_ctrl_c(self, number: int, frame: FrameType | None) -> None:
        self._ctrl_c += 1
        if self._ctrl_c >= self._patience:
            raise KeyboardInterrupt
        if self._ctrl_c == 1:
            self._say("finishing the running trials; Ctrl-C again hands them back at once")
        else:
            self._say("handing the running trials back; Ctrl-C again leaves at once")

    def _on_end(self, number: int, frame: FrameType | None) -> None:
        self._ended_by = signal.Signals(number)
        self._say(f"{self._ended_by.name}: handing the running trials back")
